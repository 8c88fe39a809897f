"""Bars, lines and tables that look the same in every lab.

Units are on the axis, values on the marks, and all of it is readable in greyscale. What data,
answers and names hold is shown as it stands: it is no markup, and no formula between dollar signs.
"""

import base64
import textwrap
from collections.abc import Mapping, Sequence
from html import escape

from labkit.drawing import (
    CHARACTER,
    COLOURS,
    HATCHES,
    axes,
    common_decimals,
    finish,
    legend_above,
    numbers,
    verbatim,
    width,
    written,
)
from labkit.figures import Estimate
from labkit.screen import css_width, dots, presenting

# of a <pre>: MathJax looks for no formula in one, and it keeps the breaks of lines; JupyterLab
# would break it at any letter
VERBATIM = (
    "font: inherit; text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; "
    "word-break: normal; "
    "margin: 0; border: 0; padding: 0; background: none"
)
PREDICTED = {"color": "black", "linestyle": "--", "linewidth": 2}


def bars(
    values: Mapping[str, Estimate | float],
    *,
    title: str,
    ylabel: str | None = None,
    predicted: float | Mapping[str, float] | None = None,
    styles: Sequence[int] | None = None,
    ax=None,
):
    """Axes with one bar a value, its number on top, and an error bar where it has an interval.

    *predicted* is drawn as a dashed line (one number) or as a diamond at each bar that it names;
    bars of one number in *styles* look alike. Raises ValueError where there is nothing to draw, or
    no one unit and no *ylabel*.
    """
    if not values:
        raise ValueError("There is nothing to draw: give bars() at least one value.")
    ylabel = ylabel or _unit(values)
    shown = {name: _estimate(value) for name, value in values.items()}
    ax = ax or axes()
    looks = [style % len(COLOURS) for style in styles or range(len(shown))]
    heights = [value.mean for value in shown.values()]
    colours, hatches = [COLOURS[look] for look in looks], [HATCHES[look] for look in looks]
    ax.bar(range(len(shown)), heights, color=colours, hatch=hatches, edgecolor="black")
    decimals = common_decimals(heights)
    for at, value in enumerate(shown.values()):
        _mark(ax, at, value, written(value.mean, decimals))
        heights += [value.low, value.high]
    heights += _draw_prediction(ax, list(shown), predicted)
    _name_bars(ax, list(shown))
    _limit(ax, heights, percent=ylabel.endswith(("%", "(%)")))
    said = ", ".join(f"{name} {_spoken(value, decimals)}" for name, value in shown.items())
    text = f"Bar chart: {title}. {ylabel}: {said}."
    return finish(ax, ylabel, title, text + _said_prediction(predicted))


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    predicted: float | None = None,
    ax=None,
):
    """Axes with one line a series, {name: (x values, y values)}, and *predicted* as a dashed line.

    The series are told apart by colour and marker. Raises ValueError where a series is empty.
    """
    if not series or not all(len(y) for _, y in series.values()):
        raise ValueError("There is nothing to draw: give lines() series that have points.")
    ax = ax or axes()
    for i, (name, (x, y)) in enumerate(series.items()):
        look = {"color": COLOURS[i % 6], "marker": "osD^vP"[i % 6], "markersize": 7}
        ax.plot(x, y, linewidth=2, label=verbatim(name), **look)
    _draw_prediction(ax, [], predicted)
    ax.set_xlabel(verbatim(xlabel))
    if len(series) > 1 or predicted is not None:
        legend_above(ax)
    said = []
    for name, (x, y) in series.items():
        first, last = numbers([y[0], y[-1]])
        said.append(f"{name} goes from {first} at {x[0]:g} to {last} at {x[-1]:g}")
    text = f"Line chart: {title}. {ylabel} against {xlabel}: {'; '.join(said)}."
    return finish(ax, ylabel, title, text + _said_prediction(predicted))


def table(rows: Sequence[Mapping[str, object]]):
    """A table for a notebook, one row a record, empty where a record lacks a column."""
    from IPython.display import HTML

    def line(kind, texts):
        start = f'<{kind} style="text-align: left; vertical-align: top"><pre style="{VERBATIM}">'
        cells = (f"{start}{escape(str(text))}</pre></{kind}>" for text in texts)
        return f"<tr>{''.join(cells)}</tr>"

    names = list(dict.fromkeys(name for row in rows for name in row))
    body = (line("td", [row.get(name, "") for name in names]) for row in rows)
    return HTML(f"<table>{line('th', names)}{''.join(body)}</table>")


def show_with_alternative_text() -> None:
    """Lets a notebook show each figure as an <img> whose alt text is the labels of its axes.

    The label is set by `ax.set_label`. The picture/png output of a notebook has no place for it.
    On a projector it is as wide as :func:`css_width` says.
    """
    from IPython import get_ipython
    from IPython.core.pylabtools import print_figure
    from matplotlib import pyplot as plt

    if (shell := get_ipython()) is None:
        return

    def html(figure):
        text = " ".join(ax.get_label() or ax.get_title() for ax in figure.axes)
        drawn = print_figure(figure)
        inches = int.from_bytes(drawn[16:20]) / figure.dpi  # with the margins cut off
        look = f' style="width: {css_width(inches)}; max-width: 100%"' if presenting() else ""
        source = f"data:image/png;base64,{base64.b64encode(drawn).decode()}"
        return f'<img alt="{escape(text, quote=True)}"{look} src="{source}">'

    plt.switch_backend("module://matplotlib_inline.backend_inline")
    formatters = shell.display_formatter.formatters
    formatters["image/png"].pop(plt.Figure, None)
    formatters["text/html"].for_type(plt.Figure, html)
    plt.rcParams |= {"figure.dpi": dots(), "font.size": 13}
    if presenting():  # a pale mark is seen from the last row by its edge
        plt.rcParams |= {"lines.markeredgecolor": "black"}


def _unit(values: Mapping[str, Estimate | float]) -> str:
    units = {getattr(value, "unit", "") for value in values.values()}
    if len(units) > 1 or "" in units:
        named = ", ".join(sorted(unit or "none" for unit in units))
        raise ValueError(f"The values have no one unit ({named}): give bars() a ylabel.")
    return units.pop()


def _estimate(value: Estimate | float) -> Estimate:
    return value if isinstance(value, Estimate) else Estimate(float(value))


def _mark(ax, at: float, value: Estimate, text: str) -> None:
    """The number on top of a bar, and the bar's interval."""
    if not value.exact:
        lengths = [[value.mean - value.low], [value.high - value.mean]]
        ax.errorbar(at, value.mean, yerr=lengths, fmt="none", ecolor="black", capsize=6)
    place = {"ha": "center", "va": "bottom", "xytext": (0, 4), "textcoords": "offset points"}
    behind = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none"}
    top = max(value.mean, value.high, 0)
    ax.annotate(text, (at, top), fontsize=14, bbox=behind, zorder=4, **place)


def _draw_prediction(ax, names: list[str], predicted) -> list[float]:
    """Draws the reader's prediction, if any, with its legend; returns the values drawn."""
    from matplotlib import patheffects

    if predicted is None:
        return []
    if not isinstance(predicted, Mapping):
        edge = [patheffects.withStroke(linewidth=5, foreground="white")]
        label = f"your prediction: {predicted:g}"
        ax.axhline(predicted, label=label, path_effects=edge, zorder=3, **PREDICTED)
        legend_above(ax)
        return [predicted]
    if unknown := set(predicted) - set(names):
        raise ValueError(f"There is no bar for the prediction of {', '.join(sorted(unknown))}.")
    # beside the middle, where the number and the interval are
    places = [names.index(name) - 0.28 for name in predicted]
    look = {"marker": "D", "markersize": 11, "color": "white", "markeredgecolor": "black"}
    heights = list(predicted.values())
    ax.plot(places, heights, linestyle="", label="your prediction", zorder=5, **look)
    legend_above(ax)
    return heights


def _said_prediction(predicted) -> str:
    if predicted is None:
        return ""
    if isinstance(predicted, Mapping):
        said = ", ".join(f"{name} {value:g}" for name, value in predicted.items())
        return f" Your prediction: {said}."
    return f" Your prediction: {predicted:g}."


def _spoken(value: Estimate, decimals: int | None) -> str:
    mean, low, high = (written(end, decimals) for end in (value.mean, value.low, value.high))
    return mean if value.exact else f"{mean} ({low} to {high})"


def _name_bars(ax, names: list[str]) -> None:
    """The names under the bars: in lines where they are long, tilted where a word is too long."""
    room = int(width(ax) / len(names) / CHARACTER)
    ticks = [textwrap.fill(name, max(room, 1), break_long_words=False) for name in names]
    words = [word for tick in ticks for word in tick.splitlines()]
    if max(map(len, words), default=0) <= room:
        ax.set_xticks(range(len(names)), map(verbatim, ticks))
    else:
        ax.set_xticks(range(len(names)), map(verbatim, names), rotation=20, ha="right")


def _limit(ax, heights: list[float], *, percent: bool) -> None:
    """Room above for the numbers; a share's axis ends at 100 all the same."""
    low, high = min(heights), max(heights)
    if percent and low >= 0 and high <= 100:
        ax.set_ylim(0, 113)
        ax.set_yticks(range(0, 101, 20))
        ax.spines["left"].set_bounds(0, 100)
        return
    span = max(high, 0) - min(low, 0) or 1
    below = 0.08 * span if low < 0 else 0
    ax.set_ylim(min(low, 0) - below, max(high, 0) + 0.18 * span)
