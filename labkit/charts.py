"""Bars, lines and tables that look the same in every lab: units on the axis, values on the marks, readable in greyscale.

What data, answers and names hold is shown as it stands: it is no markup, and no formula between dollar signs.
"""

from collections.abc import Mapping, Sequence
from html import escape

# of a <pre>: MathJax looks for no formula in one, and it keeps the breaks of lines
VERBATIM = "font: inherit; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; border: 0; padding: 0; background: none"
COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)  # Okabe and Ito, safe for colour blindness
HATCHES = ("", "//", "..", "xx", "\\\\", "--")


def bars(
    values: Mapping[str, float],
    *,
    ylabel: str,
    title: str,
    interval: Mapping[str, tuple[float, float]] | None = None,
    styles: Sequence[int] | None = None,
    ax=None,
):
    """Axes with one bar a value, its number on top, an error bar where *interval* has (low, high), alike where *styles* are."""
    ax = ax or _axes()
    names, heights = list(values), list(values.values())
    ends = [(interval or {}).get(name, (height, height)) for name, height in values.items()]
    styles = [style % 6 for style in styles or range(len(names))]
    colours, hatches = [COLOURS[style] for style in styles], [HATCHES[style] for style in styles]
    ax.bar(range(len(names)), heights, color=colours, hatch=hatches, edgecolor="black")
    if interval:
        lengths = zip(
            *(
                (height - low, high - height)
                for height, (low, high) in zip(heights, ends, strict=True)
            ),
            strict=True,
        )
        ax.errorbar(
            range(len(names)), heights, yerr=list(lengths), fmt="none", ecolor="black", capsize=6
        )
    for i, height in enumerate(heights):
        top = max(height, ends[i][1], 0)
        place = {"ha": "center", "va": "bottom", "xytext": (0, 3), "textcoords": "offset points"}
        ax.annotate(number(height), (i, top), fontsize=14, **place)
    ticks = [
        name.replace(" ", "\n", 1) if len(name) > 12 or len(names) > 4 else name for name in names
    ]
    ax.set_xticks(range(len(names)), map(_verbatim, ticks))
    ax.set_ylim(min(0, *(1.25 * low for low, _ in ends)), 1.25 * max(high for _, high in ends))
    listed = ", ".join(f"{name} {number(height)}" for name, height in values.items())
    return _finish(ax, ylabel, title, f"Bar chart: {title}. {ylabel}: {listed}.")


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    ax=None,
):
    """Axes with one line a series, {name: (x values, y values)}, told apart by colour, marker and legend."""
    ax = ax or _axes()
    for i, (name, (x, y)) in enumerate(series.items()):
        ax.plot(
            x,
            y,
            color=COLOURS[i % 6],
            marker="osD^vP"[i % 6],
            markersize=6,
            linewidth=2,
            label=_verbatim(name),
        )
    ax.set_xlabel(_verbatim(xlabel))
    if len(series) > 1:
        ax.legend(fontsize=13)
    said = (
        f"{name} goes from {number(y[0])} at {number(x[0])} to {number(y[-1])} at {number(x[-1])}"
        for name, (x, y) in series.items()
    )
    return _finish(
        ax, ylabel, title, f"Line chart: {title}. {ylabel} against {xlabel}: {'; '.join(said)}."
    )


def table(rows: Sequence[Mapping[str, object]]):
    """A table for a notebook, one row a record, with the columns of the first; texts are shown as they are."""
    from IPython.display import HTML

    def line(kind, texts):
        cell = f'<{kind} style="text-align: left; vertical-align: top"><pre style="{VERBATIM}">{{}}</pre></{kind}>'
        return f"<tr>{''.join(cell.format(escape(str(text))) for text in texts)}</tr>"

    names = list(rows[0]) if rows else []
    return HTML(
        f"<table>{line('th', names)}{''.join(line('td', [row[name] for name in names]) for row in rows)}</table>"
    )


def number(value: float) -> str:
    """Three digits that count, for a label."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show_with_alternative_text() -> None:
    """Lets a notebook show each figure as an <img> whose alternative text is the labels of its axes (`ax.set_label`).

    The picture/png output of a notebook has no place for such a text.
    """
    from IPython import get_ipython
    from IPython.core.pylabtools import print_figure
    from matplotlib import pyplot as plt

    if (shell := get_ipython()) is None:
        return

    def html(figure):
        text = escape(" ".join(ax.get_label() or ax.get_title() for ax in figure.axes), quote=True)
        return (
            f'<img alt="{text}" src="data:image/png;base64,{print_figure(figure, base64=True)}">'
        )

    plt.switch_backend("module://matplotlib_inline.backend_inline")
    formatters = shell.display_formatter.formatters
    formatters["image/png"].pop(plt.Figure, None)
    formatters["text/html"].for_type(plt.Figure, html)
    plt.rcParams |= {"figure.dpi": 100, "font.size": 13}


def _verbatim(text: str) -> str:
    """*text* for matplotlib, which would set what stands between two dollar signs as a formula, or fail on it."""
    return text.replace("$", r"\$")


def _axes():
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(8, 4.2), layout="constrained")[1]


def _finish(ax, ylabel: str, title: str, text: str):
    ax.set_label(text)
    ax.set_ylabel(_verbatim(ylabel))
    ax.set_title(_verbatim(title), loc="left", fontweight="bold")
    ax.tick_params(labelsize=13)
    ax.xaxis.label.set_size(14)
    ax.yaxis.label.set_size(14)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
