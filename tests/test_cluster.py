"""The jobs' own command lines, one after the other, each in a folder of its own: what a lab has
made reaches the next one. Lab 03 is trained by two processes, as on two GPUs. And a night's job.
"""

import os
import re
import socket
import subprocess
import sys
import tarfile
import time

import pytest

from labkit.cluster import jobs
from labkit.course import LABS
from labkit.products import Products
from labkit.profiles import PROFILES
from labkit.summary import Records


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run(command: str, code, env: dict, processes: int, log) -> None:
    """As Azure ML starts it: once, or as many *processes* that know of each other."""
    together = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    together |= {"MASTER_PORT": str(free_port())}
    started = []
    with open(log, "w") as out:
        for rank in range(processes):
            mine = together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            shell = ["bash", "-c", command]
            about = {"cwd": code, "env": env | mine, "stdout": out, "stderr": subprocess.STDOUT}
            started.append(subprocess.Popen(shell, **about))
    assert [one.wait(timeout=1800) for one in started] == [0] * processes, log.read_text()[-3000:]


LAB = """
echo "$*" > asked
mkdir -p $LAB_RUNS/night/logs
echo page | tee $LAB_RUNS/night/night.html > $LAB_RUNS/night/night.md
exit {}
"""


def night(code, runs, history, *, only: str = "") -> int:
    """Runs the command of a night's job in *code*; how it ended."""
    command = jobs.NIGHT.replace("${{outputs.history}}", str(history))
    command = command.replace("lab nightly", f"lab nightly {only}".strip())
    env = os.environ | {"LAB_RUNS": str(runs), "LAB_PYTHON": sys.executable}
    return subprocess.run(["bash", "-c", command], cwd=code, env=env).returncode


@pytest.mark.parametrize("ended", [0, 1])
def test_the_page_of_a_night_is_kept_and_the_job_ends_as_the_night_did(ended, tmp_path):
    made, code, runs = tmp_path / "made", tmp_path / "code", tmp_path / "runs"
    made.mkdir(), code.mkdir()
    (made / "lab").write_text(LAB.format(ended))
    git = ["git", "-C", made, "-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "lab"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    subprocess.run([*git, "bundle", "create", "-q", code / "labs.bundle", "HEAD"], check=True)
    assert night(code, runs, tmp_path) == ended
    assert (runs / "clone" / "asked").read_text() == f"nightly --history {tmp_path}\n"
    assert {path.name for path in (code / "outputs").iterdir()} == {
        "night.html",
        "night.md",
        "logs",
    }


@pytest.mark.slow
def test_a_night_runs_in_a_clone_of_its_own(tmp_path, monkeypatch):
    """With one part of it: the labs, as this clone's last commit has them, and installed anew."""
    monkeypatch.delenv("LAB_ENTERED", raising=False)
    with jobs.staged("cpu.txt", clone=True) as (code, _):
        assert night(code, tmp_path / "runs", tmp_path / "nights", only="--only labs") == 0
        kept = {str(path.relative_to(code)) for path in (code / "outputs").rglob("*")}
        notebook = code / "outputs/runs/cpu/notebooks/06_upload.ipynb"
        assert notebook.is_file() and "night.html" in {name.rpartition("/")[2] for name in kept}


@pytest.mark.slow  # all labs, with little training
def test_each_step_runs_on_what_the_one_before_hands_on(tmp_path):
    profile, names = PROFILES["cpu"], []
    order = jobs.Order(profile, "labkit", gpus=2, steps=8)
    with jobs.staged("cpu.txt") as (code, image):
        job = jobs.pipeline(order, code, image)
        for number in LABS:
            step = job.jobs[f"lab_{number}"]
            before, after = (
                tmp_path / f"after-{n}" for n in (names[-1:] or ["00"])[0:1] + [number]
            )
            after.mkdir()
            places = {r"\$\{\{inputs.before\}\}": before, r"\$\{\{outputs.after\}\}": after}
            command = step.component.command
            for place, folder in places.items():
                command = re.sub(place, str(folder), command)
            runs = tmp_path / f"node-{number}"  # no step sees another one's disk
            env = os.environ | step.environment_variables | {"LAB_PYTHON": sys.executable}
            env |= {"LAB_RUNS": str(runs), "OMP_WAIT_POLICY": "PASSIVE"}
            env.pop("OMP_NUM_THREADS", None)
            processes = 2 if number == "03" else 1
            began = time.monotonic()
            run(command, code, env, processes, tmp_path / f"{number}.log")
            print(f"{number}: {time.monotonic() - began:.0f} s")
            with tarfile.open(after / "bundle.tar") as bundle:
                held = set(bundle.getnames())
            made = {
                name for name in held if any(name.startswith(one) for one in LABS[number].makes)
            }
            assert made and (after / "notebooks").is_dir()
            names.append(number)
        products = Products(tmp_path / "node-06" / "cpu")
        assert products.is_current("package", hashed=True)
        assert {"base", "awq_lora"} <= Records(products).sections()["eval_loss"].keys()
        said = (tmp_path / "after-03" / "notebooks" / "03_finetune.ipynb").read_text()
        assert "lora: kept, made at" in said  # by the two processes, not by the notebook
