"""Checkpoints of packed integers, AutoAWQ's and Olive's: their grids, and the way back to plain
weights.
"""

from pathlib import Path

import torch

from labkit.errors import LabError
from labkit.files import SHARD
from labkit.grid import BITS, FUSED, Grid, awq_grid, tensors_of, unpack_onnx
from labkit.settings import CONFIG, carry_settings
from labkit.tokenizer import load_tokenizer
from labkit.weights import read_object


class PackedLayers:
    """The layers of a packed checkpoint by their names; raises LabError where it is none."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = read_object(folder / CONFIG).get("quantization_config") or {}
        self.method = self.settings.get("quant_method")
        if self.method not in ("awq", "olive"):
            raise LabError(
                f"{folder} holds no packed integers of AutoAWQ or of Olive. Name the folder that "
                "a quantizer has written."
            )
        self.tensors = tensors_of(folder)
        self.names = [n.removesuffix(".qweight") for n in self.tensors if n.endswith(".qweight")]

    def bits(self, name: str) -> int:
        override = (self.settings.get("overrides") or {}).get(name, {})
        return override.get("bits", self.settings["bits"])

    def grid(self, name: str) -> Grid:
        """The grid of the layer *name*: of 8 bits, it has integers and zeros up to 255."""
        try:
            if self.method == "awq":
                return awq_grid(self.tensors, name)
            bits, scales = self.bits(name), self.tensors[f"{name}.scales"].float()
            unpacked = unpack_onnx if bits == BITS else torch.Tensor.float
            integers = unpacked(self.tensors[f"{name}.qweight"]).unflatten(
                -1, (scales.shape[1], -1)
            )
            if self.settings["symmetric"]:
                zeros = torch.full_like(scales, 2 ** (bits - 1))
            else:
                zeros = unpacked(self.tensors[f"{name}.qzeros"])[:, : scales.shape[1]]
        except KeyError as error:
            raise not_whole(self.folder, [error.args[0]], []) from error
        return Grid(integers, scales[..., None], zeros[..., None])

    def behind(self, node: str) -> tuple[Grid, int]:
        """The grid of what a node like /model/layers.3/attn/qkv_proj/MatMul multiplies with, and
        its bits: the largest of the layers that it joins, which hold the integers of the others.
        """
        layer, block, projection = node.split("/")[2:5]
        prefix = f"model.{layer}.{'self_attn' if block == 'attn' else 'mlp'}"
        names = [f"{prefix}.{projection}"]
        if names[0] not in self.names:
            names = [f"{prefix}.{part}" for part in FUSED.get(projection, (projection,))]
        grids = [self.grid(name) for name in names]
        joined = Grid(*(torch.cat(parts) for parts in zip(*grids, strict=True)))
        return joined, max(map(self.bits, names))


def unpack_olive(packed: Path, out: Path) -> None:
    """Writes the checkpoint that a quantizer of Olive has *packed* as a plain one in float16, with
    weights on its grids. PEFT trains on it. Raises LabError if a part of the model is missing.
    """
    from transformers import AutoConfig

    layers = PackedLayers(packed)
    config = AutoConfig.from_pretrained(packed, trust_remote_code=False)
    del config.quantization_config
    dense = {f"{name}.weight": layers.grid(name).values().half() for name in layers.names}
    parts = ("qweight", "qzeros", "scales")
    dense |= {
        name: tensor.half() for name, tensor in layers.tensors.items() if not name.endswith(parts)
    }
    write_dense(dense, config, packed, out)


def write_dense(dense: dict[str, torch.Tensor], config, source: Path, out: Path) -> None:
    """Writes *dense*, the weights that were unpacked from the checkpoint *source*, to *out*."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float16, trust_remote_code=False
        )
    missing, unexpected = model.load_state_dict(dense, strict=False, assign=True)
    # a head that is the embedding is stored once
    if unexpected or set(missing) - ({"lm_head.weight"} if config.tie_word_embeddings else set()):
        raise not_whole(source, missing, unexpected)
    model.tie_weights()
    model.save_pretrained(out, max_shard_size=SHARD)
    carry_settings(source, out, quantization_config=None)
    load_tokenizer(source).save_pretrained(out)


def not_whole(folder: Path, missing: list[str], unexpected: list[str]) -> LabError:
    return LabError(
        f"{folder} does not hold the whole model (missing {missing[:3]}, "
        f"unknown {unexpected[:3]}): run lab 02 again, or the cell that made it."
    )
