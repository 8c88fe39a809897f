"""The 4-bit grid: weights rounded to it, packed for two file formats, unpacked and compared."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from labkit.errors import LabError

BITS = 4
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of the eight 4-bit numbers in a 32-bit word of AutoAWQ
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class Grid(NamedTuple):
    """A weight matrix [out, in] on the 4-bit grid: asymmetric, one scale and zero point a group.

    *integers* (0 to 15) are [out, groups, group size], *scales* (with the precision of float16)
    and *zeros* (0 to 15) are [out, groups, 1]; all in float32.
    """

    integers: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def values(self) -> torch.Tensor:
        """The weights [out, in] that the integers stand for, in float32."""
        return self.integers.sub(self.zeros).mul_(self.scales).flatten(-2)


def round_to_grid(weight: torch.Tensor, group_size: int, *, symmetric: bool = False) -> Grid:
    """*weight* [out, in] rounded to the nearest of the 16 values of its group.

    A *symmetric* grid has its zero at 8, and as its first line the group's largest weight, by
    size; so its scale has that one's sign, turned round.
    """
    groups = weight.float().unflatten(-1, (-1, group_size))
    low = groups.amin(-1, keepdim=True)  # aminmax is five times slower on a CPU
    high = groups.amax(-1, keepdim=True)
    if symmetric:
        largest = torch.where(-low > high, low, high)
        scales = (largest / -8).half().float()
        scales = torch.where(scales == 0, 1.0, scales)  # a group of zeros
        zeros = torch.full_like(scales, 8)
    else:
        scales = ((high - low).clamp_(min=1e-5) / 15).half().float()
        zeros = (-low / scales).round_().clamp_(0, 15)
    return Grid((groups / scales).round_().add_(zeros).clamp_(0, 15), scales, zeros)


def pack_awq(numbers: torch.Tensor) -> torch.Tensor:
    """4-bit *numbers* [out, n] as AutoAWQ stores them: eight in a word, int32 [n, out / 8]."""
    shifts = torch.arange(0, 32, BITS, device=numbers.device, dtype=torch.int32)
    eight = numbers.T.to(torch.int32).unflatten(-1, (-1, 8))[..., AWQ_ORDER]
    return (eight << shifts).sum(-1, dtype=torch.int32)


def _unpack_words(packed: torch.Tensor) -> torch.Tensor:
    """The 4-bit numbers [out, n] that :func:`pack_awq` packed, in float32."""
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32, device=packed.device)
    eight = (packed.unsqueeze(-1) >> shifts & 15).float()
    numbers = torch.empty_like(eight)
    numbers[..., AWQ_ORDER] = eight
    return numbers.flatten(-2).T


def awq_grid(tensors: dict[str, torch.Tensor], layer: str) -> Grid:
    """The grid of *layer* in the *tensors* of a packed AWQ checkpoint; KeyError where it lacks."""
    integers, zeros = (_unpack_words(tensors[f"{layer}.{part}"]) for part in ("qweight", "qzeros"))
    scales = tensors[f"{layer}.scales"].float().T
    return Grid(integers.unflatten(-1, (scales.shape[1], -1)), scales[..., None], zeros[..., None])


def pack_onnx(numbers: torch.Tensor) -> torch.Tensor:
    """4-bit *numbers* [..., n] as ONNX Runtime stores them: two in a byte, the first one below.

    uint8 [..., n / 2]; if n is odd, a zero is added.
    """
    even = torch.nn.functional.pad(numbers, (0, numbers.shape[-1] % 2)).to(torch.uint8)
    return even[..., ::2] | even[..., 1::2] << BITS


def unpack_onnx(packed: torch.Tensor) -> torch.Tensor:
    """The 4-bit numbers [..., n] that :func:`pack_onnx` packed, in float32; n is even."""
    return torch.stack([packed & 15, packed >> BITS], -1).flatten(-2).float()


def compare_weights(onnx_dir: Path, packed: Path) -> dict[str, float]:
    """How exactly the int4 layers of the ONNX model hold the grids of the *packed* checkpoint.

    {"share_of_weights": of the checkpoint's layers, those found in the model,
    "worst_relative_error": the largest one of a layer, by the Frobenius norm,
    "same_groups": share of the groups whose integers are all the checkpoint's}.
    Raises LabError if the model has no int4 layer, or one that the checkpoint lacks.
    """
    import onnx
    from onnx import numpy_helper

    from labkit.packed import PackedLayers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    graph = onnx.load(onnx_dir / "model.onnx").graph
    initializers = {initializer.name: initializer for initializer in graph.initializer}
    layers = PackedLayers(packed)
    layers.tensors = {name: tensor.to(device) for name, tensor in layers.tensors.items()}
    errors, same_groups, groups, weights = [], 0, 0, 0
    for node in graph.node:
        if node.op_type != "MatMulNBits" or "/layers." not in node.name:
            continue
        arrays = [numpy_helper.to_array(initializers[name]) for name in node.input[1:4]]
        grid = _grid_of(*(torch.from_numpy(array.copy()).to(device) for array in arrays))
        wanted, _ = layers.behind(node.name)
        values = wanted.values()
        errors.append(((grid.values() - values).norm() / values.norm()).item())
        same_groups += int((wanted.integers == grid.integers).all(-1).sum())
        groups += grid.scales.numel()
        weights += values.numel()
    if not errors:
        raise LabError(
            f"{onnx_dir}/model.onnx has no int4 layer: the model builder did not quantize it. "
            "Run lab 04 again."
        )
    words = (layers.tensors[f"{name}.qweight"] for name in layers.names)
    return {
        "share_of_weights": weights / sum(32 // BITS * word.numel() for word in words),
        "worst_relative_error": max(errors),
        "same_groups": same_groups / groups,
    }


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint in safetensors files, by its name."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def _grid_of(qweight: torch.Tensor, scales: torch.Tensor, qzeros: torch.Tensor) -> Grid:
    """What a MatMulNBits node holds: uint8 [out, groups, size / 2], float, and packed zeros."""
    scales = scales.float().reshape(len(qweight), -1, 1)
    zeros = unpack_onnx(qzeros.reshape(len(qweight), -1))[:, : scales.shape[1], None]
    return Grid(unpack_onnx(qweight), scales, zeros)
