"""An adapter file for a graph: right, or refused."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from graphs import assert_valid, weights_in
from onnx import TensorProto, helper
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from labkit.errors import LabError
from labkit.passes.adapters import bake_adapter, write_adapter

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
JOINED = ("attn.qkv_proj", "attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


@pytest.fixture
def adapter(tmp_path, tiny):
    """Saves an adapter with such settings, and *change* of its parameters; returns its folder."""

    def make(change=lambda name, weight: None, **settings):
        settings = {"r": 2, "target_modules": ALL, "init_lora_weights": False} | settings
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(**settings))
        for name, weight in model.named_parameters():
            change(name, weight.data)
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return make


@pytest.fixture
def graph(tmp_path, tiny):
    """Writes a graph that has the inputs of an adapter on *layers*, and nothing else."""
    depth = json.loads((tiny / "config.json").read_text())["num_hidden_layers"]

    def make(layers=JOINED, kind=TensorProto.FLOAT):
        names = [
            f"model.layers.{number}.{layer}.lora_{side}.MatMul.weight"
            for number in range(depth)
            for layer in layers
            for side in "AB"
        ]
        inputs = [helper.make_tensor_value_info(name, kind, ["in", "out"]) for name in names]
        path = tmp_path / "model.onnx"
        onnx.save(helper.make_model(helper.make_graph([], "adapter", inputs, [])), path)
        return path

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"modules_to_save": ["norm"]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": [*ALL, "lm_head"]},
        {"target_modules": [*ALL, "embed_tokens"]},
        {"trainable_token_indices": [1, 2]},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_what_a_graph_cannot_carry_is_refused(settings, adapter, graph, tiny, tmp_path):
    out = tmp_path / "out.onnx_adapter"
    with pytest.raises(LabError, match="changes more than the inputs of a graph can carry"):
        write_adapter(out, adapter(**settings), graph=graph(), model_dir=tiny)
    assert not out.exists()


def test_an_adapter_on_a_part_of_a_joined_layer(adapter, graph, tiny, tmp_path):
    out = tmp_path / "out.onnx_adapter"
    folder = adapter(target_modules=["q_proj", "v_proj"], lora_alpha=8)
    write_adapter(out, folder, graph=graph(["attn.qkv_proj"]), model_dir=tiny)
    found, base = weights_in(out), AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    layer = PeftModel.from_pretrained(base, folder).base_model.model.model.layers[0].self_attn
    added = [
        4 * (part.lora_B.default.weight @ part.lora_A.default.weight)
        if hasattr(part, "lora_A")
        else torch.zeros_like(part.weight)
        for part in (layer.q_proj, layer.k_proj, layer.v_proj)
    ]
    down, up = (found[f"model.layers.0.attn.qkv_proj.lora_{side}.MatMul.weight"] for side in "AB")
    torch.testing.assert_close(torch.from_numpy((down @ up).T), torch.cat(added))


@pytest.mark.parametrize(
    ("value", "kind"), [(float("nan"), TensorProto.FLOAT), (1e5, TensorProto.FLOAT16)]
)
def test_values_that_the_graph_cannot_hold_are_refused(
    value, kind, adapter, graph, tiny, tmp_path
):
    def change(name, weight):
        if "layers.0.mlp.down_proj.lora_A" in name:
            weight[0, 0] = value

    folder = adapter(change)
    with pytest.raises(LabError, match=r"no numbers, or too large.*down_proj.lora_A"):
        write_adapter(tmp_path / "out", folder, graph=graph(kind=kind), model_dir=tiny)


@pytest.mark.parametrize("text", [b"junk", None])
def test_a_damaged_graph_is_named(text, adapter, graph, tiny, tmp_path):
    path = graph()
    path.write_bytes(text) if text else path.unlink()
    with pytest.raises(LabError, match=r"the graph .*model.onnx is missing or damaged"):
        write_adapter(tmp_path / "out", adapter(), graph=path, model_dir=tiny)


def test_a_damaged_configuration_is_named(adapter, graph, tiny, tmp_path):
    folder = adapter()
    (tmp_path / "none").mkdir()
    with pytest.raises(LabError, match=r"none has no configuration of a model"):
        write_adapter(tmp_path / "out", folder, graph=graph(), model_dir=tmp_path / "none")
    config = folder / "adapter_config.json"
    for text in ("{}", "[]", json.dumps(json.loads(config.read_text()) | {"lora_alpha": None})):
        config.write_text(text)
        with pytest.raises(LabError, match="is damaged or of another model"):
            write_adapter(tmp_path / "out", folder, graph=graph(), model_dir=tiny)


# ---- an adapter that is baked into its graph


@pytest.fixture
def model(tmp_path):
    """A folder with a graph that multiplies its input by an adapter's A and B, which are empty."""
    nodes = [
        helper.make_node("MatMul", ["x", f"{BASE}A.MatMul.weight"], ["low"], name="A"),
        helper.make_node("MatMul", ["low", f"{BASE}B.MatMul.weight"], ["y"], name="B"),
    ]
    shapes = {"A": ([4, 0], [4, "lora_r"]), "B": ([0, 3], ["lora_r", 3])}
    of = {side: f"{BASE}{side}.MatMul.weight" for side in shapes}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    inputs += [
        helper.make_tensor_value_info(of[side], TensorProto.FLOAT, named)
        for side, (_, named) in shapes.items()
    ]
    empty = [
        helper.make_tensor(of[side], TensorProto.FLOAT, sizes, [])
        for side, (sizes, _) in shapes.items()
    ]
    output = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
    low = [helper.make_tensor_value_info("low", TensorProto.FLOAT, ["n", "lora_r"])]
    graph = helper.make_graph(nodes, "lora", inputs, output, empty, value_info=low)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "onnx").mkdir()
    onnx.save(whole, tmp_path / "onnx" / "model.onnx")
    (tmp_path / "onnx" / "genai_config.json").write_text("{}")
    return tmp_path / "onnx"


BASE = "model.layers.0.attn.o_proj.lora_"


def adapter_file(path, **weights):
    file = ort.AdapterFormat()
    file.set_parameters(
        {
            f"{BASE}{side}.MatMul.weight": ort.OrtValue.ortvalue_from_numpy(value)
            for side, value in weights.items()
        }
    )
    file.export_adapter(str(path))
    return path


A, B = np.ones((4, 2), np.float32), np.full((2, 3), 2, np.float32)


def test_a_baked_adapter_is_constant(model, tmp_path):
    bake_adapter(tmp_path / "out", adapter_file(model / "a.onnx_adapter", A=A, B=B), model=model)
    assert_valid(tmp_path / "out" / "model.onnx")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.onnx",
        "genai_config.json",
    }
    session = ort.InferenceSession(tmp_path / "out" / "model.onnx")
    assert [one.name for one in session.get_inputs()] == ["x"]
    assert not session.get_overridable_initializers()
    assert session.run(None, {"x": np.ones((1, 4), np.float32)})[0].tolist() == [[16, 16, 16]]


@pytest.mark.parametrize(
    "weights",
    [
        {"A": A},  # one is missing
        {"A": A, "B": B, "C": B},  # the graph has no input for one
        {"A": A.T, "B": B},
        {"A": A[0], "B": B},
        {"A": A, "B": B * np.nan},
        {"A": A.astype(np.float16), "B": B},
    ],
)
def test_an_adapter_of_another_graph_is_not_baked(weights, model, tmp_path):
    file = adapter_file(tmp_path / "other.onnx_adapter", **weights)
    with pytest.raises(LabError, match="does not fit the graph"):
        bake_adapter(tmp_path / "out", file, model=model)
    assert not (tmp_path / "out").exists()


def test_a_damaged_adapter_is_not_baked(model, tmp_path):
    (tmp_path / "a.onnx_adapter").write_bytes(b"junk")
    for name in ("a.onnx_adapter", "none.onnx_adapter"):
        with pytest.raises(LabError, match=f"{name} is missing or damaged"):
            bake_adapter(tmp_path / "out", tmp_path / name, model=model)
