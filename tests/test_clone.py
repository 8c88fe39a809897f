"""Two clones and one environment: a kernel runs the labkit of its own clone."""

import os
import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from labkit.profiles import ROOT

WHERE = "from labkit.profiles import ROOT\nprint(ROOT)"


@pytest.fixture
def other(tmp_path):
    """Another clone, without an environment of its own."""
    other = tmp_path / "other"
    shutil.copytree(ROOT / "labkit", other / "labkit")
    (other / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "labkit", other / "notebooks", follow_symlinks=False)
    return other


def run(code: str, folder, path: str) -> str:
    """What *code* prints in a kernel that works in *folder*; *path* is its PYTHONPATH."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    env = os.environ | {"PYTHONPATH": path, "LAB_RUNS": str(folder / "runs")}
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(book, kernel_name="python3", timeout=600, resources=resources).execute(env=env)
    return "".join(output.get("text", "") for output in book.cells[0].outputs).strip()


@pytest.mark.parametrize("within", ["notebooks", "."])
def test_the_labkit_beside_the_notebook_is_run(other, within):
    assert run(WHERE, other / within, "") == str(other)


@pytest.mark.parametrize("link", ["missing", "a file, as git writes it where links are none"])
def test_without_the_link_it_says_so(other, link):
    (other / "notebooks" / "labkit").unlink()
    if link != "missing":
        (other / "notebooks" / "labkit").write_text("../labkit")
    with pytest.raises(CellExecutionError) as error:
        run("import labkit\nlabkit.start('02')", other / "notebooks", str(ROOT))
    assert f"this notebook is in {other}, but its kernel runs the labkit of {ROOT}" in str(
        error.value
    )
