"""The slides of the first three labs, run from top to bottom on prepared products."""

import time

import nbformat
import pytest
from labs import judges_knowledge, run_lab

from labkit.presenting import slides
from labkit.products import Products

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("number", "recorded"), [("01", ()), ("02", ("awq",)), ("03", ("lora", "lora-tone"))]
)
@pytest.mark.parametrize("blank", [False, True])
def test_slides_run_whole_and_make_nothing(number, recorded, blank, notebook_runs, tmp_path):
    before = {stamp.name: stamp.finished for stamp in Products(notebook_runs).stamps()}
    settings = {"LAB_RUNS": str(notebook_runs.parent), "LAB_PRESENT": "1"}
    started = time.monotonic()
    faults = run_lab(number, settings, tmp_path, change=lambda book: slides(book, blank=blank))
    assert all(map(judges_knowledge, faults)), faults
    assert time.monotonic() - started < 300
    (ran,) = tmp_path.glob("*.ipynb")
    said = "\n".join(
        output.get("text", "")
        for cell in nbformat.read(ran, 4).cells
        for output in cell.get("outputs", ())
    )
    assert said.count("that was a recording of") == len(recorded)
    for product in recorded:
        assert f"{product}: that was a recording of" in said
    after = {stamp.name: stamp.finished for stamp in Products(notebook_runs).stamps()}
    slow = {name for name in after if name in ("base", "awq", "awq-dense", "lora", "lora-tone")}
    assert len(slow) == 5 and {n: after[n] for n in slow} == {n: before[n] for n in slow}
