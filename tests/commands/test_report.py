"""report.html: the headline figures, and all executed notebooks, on one page that needs no
network.
"""

import re
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from samples import CPU

from labkit import course
from labkit.commands.report import HEADLINES, WIDGET, write_report
from labkit.figures import Estimate
from labkit.products import Products
from labkit.profiles import ROOT
from labkit.session import Lab

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
def lab(runs):
    return Lab("02", CPU)


def execute(lab, number: str, *cells) -> None:
    """Puts a notebook with these *cells* where `./lab run` puts it."""
    path = lab.folder / "notebooks" / course.notebook_path(number).name
    path.parent.mkdir(exist_ok=True, parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)


def markdown(text):
    return nbformat.v4.new_markdown_cell(text)


def code(*outputs):
    return nbformat.v4.new_code_cell("x", outputs=list(outputs))


def report(lab) -> str:
    return write_report(Products(lab.folder)).read_text()


def test_without_a_notebook_there_is_none(lab):
    assert write_report(Products(lab.folder)) is None


def test_the_headline_figures_come_first_then_the_labs_in_order(lab):
    for section, name in {end for _, *ends in HEADLINES for end in ends}:
        lab.record(section, **{name: Estimate(3.25, 2.5, 4.0, "units")})
    lab.record("sizes_mb", base_fp16=Estimate(269, unit="MB"))
    lab.summary()
    for number in ("02", "01"):
        execute(lab, number, markdown(f"# Lab {number}"))
    page = report(lab)
    places = [
        page.index(text)
        for text in (
            ">On-device lab, profile cpu",
            "<td>269 MB</td>",
            "<td>3.25 (2.50 to 4.00) units</td>",
            'href="#lab-01"',
            'href="#lab-02"',
            'id="lab-01"',
            'id="lab-02"',
        )
    ]
    assert places == sorted(places)
    for what, *_ in HEADLINES:
        assert f"<td>{what}</td>" in page


def test_a_figure_that_is_missing_leaves_its_row_out(lab):
    lab.record("sizes_mb", base_fp16=Estimate(269, unit="MB"))
    lab.summary()
    execute(lab, "01", markdown("# Lab 1"))
    assert "<td>size</td>" not in report(lab)


def test_the_names_of_the_headlines_are_those_that_the_labs_record():
    """A renamed figure would drop out of the report without a word."""
    cells = {path.name: path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb")}
    for section, name in {end for _, *ends in HEADLINES for end in ends}:
        assert any(section in text and name in text for text in cells.values()), (section, name)


def test_links_lead_to_labs_or_files(lab):
    links = {
        "next lab": "03_finetune.ipynb",
        "lab not run": "04_optimize.ipynb",
        "models": "../docs/MODELS.md",
        "elsewhere": "https://example.com/page",
    }
    text = " ".join(f"[{name}]({target})" for name, target in links.items())
    execute(lab, "02", markdown(f"# Lab 2\n\n{text}"))
    execute(lab, "03", markdown("# Lab 3"))
    page = report(lab)
    found = {
        name: target for target, name in re.findall(r'<a href="([^"]+)"[^>]*>(.+?)</a>', page)
    }
    assert found["next lab"] == "#lab-03" and 'id="lab-03"' in page
    assert found["elsewhere"] == links["elsewhere"]
    for name in ("models", "lab not run"):
        path = lab.folder / unquote(urlsplit(found[name]).path)
        assert path.resolve() == (ROOT / "notebooks" / links[name]).resolve() and path.exists()
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert anchors and not [anchor for anchor in anchors if f'id="{anchor}"' not in page]


def test_nothing_is_loaded_from_elsewhere(lab):
    picture = nbformat.v4.new_output("display_data", data={"image/png": PIXEL})
    execute(lab, "02", markdown("# Lab 2\n\n$x^2$"), code(picture))
    page = report(lab)
    assert f"data:image/png;base64,{PIXEL}" in page
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', page)
    assert "cdnjs" not in page and "unpkg" not in page


def test_the_pictures_of_the_labs_are_in_it(lab):
    """nbconvert embeds none that lies above the notebooks."""
    texts = [path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb")]
    targets = {target for text in texts for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)}
    execute(lab, "02", *(markdown(f"![a picture]({target})") for target in targets))
    found = re.findall(r'<img [^>]*src="([^"]+)"', report(lab))
    assert len(found) == len(targets) > 0
    assert all(source.startswith("data:image/png;base64,") for source in found)


def test_a_widget_is_shown_by_the_page_beside_it_or_not_at_all(lab):
    box = {WIDGET: {"model_id": "box"}, "text/html": "<p>the example's answer</p>"}
    bar = {WIDGET: {"model_id": "bar"}, "text/plain": "HBox(children=a progress bar)"}
    outputs = [nbformat.v4.new_output("display_data", data=data) for data in (box, bar)]
    execute(lab, "05", code(*outputs, nbformat.v4.new_output("stream", text="a line")))
    page = report(lab)
    assert "the example's answer" in page and "a line" in page
    assert "a progress bar" not in page and WIDGET not in page
