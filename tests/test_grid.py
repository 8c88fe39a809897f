"""The 4-bit grid: rounding, packing and the comparison of an ONNX model with a checkpoint."""

import json

import onnx
import pytest
import torch
from awq.quantize.quantizer import AwqQuantizer
from onnx import helper, numpy_helper
from safetensors.torch import save_file

import labkit
from labkit.errors import LabError
from labkit.grid import Grid, pack_awq, pack_onnx, round_to_grid, unpack_onnx


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_a_group_has_at_most_16_values_and_its_extremes_are_among_them():
    weight = random(5, 96)
    grid = round_to_grid(weight, 32)
    groups, values = weight.view(5, 3, 32), grid.values().view(5, 3, 32)
    assert max(len(group.unique()) for group in values.view(-1, 32)) <= 16
    assert grid.integers.amin() == 0 and grid.integers.amax() == 15
    assert ((values - groups).abs() <= 0.51 * grid.scales).all()


def test_a_symmetric_grid_begins_at_the_largest_weight_and_has_its_zero_in_the_middle():
    weight = random(5, 96)
    weight[0, :32] = 0
    grid = round_to_grid(weight, 32, symmetric=True)
    groups, values = weight.view(5, 3, 32), grid.values().view(5, 3, 32)
    assert (grid.zeros == 8).all() and not values[0, 0].any()
    at = groups.abs().argmax(-1, keepdim=True)[1:]
    assert (grid.integers[1:].gather(-1, at) == 0).all()
    inside = groups / grid.scales < 7.4  # the line after 7 is missing at the other end
    assert ((values - groups).abs() <= 0.51 * grid.scales.abs())[inside].all()


def test_rounding_is_that_of_autoawq():
    plain = object.__new__(AwqQuantizer)
    plain.w_bit, plain.group_size, plain.zero_point = 4, 32, True
    weight = random(64, 96)
    weight[:, ::37] *= 12
    wanted = plain.pseudo_quantize_tensor(weight.clone())[0]
    found = round_to_grid(weight, 32).values()
    # theirs keeps the scale in float32, ours has the half that is written: a few weights differ
    assert ((found - wanted).abs() <= 0.01 * wanted.abs().max()).float().mean() > 0.99


@pytest.mark.parametrize("count", [4, 3])
def test_the_first_of_two_numbers_is_in_the_lower_half_of_a_byte(count):
    numbers = torch.tensor([1.0, 15.0, 7.0, 2.0])[:count]
    packed = pack_onnx(numbers)
    assert packed.dtype == torch.uint8 and packed[0] == 0xF1
    assert torch.equal(unpack_onnx(packed)[:count], numbers)


# ---- the comparison

SHAPES = {"self_attn.q_proj": 16, "self_attn.k_proj": 8, "self_attn.v_proj": 8}
SHAPES |= {"mlp.down_proj": 16}


@pytest.fixture
def layers():
    """Layer -> grid of weights [out, 48], of one block."""
    return {name: round_to_grid(random(rows, 48), 16) for name, rows in SHAPES.items()}


def write_packed(layers: dict, folder):
    """A checkpoint as AutoAWQ packs it."""
    folder.mkdir()
    settings = {"quant_method": "awq", "bits": 4, "group_size": 16}
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    tensors = {"model.norm.weight": torch.ones(48)}
    for name, grid in layers.items():
        prefix = f"model.layers.0.{name}"
        tensors[f"{prefix}.qweight"] = pack_awq(grid.integers.flatten(-2))
        tensors[f"{prefix}.qzeros"] = pack_awq(grid.zeros.squeeze(-1))
        tensors[f"{prefix}.scales"] = grid.scales.squeeze(-1).T.half().contiguous()
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_onnx(nodes: dict, folder):
    """A graph with a MatMulNBits node, as the builder writes it, for each grid of *nodes*."""
    folder.mkdir()
    made, initializers = [], []
    for name, grid in nodes.items():
        scales = grid.scales.squeeze(-1)
        parts = (pack_onnx(grid.integers), scales, pack_onnx(grid.zeros.squeeze(-1)))
        inputs = [f"{name}.{part}" for part in ("weight", "scales", "zeros")]
        for part, tensor in zip(inputs, parts, strict=True):
            initializers.append(numpy_helper.from_array(tensor.numpy(), part))
        node = helper.make_node("MatMulNBits", ["x", *inputs], [f"{name}.y"], name=name)
        node.domain = "com.microsoft"
        made.append(node)
    graph = helper.make_graph(made, "one block", [], [], initializers)
    onnx.save(helper.make_model(graph), folder / "model.onnx")
    return folder


def nodes_of(layers: dict) -> dict:
    parts = [layers[f"self_attn.{part}_proj"] for part in "qkv"]
    return {
        "/model/layers.0/attn/qkv_proj/MatMulNBits": Grid(
            *map(torch.cat, zip(*parts, strict=True))
        ),
        "/model/layers.0/mlp/down_proj/MatMulNBits": layers["mlp.down_proj"],
        "/lm_head/MatMulNBits": round_to_grid(torch.ones(2, 48), 16),
    }


def test_a_model_on_the_same_grid_has_all_groups(layers, tmp_path):
    packed = write_packed(layers, tmp_path / "packed")
    found = labkit.compare_weights(write_onnx(nodes_of(layers), tmp_path / "onnx"), packed)
    assert found["share_of_weights"] == found["same_groups"] == 1
    assert found["worst_relative_error"] < 1e-3  # of the scale, which is a float16


def test_a_group_that_differs_is_counted_and_a_layer_that_lacks_is_missed(layers, tmp_path):
    onnx_dir = write_onnx(nodes_of(layers), tmp_path / "onnx")
    down = layers["mlp.down_proj"]
    norm = down.values().norm()
    number = down.integers[0, 0, 0]
    number += 1 if number < 15 else -1
    layers["mlp.up_proj"] = round_to_grid(random(48, 48), 16)
    found = labkit.compare_weights(onnx_dir, write_packed(layers, tmp_path / "packed"))
    assert found["share_of_weights"] == 0.5
    assert found["same_groups"] == 1 - 1 / 144
    moved = (down.scales[0, 0, 0] / norm).item()
    assert found["worst_relative_error"] == pytest.approx(moved, rel=0.02)


def test_other_integers_for_the_same_values_are_no_same_groups(layers, tmp_path):
    """The same weights on another grid, which a comparison of weights does not see."""
    onnx_dir = write_onnx(nodes_of(layers), tmp_path / "onnx")
    down = layers["mlp.down_proj"]
    layers["mlp.down_proj"] = Grid(15 - down.integers, -down.scales, 15 - down.zeros)
    found = labkit.compare_weights(onnx_dir, write_packed(layers, tmp_path / "packed"))
    assert found["worst_relative_error"] < 1e-3 and found["same_groups"] == pytest.approx(
        1 - 48 / 144
    )


def test_a_model_without_int4_layers_is_refused(layers, tmp_path):
    head = {"/lm_head/MatMulNBits": round_to_grid(torch.ones(2, 48), 16)}
    onnx_dir = write_onnx(head, tmp_path / "onnx")
    with pytest.raises(LabError, match="has no int4 layer"):
        labkit.compare_weights(onnx_dir, write_packed(layers, tmp_path / "packed"))
