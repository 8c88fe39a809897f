"""Runs the notebooks of some labs as an attendee would, in order or not, with other settings."""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
UNLOCKED = (
    "import labkit.machine; "
    "labkit.machine._packages = lambda profile: ('packages', True, 'not checked', '')"
)
JUDGE_KNOWLEDGE = {
    # checkpoints that a model with little or no training need not pass
    "1.4": "loss below an even guess",
    "2.5": "awq harm at most 80 percent",
    "3.5": "answers are tones",
    "5.2": "not one word over and over",
    "5.3": "tone adapter 20 points better",
    "5.4": "nine of ten answers end by themselves",
}


def notebook_of(number: str) -> Path:
    """Path of the notebook of lab *number*."""
    return next((ROOT / "notebooks").glob(f"{number}_*.ipynb"))


def kernel_env(settings: dict[str, str]) -> dict[str, str]:
    """The environment of a kernel that imports this clone's labkit, with *settings*."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": path} | settings


def run_lab(
    number: str,
    settings: dict[str, str],
    out: Path,
    *,
    first: Iterable[str] = (),
    change: Callable[[dict], dict] = dict,
) -> list[str]:
    """Executes lab *number*, saves it in *out*; returns what its checkpoints found wrong.

    *first* is code that runs before its first cell, *change* gives another notebook to run. A
    checkpoint's failure does not stop the lab; any other error is raised.
    """
    path = notebook_of(number)
    book = nbformat.from_dict(change(nbformat.read(path, as_version=4)))
    for cell in book.cells:
        if "checkpoint" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("raises-exception")
    book.cells[:0] = [nbformat.v4.new_code_cell(code) for code in first]
    client = NotebookClient(
        book, kernel_name="python3", timeout=590, resources={"metadata": {"path": path.parent}}
    )
    try:
        client.execute(env=kernel_env(settings))
    finally:
        nbformat.write(book, out / path.name)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return [
        output.evalue.split("(")[0].split(". ")[0]
        for output in outputs
        if output.output_type == "error"
    ]


def judges_knowledge(error: str) -> bool:
    """Whether *error* is a checkpoint's that a model with little or no training need not pass."""
    return any(
        error.startswith(f"checkpoint {number} failed: {claim}")
        for number, claim in JUDGE_KNOWLEDGE.items()
    )


class Player:
    """One kernel, in which the code cells of a notebook are run in any order, and edited."""

    def __init__(self, path: Path, settings: dict[str, str], folder: Path):
        self.book = nbformat.read(path, as_version=4)
        self.cells = [cell for cell in self.book.cells if cell.cell_type == "code"]
        self.errors: list[str] = []
        self.env = kernel_env(settings)
        self.client = NotebookClient(
            self.book,
            kernel_name="python3",
            timeout=900,
            startup_timeout=180,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )

    def __enter__(self):
        self.kernel = contextlib.ExitStack()
        self.kernel.enter_context(self.client.setup_kernel(env=self.env))
        return self

    def __exit__(self, *_):
        self.kernel.close()

    def run(self, index: int, when: str) -> str:
        """Runs code cell *index*; what it printed. An error is noted, with *when* it came."""
        cell = self.cells[index]
        error = ""
        try:
            self.client.execute_cell(cell, self.book.cells.index(cell))
        except DeadKernelError:
            raise AssertionError(
                f"{when}: the kernel died in cell {index}:\n{cell.source}"
            ) from None
        except CellExecutionError as raised:
            error = (
                raised.evalue if raised.ename == "LabError" else f"{raised.ename}: {raised.evalue}"
            )
        if error and not judges_knowledge(error):
            first_line = cell.source.partition("\n")[0]
            self.errors.append(f"{when}: cell {index} ({first_line}): {error}")
        return printed(cell)

    def run_all(self, indices: Iterable[int], when: str) -> dict[int, str]:
        """Runs code cells in the order of *indices*; index -> what it printed."""
        return {index: self.run(index, when) for index in indices}

    def find(self, text: str) -> int:
        """The one code cell with *text* in it."""
        found = [index for index, cell in enumerate(self.cells) if text in cell.source]
        assert len(found) == 1, f"{len(found)} cells with {text!r}"
        return found[0]

    def edit(self, old: str, new: str) -> int:
        """Changes the text *old* of the one cell that has it, once; the cell's index."""
        index = self.find(old)
        cell = self.cells[index]
        assert cell.source.count(old) == 1, f"more than one {old!r}"
        cell.source = cell.source.replace(old, new)
        return index


def printed(cell) -> str:
    """What a cell has printed and shown as text; of a line written over, its last state."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            parts.append(output.text)
        elif output.output_type in ("execute_result", "display_data"):
            parts.append(output.data.get("text/html", output.data.get("text/plain", "")))
    return "\n".join(line.rpartition("\r")[2] for line in "".join(parts).split("\n"))
