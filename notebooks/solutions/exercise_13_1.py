# Exercise 13.1
from olive.passes.pytorch.kquant import kquant_find_qparams

from labkit.grid import Grid, tensors_of


def comes_back(grid):
    # both ends of the 16 lines are used: then the lines between them are the same, too
    whole = (grid.integers.amin(-1) == 0) & (grid.integers.amax(-1) == 15)
    return grid.integers.max() <= 15 and whole.float().mean() > 0.95


name, mixed = layers.names[0], PackedLayers(lab.path("mixed"))
eight = next(name for name in mixed.names if mixed.bits(name) == 8)
weight = tensors_of(base_dir)[f"{name}.weight"].float()
size = profile.group_size
scales, zeros = (one[..., None].float() for one in kquant_find_qparams(weight, size, 15, 0))
integers = ((weight.unflatten(-1, (-1, size)) / scales).round() + zeros).clamp(0, 15)
grids = {
    "RTN": layers.grid(name),
    "AWQ": PackedLayers(lab.path("awq")).grid(name),
    "8 bits": mixed.grid(eight),
    "k-quant": Grid(integers, scales, zeros),
}
said = {who: bool(comes_back(grid)) for who, grid in grids.items()}
for who, grid in grids.items():
    truth = same_again(grid).float().mean().item()
    print(f"{who}: {truth:.0%} of the groups come back; you say {said[who]}")
lab.exercise(
    "13.1",
    accepts_rtn_and_awq=said["RTN"] and said["AWQ"],
    refuses_8_bits=not said["8 bits"],
    refuses_k_quant=not said["k-quant"],
)
