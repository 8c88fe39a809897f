"""./lab room with forty attendees, against the Azure of azure_rig/ and the unmodified SDK."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid

import pytest

from labkit.commands import room as command
from labkit.profiles import ROOT
from labkit.registry.sdk import EVENT_TAG
from labkit.room import workspace
from labkit.room.attendees import read_attendees

EVENT, STOP = "spring", ["--stop", "17:30"]
SECRET = "sig=do-not-print"
SETUP = ["--repository", "https://example.com/labs.git", "--ref", "v1"]
SETUP += ["--bundle", f"https://example.com/bundle.tar?{SECRET}", "--fingerprint", "0a" * 8]
SETUP += ["--catch-up", "04"]
UP = """
import sys
from labkit.room import workspace
workspace.LOOK_S = 0.05
from labkit.commands.room import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def people(tmp_path):
    """The CSV of forty attendees."""
    path = tmp_path / "room.csv"
    lines = [f'"Fennimore, {n}",{uuid.UUID(int=n + 1)}\r\n' for n in range(40)]
    path.write_text("\ufeffname,object_id\r\n" + "".join(lines), newline="")
    return path


@pytest.fixture
def room(azure, monkeypatch, capsys):
    """A function that runs ./lab room; returns the exit status and what was printed."""
    monkeypatch.setattr(workspace, "LOOK_S", 0.02)

    def run(*arguments):
        status = command.main([*map(str, arguments), "--event", EVENT])
        out = capsys.readouterr().out
        assert not [secret for secret in [*azure.secrets, SECRET] if secret in out]
        return status, out

    return run


def row(out: str, name: str) -> str:
    return next(line for line in out.splitlines() if name in line)


def puts(rig) -> list[str]:
    found = [r.path.rpartition("/")[2] for r in rig.requests if r.method == "PUT"]
    return [name for name in found if name.startswith(f"{EVENT}-")]


def test_forty_attendees_from_the_plan_to_the_empty_workspace(azure, room, people, tmp_path):
    names = [attendee.compute for attendee in read_attendees(people, EVENT)]
    assert len({*names}) == 40 and all(len(name) <= 24 for name in names)
    # what others made, and another event
    azure.add_compute("colleague", state="Running")
    azure.add_compute("other-event", state="Running")
    azure.computes[-1]["tags"] = {EVENT_TAG: "springtime"}
    azure.add_endpoint("theirs")
    azure.add_deployment("theirs", "Standard_DS3_v2", 2)
    azure.add_endpoint("ours")
    azure.endpoints[-1]["tags"] = {EVENT_TAG: EVENT}

    before = len(azure.requests)
    status, out = room("plan", people, *STOP, *SETUP, "--hours", "6")
    assert status == 0 and "40 instances x 6 h x 0.293 = 70.32 USD" in out
    assert "2026-06-18" in out and len(azure.requests) == before

    # killed while it makes them: twelve are made, the next four requests hang
    azure.fault("stall", method="PUT", path=f"/computes/{EVENT}", skip=12, times=99)
    arguments = ["up", people, "--event", EVENT, *STOP, *SETUP]
    process = subprocess.Popen(
        [sys.executable, "-c", UP, *map(str, arguments)],
        env=azure.process_env() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while len(puts(azure)) < 16 and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    azure.release()
    made = [compute["name"] for compute in azure.computes if compute["name"] in names]
    assert len(made) == 12

    # the next one goes on, and each attendee has a trouble of its own
    waiting = [name for name in names if name not in made]
    clash, lost, throttled, busy, broken, unknown, *_, late, last = waiting
    azure.taken = {clash}
    azure.fault("drop_response", method="PUT", path=f"/computes/{lost}")
    slow = {"headers": {"retry-after-ms": "10"}}
    azure.fault("status", method="PUT", path=f"/computes/{throttled}", times=2, code=429, **slow)
    azure.fault("status", method="PUT", path=f"/computes/{busy}", times=99, code=429, **slow)
    azure.failing = {broken: ("SetupScriptsError", "The script ended with 1.")}
    azure.unknown_users = {str(uuid.UUID(int=names.index(unknown) + 1))}
    azure.beyond_quota = {late, last}
    status, out = room(*arguments[:2], *arguments[4:])
    assert status == 1
    for name, said in (
        (clash, "missing .*409 Conflict.: Compute name .* already taken"),
        (lost, "Running$"),
        (throttled, "Running$"),
        (busy, "missing .*Azure is busy"),
        (broken, "CreateFailed .*SetupScriptsError.: The script ended with 1"),
        (unknown, "missing .*400 UserError.: User .* is not in the directory"),
    ):
        assert re.search(said, row(out, name)), row(out, name)
    assert out.count("a quota is used up (400 ClusterCoreQuotaReached)") == 2
    assert out.count(" Running") == 34 and "34 of 40 as they should be" in out
    assert not {*puts(azure)[16:]} & {*made}, "what was made is not made again"

    # what was in the way is gone: only what is missing is made, and what failed
    azure.release()
    azure.taken, azure.failing, azure.unknown_users, azure.beyond_quota = set(), {}, set(), set()
    before = len(puts(azure))
    status, out = room(*arguments[:2], *arguments[4:])
    assert status == 0 and "40 of 40" in out and len(puts(azure)) == before + 6
    status, out = room(*arguments[:2], *arguments[4:])
    assert status == 0 and len(puts(azure)) == before + 6, "up twice makes nothing twice"

    # what was asked for: each instance is its attendee's, stops, and has nothing personal in it
    ours = [compute for compute in azure.computes if compute["name"] in names]
    assert len(ours) == 40 and "Fennimore" not in json.dumps(ours)
    for compute in ours:
        inner = compute["properties"]["properties"]
        person = inner["personalComputeInstanceSettings"]["assignedUser"]
        assert person["objectId"] == str(uuid.UUID(int=names.index(compute["name"]) + 1))
        assert person["tenantId"] == azure.tenant and compute["tags"] == {EVENT_TAG: EVENT}
        assert inner["idleTimeBeforeShutdown"] == "PT60M"
        schedule = inner["schedules"]["computeStartStop"][0]
        assert schedule["action"] == "Stop" and schedule["cron"]["expression"] == "30 17 * * *"
    script = azure.share["Users/labkit/spring.sh"]
    assert SECRET in script.decode() and "lab=04" in script.decode()
    subprocess.run(["bash", "-n"], input=script, check=True)

    # at the door: one was stopped over night, one deleted, one left the CSV
    ours[0]["properties"]["properties"]["state"] = "Stopped"
    azure.computes.remove(ours[1])
    short = tmp_path / "short.csv"
    lines = people.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    short.write_text("".join(line for line in lines if "Fennimore, 39" not in line))
    status, out = room("status", short)
    assert status == 1 and "39 as they should be" not in out
    assert "Stopped" in row(out, ours[0]["name"]) and "missing" in row(out, ours[1]["name"])
    assert "not in the CSV" in row(out, names[39])
    status, out = room(*arguments[:2], *arguments[4:])
    assert status == 0 and out.count(" Running") == 40

    # down, with one that refuses
    azure.refusing = {ours[2]["name"]}
    status, out = room("down", "--yes")
    assert status == 1 and "Conflict" in row(out, f"compute {ours[2]['name']} ")
    assert len(re.findall(" deleted$", out, re.M)) == 40  # 39 instances and the endpoint
    costs = out.partition("What costs money")[2]
    for line in (
        f"compute {ours[2]['name']}: Running, 1 x Standard_DS3_v2: 0.293 USD/h",
        "compute colleague: Running, 1 x Standard_DS3_v2: 0.293 USD/h",
        "endpoint theirs: by the hour, while it exists, 2 x Standard_DS3_v2: 0.586 USD/h",
    ):
        assert line in costs
    assert "Users/labkit/spring.sh" in azure.share
    azure.refusing = set()
    status, out = room("down", "--yes")
    assert status == 0 and "Users/labkit/spring.sh" not in azure.share
    left = {thing["name"] for thing in azure.computes + azure.endpoints}
    assert left == {"colleague", "other-event", "theirs"}
    touched = [r.path for r in azure.requests if r.method != "GET" for n in left if n in r.path]
    assert not touched and not azure.refused
