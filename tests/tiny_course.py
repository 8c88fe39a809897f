"""A course of three tiny labs in a folder of its own, for the commands that run and delete."""

import nbformat
import pytest

from labkit import course as labs
from labkit.commands import run, setup
from labkit.course import Entry
from labkit.products import Products
from labkit.profiles import resolve_profile
from labkit.session import Lab

ENTRIES = {
    "01": Entry("setup", makes=("base",)),
    "02": Entry("quantize", needs=("base",), makes=("awq", "awq-gpu")),
    "03": Entry("infer", needs=("awq",), makes=("answers",), outputs=("downloaded",)),
}


@pytest.fixture
def course(tmp_path, monkeypatch):
    """The run folder of three labs, each of one step."""
    for name in ("LAB_PROFILE", "LAB_MODEL", "LAB_DATA", "LAB_STEPS", "LAB_LOCK_HELD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(labs, "ROOT", tmp_path)
    monkeypatch.setattr(labs, "GPU_ONLY", ("awq-gpu",))
    whole = dict(labs.LABS)
    labs.LABS.clear()  # the modules that import it hold the dictionary itself
    labs.LABS.update(ENTRIES)
    monkeypatch.setattr(setup, "enter", lambda *_, **__: None)
    monkeypatch.setattr("labkit.products.versions", lambda: {"python": "3"})  # takes a while
    (tmp_path / "notebooks").mkdir()
    for number in ENTRIES:
        write_notebook(number, "1 + 1")
    yield tmp_path / "runs" / "cpu"
    labs.LABS.clear()
    labs.LABS.update(whole)  # in its order


def only_lab(entry):
    """The course becomes one lab, 01.

    Not by monkeypatch: it undoes after the fixture did and would put the tiny labs back.
    """
    labs.LABS.clear()
    labs.LABS["01"] = entry


@pytest.fixture
def write(course):
    """A function (number of a lab, code) that changes its notebook."""
    return write_notebook


@pytest.fixture
def products(course):
    return Products(course)


def write_notebook(number: str, code: str) -> None:
    cells = [
        nbformat.v4.new_markdown_cell(f"# Lab {number}\n\n**Time:** read 5 min, run 2 min"),
        nbformat.v4.new_markdown_cell("## Step 1"),
        nbformat.v4.new_code_cell(code),
        nbformat.v4.new_code_cell(f'# lab.checkpoint("{int(number)}.1", fine=True)'),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), labs.notebook_path(number))


@pytest.fixture
def executed(course, monkeypatch):
    """The labs that were executed, in order; those in the set ``fails`` fail.

    No kernel is started.
    """

    class Executed(list):
        def __init__(self):
            super().__init__()
            self.fails, self.expected = set(), {}

    executed = Executed()

    def execute(folder, profile, number, out, progress, *, expected=None):
        executed.append(number)
        executed.expected[number] = expected
        out.parent.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(), out)
        if number in executed.fails:
            return f"{number}: FAILED\nerror: as the test says"
        make(number, LAB_LOCK_HELD=str(folder))
        return ""

    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(run, "write_report", lambda products: None)
    return executed


def make(number: str, **env: str) -> None:
    """Makes the product of lab *number*, as its notebook would."""
    entry = labs.LABS[number]
    with pytest.MonkeyPatch.context() as kernel:
        for name, value in env.items():
            kernel.setenv(name, value)
        lab = Lab(number, resolve_profile())
        lab.keep(entry.makes[0], lambda recipe, out: out.write_text(number), needs=entry.needs)
        lab.checkpoint(f"{int(number)}.1", fine=True)


@pytest.fixture
def make_lab(course):
    return make
