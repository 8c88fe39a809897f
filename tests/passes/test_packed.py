"""Olive's quantizers on tiny models: their integers unpacked, and kept up to the graph."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from olive.common.quant.nn import QuantLinear
from olive.model import HfModelHandler
from onnx import numpy_helper
from samples import CPU
from transformers import AutoModelForCausalLM

import labkit
from labkit.errors import LabError
from labkit.packed import PackedLayers
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


def test_the_graph_holds_the_very_integers_with_an_adapter_or_without(packed, tmp_path, runs):
    labkit.unpack_olive(packed, tmp_path / "dense")
    recipe = Lab("13", CPU).workflow(
        "optimize", model=tmp_path / "dense", adapter=None, tied=False
    )
    del recipe["passes"]["extract"]
    recipe["passes"]["capture"]["integers"] = str(packed)
    out, layers = run(recipe, tmp_path / "onnx"), PackedLayers(packed)
    graph = onnx.load(out / "model.onnx").graph
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
    ids = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(2)).tolist()
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32).eval()
    difference = labkit.OnnxLogits(out)(ids) - labkit.torch_logits(dense)(ids)
    assert difference.abs().max() < 0.2  # activations in 8 bits, and the head


def test_integers_of_another_model_are_refused(tiny, tmp_path, runs):
    folder = quantized("rtn", tiny, tmp_path / "packed")
    recipe = Lab("13", CPU).workflow("optimize", model=tiny, adapter=None, tied=False)
    del recipe["passes"]["extract"]
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    torch.nn.init.normal_(model.model.layers[1].mlp.up_proj.weight)
    model.save_pretrained(tmp_path / "other")
    labkit.carry_settings(tiny, tmp_path / "other")
    labkit.load_tokenizer(tiny).save_pretrained(tmp_path / "other")
    recipe["input_model"]["model_path"] = str(tmp_path / "other")
    recipe["passes"]["capture"]["integers"] = str(changed)
    with pytest.raises(AssertionError):
        run(recipe, tmp_path / "onnx")


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
