"""The phases of a test run on two workers, with small files in the place of ours."""

import os
import subprocess
import sys
import tomllib
from typing import NamedTuple

import nbformat

from labkit.profiles import ROOT

WORK = """
import os, time
began = time.time()
time.sleep({seconds})
with open({log!r}, "a") as log:
    settings = [os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY")]
    print("{name}", began, time.time(), os.environ["PYTEST_XDIST_WORKER"], *settings,
          sep="\\t", file=log)
"""
FILES = {"test_first.py": 3, "test_short.py": 0, "test_other.py": 0}
NOTEBOOKS = {"01.ipynb": 0.5, "02.ipynb": 0}
AFTERWARDS = {"test_graph.py": 0, "test_outcome.py": 0, "extras/08.ipynb": 0}
SLOW = {"extras/11.ipynb": 0}


class Done(NamedTuple):
    name: str
    began: str
    ended: str
    worker: str
    threads: str
    waiting: str


def pytest_of(folder, codes: dict[str, str], *options: str, timeout: int | None = None):
    """pytest on two workers, on files in *folder* with these *codes*, has ended."""
    for name, code in codes.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if name.endswith(".ipynb"):
            book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
            book.metadata.kernelspec = {"name": "python3", "display_name": "", "language": ""}
            nbformat.write(book, folder / name)
        else:
            lines = "".join(f"    {line}\n" for line in code.splitlines())
            (folder / name).write_text(f"def test_it():\n{lines}\ndef test_again():\n{lines}")
    (folder / "conftest.py").write_text("pytest_plugins = ['side_by_side']\n")
    own = ("PYTEST_", "LAB_", "OMP_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    path = filter(None, [str(ROOT / "tests"), env.get("PYTHONPATH")])
    command = [sys.executable, "-m", "pytest", "--nbmake", "-n", "2", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *options, "-m", "not slow", "--rootdir", folder, folder],
        cwd=folder,
        env=env | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_units_then_the_notebooks_alone_then_what_takes_their_products(tmp_path):
    log = tmp_path / "log"
    seconds = FILES | NOTEBOOKS | AFTERWARDS | SLOW
    done = pytest_of(
        tmp_path,
        {name: WORK.format(seconds=seconds[name], log=str(log), name=name) for name in seconds},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [Done(*line.split("\t")) for line in log.read_text().splitlines()]
    found = {row.name: row for row in rows}
    assert found.keys() == {*FILES, *NOTEBOOKS, *AFTERWARDS}

    def times(names, which):
        return [float(getattr(found[name], which)) for name in names]

    assert max(times(FILES, "ended")) < min(times(NOTEBOOKS, "began"))
    for one, other in (("01.ipynb", "02.ipynb"), ("test_graph.py", "test_outcome.py")):
        assert found[one].worker == found[other].worker
    assert times(NOTEBOOKS, "began") == sorted(times(NOTEBOOKS, "began"))
    assert max(times(NOTEBOOKS, "ended")) < min(times(AFTERWARDS, "began"))
    assert len({found[name].worker for name in (*FILES, *AFTERWARDS)}) == 2
    assert {found[name].threads for name in FILES} == {"1"}
    assert {found[name].threads for name in (*NOTEBOOKS, *AFTERWARDS)} == {"None"}
    assert {found[name].waiting for name in NOTEBOOKS} == {"None"}
    assert {found[name].waiting for name in AFTERWARDS} == {"PASSIVE"}


def test_what_a_worker_leaves_when_it_dies_is_done_by_another_and_once(tmp_path):
    """The files that it had finished are not waited for, and what killed it is not tried again.
    A test that hangs ends its worker.
    """
    log, ours = tmp_path / "log", tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = ("test_first.py", "test_short.py", "test_other.py", "test_graph.py", "test_outcome.py")
    codes = {name: WORK.format(seconds=0.2, log=str(log), name=name) for name in names}
    codes["test_graph.py"] += "os._exit(9)\n"
    codes["test_outcome.py"] += (
        "'again' in os.environ['PYTEST_CURRENT_TEST'] and time.sleep(600)\n"
    )
    hangs = ours["tool"]["pytest"]["ini_options"] | {"faulthandler_timeout": 6}
    options = [f"-o{name}={hangs[name]}" for name in hangs if name.startswith("faulthandler")]
    done = pytest_of(tmp_path, codes, *options, timeout=120)
    assert done.returncode == 1 and "3 failed, 7 passed" in done.stdout, done.stdout[-3000:]
    assert "crashed while running 'test_outcome.py::test_again'" in done.stdout
    assert len(log.read_text().splitlines()) == 10
