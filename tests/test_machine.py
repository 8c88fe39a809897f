"""What this machine is, and whether it can run the labs."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from samples import CPU

from labkit import machine
from labkit.errors import LabError
from labkit.machine import preflight, require
from labkit.profiles import PROFILES


class Moved:
    """Notes where a model is moved; an interrupt may come meanwhile."""

    def __init__(self, interrupted: str):
        self.interrupted, self.moves = interrupted, []

    def to(self, device):
        self.moves.append(device)
        if device == self.interrupted:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("profile", "free_gb", "moves"),
    [("gpu", 14, ["cpu", "cuda"]), ("gpu", 60, ["cuda"]), ("cpu", 0, [])],
)
@pytest.mark.parametrize("interrupted", ["while it is moved", "cpu"])
def test_a_model_leaves_the_gpu_only_where_its_memory_is_needed(
    monkeypatch, profile, free_gb, moves, interrupted
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_gb * 10**9, 80 * 10**9))
    model = Moved(interrupted)
    with pytest.raises(KeyboardInterrupt), machine.off_gpu(model, PROFILES[profile]):
        raise KeyboardInterrupt
    assert model.moves == moves


def test_every_library_may_use_the_cores_of_this_process(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert machine.threads() == 3


def test_a_neighbour_that_computes_is_seen_and_what_only_idles_is_not(monkeypatch):
    busy = [sys.executable, "-c", "while True: pass"]
    neighbours = [subprocess.Popen(busy) for _ in range(os.cpu_count())]
    try:
        time.sleep(0.5)
        assert machine.is_shared()
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    monkeypatch.setattr("psutil.cpu_percent", lambda *_, **__: [40.0, 100.0, 30.0])
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    assert not machine.is_shared()
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert machine.is_shared()

    def refused(*_, **__):
        raise PermissionError("/proc/stat")

    monkeypatch.setattr("psutil.cpu_percent", refused)
    assert not machine.is_shared()


def test_versions_are_of_what_is_installed():
    import torch

    found = machine.versions()
    assert found["torch"] == torch.__version__ and {"olive-ai", "python"} <= found.keys()
    assert "onnxruntime" in found or "onnxruntime-gpu" in found


def test_the_commit_says_whether_files_were_changed(monkeypatch, tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.git_commit() == "unknown"
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", ".")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "m")
    assert len(machine.git_commit()) == 40
    (tmp_path / "file").write_text("two")
    assert machine.git_commit().endswith("+")


def test_preflight_says_what_to_do(runs, capsys):
    greedy = replace(CPU, ram_gb=10**6, disk_gb=10**6)
    with pytest.raises(LabError, match="memory: .*needed.*free disk: .*LAB_RUNS"):
        require(greedy)
    out = capsys.readouterr().out
    assert "FAIL memory" in out and "FAIL free disk" in out and "ok   Python" in out


def test_preflight_passes_on_a_machine_that_is_ready(runs, monkeypatch, capsys):
    lock = (machine.ROOT / "locks" / "cpu.txt").read_text().splitlines()
    pins = [line.split("  #")[0].split("==") for line in lock if "==" in line]
    monkeypatch.setattr(machine, "distributions", lambda: [Installed(*pin) for pin in pins])
    monkeypatch.setattr(machine, "threads", lambda: 2)
    monkeypatch.setattr(machine, "_first_gpu", lambda: None)
    require(replace(CPU, ram_gb=0.1, disk_gb=0.001))
    out = capsys.readouterr().out
    assert out.count("ok   ") == 6 and "FAIL" not in out


class Installed:
    """An installed package, as importlib.metadata gives it."""

    def __init__(self, name, version):
        self.name, self.version = name.replace("-", "_"), f"{version}+cpu"


def test_packages_that_differ_from_the_lock_are_named(runs, monkeypatch):
    monkeypatch.setattr(machine, "distributions", lambda: [Installed("torch", "0.1")])
    check = next(check for check in preflight(CPU) if check.name == "packages")
    assert not check.ok and "torch 0.1 for " not in check.advice
    assert " differ (" in check.found and "missing for" in check.found
    assert check.advice == "Run './lab setup' and choose its kernel, .venv."


def test_a_finished_run_needs_no_more_disk(runs):
    (runs / "cpu").mkdir(parents=True)
    (runs / "cpu" / "summary.json").write_text('{"unfinished": []}')
    assert next(c for c in preflight(replace(CPU, disk_gb=10**6)) if c.name == "free disk").ok


@pytest.mark.parametrize(
    ("gpu", "advice"),
    [
        (None, "nvidia-smi"),
        (["NVIDIA A10", "470.57.02", "23028"], "driver of version"),
        (["Tesla T4", "535.57.02", "15360"], "more memory"),
        (["NVIDIA A10", "535.57.02", "23028"], ""),
        (["NVIDIA GB10", "580.95.05", "[N/A]"], ""),
    ],
)
def test_the_gpu_profile_asks_for_a_gpu(runs, monkeypatch, gpu, advice):
    monkeypatch.setattr(machine, "_first_gpu", lambda: gpu)
    check = next(check for check in preflight(PROFILES["gpu"]) if check.name == "GPU")
    assert check.ok == (not advice) and advice in check.advice


def test_the_cpu_profile_says_that_a_gpu_stays_unused(runs, monkeypatch):
    monkeypatch.setattr(machine, "_first_gpu", lambda: ["NVIDIA A10", "535.57.02", "23028"])
    check = next(check for check in preflight(CPU) if check.name == "GPU")
    assert check.ok and "NVIDIA A10: unused" in check.found
