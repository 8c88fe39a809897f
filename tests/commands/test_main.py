"""./lab itself: its commands, and what it needs to start."""

import os
import subprocess
import sys

from labkit.commands import COMMANDS, main
from labkit.profiles import ROOT


def test_unknown_command(capsys):
    assert main(["fly"]) == 2
    assert "unknown command 'fly'" in capsys.readouterr().err


def test_help_names_every_command_and_each_has_its_module(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    modules = {path.stem for path in (ROOT / "labkit" / "commands").glob("*.py")}
    for name in COMMANDS.keys() - {"help"}:
        assert f"  {name}" in out and name.replace("-", "_") in modules


def test_the_commands_explain_their_options(capsys):
    for name in COMMANDS.keys() - {"help"}:
        done = subprocess.run(
            [sys._base_executable, "-m", "labkit", name, "--help"],  # without the packages
            env=os.environ | {"LAB_PYTHON": sys.executable},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and f"usage: ./lab {name}" in done.stdout, done.stderr


def test_an_interrupt_is_no_trace(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("labkit.commands.setup.main", interrupted)
    assert main(["setup"]) == 130
    assert capsys.readouterr().err == "\ninterrupted; what was finished stays\n"


def test_nobody_reads_on_and_nothing_is_said():
    """As `./lab status | head -1` does it; the whole list is longer than a line."""
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-u", "-m", "labkit", "status"],
        cwd=ROOT,
        env=os.environ | {"LAB_PYTHON": sys.executable},
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")


def test_commands_need_only_the_standard_library():
    code = "import sys, labkit, labkit.commands.setup; labkit.commands.main(['help'])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_lab_works_from_any_folder(tmp_path):
    done = subprocess.run([ROOT / "lab", "fly"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")


def test_nothing_of_the_folder_that_one_stands_in_is_run(tmp_path):
    (tmp_path / "random.py").write_text("raise SystemExit('of that folder')")
    (tmp_path / "labkit").mkdir()
    (tmp_path / "labkit" / "__main__.py").write_text("print('of that folder')")
    done = subprocess.run([ROOT / "lab", "status"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "of that folder" not in done.stdout + done.stderr


def test_lab_says_what_to_install_where_no_python_fits(tmp_path):
    for tool in ("bash", "env", "dirname", "readlink"):
        (tmp_path / tool).symlink_to(
            next(f"{d}/{tool}" for d in ("/usr/bin", "/bin") if os.path.exists(f"{d}/{tool}"))
        )
    done = subprocess.run(
        [tmp_path / "bash", ROOT / "lab", "help"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Install one" in done.stderr
