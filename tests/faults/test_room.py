"""A room's CSV, prices and settings from anybody, and an Azure that refuses, hangs up or is busy:
each ends as it says here, nothing is made twice, and nothing that is not the event's is touched.
"""

import json
import os
import re
import time
import uuid

import pytest
from azure.core.pipeline.transport import HttpTransport
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from labkit.commands import room as command
from labkit.errors import LabError, plain
from labkit.registry.sdk import EVENT_TAG
from labkit.room import attendees, workspace
from labkit.room.attendees import MOST, read_attendees
from labkit.room.prices import EXAMPLE, read_prices
from labkit.room.script import Setup

ADA, BOB = (str(uuid.UUID(int=n)) for n in (1, 2))
HEAD = "name,object_id\n"
GOOD = f"{HEAD}Ada,{ADA}\nBob,{BOB}\n"

CSVS = {
    # what is in the file -> the line that is named, and what is said of it
    "nothing": (b"", 1, "nobody is in it"),
    "no attendee": (HEAD, 2, "nobody is in it"),
    "commas below semicolons": (GOOD.replace(",", ";", 1), 2, "has 1 fields, the first line 2"),
    "a workbook": (b"PK\3\4\x14\0\6\0", 1, "is a workbook of Excel"),
    "no header": (f"Ada,{ADA}\n", 1, "its columns are"),
    "another column": (f"name,object_id,email\nAda,{ADA},a@b.c\n", 1, "nothing that is not need"),
    "a column twice": (f"name,name,object_id\nAda,Ada,{ADA}\n", 1, "its columns are"),
    "a field too few": (f"{GOOD}Cleo\n", 4, "has 1 fields"),
    "a field too many": (f"{GOOD}Cleo,{ADA},x\n", 4, "has 3 fields"),
    "no name": (f"{HEAD},{ADA}\n", 2, "there is no name"),
    "no id": (f"{HEAD}Ada,\n", 2, "there is no object_id"),
    "an address as id": (f"{HEAD}Ada,ada@example.com\n", 2, "is no object_id of Entra"),
    "a tenant's name": (f"name,object_id,tenant_id\nAda,{ADA},contoso\n", 2, "is no tenant_id"),
    "the same person": (f"{GOOD}Ada again,{ADA.upper()}\n", 4, "is that of line 2"),
    "a formula": (f'{HEAD}"=HYPERLINK(""http://x"")",{ADA}\n', 2, "begins like a formula"),
    "a formula after spaces": (f"{HEAD}  +1,{ADA}\n", 2, "begins like a formula"),
    "an id as formula": (f"{HEAD}Ada,@{ADA}\n", 2, "begins like a formula"),
    "a terminal's control": (f"{HEAD}Ada\x1b[2J,{ADA}\n", 2, r"cannot be printed: 'Ada\\x1b"),
    "a turned direction": (f"{HEAD}Ada\u202e,{ADA}\n", 2, "cannot be printed"),
    "a line in a field": (f'{HEAD}"Ada\nBob",{ADA}\n', 3, "cannot be printed"),
    "a NUL": (f"{HEAD}A\0da,{ADA}\n", 2, "cannot be printed"),
    "an open quote": (f'{HEAD}"Ada,{ADA}\n', 2, "unexpected end of data"),
    "text after a quote": (f'{HEAD}"Ada"x,{ADA}\n', 2, "expected after"),
    "a long name": (f"{HEAD}{'A' * 81},{ADA}\n", 2, "more than 80 characters"),
    "UTF-16": (GOOD.encode("utf-16"), 1, "not in UTF-8"),
    "Latin-1": (f"{HEAD}Zo\xeb,{ADA}\n".encode("latin-1"), 2, "not in UTF-8"),
    "too many": (
        HEAD + "".join(f"A,{uuid.UUID(int=n)}\n" for n in range(MOST + 1)),
        MOST + 2,
        "more than 200 attendees",
    ),
    "a gigabyte's start": (HEAD + "x" * 2**18, 2, "goes on beyond 256 kB"),
}


@pytest.mark.parametrize("case", CSVS)
def test_a_csv_that_is_wrong_ends_in_a_sentence_with_its_line(case, tmp_path):
    content, line, said = CSVS[case]
    path = tmp_path / "room.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabError, match=f"^line {line} of .*room.csv: .*{said}") as caught:
        read_attendees(path, "event")
    assert "\n" not in str(caught.value) and plain(str(caught.value)) == str(caught.value)


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a pipe"])
def test_what_is_no_file(kind, tmp_path):
    path = tmp_path / "room.csv"
    if kind != "nothing":
        (path.mkdir if kind == "a folder" else lambda: os.mkfifo(path))()
    with pytest.raises(LabError, match="there is no file"):
        read_attendees(path, "event")


def test_what_spreadsheets_write_is_read(tmp_path):
    path = tmp_path / "room.csv"
    text = f'Object_ID, Name ,tenant_id\r\n{ADA.upper()},"O\'Hara, Zoë",{BOB}\r\n\r\n,,\r\n'
    path.write_text("\ufeff" + text, encoding="utf-8", newline="")
    (found,) = read_attendees(path, "event")
    assert (found.name, found.object_id, found.tenant_id) == ("O'Hara, Zoë", ADA, BOB)


@pytest.mark.parametrize("separator", ";\t")
def test_a_spreadsheet_separates_as_its_language_does(separator, tmp_path):
    path = tmp_path / "room.csv"
    path.write_text("\ufeff" + GOOD.replace(",", separator), encoding="utf-8")
    assert [one.name for one in read_attendees(path, "event")] == ["Ada", "Bob"]


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
@fuzz(150)
def test_any_bytes_end_in_a_room_or_a_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    for start in (b"", HEAD.encode()):
        path.write_bytes(start + content)
        try:
            read_attendees(path, "event")
        except LabError as error:
            assert str(error).startswith("line ")


@pytest.mark.parametrize("event", ["", "A", "a_b", "2026", "a-", "a--b", "x" * 16, "é", "a\n"])
def test_an_event_that_no_instance_can_be_named_after(event, tmp_path):
    with pytest.raises(LabError, match="cannot be the name of an event"):
        read_attendees(tmp_path / "room.csv", event)


def test_names_that_meet_are_parted_in_whatever_order_the_lines_are(tmp_path, monkeypatch):
    monkeypatch.setattr(attendees, "LETTERS", 1)
    path, lines = tmp_path / "room.csv", [f"A,{uuid.UUID(int=n)}\n" for n in range(20)]
    found = []
    for order in (lines, lines[::-1]):
        path.write_text(HEAD + "".join(order))
        found.append({one.object_id: one.compute for one in read_attendees(path, "event")})
    assert found[0] == found[1] and len({*found[0].values()}) == 20


PRICES = {
    "an escape sequence": ({"currency": "\x1b]0;x\x07"}, "cannot be printed"),
    "no JSON": ("{", "Invalid JSON"),
    "a list": ("[]", "dictionary|object|dataclass"),
    "no source": ({"source": None}, "source"),
    "a word": ({"per_hour": {"Standard_DS3_v2": "cheap"}}, "valid number"),
    "below zero": ({"per_hour": {"Standard_DS3_v2": -1}}, "below zero"),
    "infinite": ('{"currency":"EUR","per_hour":{"a":1e999}}', "finite|required"),
    "a key more": ({"discount": 0.5}, "discount"),
}


@pytest.mark.parametrize("case", PRICES)
def test_a_file_of_prices_that_is_none(case, tmp_path):
    content, said = PRICES[case]
    if isinstance(content, dict):
        content = json.dumps(json.loads(EXAMPLE.read_text()) | content)
    path = tmp_path / "prices.json"
    path.write_text(content)
    with pytest.raises(LabError, match=f"is no file of prices .*({said})"):
        read_prices(path)


SETUPS = {
    "no https": ({"repository": "git@example.com:labs.git"}, "no address for the instances"),
    "no origin": ({"repository": ""}, "no address for the instances.*--repository"),
    "a token in it": ({"repository": "https://me:ghp_x@example.com/labs"}, "no address for"),
    "an option as ref": ({"ref": "--upload-pack=x"}, "no commit, tag or branch"),
    "a ref with a space": ({"ref": "a b"}, "no commit, tag or branch"),
    "a bundle from a stick": ({"bundle": "/media/b.tar", "fingerprint": "0a"}, "no address for"),
    "no fingerprint": ({"bundle": "https://example.com/b.tar"}, "needs its fingerprint"),
    "no bundle": ({"fingerprint": "0a"}, "needs its fingerprint"),
    "nothing to catch up from": ({"lab": "04"}, "takes from a bundle"),
}


@pytest.mark.parametrize("case", SETUPS)
def test_a_set_up_that_no_instance_can_do(case):
    given_, said = SETUPS[case]
    with pytest.raises(LabError, match=said) as caught:
        Setup(**{"repository": "https://example.com/labs.git", "ref": "main"} | given_).check()
    assert "ghp_x" not in str(caught.value)


# ---- Azure


@pytest.fixture
def room(azure, monkeypatch, capsys, tmp_path):
    """A function that runs ./lab room up or down; (exit status or LabError, what was printed)."""
    monkeypatch.setattr(workspace, "LOOK_S", 0.01)
    # the libraries' own patience: up to a minute and a half before they give up
    monkeypatch.setattr(HttpTransport, "sleep", lambda *_: time.sleep(0.005))
    path = tmp_path / "room.csv"
    path.write_text(GOOD)
    more = ["--stop", "17:30", "--repository", "https://example.com/labs.git", "--ref", "v1"]

    def run(what: str):
        arguments = {"up": ["up", str(path), *more], "down": ["down", "--yes"]}[what]
        try:
            status = command.main([*arguments, "--event", "event"])
        except LabError as error:
            status = error
        out = capsys.readouterr().out + str(status)
        assert not [secret for secret in azure.secrets if secret in out]
        return status, out

    run.computes = [one.compute for one in read_attendees(path, "event")]
    return run


ONE = "/computes/event-"
REQUESTS = {
    # method, path -> the command that sends it
    ("GET", r"rig-workspace\?"): "up",
    ("GET", r"/computes\?"): "up",
    ("GET", "/datastores/"): "up",
    ("POST", "/listSecrets"): "up",
    ("PUT", "restype=directory"): "up",
    ("PUT", r"event\.sh$"): "up",
    ("PUT", "comp=range"): "up",
    ("PUT", ONE): "up",
    ("GET", ONE): "up",
    ("GET", "/operations/"): "up",
    ("GET", "/onlineEndpoints"): "down",
    ("DELETE", ONE): "down",
    ("DELETE", r"event\.sh$"): "down",
}
ON_THE_SHARE = ("restype=directory", r"event\.sh$", "comp=range")
QUICK = {"headers": {"retry-after-ms": "5"}}
HALF = "half an answer"
BREAKS = {
    # what breaks -> how the rig is told, and what is said where it does not end
    "no connection": ("drop", {}, "network does not carry"),
    "no answer": ("drop_response", {}, "network does not carry"),
    HALF: ("cut_body", {"after": 1}, "network does not carry|SDK gave up"),
    "a fault": ("status", {"code": 500} | QUICK, "Azure is busy or has a fault"),
    "too many requests": ("status", {"code": 429} | QUICK, "Azure is busy or has a fault"),
    "no right": ("status", {"code": 403} | QUICK, "lacks the permission|does not let"),
}


def cases():
    """Each request with each break; one of each request and all of the creation are not slow."""
    for number, request in enumerate(REQUESTS):
        for other, what in enumerate(BREAKS):
            quick = number % len(BREAKS) == other or request == ("PUT", ONE)
            marks = () if quick else pytest.mark.slow
            yield pytest.param(request, what, marks=marks, id=f"{' '.join(request)}, {what}")


def done(request, what: str) -> bool:
    """Whether the request is carried out although it breaks each time: an instance is made and
    found when its answer is lost, and an answer without a body has no half.
    """
    bare = [("PUT", r"restype=directory"), ("PUT", r"event\.sh$"), ("DELETE", ONE)]
    bare.append(("DELETE", r"event\.sh$"))
    if request == ("GET", "/operations/"):  # the instance itself says how far it is
        return True
    return request == ("PUT", ONE) and what == "no answer" or what == HALF and request in bare


@pytest.mark.parametrize(("request_", "what"), cases())
def test_a_request_that_breaks(azure, room, request_, what):
    (method, path), (action, args, said) = request_, BREAKS[what]
    if what == "too many requests" and path in ON_THE_SHARE:
        args = args | {"code": 503, "error": "ServerBusy"}  # which is what a storage says
    azure.add_compute("event-of-a-colleague")
    if REQUESTS[request_] == "down":
        assert room("up")[0] == 0
    fault = azure.fault(action, method=method, path=path, times=99, **args)
    status, out = room(REQUESTS[request_])
    assert fault.fired
    # the workspace is asked what became of it, so what was done is no failure
    assert (status == 0) == done(request_, what)
    assert status == 0 or re.search(said, out), out
    azure.release()
    if what != "no right":  # a single break is not even seen
        azure.fault(action, method=method, path=path, **args)
    assert room(REQUESTS[request_])[0] == 0
    ours = [one["name"] for one in azure.computes if one["tags"].get(EVENT_TAG)]
    assert sorted(ours) == (sorted(room.computes) if REQUESTS[request_] == "up" else [])
    assert room("down")[0] == 0
    assert [one["name"] for one in azure.computes] == ["event-of-a-colleague"]
    assert not azure.refused


def test_a_plan_says_what_does_not_travel_and_names_the_option(tmp_path, monkeypatch, capsys):
    (tmp_path / "room.csv").write_text(GOOD)
    monkeypatch.setattr(command, "git_commit", lambda: f"{'a1' * 20}+")
    plan = ["plan", str(tmp_path / "room.csv"), "--event", "spring", "--stop", "17:30"]
    assert command.main([*plan, "--repository", "https://example.com/labs"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("files of this clone were changed") and f"{'a1' * 20};" in said
    with pytest.raises(LabError, match="Name another with --repository"):
        command.main([*plan, "--repository", "git@example.com:labs.git"])


def test_a_folder_that_git_does_not_know_needs_a_ref(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "git_commit", lambda: "unknown")
    path = tmp_path / "room.csv"
    path.write_text(GOOD)
    plan = ["plan", str(path), "--event", "event", "--stop", "17:30", "--repository"]
    with pytest.raises(LabError, match="no commit, tag or branch .*--ref"):
        command.main([*plan, "https://example.com/labs.git"])
