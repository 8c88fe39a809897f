"""An adapter file for a graph: right, or refused."""

import json

import onnx
import pytest
import torch
from graphs import weights_in
from onnx import TensorProto, helper
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from labkit.errors import LabError
from labkit.passes.adapters import write_adapter

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
