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


def on_grid(scales, zeros):
    scales, zeros = scales[..., None].float(), zeros[..., None].float()
    lines = (weight.unflatten(-1, (-1, size)) / scales).round() + zeros
    return Grid(lines.clamp(0, 15), scales, zeros)


symmetric = WeightQuantizer(bits=4, symmetric=True, group_size=size)
grids = {
    "RTN": layers.grid(name),
    "AWQ": PackedLayers(lab.path("awq")).grid(name),
    "k-quant": on_grid(*kquant_find_qparams(weight, size, 15, 0)),
    "8 bits": mixed.grid(eight),
    "symmetric": on_grid(*symmetric.find_qparams(weight)),
}
said = {who: bool(comes_back(grid)) for who, grid in grids.items()}
for who, grid in grids.items():
    truth = same_again(grid).float().mean().item()
    print(f"{who}: {truth:.0%} of the groups come back; you say {said[who]}")
lab.exercise(
    "13.1",
    accepts_what_comes_back=said["RTN"] and said["AWQ"] and said["k-quant"],
    refuses_8_bits=not said["8 bits"],
    refuses_the_symmetric_grid=not said["symmetric"],
)
