"""Bars and lines that look the same in every lab: units on the axis, values on the marks, readable in greyscale."""

from collections.abc import Mapping, Sequence

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito, safe for colour blindness
HATCHES = ("", "//", "..", "xx", "\\\\", "--")


def bars(
    values: Mapping[str, float],
    *,
    ylabel: str,
    title: str,
    spread: Mapping[str, float] | None = None,
    styles: Sequence[int] | None = None,
    ax=None,
):
    """Axes with one bar a value, its number on top, an error bar where *spread* has one, alike where *styles* are."""
    ax = ax or _axes()
    names, heights = list(values), list(values.values())
    errors = [(spread or {}).get(name, 0.0) for name in names]
    styles = [style % 6 for style in styles or range(len(names))]
    colours, hatches = [COLOURS[style] for style in styles], [HATCHES[style] for style in styles]
    ax.bar(range(len(names)), heights, color=colours, hatch=hatches, edgecolor="black")
    if any(errors):
        ax.errorbar(range(len(names)), heights, yerr=errors, fmt="none", ecolor="black", capsize=6)
    for i, height in enumerate(heights):
        ax.annotate(
            _number(height),
            (i, height + errors[i]),
            ha="center",
            va="bottom",
            fontsize=13,
            xytext=(0, 3),
            textcoords="offset points",
        )
    ax.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) if len(name) > 12 or len(names) > 4 else name for name in names])
    ax.set_ylim(0, 1.25 * max(h + e for h, e in zip(heights, errors, strict=True)))
    return _finish(ax, ylabel, title)


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, xlabel: str, ylabel: str, title: str, ax=None):
    """Axes with one line a series, {name: (x values, y values)}, told apart by colour, marker and legend."""
    ax = ax or _axes()
    for i, (name, (x, y)) in enumerate(series.items()):
        ax.plot(x, y, color=COLOURS[i % 6], marker="osD^vP"[i % 6], markersize=5, linewidth=2, label=name)
    ax.set_xlabel(xlabel)
    if len(series) > 1:
        ax.legend(fontsize=12)
    return _finish(ax, ylabel, title)


def _axes():
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(8, 4.2), layout="constrained")[1]


def _finish(ax, ylabel: str, title: str):
    ax.set_ylabel(ylabel)
    ax.set_title(title, loc="left", fontweight="bold")
    ax.tick_params(labelsize=12)
    ax.xaxis.label.set_size(13)
    ax.yaxis.label.set_size(13)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
