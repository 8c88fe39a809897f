"""The parts of every notebook, as attendees get it."""

import json
import re

import pytest

from labkit.course import EXTRAS, LABS, notebook_path
from labkit.profiles import ROOT

BANNED = r"(?m)^\s*(!|%pip|%%bash|%%capture|%%writefile|%%sh)|\binput\(|import \*|while True"
WIDTH = 92  # columns that a laptop shows beside the file browser
TAUGHT = {
    # a lab -> the call of a library that it is about
    "02": "olive.run(",
    "03": "olive.run(",
    "04": "olive.run(",
    "05": "og.Generator(",
    "06": "models.create_or_update(",
    "07": "set_guidance(",
}


def cells_of(number: str) -> list[dict]:
    return json.loads(notebook_path(number).read_text())["cells"]


@pytest.fixture(params=[*LABS, *EXTRAS])
def number(request):
    return request.param


@pytest.fixture
def cells(number):
    return cells_of(number)


def source(cell) -> str:
    return "".join(cell["source"])


def code(cells) -> list[str]:
    return [source(c) for c in cells if c["cell_type"] == "code"]


def tagged(cells, tag: str) -> list[int]:
    return [i for i, cell in enumerate(cells) if tag in cell["metadata"].get("tags", [])]


def test_no_outputs_in_git_and_cell_ids(cells):
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None
    ids = [c["id"] for c in cells]
    assert len(set(ids)) == len(ids)


def test_nothing_that_hides_or_blocks(cells):
    assert not [text for text in code(cells) if re.search(BANNED, text)]


def test_no_line_needs_a_scroll_bar(cells):
    lines = [line for text in code(cells) for line in text.splitlines()]
    assert not [line for line in lines if len(line) > WIDTH]


def test_the_first_cell_asks_a_question_and_says_goal_time_and_needs(cells):
    first = source(cells[0])
    assert first.startswith(("# Lab ", "# Extra "))
    places = [first.find(p) for p in ("?", "**Goal:**", "**You will**", "**Time:**", "**Needs:**")]
    assert -1 not in places and places == sorted(places)
    assert re.search(r"\*\*Time:\*\* read \d+ min, run (about )?\d+(\.\d+)? (s|min)", first)
    assert first.count("\n- ") == 3


def test_the_lab_starts_and_shows_where_it_stands(number, cells):
    texts = code(cells)
    starts = next(i for i, text in enumerate(texts) if f'labkit.start("{number}"' in text)
    route = next(i for i, text in enumerate(texts) if f'pictures.route("{number}")' in text)
    assert starts <= route <= starts + 1


def test_the_last_cell_closes(cells):
    last = source(cells[-1])
    assert "## What you did" in last and last.count("<details>") == 3
    assert "**Next:**" in last or "**Done.**" in last


def test_steps_are_numbered_and_name_no_time(cells):
    """How long a step takes depends on the profile: lab.keep shows it as it runs."""
    headings = "\n".join(source(c) for c in cells if c["cell_type"] == "markdown")
    steps = re.findall(r"^## Step (\d+): (.+)$", headings, re.MULTILINE)
    assert len(steps) >= 3
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    assert not [title for _, title in steps if re.search(r"\d ?(s|min)\b", title)]


def test_every_checkpoint_is_tagged_and_every_tag_is_true(cells):
    calls = [i for i, cell in enumerate(cells) if "lab.checkpoint(" in source(cell)]
    assert calls == tagged(cells, "checkpoint") and len(calls) >= 2


def test_a_prediction_is_a_number_of_the_reader_s(cells):
    found = [line for text in code(cells) for line in text.splitlines() if "# your number" in line]
    assert found
    for line in found:
        assert re.match(r"\w+ = [^#]*\d[^#]*  # your number", line), line
        name = line.split()[0]
        assert "\n".join(code(cells)).count(name) >= 2, f"{name} is compared with nothing"


def test_exercises_have_a_hint_one_line_to_change_and_a_solution(number, cells):
    found = tagged(cells, "exercise")
    assert len(found) >= (2 if number in LABS else 1)
    for i in found:
        before = source(cells[i - 1])
        assert before.startswith("### Exercise ") and "<details><summary>Hint" in before
        assert source(cells[i]).count("# TODO: ") == 1 and "lab.exercise(" in source(cells[i])
        exercise = re.match(r"# Exercise (\d+)\.(\d)", source(cells[i]))
        solution = f"exercise_{exercise[1]}_{exercise[2]}.py"
        assert (ROOT / "notebooks" / "solutions" / solution).exists()
    assert len(found) == sum("lab.exercise(" in text for text in code(cells))


def test_the_calls_that_a_lab_teaches_are_in_its_cells():
    for number, call in TAUGHT.items():
        assert any(call in text for text in code(cells_of(number))), call


def test_no_line_of_labkit_is_longer_than_99_columns():
    long = [
        f"{path.relative_to(ROOT)}:{at}"
        for path in (ROOT / "labkit").rglob("*.py")
        for at, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 99
    ]
    assert not long
