"""./lab present: slides without prose that have all code, and notes that fit the labs."""

import asyncio
import json
import re

import nbformat
import pytest
from samples import CPU

from labkit.commands import present
from labkit.commands.jupyterlab import _addresses
from labkit.commands.jupyterlab.contents import LabContents
from labkit.commands.open import command
from labkit.course import EXTRAS, LABS, notebook_path
from labkit.figures import Estimate
from labkit.presenting import SPEAKER, slides, write_notes, write_slides
from labkit.profiles import ROOT
from labkit.session import Lab

NOTES = sorted(path.name[:2] for path in SPEAKER.glob("*.md"))
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def book_of(number: str) -> dict:
    return json.loads(notebook_path(number).read_text(encoding="utf-8"))


def texts(book: dict, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("number", [*LABS, *EXTRAS])
@pytest.mark.parametrize("blank", [False, True])
def test_slides_have_all_code_and_all_headings_and_no_prose(number, blank):
    whole, shown = book_of(number), slides(book_of(number), blank=blank)
    nbformat.validate(nbformat.from_dict(json.loads(json.dumps(shown))))
    assert list(filter(None, texts(shown, "code"))) == texts(whole, "code")
    lines = [line for text in texts(shown, "markdown") for line in text.splitlines() if line]
    prose = [
        line for line in lines if not re.match(r"#+ |!\[|\*\*Next:\*\* \[[^]]+\]\(\S+\)$", line)
    ]
    assert not prose
    kept = HEADING.findall("\n".join(lines))
    fenced = re.sub(r"```.*?```", "", "\n".join(texts(whole, "markdown")), flags=re.DOTALL)
    assert kept == HEADING.findall(fenced) and len(kept) >= 5
    assert whole == book_of(number)


def test_what_is_typed_is_empty_above_its_collapsed_code():
    cells = slides(book_of("03"), blank=True)["cells"]
    empty = [at for at, cell in enumerate(cells) if not cell["source"]]
    hidden = [at for at, cell in enumerate(cells) if "jupyter" in cell["metadata"]]
    assert hidden == [at + 1 for at in empty] and len(hidden) > 10
    typed = "\n".join("".join(cells[at]["source"]) for at in hidden)
    assert "class LoraLinear" in typed and "olive.run(" in typed
    assert not re.search(r"labkit\.start|lab\.checkpoint|lab\.exercise|pictures\.", typed)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone with one lab, as it came."""
    monkeypatch.setenv("LAB_PRESENT", "1")
    path = tmp_path / "clone" / "notebooks" / "02_quantize.ipynb"
    path.parent.mkdir(parents=True)
    path.write_bytes(notebook_path("02").read_bytes())
    monkeypatch.setattr("labkit.working_copies.EXTRAS", {})
    monkeypatch.setattr("labkit.working_copies.LABS", {"02": LABS["02"]})
    return tmp_path / "clone"


def read(clone) -> dict:
    contents = LabContents(root_dir=str(clone), delete_to_trash=False)
    return asyncio.run(contents.get("notebooks/02_quantize.ipynb"))["content"]


def test_slides_are_shown_in_the_place_of_the_lab_and_attendees_have_the_lab(clone, monkeypatch):
    before = (clone / "notebooks" / "02_quantize.ipynb").read_bytes()
    assert write_slides(clone) == []
    assert texts(read(clone), "markdown")[:2] == [
        "# Lab 2: What do four bits cost?",
        "## Step 1: Round weights to a grid of 16 lines",
    ]
    monkeypatch.delenv("LAB_PRESENT")
    assert "**Goal:**" in texts(read(clone), "markdown")[0]
    assert (clone / "notebooks" / "02_quantize.ipynb").read_bytes() == before
    assert not (clone / "runs" / "working").exists()


def test_each_start_is_clean_and_keeps_what_was_typed(clone):
    copy = clone / "runs" / "presenting" / "02_quantize.ipynb"
    write_slides(clone, blank=True)
    assert write_slides(clone) == []  # nothing was typed
    clean = copy.read_bytes()
    book = json.loads(clean)
    book["cells"][3]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": "run"}]
    copy.write_text(json.dumps(book))
    assert write_slides(clone) == [] and copy.read_bytes() == clean
    for typed in ("print('live')", "print('again')"):
        book["cells"][1]["source"] = typed
        copy.write_text(json.dumps(book))
        (aside,) = write_slides(clone)
        assert typed in aside.read_text() and copy.read_bytes() == clean
    copy.write_text("cut o")
    (aside,) = write_slides(clone)
    assert aside.read_text() == "cut o" and copy.read_bytes() == clean


# ---- speaker notes


def test_the_labs_and_the_extras_of_the_plans_have_notes():
    assert set(LABS) | {"08", "12"} == set(NOTES)
    for number in NOTES:
        assert (SPEAKER / notebook_path(number).name).with_suffix(".md").exists()


@pytest.mark.parametrize("number", NOTES)
def test_notes_go_through_the_lab_step_by_step_and_ask_the_room(number):
    text = next(SPEAKER.glob(f"{number}_*.md")).read_text()
    *steps, last = HEADING.findall(text)[1:]
    shown = HEADING.findall("\n".join(texts(slides(book_of(number)), "markdown")))
    assert steps == [one for one in shown[1:] if one != "What you did"]
    assert last == "If it goes wrong" and text.count("**Ask: ") >= 4
    assert max(map(len, text.splitlines())) <= 200  # read at a glance
    for link in re.findall(r"\]\((\S+)\)", text):
        assert (SPEAKER / link).exists(), link


@pytest.mark.parametrize("number", NOTES)
def test_notes_copy_no_figure_and_name_such_as_the_labs_record(number):
    text = next(SPEAKER.glob(f"{number}_*.md")).read_text()
    assert not re.search(r"\d ?(MB|GB|nats|s\b|tokens/s|%|percent)", text)
    code = "\n".join(text for lab in LABS for text in texts(book_of(lab), "code"))
    made = {name for lab in LABS.values() for name in lab.makes}
    for section, name in re.findall(r"\{(\w+)\.([\w.-]+)\}", text):
        if section == "seconds":
            assert name in made, name
        else:
            assert re.search(rf'lab\.record\(\s*"{section}"', code), section
            assert re.search(rf"\b{name}\b ?[=:\"]", code), name


def test_notes_have_the_figures_of_this_run(runs, tmp_path):
    lab = Lab("01", CPU)
    lab.record("eval_loss", base=Estimate(4.5, 4.25, 4.75, "nats per token"))
    write_notes(tmp_path, lab.products)
    notes = (tmp_path / "runs" / "presenting" / "01_setup.md").read_text()
    assert "Expect **4.50 (4.25 to 4.75) nats per token**: it knows" in notes
    assert "Expect **not measured yet**: two bytes a weight" in notes


def test_a_unit_is_no_markdown_of_the_notes(runs, tmp_path):
    lab = Lab("01", CPU)
    lab.record("eval_loss", base=Estimate(4.5, unit="![](http://x/y) <img src=x> [a](b)"))
    write_notes(tmp_path, lab.products)
    notes = (tmp_path / "runs" / "presenting" / "01_setup.md").read_text()
    assert "Expect **4.5" in notes and "![](http" not in notes and "<img" not in notes


# ---- the command


def test_it_says_what_would_be_made_on_stage(course, products, make_lab):
    said = "NOT prepared, and made on stage (01: base; 02: awq; 03: answers)"
    assert present.prepared(products, CPU).startswith(said)
    for number in ("01", "02", "03"):
        make_lab(number)
    assert present.prepared(products, CPU).startswith("Labs 01 to 06 are prepared")


def test_it_opens_the_slides_of_the_lab_that_is_named(monkeypatch, capsys):
    became = []
    monkeypatch.setattr("os.execv", lambda _, arguments: became.extend(arguments))
    monkeypatch.setattr(present, "write_slides", lambda root, blank: [])
    monkeypatch.setattr(present, "write_notes", lambda root, products: None)
    monkeypatch.setattr("os.chdir", lambda _: None)
    monkeypatch.setenv("LAB_PRESENT", "")
    present.main(["8", "--port", "9000"])
    assert "--LabApp.default_url=/doc/tree/notebooks/extras/08_serve.ipynb" in became
    assert (
        "--port=9000" in became
        and became[1:] == command(ROOT, 9000, at="/doc/tree/notebooks/extras/08_serve.ipynb")[1:]
    )
    with pytest.raises(SystemExit):
        present.main(["99"])
    assert f"'99' is no notebook: 01 to {max(EXTRAS)}" in capsys.readouterr().err


def test_the_notes_have_an_address_of_their_own():
    shown = "http://localhost:8889/doc/tree/notebooks/{0}.ipynb?token=1\n or http://127.0.0.1:8889"
    shown += "/doc/tree/notebooks/{0}.ipynb?token=1"
    for name in ("02_quantize", "extras/08_serve"):
        slides, notes = _addresses(shown.format(name)).splitlines()
        assert slides.endswith(f"127.0.0.1:8889/doc/tree/notebooks/{name}.ipynb?token=1")
        stem = name.rpartition("/")[2]
        assert notes.endswith(f"127.0.0.1:8889/doc/tree/runs/presenting/{stem}.md?token=1")
