"""The exercises as they stand are not solved, and with the solution of notebooks/solutions in
their place they are.
"""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from labkit.course import EXTRAS, LABS, notebook_path
from labkit.profiles import ROOT

# each runs its lab up to the exercise; these need no long measurement before it
QUICK = {"exercise_1_1", "exercise_4_1", "exercise_6_1"}
SOLUTIONS = sorted(
    (ROOT / "notebooks" / "solutions").glob("exercise_*.py"),
    key=lambda path: [int(number) for number in path.stem.split("_")[1:]],
)


def cells(number: str):
    return nbformat.read(notebook_path(number), as_version=4).cells


def test_every_exercise_has_a_solution():
    found = [
        c.source.splitlines()[0]
        for n in (*LABS, *EXTRAS)
        for c in cells(n)
        if "exercise" in c.metadata.get("tags", [])
    ]
    assert found == [path.read_text().splitlines()[0] for path in SOLUTIONS]


@pytest.mark.parametrize(
    "solution",
    [
        pytest.param(p, id=p.stem, marks=[] if p.stem in QUICK else pytest.mark.slow)
        for p in SOLUTIONS
    ],
)
def test_the_solution_solves_the_exercise(solution, notebook_runs):
    text = solution.read_text()
    number, head = solution.stem.split("_")[1].zfill(2), text.splitlines()[0]
    notebook = nbformat.read(notebook_path(number), as_version=4)
    at = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith(head))
    earlier = [
        cell for cell in notebook.cells[:at] if "exercise" not in cell.metadata.get("tags", [])
    ]
    notebook.cells = [*earlier, notebook.cells[at], nbformat.v4.new_code_cell(text)]
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(notebook_path(number).parent)}},
    ).execute(env=os.environ | {"PYTHONPATH": str(ROOT)})
    unedited, solved = (
        "".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells[-2:]
    )
    assert ": not yet" in unedited and ": solved" in solved, solved
