"""AWQ's search: scales and limits with which the rounded weights change the outputs least.

The candidates share what they have in common, and nothing is read back from the device before
a search is over. Source: Lin et al. 2023, https://arxiv.org/abs/2306.00978
"""

from collections.abc import Callable

import torch

from labkit.errors import LabError
from labkit.grid import round_to_grid

STEPS = 20  # of the exponent between 0 and 1, as in AutoAWQ
SCREEN = 4  # of every fourth record the losses say which candidates are worth all records:
FINALISTS = 4  # the best four
TOKENS = 16384  # at most so many go through a module at once: it bounds the memory of a search
# Cut evenly on both sides, a group would have its zero point half way between two integers, use
# 15 of the 16 values, and not come back as the same integers from the ONNX model builder.
BELOW = 1 - 2**-8

Losses = Callable[[torch.Tensor], torch.Tensor]  # of scales [candidates, in]


def batches(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """*x* [records, tokens, channels] in pieces of whole records: TOKENS tokens, or one record."""
    return x.split(max(1, TOKENS // x.shape[1]))


def best_scales(
    layers: list[torch.nn.Linear],
    inputs: torch.Tensor,
    group_size: int,
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """The scales [in] whose rounded weights change the outputs of *forward* least.

    *inputs* are [records, tokens, in]. *forward* calls the *layers*; without it, the outputs are
    those of the only layer. Raises LabError if no scales give a finite change.
    """
    # of .data: in float32, float() returns the parameter itself
    weights = [layer.weight.data.float() for layer in layers]
    scales_of = _scales_by_exponent(weights, inputs, group_size)

    def losses_on(x: torch.Tensor) -> Losses:
        if forward is None:
            return _linear_losses(weights[0], x.flatten(0, -2), group_size)
        return _module_losses(layers, weights, x, group_size, forward)

    exponents = torch.arange(STEPS, device=inputs.device) / STEPS
    cheap = forward is None and _many_tokens(inputs.flatten(0, -2))
    if len(inputs) >= 2 * SCREEN and not cheap:
        screened = losses_on(inputs[::SCREEN])(scales_of(exponents))
        exponents = exponents[screened.topk(FINALISTS, largest=False).indices]
    losses_of = losses_on(inputs)
    losses = losses_of(scales_of(exponents))
    if not losses.isfinite().any():
        raise LabError(
            "AWQ finds no scale with a finite error: the model's weights or activations overflow "
            "the type of the search. Set quantize_dtype to bfloat16 in labkit/profiles.py."
        )
    half_a_step = torch.tensor([-0.5, 0.5], device=inputs.device) / STEPS
    between = (exponents[losses.argmin()] + half_a_step).clamp(0, 1)
    exponents = torch.cat([exponents, between])
    losses = torch.cat([losses, losses_of(scales_of(between))])
    return scales_of(exponents[losses.argmin()].unsqueeze(0))[0]


def clipped(weight: torch.Tensor, inputs: torch.Tensor, group_size: int) -> torch.Tensor:
    """*weight* [out, in] with the largest magnitudes of each group cut to a limit.

    It is the one of ten limits that changes the outputs least on 512 tokens of *inputs*
    [records, tokens, in].
    """
    groups = weight.unflatten(-1, (-1, group_size))
    x = inputs.flatten(0, -2)
    x = x[:: max(1, len(x) // 512)].float().unflatten(-1, (-1, group_size))
    x = x.transpose(0, 1)  # [groups, tokens, size]
    gram = x.transpose(1, 2) @ x
    limit = groups.abs().amax(-1, keepdim=True)
    best, least = limit.clone(), torch.full_like(limit, torch.inf)
    for step in range(STEPS // 2):
        cut = limit * (1 - step / STEPS)
        rounded = round_to_grid(groups.clamp(-cut, cut * BELOW).flatten(-2), group_size).values()
        change = (rounded.view_as(groups) - groups).transpose(0, 1)
        loss = (change @ gram).mul_(change).sum(-1).T.unsqueeze(-1)
        best, least = torch.where(loss < least, cut, best), torch.minimum(loss, least)
    return groups.clamp(-best, best * BELOW).flatten(-2)


def _scales_by_exponent(weights: list[torch.Tensor], inputs: torch.Tensor, group_size: int):
    """A function: exponents [n] -> scales [n, in], from the mean sizes of weights and inputs."""
    groups = torch.cat(weights).unflatten(-1, (-1, group_size)).abs()
    w_mean = (groups / (groups.amax(-1, keepdim=True) + 1e-6)).flatten(-2).mean(0)
    flat = inputs.flatten(0, -2)
    sums = torch.stack([x.float().abs().sum(0) for x in flat.split(TOKENS)])
    x_mean = sums.sum(0) / len(flat)

    def scales_of(exponents: torch.Tensor) -> torch.Tensor:
        exponents = exponents.unsqueeze(1)
        scales = x_mean.pow(exponents) / (w_mean.pow(1 - exponents) + 1e-4)
        scales = scales.clamp(min=1e-4)
        scales = scales / (scales.amax(1, keepdim=True) * scales.amin(1, keepdim=True)).sqrt()
        return torch.where(scales.isfinite(), scales, 1.0)

    return scales_of


def _scaled_and_rounded(weight: torch.Tensor, scales: torch.Tensor, group_size: int):
    return round_to_grid(weight * scales, group_size).values() / scales


def _many_tokens(flat: torch.Tensor) -> bool:
    return len(flat) >= flat.shape[1]


def _linear_losses(weight: torch.Tensor, flat: torch.Tensor, group_size: int) -> Losses:
    """The losses at the outputs of one linear layer, for the inputs *flat* [tokens, in]."""
    gram = None
    if _many_tokens(flat):
        # |X d'|^2 = d X'X d' for the change d of the weights: X'X serves all candidates
        gram = sum(x.float().T @ x.float() for x in flat.split(TOKENS))

    def loss_of(scales: torch.Tensor) -> torch.Tensor:
        change = _scaled_and_rounded(weight, scales, group_size) - weight
        if gram is None:
            return (flat @ change.to(flat.dtype).T).float().pow(2).sum()
        return (change @ gram).mul_(change).sum()

    return lambda candidates: _finite([loss_of(scales) for scales in candidates])


def _module_losses(layers, weights, inputs, group_size: int, forward) -> Losses:
    """The losses at the outputs of *forward*, which calls the *layers*."""
    pieces = batches(inputs)
    wanted = [forward(x) for x in pieces]
    kept = [layer.weight.data for layer in layers]

    def loss_of(scales: torch.Tensor) -> torch.Tensor:
        for layer, weight in zip(layers, weights, strict=True):
            rounded = _scaled_and_rounded(weight, scales, group_size)
            layer.weight.data = rounded.to(kept[0].dtype)
        pairs = zip(pieces, wanted, strict=True)
        return sum((forward(x) - y).float().pow(2).sum() for x, y in pairs)

    def losses_of(candidates: torch.Tensor) -> torch.Tensor:
        losses = [loss_of(scales) for scales in candidates]
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight.data = weight
        return _finite(losses)

    return losses_of


def _finite(losses: list[torch.Tensor]) -> torch.Tensor:
    """The losses as one tensor; argmin takes NaN for the least, and an overflow must not win."""
    return torch.stack(losses).nan_to_num(nan=torch.inf, posinf=torch.inf)
