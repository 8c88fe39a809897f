"""The long series: each request dropped, uploads killed, 2 GB up and down in little memory."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from registering import NAME, register
from test_azure import same_bytes

import labkit
from labkit.profiles import ROOT
from labkit.registry import check_manifest

pytestmark = pytest.mark.slow

CLIENT = """
import sys
from pathlib import Path
from types import SimpleNamespace
from azure.ai.ml.entities import Model
import labkit

folder, name = Path(sys.argv[2]), "ft-for-travel"
here = folder.parent
registry = labkit.open_registry(SimpleNamespace(folder=here, logs=here / "logs"))


def create(asset):
    return registry.client.models.create_or_update(asset)


if sys.argv[1] == "up":
    registry.register(Model(name=name, type="custom_model", path=folder), create)
else:
    registry.download(name, "1", here / "back")
status = Path("/proc/self/status").read_text().splitlines()
print("peak_mb", next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024)
"""


def client(rig, way: str, folder: Path) -> subprocess.Popen:
    """A process of its own that registers *folder*, or downloads version 1 beside it."""
    env = rig.process_env() | {"PYTHONPATH": str(ROOT)}
    env.pop("LAB_REHEARSE", None)
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, way, str(folder)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def peak_mb(process: subprocess.Popen) -> int:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-3000:]
    return int(out.split("peak_mb ")[1])


def registered(rig, tmp_path, package) -> list[str]:
    """Registers *package* anew, sign-in included; returns the paths that were asked for."""
    before = len(rig.requests)
    registry = labkit.open_registry(SimpleNamespace(folder=tmp_path, logs=tmp_path / "logs"))
    assert register(registry, package) == "1"
    assert list(rig.models[NAME]) == ["1"] and same_bytes(rig, package)
    return [f"{r.method} {r.host}{r.path}" for r in rig.requests[before:]]


@pytest.mark.parametrize("action", ["drop", "drop_response"])
def test_each_request_is_dropped_once(azure, package, tmp_path, action):
    count = len(registered(azure, tmp_path, package))
    assert count >= 15
    for number in range(count):
        azure.reset()
        fault = azure.fault(action, skip=number)
        asked = registered(azure, tmp_path, package)
        assert fault.fired == 1, f"request {number} of {len(asked)}"


def test_each_request_is_answered_with_500_once(azure, package, tmp_path):
    count = len(registered(azure, tmp_path, package))
    for number in range(count):
        azure.reset()
        fault = azure.fault("status", skip=number, code=500, error="InternalServerError")
        registered(azure, tmp_path, package)
        assert fault.fired == 1


def test_a_server_that_falls_silent_is_not_waited_for(azure, package, tmp_path):
    fault = azure.fault("stall", method="PUT", path="model.onnx", seconds=600)
    started = time.monotonic()
    registered(azure, tmp_path, package)
    assert fault.fired == 1 and time.monotonic() - started < 300


def test_ten_uploads_that_are_killed_are_completed_by_the_next_call(rig, tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    draw = random.Random(7)
    for name, size in (
        ("adapter.bin", 3_000_000),
        ("model.onnx", 80_000_000),
        ("tokenizer.json", 500_000),
    ):
        (folder / name).write_bytes(draw.randbytes(size))
    labkit.write_manifest(folder, NAME)
    total = sum(p.stat().st_size for p in folder.iterdir())
    for _ in range(10):
        rig.reset()
        slow = rig.fault("slow", method="PUT", path="/LocalUpload/", times=10**6, rate=2_000_000)
        at, process = draw.randrange(total), client(rig, "up", folder)
        while process.poll() is None and sum(r.sent for r in rig.requests) < at:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert NAME not in rig.models, "it was over before it was killed"
        slow.times = 0
        peak_mb(client(rig, "up", folder))
        assert list(rig.models[NAME]) == ["1"] and same_bytes(rig, folder)


def test_two_gigabytes_up_and_down_in_little_memory(rig, tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    block = random.Random(7).randbytes(2**20)
    with open(folder / "model.onnx.data", "wb") as file:
        for number in range(2048):
            file.write(number.to_bytes(8, "big") + block[8:])
    labkit.write_manifest(folder, NAME)
    up, down = peak_mb(client(rig, "up", folder)), peak_mb(client(rig, "down", folder))
    assert up < 400 and down < 400, f"{up} MB up, {down} MB down"
    assert check_manifest(tmp_path / "back") == json.loads((folder / "manifest.json").read_text())


def test_eight_attendees_at_once_get_eight_versions(rig, tmp_path):
    folders = [tmp_path / str(n) / "package" for n in range(8)]
    for n, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"of attendee %d" % n)
        labkit.write_manifest(folder, NAME)
    for process in [client(rig, "up", folder) for folder in folders]:
        peak_mb(process)
    assert sorted(rig.models[NAME]) == [str(n) for n in range(1, 9)]
    contents = {
        body["properties"]["properties"]["content_sha256"] for body in rig.models[NAME].values()
    }
    assert len(contents) == 8


def test_a_download_that_is_killed_goes_on_with_the_same_bytes(rig, tmp_path):
    """Four connections fill a range: a kill finds some of its chunks there and some not."""
    folder = tmp_path / "package"
    folder.mkdir()
    draw = random.Random(7)
    (folder / "model.onnx").write_bytes(draw.randbytes(100_000_000))
    labkit.write_manifest(folder, NAME)
    peak_mb(client(rig, "up", folder))
    for _ in range(3):
        slow = rig.fault("slow", method="GET", path="model.onnx", times=10**6, rate=6_000_000)
        process = client(rig, "down", folder)
        while process.poll() is None and not any(
            part.stat().st_size for part in tmp_path.glob(".back.*/*.part")
        ):
            time.sleep(0.05)
        time.sleep(draw.random() * 3)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        slow.times = 0
        kept = [part.stat().st_size for part in tmp_path.glob(".back.*/*.part")]
        assert kept and kept[0] > 0, "nothing had arrived: it was killed too early"
        peak_mb(client(rig, "down", folder))
        assert check_manifest(tmp_path / "back") == check_manifest(folder)
