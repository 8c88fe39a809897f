"""Olive's quantizers on tiny models: their integers unpacked, and kept up to the graph."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from olive.common.quant.nn import QuantLinear
from olive.model import HfModelHandler
from onnx import numpy_helper
from peft import LoraConfig, get_peft_model
from samples import CPU
from transformers import AutoModelForCausalLM

import labkit
from labkit.errors import LabError
from labkit.packed import PackedLayers
from labkit.passes.builder import _kept
from labkit.passes.chat_data import lab_calibration
from labkit.session import Lab

LAYER = "model.layers.{}.mlp.{}"
EIGHT = LAYER.format(1, "down_proj")


def run(workflow: dict, out: Path) -> Path:
    import olive

    places = {"output_dir": str(out), "cache_dir": str(out.with_name(f"cache-{out.name}"))}
    assert olive.run(workflow | places, package_config=labkit.olive_passes()).has_output_model()
    return out


def quantized(name: str, tiny: Path, out: Path, **settings) -> Path:
    calibration = out.with_name("calibration.jsonl")
    rows = torch.randint(0, 256, (4, 40), generator=torch.Generator().manual_seed(1)).tolist()
    rows += [[1, 2, 3]]  # records are of different lengths
    calibration.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    recipe = Lab("13", CPU).workflow("quantizers", model=tiny, calibration=calibration)
    recipe["passes"] = {name: recipe["passes"][name] | settings}
    return run(recipe, out) / "model"


@pytest.fixture(params=["rtn", "gptq", "kquant"])
def packed(request, tiny, tmp_path, runs):
    """A checkpoint that a pass of Olive has quantized, one layer with 8 bits."""
    overrides = {EIGHT: {"bits": 8}}
    return quantized(request.param, tiny, tmp_path / "packed", overrides=overrides)


def test_unpacked_weights_are_those_of_olive_s_own_layers(packed, tmp_path):
    labkit.unpack_olive(packed, tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    theirs = HfModelHandler(model_path=str(packed)).load_model()
    for name, layer in theirs.named_modules():
        if isinstance(layer, QuantLinear):
            wanted = layer.unpack_and_dequantize(layer.qweight, layer.scales, layer.qzeros)
            torch.testing.assert_close(
                dense.get_submodule(name).weight, wanted, rtol=1e-3, atol=1e-4
            )
    layers = PackedLayers(packed)
    assert {layers.bits(name) for name in layers.names if name != EIGHT} == {4}
    assert (
        layers.grid(EIGHT).integers.max() > 15 >= layers.grid(LAYER.format(0, "up_proj"))[0].max()
    )


def graph_of(packed: Path, tmp_path: Path, adapter: Path | None = None) -> Path:
    labkit.unpack_olive(packed, tmp_path / "dense")
    places = {"model": tmp_path / "dense", "adapter": adapter}
    recipe = Lab("13", CPU).workflow("optimize", tied=False, **places)
    if not adapter:
        del recipe["passes"]["extract"]
    recipe["passes"]["capture"]["integers"] = str(packed)
    return run(recipe, tmp_path / "onnx")


def assert_same_integers(folder: Path, packed: Path) -> None:
    graph, layers = onnx.load(folder / "model.onnx").graph, PackedLayers(packed)
    weights = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    nodes = [n for n in graph.node if n.op_type == "MatMulNBits" and "/layers." in n.name]
    assert len(nodes) == 4 * 2
    for node in nodes:
        bits = next(one.i for one in node.attribute if one.name == "bits")
        grid, wanted = layers.behind(node.name)
        assert bits == wanted == (8 if "layers.1/mlp/down" in node.name else 4)
        found = weights[node.input[1]]
        if bits == 4:
            found = np.stack([found & 15, found >> 4], -1).reshape(*found.shape[:2], -1)
        assert np.array_equal(found, grid.integers.numpy())


IDS = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(2)).tolist()


def test_the_graph_holds_the_very_integers(packed, tmp_path, runs):
    out = graph_of(packed, tmp_path)
    assert_same_integers(out, packed)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32).eval()
    difference = labkit.OnnxLogits(out)(IDS) - labkit.torch_logits(dense)(IDS)
    assert difference.abs().max() < 0.2  # activations in 8 bits, and the head


def test_an_adapter_stands_beside_the_very_integers(tiny, tmp_path, runs):
    packed = quantized("kquant", tiny, tmp_path / "packed", overrides={EIGHT: {"bits": 8}})
    labkit.unpack_olive(packed, tmp_path / "first")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "first", dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=40, target_modules=["q_proj"], init_lora_weights=False)
    tuned = get_peft_model(dense, lora).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    out = graph_of(packed, tmp_path, tmp_path / "adapter")
    assert_same_integers(out, packed)
    plain = labkit.OnnxLogits(out)
    adapted = plain.using(out / "adapter_weights.onnx_adapter")
    wanted = labkit.torch_logits(tuned)(IDS)
    near, far = ((one(IDS) - wanted).abs().max() for one in (adapted, plain))
    assert near < 0.2 and near < far / 3


def test_integers_of_another_model_are_refused(tiny, tmp_path, runs):
    layers = PackedLayers(quantized("rtn", tiny, tmp_path / "packed"))
    node, name = "/model/layers.0/mlp/down_proj/MatMul", LAYER.format(0, "down_proj")
    weight = layers.grid(name).values()
    assert _kept(layers, node, weight.half()).bits == 4
    with pytest.raises(LabError, match="are not those of the model: .* differ by 3%"):
        _kept(layers, node, weight * 1.03)


def test_joined_layers_of_4_and_8_bits_have_8_and_the_same_values(tiny, tmp_path, runs):
    overrides = {LAYER.format(0, "up_proj"): {"bits": 8}}
    layers = PackedLayers(quantized("rtn", tiny, tmp_path / "packed", overrides=overrides))
    grid, bits = layers.behind("/model/layers.0/mlp/gate_up_proj/MatMul")
    parts = [layers.grid(LAYER.format(0, name)).values() for name in ("gate_proj", "up_proj")]
    assert bits == 8 and torch.equal(grid.values(), torch.cat(parts))


def test_a_symmetric_grid_has_its_zero_in_the_middle(tiny, tmp_path, runs):
    layers = PackedLayers(quantized("rtn", tiny, tmp_path / "packed", sym=True))
    assert (layers.grid(layers.names[0]).zeros == 8).all()


def test_what_is_no_packed_checkpoint_is_said(tiny, tmp_path, runs):
    with pytest.raises(LabError, match="holds no packed integers"):
        PackedLayers(tiny)
    folder = quantized("rtn", tiny, tmp_path / "packed")
    layers = PackedLayers(folder)
    del layers.tensors[f"{EIGHT}.scales"]
    with pytest.raises(LabError, match="does not hold the whole model"):
        layers.grid(EIGHT)


def test_a_pass_of_olive_calibrates_on_the_very_ids(tmp_path):
    rows = [[5, 6, 7], [8]]
    path = tmp_path / "calibration.jsonl"
    path.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    found = [one for one, _ in lab_calibration(path=str(path))]
    assert [one["input_ids"].tolist() for one in found] == rows
    assert [one["attention_mask"].tolist() for one in found] == [[1, 1, 1], [1]]
