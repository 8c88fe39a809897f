"""./lab setup: what it installs, and what it refuses."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from labkit.commands import main, setup
from labkit.profiles import ROOT


@pytest.fixture
def venv(tmp_path, monkeypatch):
    """A .venv of the test's own; pip and venv are replaced."""
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "_make_venv", lambda folder: None)
    return tmp_path / ".venv"


def fake_pip(monkeypatch, code):
    def start(python, command, wheels):
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    monkeypatch.setattr(setup, "_start_pip", start)


def test_setup_failure_says_what_to_do(venv, monkeypatch, capsys):
    fake_pip(monkeypatch, "print('ERROR: No matching distribution found'); raise SystemExit(1)")
    assert main(["setup"]) == 1
    error = capsys.readouterr().err
    assert (
        error.startswith("error: ")
        and "--wheels DIR" in error
        and "No matching distribution" in error
    )
    assert "Traceback" not in error and not setup.ready()


def test_setup_failure_of_the_install_shows_the_end_of_pip(venv, monkeypatch, capsys):
    monkeypatch.setattr(setup, "_choose", lambda *_: ("cpu.txt", ()))
    fake_pip(monkeypatch, "print('early\\n' * 50 + 'the reason'); raise SystemExit(3)")
    assert main(["setup"]) == 1
    error = capsys.readouterr().err
    assert "pip failed (exit 3)" in error and "the reason" in error and error.count("early") < 20


def test_setup_leaves_a_foreign_environment_alone(venv, capsys):
    (venv / "bin").mkdir(parents=True)
    assert main(["setup"]) == 1
    assert "was not made by" in capsys.readouterr().err and (venv / "bin").exists()


def test_setup_refuses_a_full_disk(venv, monkeypatch, capsys):
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    assert main(["setup"]) == 1
    assert "1.0 GB free, and 5 GB are needed" in capsys.readouterr().err


def test_setup_says_that_a_folder_of_wheels_is_missing(capsys):
    assert main(["setup", "--wheels", "/no/such/folder"]) == 1
    assert "/no/such/folder is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wheel", "lock", "index"),
    [
        ("/somewhere/torch-V+cpu-cp311-cp311-linux_x86_64.whl", "cpu.txt", ()),
        (
            "https://download.pytorch.org/whl/cpu/torch-V%2Bcpu-cp311-cp311-linux_x86_64.whl",
            "cpu.txt",
            setup.CPU_INDEX,
        ),
        ("torch-V-cp311-cp311-manylinux_2_28_x86_64.whl", "cpu-cuda-torch.txt", ()),
    ],
)
def test_setup_chooses_the_lock_by_the_torch_that_pip_finds(
    venv, monkeypatch, capsys, wheel, lock, index
):
    venv.mkdir()
    monkeypatch.setattr(sys, "platform", "linux")
    wheel = wheel.replace("V", setup.pins(ROOT / "locks" / "cpu.txt")["torch"])
    fake_pip(monkeypatch, f"print('Collecting torch'); print('  Downloading {wheel} (1 MB)')")
    with setup.Progress() as progress:
        assert setup._choose(venv, None, progress) == (lock, index)
    assert ("3 GB" in capsys.readouterr().out) == (lock != "cpu.txt")


def test_marker_of_another_lock_or_folder_is_not_ready(venv):
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    marker = {
        "lock": "cpu.txt",
        "digest": setup._digest(ROOT / "locks" / "cpu.txt"),
        "folder": str(venv),
    }

    def ready(**changes):
        (venv / "labkit-lock.json").write_text(json.dumps(marker | changes))
        return setup.ready(gpu=False)

    assert ready()
    assert not ready(digest="other") and not ready(folder="/moved") and not setup.ready(gpu=True)
