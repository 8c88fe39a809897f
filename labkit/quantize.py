"""AWQ through AutoAWQ, its packed weights unpacked again, and their comparison with what the ONNX model holds.

The only module that knows AutoAWQ, which is archived upstream: another engine would be put in here.
"""

import gc
import json
from pathlib import Path

from labkit.errors import LabError

BITS = 4


def awq_quantize(model_dir: Path, out: Path, *, calibration: list[list[int]], group_size: int, dtype: str, device: str) -> None:
    """Writes the checkpoint in *model_dir* to *out* with its layers in packed 4-bit AWQ (the GEMM format of AutoAWQ).

    *calibration* is token ids, one list a record. Clipping is left out: it takes minutes and lowered no loss here.
    Raises LabError where there is too little calibration text. Source: Lin et al. 2023, https://arxiv.org/abs/2306.00978
    """
    import torch
    from awq import AutoAWQForCausalLM
    from awq.quantize.quantizer import AwqQuantizer
    from transformers import AutoTokenizer

    class CopyingQuantizer(AwqQuantizer):
        # On the CPU, state_dict().cpu() is the weights themselves and no copy: each of the 20 grid points would scale
        # weights that the one before had scaled. A copy makes the search correct on every device.
        def _compute_best_scale(self, x, w_mean, x_mean, module2inspect, *rest):
            original = module2inspect.state_dict
            module2inspect.state_dict = lambda: {name: weight.clone() for name, weight in original().items()}
            try:
                return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *rest)
            finally:
                del module2inspect.state_dict

    length = 128
    if sum(map(len, calibration)) < length:
        raise LabError(f"the calibration data has fewer than {length} tokens: add records, or unset LAB_DATA.")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoAWQForCausalLM.from_pretrained(
        str(model_dir), torch_dtype=getattr(torch, dtype), device_map=device, trust_remote_code=False
    )
    # AutoAWQ collects garbage some 600 times a run; without the objects that live on anyway, each is cheap
    gc.freeze()
    model.quantize(
        tokenizer,
        quant_config={"w_bit": BITS, "q_group_size": group_size, "zero_point": True, "version": "GEMM"},
        calib_data=[ids[i : i + length] for ids in calibration for i in range(0, len(ids), length)],
        max_calib_samples=len(calibration) * 64,
        max_calib_seq_len=length,
        apply_clip=False,
        quantizer_cls=CopyingQuantizer,
    )
    gc.unfreeze()
    model.save_quantized(str(out))
    tokenizer.save_pretrained(out)


def unpack_awq(awq_dir: Path, out: Path) -> None:
    """Writes the packed AWQ checkpoint as a plain float16 one whose layer weights lie on the 4-bit grid.

    PEFT trains on it, and the ONNX model builder rounds it back to the same integers.
    """
    import torch
    from awq.utils.packing_utils import dequantize_gemm
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    settings = json.loads((awq_dir / "config.json").read_text())["quantization_config"]
    packed = {k: v for file in sorted(awq_dir.glob("*.safetensors")) for k, v in load_file(file).items()}
    dense = {k: v.half() for k, v in packed.items() if not k.endswith((".qweight", ".qzeros", ".scales"))}
    for name in [k.removesuffix(".qweight") for k in packed if k.endswith(".qweight")]:
        parts = (packed[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
        dense[f"{name}.weight"] = dequantize_gemm(*parts, BITS, settings["group_size"]).t().contiguous()
    config = AutoConfig.from_pretrained(awq_dir)
    del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    missing, unexpected = model.load_state_dict(dense, strict=False, assign=True)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise LabError(f"{awq_dir} does not hold the whole model (missing {missing[:3]}, unknown {unexpected[:3]}): run lab 02 again.")
    model.tie_weights()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(awq_dir).save_pretrained(out)


def layer_parity(onnx_dir: Path, dense_dir: Path) -> dict[str, float]:
    """How exactly the int4 layers of the ONNX model hold the AWQ grid of the dense checkpoint.

    {"layers", "worst_relative_error" (Frobenius, of one layer), "same_groups" (share whose integers are all the same),
    "full_range_groups" (share of groups that span 0 to 15)}.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper
    from safetensors import safe_open

    graph = onnx.load(onnx_dir / "model.onnx").graph
    weights = {i.name: numpy_helper.to_array(i) for i in graph.initializer if i.data_type != onnx.TensorProto.FLOAT or i.dims}
    dense = {}
    for file in Path(dense_dir).glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            dense |= {name: tensors.get_tensor(name).float().numpy() for name in tensors.keys() if "layers." in name}  # noqa: SIM118
    errors, same, full, groups = [], 0, 0, 0
    for node in graph.node:
        if node.op_type != "MatMulNBits" or "/layers." not in node.name:
            continue
        attributes = {a.name: a.i for a in node.attribute}
        size, rows = attributes["block_size"], attributes["N"]
        packed, scales, zeros = (weights[name] for name in node.input[1:4])
        q = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1, size)
        scale = scales.reshape(rows, -1, 1)
        zero = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(rows, -1)[:, : scale.shape[1], None]
        wanted = _dense_weight(dense, node.name, rows).reshape(rows, -1, size)
        got = (q.astype(np.float32) - zero) * scale
        errors.append(float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)))
        same_integers = np.rint(wanted / scale) + zero
        low, high = q.min(axis=-1), q.max(axis=-1)
        same += int((same_integers == q).all(axis=-1).sum())
        full += int(((low == 0) & (high == 15)).sum())
        groups += low.size
    if not errors:
        raise LabError(f"{onnx_dir}/model.onnx has no int4 layer: the model builder did not quantize it. Run lab 04 again.")
    return {
        "layers": len(errors),
        "worst_relative_error": max(errors),
        "same_groups": same / groups,
        "full_range_groups": full / groups,
    }


def _dense_weight(dense: dict, node: str, rows: int):
    """The checkpoint's weight behind a graph node such as /model/layers.3/attn/q_proj/MatMul_Q4; fused ones are cut."""
    _, _, layer, block, projection, *_ = node.split("/")
    prefix = f"model.{layer}.{'self_attn' if block == 'attn' else 'mlp'}"
    if (name := f"{prefix}.{projection}.weight") in dense:
        return dense[name]
    fused = dense[f"{prefix}.{'qkv_proj' if block == 'attn' else 'gate_up_proj'}.weight"]
    if block == "mlp":
        return fused[:rows] if projection == "gate_proj" else fused[-rows:]
    keys = {"q_proj": 0, "k_proj": len(fused) - 2 * rows, "v_proj": len(fused) - rows}
    return fused[keys[projection] :][:rows]
