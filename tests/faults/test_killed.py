"""Killed at any moment, begun twice, with a clock that is wrong: what is made is the same."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from samples import CPU, writes

from labkit.files import files_of, sha256
from labkit.products import Products, folder_lock
from labkit.profiles import ROOT
from labkit.session import Lab

CHAIN = """
import random, time
from labkit.profiles import PROFILES
from labkit.session import Lab
from labkit.figures import Estimate

def build(recipe, out):
    out.mkdir()
    for part in range(6):  # in pieces, so that it can be killed between them
        with open(out / f"part{part}", "w") as file:
            for _ in range(20):
                file.write(str(random.random()))
                file.flush()
                time.sleep(0.002)

STEPS = {"01": ("base", ()), "02": ("awq", ("base",)), "03": ("lora", ("awq",))}
for number, (name, needs) in STEPS.items():
    lab = Lab(number, PROFILES["cpu"])
    lab.keep(name, build, {"of": name}, needs=needs)
    lab.record("eval_loss", **{name: Estimate(1.0)})
print("done")
"""


def begin(runs: Path, code: str = CHAIN) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "LAB_RUNS": str(runs)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, text=True, stdout=subprocess.PIPE, cwd=ROOT
    )


def hashes(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    return {
        f"{name}/{part}": sha256(path)
        for name in names
        for part, path in files_of(folder / name).items()
    }


def test_a_chain_that_is_killed_at_random_moments_ends_as_one_that_is_not(tmp_path):
    names = ("base", "awq", "lora")
    assert "done" in begin(tmp_path / "calm").communicate()[0]
    calm, other = tmp_path / "calm" / "cpu", tmp_path / "killed" / "cpu"
    moments = random.Random(1)
    for _ in range(5):
        child = begin(tmp_path / "killed")
        while child.poll() is None and not list(other.glob(".partial-*/*")):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.4))  # a step takes 0.25 s
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if Products(other).is_current("lora"):  # nothing is left to do: once more from the start
            Products(other).forget("base")
    assert "done" in begin(tmp_path / "killed").communicate()[0]
    assert hashes(other, names) == hashes(calm, names)
    assert all(Products(other).is_current(name, hashed=True) for name in names)
    assert not list(other.glob(".partial-*"))


@pytest.mark.slow
def test_a_real_lab_that_is_killed_makes_the_same_model(notebook_runs, tmp_path):
    """Lab 02, with AutoAWQ on the real model; it ends as this test run's own lab 02 did."""
    runs = tmp_path / "runs"
    shutil.copytree(notebook_runs, runs / "cpu")
    products = Products(runs / "cpu")
    for stamp in products.stamps():
        if stamp.lab >= "02":
            products.delete(stamp.name)
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "LAB_RUNS": str(runs),
        "LAB_PYTHON": sys.executable,
    }
    env.pop("OMP_NUM_THREADS", None)  # it decides in what order sums are made
    command = [sys.executable, "-m", "labkit", "run"]
    moments = random.Random(2)
    for _ in range(3):
        child = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(moments.uniform(15, 50))
        os.killpg(child.pid, signal.SIGKILL)  # its kernel, too
        child.wait()
    log = tmp_path / "log"
    with open(log, "w") as out:
        child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, start_new_session=True)
        while child.poll() is None and not products.is_current("awq-losses.json"):
            time.sleep(1)
        os.killpg(child.pid, signal.SIGTERM)
        child.wait()
    assert products.is_current("awq-losses.json"), log.read_text()
    # not awq itself: its file names a shared weight in an order that differs by process
    names = ("awq-dense", "awq-losses.json")
    assert hashes(runs / "cpu", names) == hashes(notebook_runs, names)


def test_a_kernel_killed_in_a_build_leaves_nothing_finished(runs):
    code = (
        "import time; from labkit.session import Lab; from labkit.profiles import PROFILES\n"
        "def build(recipe, out):\n"
        "    out.mkdir(); (out / 'half').write_text('x'); time.sleep(60)\n"
        "Lab('01', PROFILES['cpu']).keep('base', build, 'other')"
    )
    lab = Lab("01", CPU)
    lab.keep("base", writes("old"), "one")
    child = begin(runs, code)
    half = runs / "cpu" / ".partial-base" / "half"
    deadline = time.monotonic() + 60
    while not half.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert half.exists() and not lab.products.is_current("base")
    assert lab.keep("base", writes("whole"), "other").read_text() == "whole"
    assert not half.parent.exists()


def test_one_run_at_a_time_writes_to_a_folder(tmp_path):
    code = (
        "import pathlib, sys; from labkit.products import folder_lock\n"
        "with folder_lock(pathlib.Path(sys.argv[1])): print('in')"
    )

    def other(**env):
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(
            command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True
        )

    with folder_lock(tmp_path):
        assert "another run is writing to" in other().stderr
        assert other(LAB_LOCK_HELD=str(tmp_path)).stdout == "in\n"
    assert other().stdout == "in\n"


@pytest.mark.parametrize("finished", ["1970-01-01T00:00:00.000000", "2999-12-31T23:59:59.000000"])
def test_a_clock_that_is_wrong_decides_nothing(runs, finished, capsys):
    lab = Lab("01", CPU)
    lab.keep("base", writes("x"))
    lab.keep("other", writes("x"), needs=("base",))
    path = lab.folder / ".stamps" / "base.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": finished}))
    os.utime(lab.folder / "base", (0, 0))
    capsys.readouterr()
    lab.keep("base", writes("y"))
    lab.keep("other", writes("y"), needs=("base",))
    assert capsys.readouterr().out.count("kept, made at") == 2


WAITS = """
import subprocess, sys, time
from labkit.commands import main, status

def waits(arguments):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            print("begun", flush=True)
            time.sleep(60)
        finally:
            child.kill()

status.main = waits
sys.exit(main(["status"]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_is_closed_interrupts_as_ctrl_c_does(number):
    env = os.environ | {"PYTHONPATH": str(ROOT), "LAB_PYTHON": sys.executable}
    command = [sys.executable, "-c", WAITS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert "what was finished stays" in process.communicate(timeout=30)[1]
        assert process.returncode == 130


def test_nohup_is_left_as_it_is():
    code = WAITS.replace("time.sleep(60)", "time.sleep(1)")
    command = ["nohup", sys.executable, "-c", code]
    env = os.environ | {"PYTHONPATH": str(ROOT), "LAB_PYTHON": sys.executable}
    with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=30) == 0
