"""Lab 04's workflow, whole, on tiny models."""

import json
from pathlib import Path

import pytest

import labkit
from labkit.profiles import PROFILES
from labkit.workspace import Lab

CPU = PROFILES["cpu"]


def test_olive_knows_our_passes():
    from olive.package_config import OlivePackageConfig

    from labkit.passes import olive_passes
    from labkit.passes.awq import AwqQuantizer
    from labkit.passes.builder import LoraModelBuilder

    package = OlivePackageConfig.parse_file_or_obj(olive_passes())
    assert package.import_pass_module("AwqQuantizer") is AwqQuantizer
    assert package.import_pass_module("LoraModelBuilder") is LoraModelBuilder


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def untied(architecture: str, folder: Path) -> Path:
    """A tiny model, embedding and head not tied: a Phi-3, whose q, k, v and gate, up are fused, or a Llama with biases."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    same = {
        "vocab_size": 257, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "tie_word_embeddings": False, "eos_token_id": 256, "pad_token_id": 256, "bos_token_id": 256,
        "max_position_embeddings": 256, "initializer_range": 0.2,
    }  # fmt: skip
    if architecture == "phi3":
        model = Phi3ForCausalLM(
            Phi3Config(num_key_value_heads=4, original_max_position_embeddings=256, **same)
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(num_key_value_heads=2, attention_bias=True, mlp_bias=True, **same)
        )
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("architecture", "targets", "joined"),
    [("phi3", CPU.lora_targets, 4), ("llama", ("q_proj", "up_proj", "down_proj"), 3)],
)
def test_the_route_of_an_untied_model(architecture, targets, joined, tiny, tmp_path, runs):
    """Lab 04's workflow: every adapter is extracted, and the graph has the model's loss with and without them."""
    import numpy as np
    import olive
    import onnxruntime as ort
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = untied(architecture, tmp_path / architecture)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model = get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=200, target_modules=list(targets), init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    workflow = Lab("04", CPU).workflow(
        "optimize", model_path=folder, adapter_path=tmp_path / "adapter"
    )
    passes = workflow["passes"]
    passes["capture"]["extra_options"]["shared_embeddings"] = False
    surgery = {
        "type": "GraphSurgeries",
        "surgeries": [{"surgeon": "QuantizeEmbeddingInt8"}],
        "remove_duplicate_initializers": False,
    }
    workflow["passes"] = {
        "capture": passes["capture"],
        "embedding": surgery,
        "extract": passes["extract"],
    }
    onnx_dir = Lab("04", CPU).step(
        "onnx",
        lambda out: olive.run(
            workflow | {"output_dir": str(out)}, package_config=labkit.olive_passes()
        ),
    )
    genai = json.loads((onnx_dir / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["session_options"]["intra_op_num_threads"] == 0  # all cores
    adapter = ort.AdapterFormat.read_adapter(
        str(onnx_dir / "adapter_weights.onnx_adapter")
    ).get_parameters()
    assert len(adapter) == 2 * joined * 2  # layers, linears (q, k, v and gate, up joined), A and B
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = [
        np.array(labkit.record_losses(onnx_dir, tokenizer, [qa(1)], adapter=file)[0])
        for file in (None, onnx_dir / "adapter_weights.onnx_adapter")
    ]
    tuned = np.array(labkit.record_losses(model.eval(), tokenizer, [qa(1)])[0])
    with model.disable_adapter():
        plain = np.array(labkit.record_losses(model, tokenizer, [qa(1)])[0])
    step = np.linalg.norm(tuned - plain)
    for onnx, torch in zip(
        found, (plain, tuned), strict=True
    ):  # 4 bits are coarse for random weights
        assert step > 1 and np.linalg.norm(onnx - torch) < 0.35 * step


@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_longrope_takes_its_table_by_length(provider, tiny, tmp_path, runs):
    """The graph for CUDA, which has no If that a CUDA graph could not hold, computes the same (here on the CPU)."""
    import olive
    import onnx
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM

    from labkit.evaluate import _onnx_logits

    torch.manual_seed(0)
    factors = {
        "long_factor": [float(8 + i) for i in range(8)],
        "short_factor": [1 + i / 8 for i in range(8)],
    }
    config = Phi3Config(
        vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, original_max_position_embeddings=16, max_position_embeddings=64, pad_token_id=256,
        eos_token_id=256, bos_token_id=256, initializer_range=0.2, rope_scaling={"type": "longrope", **factors},
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(tmp_path / "phi3")
    edit_config(
        tmp_path / "phi3",
        rope_scaling={"type": "longrope", **factors},
        rope_theta=10000.0,
        rope_parameters=None,
    )
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "phi3")
    workflow = Lab("04", CPU).workflow("optimize", provider=provider, model_path=tmp_path / "phi3")
    del workflow["input_model"]["adapter_path"]
    precision = "fp16" if provider.startswith("CUDA") else "fp32"
    extra = {"hf_remote": False} | ({"enable_cuda_graph": True} if precision == "fp16" else {})
    capture = {"type": "LoraModelBuilder", "precision": precision, "extra_options": extra}
    out = tmp_path / "onnx"
    olive.run(
        workflow | {"passes": {"capture": capture}, "output_dir": str(out)},
        package_config=labkit.olive_passes(),
    )
    kinds = {
        node.op_type for node in onnx.load(out / "model.onnx", load_external_data=False).graph.node
    }
    assert ("If" in kinds, "Where" in kinds) == (
        (False, True) if precision == "fp16" else (True, False)
    )
    assert ('"enable_cuda_graph": "1"' in (out / "genai_config.json").read_text()) == (
        precision == "fp16"
    )
    logits, model = (
        _onnx_logits(out, "CPUExecutionProvider", None),
        AutoModelForCausalLM.from_pretrained(tmp_path / "phi3"),
    )
    ids = torch.randint(0, 256, (40,)).tolist()
    for count in (10, 16, 17, 40):
        with torch.inference_mode():
            wanted = model(torch.tensor([ids[:count]])).logits[0]
        assert (logits(ids[:count]).float() - wanted).norm() < 0.01 * wanted.norm(), count
