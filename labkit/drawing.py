"""What charts and pictures have in common: colours, legends, titles, and figures as texts."""

import math
import textwrap
from collections.abc import Sequence

from labkit.figures import number

# Okabe and Ito, safe for colour blindness
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
HATCHES = ("", "//", "..", "xx", "\\\\", "--")
CHARACTER = 0.11  # width of one in a text of 13 points, in inches


def axes(across: float = 8, high: float = 4.2):
    """Axes of a figure of *across* x *high* inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(across, high), layout="constrained")[1]


def finish(ax, ylabel: str, title: str, text: str):
    ax.set_label(text)
    ax.set_ylabel(verbatim(ylabel))
    legend = ax.get_legend()
    rows = math.ceil(len(legend.get_texts()) / legend._ncols) if legend else 0
    wrapped = verbatim(textwrap.fill(title, max(int(width(ax) / CHARACTER), 20)))
    ax.set_title(wrapped, loc="left", fontweight="bold", fontsize=15, pad=6 + 22 * rows)
    ax.tick_params(labelsize=13)
    ax.xaxis.label.set_size(14)
    ax.yaxis.label.set_size(14)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def legend_above(ax) -> None:
    """A legend between title and chart, where it covers nothing."""
    names = ax.get_legend_handles_labels()[1]
    inches = [CHARACTER * (len(name) + 6) for name in names]
    columns = len(names) if sum(inches) < width(ax) else 1
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    ax.legend(ncols=columns, frameon=False, fontsize=13, **place)


def width(ax) -> float:
    """About how wide *ax* is, in inches, before its labels have taken their share."""
    columns = ax.get_gridspec().ncols if ax.get_subplotspec() else 1
    return ax.figure.get_figwidth() / columns - 0.9


def verbatim(text: str) -> str:
    """*text* for matplotlib, which would set what is between two dollar signs as a formula."""
    return text.replace("$", r"\$")


def numbers(values: Sequence[float]) -> list[str]:
    """*values* with the same number of decimals, which suits the largest and the smallest.

    Where they lie more than a thousand times apart, each has its own.
    """
    decimals = common_decimals(values)
    return [written(value, decimals) for value in values]


def written(value: float, decimals: int | None) -> str:
    return number(value) if decimals is None else f"{value:,.{decimals}f}"


def common_decimals(values: Sequence[float]) -> int | None:
    """Decimals that suit all *values*; None where they lie too far apart for that."""
    sizes = [abs(value) for value in values if value]
    if all(float(size).is_integer() for size in sizes):
        return 0
    if max(sizes) > 1000 * min(sizes):
        return None
    of_largest = 2 - math.floor(math.log10(max(sizes)))
    of_smallest = 1 - math.floor(math.log10(min(sizes)))
    return max(0, of_largest, of_smallest)


def sheet(across: float, high: float):
    """Axes without axes, of *across* x *high* inches; one unit is one inch."""
    import matplotlib.pyplot as plt

    ax = plt.figure(figsize=(across, high)).add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, across), ylim=(0, high))
    ax.axis("off")
    return ax


def box(ax, middle: tuple[float, float], size: tuple[float, float], text: str = "", **look):
    """A rectangle around *middle* with *text* in it; returns the text."""
    from matplotlib.patches import FancyBboxPatch

    (x, y), (across, high) = middle, size
    weight = look.pop("fontweight", "normal")
    colour = look.pop("color", "black")
    fontsize = look.pop("fontsize", 13)
    look = {"facecolor": "white", "edgecolor": "black", "linewidth": 1.5} | look
    shape = "round,pad=0,rounding_size=0.06"
    corner = (x - across / 2, y - high / 2)
    ax.add_patch(FancyBboxPatch(corner, across, high, boxstyle=shape, **look))
    # letters on a hatch cannot be read
    behind = {"boxstyle": "square,pad=0.1", "facecolor": look["facecolor"], "edgecolor": "none"}
    letters = {"fontweight": weight, "color": colour, "fontsize": fontsize}
    if look.get("hatch") and text:
        letters["bbox"] = behind
    return label(ax, middle, text, **letters)


def label(ax, at: tuple[float, float], text: str, **look):
    """*text* around *at*, as it stands."""
    look = {"ha": "center", "va": "center", "fontsize": 13} | look
    return ax.text(*at, verbatim(text), **look)


def arrow(ax, start: tuple[float, float], end: tuple[float, float], **look) -> None:
    look = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.5, "shrinkA": 0} | look
    ax.annotate("", end, start, arrowprops=look | {"shrinkB": 0, "mutation_scale": 14})
