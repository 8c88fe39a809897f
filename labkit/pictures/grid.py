"""Weights on the lines of their 4-bit grid."""

from collections.abc import Sequence

import numpy as np

from labkit.charts import bars
from labkit.drawing import COLOURS, axes, finish, legend_above, numbers
from labkit.figures import number


def group_on_grid(weights, rounded, *, scale: float, zero: float):
    """The *weights* of one group (32 at most are drawn), on the 16 lines of their grid.

    *rounded* are the same weights afterwards; line q of the grid lies at (q - *zero*) x *scale*.
    """
    before, after = _floats(weights)[:32], _floats(rounded)[:32]
    scale, zero = float(scale), float(zero)
    ax = axes(9, 5.4)
    for q in range(16):
        line = (q - zero) * scale
        ax.axhline(line, color="0.45", linewidth=1, zorder=1)
        if q % 2:  # all that is rounded to one line
            ax.axhspan(line - scale / 2, line + scale / 2, color="0.93", zorder=0)
        ax.text(len(before) + 0.6, line, str(q), fontsize=13, va="center")
    for at, (start, end) in enumerate(zip(before, after, strict=True)):
        ax.plot([at - 0.26, at + 0.26], [start, end], color=COLOURS[5], linewidth=2.5, zorder=2)
    places = np.arange(len(before))
    ring = {"markerfacecolor": "white", "markeredgecolor": "black", "markersize": 7.5}
    ax.plot(places - 0.26, before, "o", label="before", zorder=3, **ring)
    ax.plot(places + 0.26, after, "o", color="black", markersize=7, label="after rounding")
    ax.set_xlim(-1, len(before) + 0.2)
    ax.set_xlabel(f"{len(before)} weights of one group (right: the integer of each line)")
    ax.set_xticks([])
    legend_above(ax)
    steps = np.abs(after - before) / scale
    title = f"Each weight goes to a line: by {steps.max():.2f} steps at most"
    text = (
        f"{len(before)} weights of one group, on the 16 lines of their grid, which are "
        f"{number(scale)} apart. Rounding moves each one to a line near it, by "
        f"{steps.mean():.2f} steps on average and {steps.max():.2f} at most; "
        f"{len(np.unique(after))} different values are left."
    )
    return finish(ax, "weight", title, text)


def channel_scales(
    weight,
    rounded,
    awq,
    scale,
    *,
    column: int,
    neighbour: int | None = None,
    group_size: int,
    magnitude=None,
):
    """What AWQ does to the error of a *column* that it scales up, and to a *neighbour*.

    *weight*, *rounded* (to the nearest) and *awq* (divided by *scale* again) are one layer's
    weights [rows, columns]; *scale* and *magnitude* (mean activation) have a value a column. Left:
    the grid that one weight of each column meets. Right: the error of the whole columns.
    """
    import matplotlib.pyplot as plt

    start = column - column % group_size
    group = slice(start, start + group_size)
    scales = _floats(scale)
    if neighbour is None:  # the middle one of its group
        neighbour = start + int(np.argsort(scales[group])[group_size // 2])
    picked = [column, neighbour]
    within = [one - start for one in picked]
    weight, rounded, awq = (_floats(values[:, group]) for values in (weight, rounded, awq))
    moves = np.stack([rounded - weight, awq - weight])[:, :, within]
    row = int((abs(moves[0]) - abs(moves[1]))[:, 0].argmax())
    coarse, fine = _step(rounded[row]), _step(awq[row] * scales[group])
    steps = [step for one in picked for step in (coarse, fine / scales[one])]

    left, right = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")[1]
    _draw_ladders(left, list(zip(moves[:, row].T.ravel(), steps, strict=True)))
    errors = np.sqrt((moves**2).mean(1))
    what = "error (%)"
    if magnitude is not None:
        errors, what = errors * _floats(magnitude)[picked], "error x activation (%)"
    _draw_errors(right, picked, errors.T.ravel(), what)
    for ax in (left, right):
        _name_columns(ax, [f"column {one}\nscale {scales[one]:.2f}" for one in picked])
    said = numbers(steps)
    text = (
        f"The grid of one weight (row {row}) of two columns. Column {column}, which AWQ "
        f"multiplies by {scales[column]:.2f}: lines {said[0]} apart with rounding, {said[1]} with "
        f"AWQ. Column {neighbour} of the same group, multiplied by {scales[neighbour]:.2f}: "
        f"{said[2]} and {said[3]}."
    )
    return finish(left, "distance from the true weight", f"The grid in row {row}", text)


def _draw_errors(ax, columns: Sequence[int], errors: np.ndarray, what: str) -> None:
    """Bars of the *errors* (rounded and AWQ's of each column), in percent of the first."""
    names = [f"{one} {how}" for one in columns for how in ("rounded", "AWQ")]
    shares = [round(100 * error / errors[0]) for error in errors]
    heights = dict(zip(names, shares, strict=True))
    bars(heights, title="Error of all rows", ylabel=what, styles=[1, 0, 1, 0], ax=ax)


def _name_columns(ax, names: list[str]) -> None:
    ax.set_xticks(range(4), ["rounded", "AWQ"] * 2)
    ax.set_xticks([0.5, 2.5], names, minor=True)
    ax.tick_params(axis="x", which="minor", length=0, pad=26, labelsize=14)
    ax.axvline(1.5, color="0.6", linewidth=1)


def _draw_ladders(ax, ladders: Sequence[tuple[float, float]]) -> None:
    """One ladder for each (move, step): lines a step apart, one of them *move* away from 0."""
    reach = 1.3 * max(step for _, step in ladders)
    for at, (move, step) in enumerate(ladders):
        count = int(2 * reach / step) + 1
        lines = [move + k * step for k in range(-count, count + 1) if abs(move + k * step) < reach]
        ax.hlines(lines, at - 0.32, at + 0.32, color="0.35", linewidth=2)
        ax.vlines(at, 0, move, color=COLOURS[5], linewidth=4)
        ax.plot(at, 0, "o", markerfacecolor="white", markeredgecolor="black", markersize=10)
        ax.plot(at, move, "o", color=COLOURS[1 - at % 2], markeredgecolor="black", markersize=10)
    ax.axhline(0, color="black", linestyle=":", linewidth=1.5, zorder=0)
    ax.set(xlim=(-0.6, len(ladders) - 0.4), ylim=(-reach, reach))


def _step(values: np.ndarray) -> float:
    """The smallest gap between *values* that lie on one grid of 16 lines."""
    gaps = np.diff(np.unique(values))
    return float(gaps[gaps > np.ptp(values) / 40].min())


def _floats(values) -> np.ndarray:
    """A tensor of any kind, or numbers, as an array."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu()
    return np.asarray(values, float)
