"""Lab 04's workflow, whole, on tiny models."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graphs import assert_valid, weights_in
from peft import LoraConfig, get_peft_model
from samples import CPU, qa
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

import labkit
from labkit.progress import Progress
from labkit.session import Lab

SIZES = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "eos_token_id": 256,
    "pad_token_id": 256,
    "bos_token_id": 256,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


def optimized(workflow: dict, out: Path) -> Path:
    import olive

    places = {"output_dir": str(out), "cache_dir": str(out.with_name("cache"))}
    assert olive.run(workflow | places, package_config=labkit.olive_passes()).has_output_model()
    return out


def test_olive_knows_our_passes():
    from olive.package_config import OlivePackageConfig

    from labkit.passes.adapters import LoraExtractor
    from labkit.passes.awq import AwqQuantizer, GridQuantizer
    from labkit.passes.builder import LoraModelBuilder
    from labkit.passes.training import ReportedLoRA

    package = OlivePackageConfig.parse_file_or_obj(labkit.olive_passes())
    for kind in (AwqQuantizer, GridQuantizer, LoraModelBuilder, LoraExtractor):
        assert package.import_pass_module(kind.__name__) is kind
    assert package.import_pass_module("LoRA") is ReportedLoRA


def test_olive_reads_no_input_model_for_the_name_of_a_cache(tmp_path, monkeypatch):
    from olive.model import ModelConfig

    def read(*_, **__):
        pytest.fail("the file was read")

    labkit.olive_passes()
    monkeypatch.setattr("olive.common.utils.hash_io_stream", read)
    weights, names = tmp_path / "model.safetensors", set()
    weights.touch()
    for time in (1, 1, 2):
        os.utime(weights, ns=(time, time))
        model = ModelConfig.model_validate(
            {"type": "HfModel", "config": {"model_path": str(tmp_path)}}
        )
        names.add(model.get_model_id())
    assert len(names) == 2


# ---- with an adapter


def llama(**settings) -> LlamaForCausalLM:
    """A Llama with biases."""
    biases = {"attention_bias": True, "mlp_bias": True}
    config = SIZES | biases | {"num_key_value_heads": 2} | settings
    model = LlamaForCausalLM(LlamaConfig(**config))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def phi3(**settings) -> Phi3ForCausalLM:
    """A Phi-3, in which q, k and v are one layer, and gate and up are one."""
    config = SIZES | {"num_key_value_heads": 4, "original_max_position_embeddings": 256} | settings
    return Phi3ForCausalLM(Phi3Config(**config))


SOME = ("q_proj", "up_proj", "down_proj")
ROUTES = {
    "phi3": (phi3, {"tie_word_embeddings": False}, CPU.lora_targets, 4),
    "llama": (llama, {"tie_word_embeddings": False}, SOME, 3),
    "tied-llama": (llama, {"tie_word_embeddings": True}, SOME, 3),
}


@pytest.mark.parametrize("route", ROUTES)
def test_the_graph_is_valid_and_has_the_loss_of_the_model(route, byte_tokenizer, tmp_path, runs):
    """Every adapter is extracted; the graph has the model's loss with and without them."""
    make, settings, targets, joined = ROUTES[route]
    torch.manual_seed(0)
    folder = tmp_path / "model"
    make(**settings).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    lora = LoraConfig(r=4, lora_alpha=200, target_modules=list(targets), init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora).eval()
    model.save_pretrained(tmp_path / "adapter")
    workflow = Lab("04", CPU).workflow(
        "optimize",
        model=str(folder),
        adapter=str(tmp_path / "adapter"),
        tied=settings["tie_word_embeddings"],
    )
    with Progress() as progress:
        onnx_dir = optimized(workflow, tmp_path / "onnx")
    assert str(progress.stage) == "2 of 2 layers"
    assert_valid(onnx_dir / "model.onnx")
    genai = json.loads((onnx_dir / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["session_options"]["intra_op_num_threads"] == 0  # all cores
    adapter = onnx_dir / "adapter_weights.onnx_adapter"
    # layers, linears (q, k, v and gate, up joined), A and B
    assert len(weights_in(adapter)) == 2 * joined * 2

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def losses(logits) -> np.ndarray:
        return np.array(labkit.record_losses(logits, tokenizer, [qa(1)])[0])

    tuned = losses(labkit.torch_logits(model))
    with model.disable_adapter():
        plain = losses(labkit.torch_logits(model))
    step = np.linalg.norm(tuned - plain)
    assert step > 1
    baked = tmp_path / "baked"
    labkit.bake_adapter(baked, adapter, model=onnx_dir)
    assert_valid(baked / "model.onnx")
    assert not list(baked.glob("*.onnx_adapter")) and (baked / "genai_config.json").exists()
    beside = losses(labkit.OnnxLogits(onnx_dir, adapter=adapter))
    np.testing.assert_allclose(losses(labkit.OnnxLogits(baked)), beside, rtol=1e-4)
    for found, wanted in ((losses(labkit.OnnxLogits(onnx_dir)), plain), (beside, tuned)):
        assert np.linalg.norm(found - wanted) < 0.35 * step  # 4 bits are coarse for random weights


def test_directml_gets_q_and_k_rotated_and_the_adapter_in_float(byte_tokenizer, tmp_path, runs):
    """(Read on the CPU.)"""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    llama(tie_word_embeddings=True).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    lora = LoraConfig(r=4, lora_alpha=200, target_modules=list(SOME), init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora).eval()
    model.save_pretrained(tmp_path / "adapter")
    places = {"model": str(folder), "adapter": str(tmp_path / "adapter"), "tied": True}
    workflow = Lab("04", CPU).workflow("optimize", provider="DmlExecutionProvider", **places)
    workflow["systems"]["local_system"]["accelerators"][0]["device"] = "gpu"
    onnx_dir = optimized(workflow, tmp_path / "onnx")
    graph = onnx.load(onnx_dir / "model.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("RotaryEmbedding") == 2 * 2 and kinds.count("GroupQueryAttention") == 2
    adapter = onnx_dir / "adapter_weights.onnx_adapter"
    assert len(weights_in(adapter)) == 2 * len(SOME) * 2

    def losses(logits) -> np.ndarray:
        return np.array(labkit.record_losses(logits, byte_tokenizer, [qa(1)])[0])

    tuned = losses(labkit.torch_logits(model))
    with model.disable_adapter():
        plain = losses(labkit.torch_logits(model))
    step = np.linalg.norm(tuned - plain)
    shipped = labkit.OnnxLogits(onnx_dir)
    for found, wanted in ((losses(shipped), plain), (losses(shipped.using(adapter)), tuned)):
        assert np.linalg.norm(found - wanted) < 0.35 * step


# ---- long texts


@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_longrope_takes_its_table_by_length(provider, byte_tokenizer, tmp_path, runs):
    """The graph for CUDA, which has no If that a CUDA graph could not hold, computes the same.

    (Here on the CPU.)
    """
    torch.manual_seed(0)
    scaling = {
        "type": "longrope",
        "long_factor": [float(8 + i) for i in range(8)],
        "short_factor": [1 + i / 8 for i in range(8)],
    }
    folder = tmp_path / "phi3"
    phi3(
        rope_scaling=scaling, original_max_position_embeddings=16, max_position_embeddings=64
    ).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_scaling": scaling, "rope_theta": 10000.0, "rope_parameters": None}
    (folder / "config.json").write_text(json.dumps(config))
    cuda = provider.startswith("CUDA")
    workflow = Lab("04", CPU).workflow(
        "optimize", provider=provider, model=str(folder), adapter="", tied=True
    )
    del workflow["input_model"]["adapter_path"]
    workflow["passes"] = {
        "capture": {
            "type": "LoraModelBuilder",
            "precision": "fp16" if cuda else "fp32",
            "extra_options": {"hf_remote": False} | ({"enable_cuda_graph": True} if cuda else {}),
        }
    }
    out = optimized(workflow, tmp_path / "onnx")
    assert_valid(out / "model.onnx")
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    kinds = {node.op_type for node in graph.node}
    assert ("If" in kinds, "Where" in kinds) == (not cuda, cuda)
    assert ('"enable_cuda_graph": "1"' in (out / "genai_config.json").read_text()) == cuda
    logits = labkit.OnnxLogits(out)
    wanted_logits = labkit.torch_logits(AutoModelForCausalLM.from_pretrained(folder))
    ids = torch.randint(0, 256, (40,)).tolist()
    for count in (10, 16, 17, 40):
        wanted = wanted_logits([ids[:count]])
        assert (logits([ids[:count]]).float() - wanted).norm() < 0.01 * wanted.norm(), count
