"""Bars, lines and tables: what they say, and that nothing covers anything."""

import base64
import html
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib.pyplot
import pytest
from drawn import LEAST, contrast, nothing_is_covered, texts_of
from IPython.core.formatters import DisplayFormatter

matplotlib.use("agg")

from labkit import charts
from labkit.drawing import COLOURS, numbers
from labkit.figures import Estimate

LOSS = "nats per token"
LOSSES = {
    "base": Estimate(4.553, 4.43, 4.68, LOSS),
    "rounded": Estimate(4.83, 4.71, 4.96, LOSS),
    "AWQ": Estimate(4.697, 4.57, 4.82, LOSS),
    "AWQ + LoRA": Estimate(3.44, 3.3, 3.5, LOSS),
    "ONNX + adapter": Estimate(3.4, 3.3, 3.5, LOSS),
}


def words(ax) -> list[str]:
    return [text.get_text() for text in texts_of(ax.figure)]


def test_bars_of_estimates_have_their_unit_numbers_and_intervals():
    ax = charts.bars(LOSSES | {"size": Estimate(3.0, unit=LOSS)}, title="Losses")
    assert ax.get_ylabel() == LOSS
    assert {"4.55", "4.83", "4.70", "3.44", "3.40", "3.00"} <= set(words(ax))
    assert len(ax.containers) == 1 + 5  # the bars, and an interval where there is one
    assert ax.get_label().startswith(
        "Bar chart: Losses. nats per token: base 4.55 (4.43 to 4.68),"
    )
    assert ax.get_label().endswith("size 3.00.")


def test_bars_of_plain_numbers_need_a_label():
    ax = charts.bars({"a": 1.0, "b": 250.0}, ylabel="size (MB)", title="t")
    assert ax.get_label() == "Bar chart: t. size (MB): a 1, b 250."
    with pytest.raises(ValueError, match="no one unit \\(none\\): give bars"):
        charts.bars({"a": 1.0}, title="t")
    with pytest.raises(ValueError, match="no one unit \\(GB, MB\\)"):
        charts.bars({"a": Estimate(1, unit="MB"), "b": Estimate(1, unit="GB")}, title="t")


@pytest.mark.parametrize("draw", [charts.bars, charts.lines])
def test_nothing_to_draw_is_said(draw):
    with pytest.raises(ValueError, match="There is nothing to draw"):
        draw({}, title="t", ylabel="y", **({"xlabel": "x"} if draw is charts.lines else {}))


def test_a_prediction_is_a_line_over_all_bars_or_a_mark_at_those_it_names():
    ax = charts.bars(LOSSES, title="t", predicted=4)
    assert [line.get_ydata()[0] for line in ax.get_lines() if line.get_linestyle() == "--"] == [4]
    assert "your prediction: 4" in words(ax) and ax.get_label().endswith(" Your prediction: 4.")
    ax = charts.bars(LOSSES, title="t", predicted={"AWQ": 9.5})
    (mark,) = [line for line in ax.get_lines() if line.get_marker() == "D"]
    assert list(mark.get_ydata()) == [9.5] and 1.5 < mark.get_xdata()[0] < 2
    assert ax.get_ylim()[1] > 9.5
    assert "your prediction" in words(ax) and ax.get_label().endswith("Your prediction: AWQ 9.5.")
    with pytest.raises(ValueError, match="no bar for the prediction of QWA"):
        charts.bars(LOSSES, title="t", predicted={"QWA": 1})


@pytest.mark.parametrize("predicted", [None, 3.46, {"AWQ + LoRA": 3.6}])
def test_nothing_covers_a_text_of_bars(predicted):
    ax = charts.bars(LOSSES, title="Held-out loss through the route", predicted=predicted)
    nothing_is_covered(ax.figure)
    if predicted:
        legend = ax.get_legend().get_window_extent()
        assert legend.y0 >= ax.bbox.y1 - 1  # above the chart, and so over no line


def test_a_share_ends_at_100_with_room_for_its_number():
    shares = {"none": Estimate(4, 0, 9, "%"), "tone": Estimate(100, 95, 100, "%")}
    ax = charts.bars(shares, title="Answers in our style")
    assert max(ax.get_yticks()) == 100 and ax.spines["left"].get_bounds() == (0, 100)
    nothing_is_covered(ax.figure)
    (top,) = [text for text in ax.texts if text.get_text() == "100"]
    assert top.get_window_extent().y1 <= ax.bbox.y1
    assert max(charts.bars({"a": 180.0}, ylabel="error (%)", title="t").get_yticks()) > 100


def test_negative_bars_are_drawn_below_zero():
    ax = charts.bars({"a": -0.2, "b": 0.3}, ylabel="harm", title="t")
    assert ax.get_ylim()[0] < -0.2
    assert charts.bars({"a": 3.7, "b": 269.0}, ylabel="MB", title="t").get_ylim()[0] == 0


def test_long_names_of_bars_are_tilted_and_others_are_wrapped():
    kinds = {"MatMul": 1, "SkipSimplifiedLayerNormalization": 2} | dict.fromkeys("abc", 1)
    ax = charts.bars(kinds, ylabel="nodes", title="t")
    assert {tick.get_rotation() for tick in ax.get_xticklabels()} == {20}
    ax = charts.bars(LOSSES, title="t")
    assert ax.get_xticklabels()[-1].get_text() == "ONNX +\nadapter"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([3.4, 3.44, 3.32], ["3.40", "3.44", "3.32"]),
        ([269.0, 117.3, 3.7], ["269.0", "117.3", "3.7"]),
        ([12345, 0, 7], ["12,345", "0", "7"]),
        ([0.0123, 40.0], ["0.0123", "40.0"]),
        ([], []),
    ],
)
def test_numbers_have_one_precision(values, texts):
    assert numbers(values) == texts


def test_lines_have_a_legend_above_and_a_prediction():
    series = {"training": ([1, 70], [4.5, 3.4]), "held out": ([0, 70], [4.7, 3.4])}
    ax = charts.lines(series, xlabel="step", ylabel="loss", title="Both fall", predicted=3)
    assert ax.get_xlabel() == "step" and len(ax.get_lines()) == 3
    assert ax.get_legend().get_window_extent().y0 >= ax.bbox.y1 - 1
    said = "training goes from 4.50 at 1 to 3.40 at 70; held out goes from 4.70 at 0"
    assert said in ax.get_label()
    assert ax.get_label().endswith("Your prediction: 3.")
    nothing_is_covered(ax.figure)


@pytest.mark.parametrize("text", ["$x_{$", "$5 to $10", r"a\$b", "$$", "one $"])
def test_charts_show_dollar_signs_as_they_stand(text, tmp_path):
    import matplotlib.pyplot as plt

    series = {text: ([1, 2], [1.0, 2.0]), "b": ([1, 2], [2.0, 1.0])}
    bars = charts.bars({text: 1.0, "b": 2.0}, ylabel=text, title=text)
    curves = charts.lines(series, xlabel=text, ylabel=text, title=text)
    with plt.rc_context({"svg.fonttype": "none"}):  # texts stay texts
        for ax, places in ((bars, 3), (curves, 4)):
            ax.figure.savefig(tmp_path / "chart.svg")
            tree = ElementTree.parse(tmp_path / "chart.svg")
            drawn = tree.iter("{http://www.w3.org/2000/svg}text")
            assert ["".join(one.itertext()).strip() for one in drawn].count(text) == places
            assert text in ax.get_label()


def test_a_table_shows_texts_as_they_are():
    texts = ['<img src=x onerror="alert(1)">', "</pre></td>", "$x$ & &amp;", "two\n  lines", "{0}"]
    page = charts.table([{texts[0]: text, "n": 1} for text in texts]).data
    assert "<img" not in page and page.count("<tr>") == 6 and page.count("</pre></td>") == 10
    cells = re.findall(r"<td[^>]*><pre[^>]*>(.*?)</pre></td>", page, re.DOTALL)
    assert [html.unescape(cell) for cell in cells][::2] == texts
    assert html.unescape(re.search(r"<th[^>]*><pre[^>]*>(.*?)</pre></th>", page)[1]) == texts[0]
    assert charts.table([]).data == "<table><tr></tr></table>"


def test_a_row_of_a_table_may_lack_a_column():
    page = charts.table([{"a": 1}, {"b": 2}]).data
    cells = re.findall(r"<(t[hd])[^>]*text-align: left[^>]*><pre[^>]*left[^>]*>(.*?)</pre>", page)
    assert cells == [("th", "a"), ("th", "b"), ("td", "1"), ("td", ""), ("td", ""), ("td", "2")]


@pytest.mark.parametrize("present", ["", "1"])
def test_on_a_projector_the_smallest_text_has_18_points_of_a_slide(monkeypatch, present):
    monkeypatch.setenv("LAB_PRESENT", present)
    formatter = DisplayFormatter()
    monkeypatch.setattr(
        "IPython.get_ipython", lambda: SimpleNamespace(display_formatter=formatter)
    )
    monkeypatch.setattr(matplotlib.pyplot, "switch_backend", lambda _: None)
    with matplotlib.rc_context():
        charts.show_with_alternative_text()
        edges = matplotlib.rcParams["lines.markeredgecolor"]
        page = formatter.formatters["text/html"](charts.bars(LOSSES, title="t").figure)
        dots = matplotlib.rcParams["figure.dpi"]
    png = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    inches = int.from_bytes(png[16:20]) / dots
    assert 7.5 < inches < 9
    if not present:  # an attendee's is as it was
        assert (dots, edges) == (100, "auto") and "style" not in page
        return
    width = float(re.search(r'style="width: ([\d.]+)vw; max-width: 100%"', page)[1]) / 100
    points_across = 960  # of a slide of 13.3 inches
    assert LEAST / 72 / inches * width * points_across >= 17.99
    assert dots == 200 and edges == "black"


@pytest.mark.parametrize("colour", COLOURS)
def test_on_a_projector_marks_are_told_from_the_paper_by_their_edge(colour):
    """Some colours alone are too pale for that."""
    assert contrast("black", colour) >= 3 and contrast("black", "white") == 21


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")
