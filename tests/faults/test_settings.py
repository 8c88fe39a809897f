"""Settings that are wrong: whatever they hold, one paragraph says what to do, and nothing is made.

Each row is tried in a process of its own, as a user does.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.commands import main
from labkit.errors import LabError, plain
from labkit.profiles import ROOT, resolve_profile, runs_folder

LONG = "x" * 300
ESCAPE = "a\x1b]0;title\x07\x1b[31m"
NO_FOLDER = "Set LAB_RUNS to a folder that you may write to"
NO_PATH = "which names no path here"
NOT_SHOWN = "cannot be shown. Rename it, or unset it."
NO_STEPS = "not a positive whole number of six digits at most. Set it to the training steps"
NO_DATA = "is missing, or is no file that you may read. Set LAB_DATA"
NO_PROGRAM = "which is no program"

# what is set -> what is said; {here} is an empty folder with a file, a pipe and a loop of links
WRONG = {
    "outputs in a file": ({"LAB_RUNS": "{here}/file"}, NO_FOLDER),
    "outputs below a file": ({"LAB_RUNS": "{here}/file/a/b"}, NO_FOLDER),
    "outputs in a pipe": ({"LAB_RUNS": "{here}/pipe"}, NO_FOLDER),
    "outputs in a device": ({"LAB_RUNS": "/dev/null"}, NO_FOLDER),
    "outputs in a name that is too long": ({"LAB_RUNS": "{here}/" + LONG}, NO_PATH),
    "outputs in a loop of links": ({"LAB_RUNS": "{here}/loop"}, NO_PATH),
    "outputs at nobody's home": ({"LAB_RUNS": "~nosuchuser/runs"}, NO_PATH),
    "outputs in a name with a line break": ({"LAB_RUNS": "{here}/a\nb"}, NOT_SHOWN),
    "outputs in a name that moves the cursor": ({"LAB_RUNS": "{here}/" + ESCAPE}, NOT_SHOWN),
    "outputs in a name that is no UTF-8": ({"LAB_RUNS": "{here}/\udcff"}, NOT_SHOWN),
    "outputs in a name that turns the line": ({"LAB_RUNS": "{here}/a\u202eb"}, NOT_SHOWN),
    "data that is missing": ({"LAB_DATA": "/nowhere/d.jsonl"}, NO_DATA),
    "data in a folder": ({"LAB_DATA": "/"}, NO_DATA),
    "data in a pipe": ({"LAB_DATA": "{here}/pipe"}, NO_DATA),
    "data in a device": ({"LAB_DATA": "/dev/zero"}, NO_DATA),
    "data in a name that is too long": ({"LAB_DATA": "/" + LONG}, NO_PATH),
    "data at nobody's home": ({"LAB_DATA": "~nosuchuser/d.jsonl"}, NO_PATH),
    "data in a name that moves the cursor": ({"LAB_DATA": "{here}/" + ESCAPE}, NOT_SHOWN),
    "a model at nobody's home": ({"LAB_MODEL": "~nosuchuser/m"}, NO_PATH),
    "a model of a name that is too long": ({"LAB_MODEL": LONG}, NO_PATH),
    "a model of a name that moves the cursor": ({"LAB_MODEL": ESCAPE}, NOT_SHOWN),
    "steps with a small two above": ({"LAB_STEPS": "²"}, NO_STEPS),
    "steps in wide digits": ({"LAB_STEPS": "１２"}, NO_STEPS),
    "more steps than a life has": ({"LAB_STEPS": "9" * 5000}, NO_STEPS),
    "steps as a fraction": ({"LAB_STEPS": "2.5"}, NO_STEPS),
    "steps in a word": ({"LAB_STEPS": "many"}, NO_STEPS),
    "steps with a space": ({"LAB_STEPS": " 8"}, NO_STEPS),
    "no steps": ({"LAB_STEPS": "0"}, NO_STEPS),
    "steps below zero": ({"LAB_STEPS": "-3"}, NO_STEPS),
    "a profile that is a path": ({"LAB_PROFILE": "../x"}, "one of: cpu, gpu"),
    "a profile that moves the cursor": ({"LAB_PROFILE": ESCAPE}, "one of: cpu, gpu"),
    "a python that is a folder": ({"LAB_PYTHON": "/tmp"}, NO_PROGRAM),
    "a python that is missing": ({"LAB_PYTHON": "/nowhere/python"}, NO_PROGRAM),
    "a python that is no program": ({"LAB_PYTHON": "{here}/file"}, NO_PROGRAM),
}
READ_THE_PROFILE = ("status", "doctor", "run")


@pytest.fixture
def here(tmp_path):
    (tmp_path / "file").write_text("of the user's\n")
    (tmp_path / "file").chmod(0o755)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path


def lab(*arguments: str, here: Path, **settings: str) -> subprocess.CompletedProcess:
    """What './lab ARGUMENTS' does with these *settings*."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LAB_")}
    env |= {"PYTHONPATH": str(ROOT), "LAB_PYTHON": sys.executable}
    env |= {"LAB_RUNS": str(here / "runs")}
    env |= {name: value.format(here=here) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "labkit", *arguments],
        env={name: value for name, value in env.items() if value != "UNSET"},
        cwd=here,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_one_paragraph(case, here):
    settings, said = WRONG[case]
    before = sorted(here.rglob("*"))
    done = lab("run" if "LAB_RUNS" in settings else "status", here=here, **settings)
    assert done.returncode in (1, 2) and not done.stdout
    assert done.stderr.startswith("error: ") and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and plain(done.stderr) == done.stderr
    assert sorted(here.rglob("*")) == before and (here / "file").read_text() == "of the user's\n"


@pytest.mark.parametrize("command", ["status", "doctor", "run", "reset", "open"])
@pytest.mark.parametrize("value", ["{here}/file", "~nosuchuser/runs", "{here}/a\nb"])
def test_every_command_says_the_same_of_a_wrong_folder(value, command, here):
    done = lab(command, here=here, LAB_RUNS=value)
    assert done.returncode == 1 and done.stderr.startswith("error: LAB_RUNS is ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "case", [case for case, (given, _) in WRONG.items() if "LAB_PYTHON" not in given]
)
def test_a_wrong_setting_is_one_error_in_a_notebook(case, here, monkeypatch):
    settings, said = WRONG[case]
    monkeypatch.setenv("LAB_RUNS", str(here / "runs"))
    for name, value in settings.items():
        monkeypatch.setenv(name, value.format(here=here))
    with pytest.raises(LabError) as caught:
        runs_folder() and resolve_profile()
    assert said in str(caught.value) and plain(str(caught.value)) == str(caught.value)


@pytest.mark.parametrize(
    "explicit",
    [
        {"model": "~nosuchuser/m"},
        {"model": "a\0b"},
        {"data": "a\0b"},
        {"steps": -1},
        {"steps": 1e9},
    ],
    ids=str,
)
def test_a_wrong_constant_of_lab_01_is_one_error(explicit, runs):
    with pytest.raises(LabError):
        resolve_profile(**explicit)


def test_data_that_may_not_be_read(here, monkeypatch, runs):
    (here / "file").chmod(0)
    monkeypatch.setenv("LAB_DATA", str(here / "file"))
    if os.getuid() == 0:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != here / "file")
    with pytest.raises(LabError, match="no file that you may read"):
        resolve_profile()


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"HOME": "UNSET"}, "01 setup"),
        ({"HOME": "UNSET", "LAB_RUNS": "~/runs-of-nobody"}, "01 setup"),
        ({"HOME": "/nowhere"}, "01 setup"),
        ({"TMPDIR": "/nowhere"}, "01 setup"),
        ({"LAB_RUNS": "{here}/[1] *?'\" é :: $HOME"}, "[1] *?'\" é :: $HOME"),
        ({"LAB_STEPS": "0012"}, "01 setup"),
    ],
    ids=str,
)
def test_an_odd_setting_that_can_be_carried_is(settings, shown, here):
    done = lab("status", here=here, **settings)
    assert done.returncode == 0 and shown in done.stdout, done.stderr


def test_a_folder_that_nobody_can_make(here):
    done = lab("run", here=here, LAB_RUNS="/proc/runs")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: /proc/runs") and "or set LAB_RUNS" in done.stderr


def test_an_error_of_the_system_that_nobody_has_foreseen(monkeypatch, capsys):
    def fails(arguments):
        Path("/proc/self/mem\x1b[31m").read_bytes()

    monkeypatch.setattr("labkit.commands.setup.main", fails)
    assert main(["setup"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: /proc/self/mem\\x1b[31m: No such file or directory. See that")


def test_a_python_without_the_packages(here):
    made = [sys.executable, "-m", "venv", "--without-pip", str(here / "bare")]
    subprocess.run(made, check=True, timeout=60)
    done = lab("run", here=here, LAB_PYTHON="{here}/bare/bin/python")
    assert done.returncode == 1 and "without the packages" in done.stderr, done.stderr


def test_a_python_that_starts_another_one_is_entered_once(here):
    """As pyenv's shims do: sys.executable is never the name that LAB_PYTHON has."""
    (here / "shim").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (here / "shim").chmod(0o755)
    done = lab("status", here=here, LAB_PYTHON="{here}/shim")
    assert done.returncode == 0 and "01 setup" in done.stdout, done.stderr


@pytest.mark.parametrize("port", ["0", "65434", "65536", "9" * 5000, "-1", "many", "²", "１２"])
def test_what_is_no_port_is_refused(port, here):
    done = lab("open", f"--port={port}", here=here)
    assert done.returncode == 2 and "is not a port, a number from 1 to 65433" in done.stderr


def test_where_all_ports_are_taken_it_ends_and_has_said_what_to_do(here):
    # below the ports that other programs are given: one that they let go would be found
    for middle in range(20_500, 32_500, 500):
        taken = [socket.socket() for _ in range(207)]
        try:
            for port, one in enumerate(taken, middle - 103):
                one.bind(("127.0.0.1", port))
                one.listen()
            break
        except OSError:  # a server has one of them
            for one in taken:
                one.close()
    try:
        done = lab("open", f"--port={middle}", here=here)
    finally:
        for one in taken:
            one.close()
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "no available port could be found" in done.stdout + done.stderr
    assert "if all are: './lab open --port N'" in done.stdout
