"""The 4-bit grid: packed AWQ weights unpacked on it, and the ONNX model compared with it."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from labkit.errors import LabError
from labkit.settings import carry_settings
from labkit.tokenizer import load_tokenizer

BITS = 4


def unpack_awq(awq_dir: Path, out: Path) -> None:
    """Writes the packed AWQ checkpoint as a plain float16 one whose layer weights lie on the 4-bit grid.

    PEFT trains on it, and the ONNX model builder rounds it back to the same integers.
    """
    from awq.utils.packing_utils import dequantize_gemm
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = json.loads((awq_dir / "config.json").read_text())["quantization_config"]
    packed = _tensors(awq_dir)
    dense = {
        k: v.half()
        for k, v in packed.items()
        if not k.endswith((".qweight", ".qzeros", ".scales"))
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in [k.removesuffix(".qweight") for k in packed if k.endswith(".qweight")]:
        parts = (packed[f"{name}.{part}"].to(device) for part in ("qweight", "qzeros", "scales"))
        dense[f"{name}.weight"] = (
            dequantize_gemm(*parts, BITS, settings["group_size"]).t().contiguous().cpu()
        )
    config = AutoConfig.from_pretrained(awq_dir, trust_remote_code=False)
    del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float16, trust_remote_code=False
        )
    missing, unexpected = model.load_state_dict(dense, strict=False, assign=True)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise LabError(
            f"{awq_dir} does not hold the whole model (missing {missing[:3]}, unknown {unexpected[:3]}): run lab 02 again."
        )
    model.tie_weights()
    model.save_pretrained(out)
    carry_settings(awq_dir, out, quantization_config=None)
    load_tokenizer(awq_dir).save_pretrained(out)


def layer_parity(onnx_dir: Path, dense_dir: Path) -> dict[str, float]:
    """How exactly the int4 layers of the ONNX model hold the AWQ grid of the dense checkpoint.

    {"share_of_weights" (of the checkpoint's layers, found in the model), "worst_relative_error" (Frobenius, of one layer),
    "same_groups" (share whose integers are all the same)}.
    """
    import onnx
    from onnx import numpy_helper

    device = "cuda" if torch.cuda.is_available() else "cpu"
    graph = onnx.load(onnx_dir / "model.onnx").graph
    weights = {initializer.name: initializer for initializer in graph.initializer}
    dense = _tensors(dense_dir)
    errors, same, groups, found = [], 0, 0, 0
    for node in graph.node:
        if node.op_type != "MatMulNBits" or "/layers." not in node.name:
            continue
        attributes = {a.name: a.i for a in node.attribute}
        size, rows = attributes["block_size"], attributes["N"]
        packed, scales, zeros = (
            torch.from_numpy(numpy_helper.to_array(weights[name]).copy()).to(device)
            for name in node.input[1:4]
        )
        q = torch.stack([packed & 15, packed >> 4], -1).reshape(rows, -1, size)
        scale = scales.float().reshape(rows, -1, 1)
        zero = (
            torch.stack([zeros & 15, zeros >> 4], -1)
            .reshape(rows, -1)[:, : scale.shape[1], None]
            .float()
        )
        wanted = _dense_weight(dense, node.name).to(device).float().reshape(rows, -1, size)
        errors.append((((q - zero) * scale - wanted).norm() / wanted.norm()).item())
        same += int((torch.round(wanted / scale) + zero == q).all(-1).sum())
        groups += scale.numel()
        found += wanted.numel()
    if not errors:
        raise LabError(
            f"{onnx_dir}/model.onnx has no int4 layer: the model builder did not quantize it. Run lab 04 again."
        )
    there = sum(
        weight.numel()
        for name, weight in dense.items()
        if ".layers." in name and weight.dim() == 2
    )
    return {
        "share_of_weights": found / there,
        "worst_relative_error": max(errors),
        "same_groups": same / groups,
    }


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by name."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def _dense_weight(dense: dict, node: str):
    """The checkpoint's weight behind a graph node such as /model/layers.3/attn/qkv_proj/MatMulNBits; fused or in parts."""
    _, _, layer, block, projection, *_ = node.split("/")
    prefix = f"model.{layer}.{'self_attn' if block == 'attn' else 'mlp'}"
    if (name := f"{prefix}.{projection}.weight") in dense:
        return dense[name]
    parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}[
        projection
    ]
    return torch.cat([dense[f"{prefix}.{part}.weight"] for part in parts])
