"""What is remembered between two commands, cut off, emptied, edited or replaced by anything.

It counts as absent, one line says so, and it costs the step that it told about, not all of them.
"""

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import CPU, writes

from labkit.commands import main
from labkit.commands.status import state as state_of
from labkit.errors import LabError
from labkit.figures import Estimate
from labkit.profiles import resolve_profile, saved_choice
from labkit.session import Lab
from labkit.summary import OF_A_RUN, Records
from labkit.working_copies import WorkingCopies

DAMAGED = {
    "empty, after a power cut": b"",
    "zeros, after a power cut": bytes(400),
    "cut off": b'{"name": "base", "lab": "01", "id": "7e',
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "of another program": b'{"version": 2, "cells": []}',
    "not UTF-8": b'{"name": "\xff\xfe"}',
    "brackets without end": b"[" * 100_000,
    "a number without end": b'{"seconds": ' + b"9" * 5000 + b"}",
    "no number": b'{"peak_rss_mb": NaN, "figures": {"a": {"b": {"figure": {"mean": NaN}}}}}',
    "escape sequences": b'{"\x1b[2J": "\x1b[31m"}',
}


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_large_file(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10**12)  # it takes no space


SHAPES = [a_folder, a_pipe, a_link_to_itself, a_link_to_a_device, a_large_file]


# of each kind one; the others in the nightly
QUICK = ["empty, after a power cut", "cut off", "a list", "not UTF-8", a_folder, a_pipe]


@pytest.fixture(
    params=[
        pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow)
        for kind in (*DAMAGED, *SHAPES)
    ],
    ids=lambda kind: getattr(kind, "__name__", kind),
)
def damage(request):
    """A function that puts something else in the place of a file."""

    def damage(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if request.param in DAMAGED:
            path.write_bytes(DAMAGED[request.param])
        else:
            request.param(path)

    return damage


def told(capsys, path: Path) -> bool:
    return capsys.readouterr().err.count(f"{path} is unreadable") == 1


def test_a_stamp_costs_one_step(executed, course, products, capsys, damage):
    main(["run"])
    made = {stamp.name: stamp.id for stamp in products.stamps()}
    executed.clear()
    capsys.readouterr()
    damage(course / ".stamps" / "awq.json")
    assert main(["status"]) == 0
    assert told(capsys, course / ".stamps" / "awq.json")
    assert main(["run"]) == 0 and main(["status"]) == 0
    remade = {stamp.name for stamp in products.stamps() if stamp.id != made[stamp.name]}
    assert {name for name in remade if "/" not in name} == {"awq", "answers"}, "base is kept"


def test_the_choice_of_lab_01(executed, course, capsys, damage):
    main(["run"])
    executed.clear()
    path = course.parent / "choice.json"
    damage(path)
    capsys.readouterr()
    assert saved_choice() == {} and told(capsys, path)
    assert main(["run"]) == 0 and executed == []


def test_the_records_of_a_lab(runs, capsys, damage):
    lab = Lab("02", CPU)
    lab.record("eval_loss", base=Estimate(3.0))
    Lab("03", CPU).record("eval_loss", lora=Estimate(2.0))
    path = lab.folder / "records" / "02.json"
    damage(path)
    capsys.readouterr()
    assert Records(lab.products).sections() == {"eval_loss": {"lora": Estimate(2.0)}}
    assert told(capsys, path)
    with pytest.raises(LabError, match="the figure eval_loss base is missing"):
        Lab("03", CPU).figure("eval_loss", "base")
    if not path.is_dir():
        lab.record("eval_loss", base=Estimate(3.0))
        assert lab.figure("eval_loss", "base") == Estimate(3.0)


IN_THE_WAY = {
    "a folder for a record": ("records/02.json", lambda path: path.mkdir(parents=True)),
    "a folder for the summary": ("summary.json", Path.mkdir),
    "a file for the records": ("records", Path.touch),
    "a file for the stamps": (".stamps", Path.touch),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_what_stands_in_the_place_of_a_file_is_told(case, runs):
    lab = Lab("02", CPU)
    name, put = IN_THE_WAY[case]
    put(lab.folder / name)
    with pytest.raises(LabError, match=r"cannot be written: there is a folder .*Delete that"):
        lab.record("mine", speed=Estimate(3.5))
        lab.keep("awq", writes("x"))
        lab.summary()


def test_the_summary(executed, course, capsys, damage):
    from labkit.machine import preflight

    main(["run"])
    damage(course / "summary.json")
    checks = preflight(replace(resolve_profile(), disk_gb=10**6))
    assert [check.name for check in checks if not check.ok] == ["free disk"]


def test_an_executed_notebook(executed, course, products, damage):
    main(["run"])
    executed.clear()
    damage(course / "notebooks" / "02_quantize.ipynb")
    assert state_of(products, resolve_profile(), "02") != "not run"
    assert main(["run"]) == 0 and executed[0] == "02"


def test_the_note_of_what_a_working_copy_was_made_from(tmp_path, capsys, damage):
    (tmp_path / "notebooks").mkdir()
    notebook = tmp_path / "notebooks" / "01_setup.ipynb"
    notebook.write_text("{}")
    copies = WorkingCopies(tmp_path)
    copies.make(notebook)
    (copies.folder / "01_setup.ipynb").write_text('{"mine": 1}')
    damage(copies.folder / "made_from.json")
    moved = copies.set_aside_outdated()  # nobody knows what it was made from: both are kept
    assert moved["01_setup.ipynb"].read_text() == '{"mine": 1}'
    assert told(capsys, copies.folder / "made_from.json")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../other"},
        {"name": "awq"},
        {"files": {"base": 7}},
        {"files": ["base"]},
        {"seconds": "soon"},
        {"decided_by": {}},
        {"decided_by": None},
        {"finished": 7},
        {"id": None},
    ],
    ids=str,
)
def test_a_stamp_with_another_value_is_none(runs, change):
    lab = Lab("01", CPU)
    lab.keep("base", writes("x"))
    path = lab.folder / ".stamps" / "base.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert lab.products.stamp("base") is None and lab.products.stamps() == []
    lab.keep("base", writes("x"))
    assert lab.products.is_current("base")


def test_products_that_are_said_to_need_each_other_are_not_current(runs):
    lab = Lab("01", CPU)
    lab.keep("base", writes("x"))
    lab.keep("other", writes("x"), needs=("base",))
    path = lab.folder / ".stamps" / "base.json"
    forged = json.loads(path.read_text())
    forged["decided_by"]["needs"] = {"other": lab.products.identity("other")}
    path.write_text(json.dumps(forged))
    assert not lab.products.is_current("base") and not lab.products.is_current("other")


def test_a_run_folder_of_another_version_is_told_in_four_lines(runs, capsys):
    lab = Lab("01", CPU)
    for number in range(6):
        lab.keep(f"p{number}", writes("x"))
    for path in (lab.folder / ".stamps").iterdir():
        stamp = json.loads(path.read_text())
        path.write_text(json.dumps(stamp | {"files": dict.fromkeys(stamp["files"], 1)}))
    capsys.readouterr()
    assert main(["status"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and "Where another version of the labs has left them" in lines[3]
    lab.keep("p1", writes("x"))
    assert lab.products.is_current("p1")


UNREADABLE = {
    "a bare number": lambda lab: lab.record("mine", speed=3.5),
    "nothing": lambda lab: lab.record("mine", speed=None),
    "a number of numpy": lambda lab: lab.record("mine", speed=Estimate(numpy.float32(3.5))),
    "a unit that is none": lambda lab: lab.record("mine", speed=Estimate(3.5, unit=None)),
    "half a character": lambda lab: lab.record("mine", **{"\ud800": Estimate(3.5)}),
    "a recipe with half a character": lambda lab: lab.keep("other", writes("x"), "\ud800"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_nothing_is_written_that_cannot_be_read_again(case, runs, capsys):
    """The figures before it would be lost with it."""
    lab = Lab("02", CPU)
    lab.record("eval_loss", base=Estimate(3.0))
    with pytest.raises(LabError, match=r"could not be read again.*Record figures as Estimates"):
        UNREADABLE[case](lab)
    assert Lab("03", CPU).figure("eval_loss", "base") == Estimate(3.0)
    assert not lab.products.stamp("other") and "mine" not in capsys.readouterr().out


def test_a_figure_takes_nothing_else_s_place_in_the_summary(runs, monkeypatch):
    lab = Lab("02", CPU)
    lab.keep("awq", writes("x"))
    plain = lab.summary()
    assert set(plain) <= set(OF_A_RUN)
    for section in OF_A_RUN:
        with pytest.raises(LabError, match="cannot be the section of a figure"):
            lab.record(section, labs=Estimate(3.0))
    lab.record("mine", labs=Estimate(3.0))
    path = lab.folder / "records" / "02.json"  # as another version would have written it
    path.write_text(path.read_text().replace('"mine"', '"seconds"'))
    monkeypatch.setattr("labkit.summary.machine_name", lambda: "another")
    assert set(lab.summary()) <= set(OF_A_RUN) and lab.summary()["seconds"] == plain["seconds"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@pytest.fixture
def finished(tmp_path_factory, monkeypatch):
    """A lab with a product, a figure and a choice, and the three files that tell of them."""
    runs = tmp_path_factory.mktemp("runs")
    monkeypatch.setenv("LAB_RUNS", str(runs))
    lab = Lab("01", CPU)
    lab.keep("base", writes("x"))
    lab.record("eval_loss", base=Estimate(3.0))
    (runs / "choice.json").write_text('{"profile": "cpu", "steps": 8}')
    files = [lab.folder / ".stamps" / "base.json", lab.folder / "records" / "01.json"]
    return lab, [*files, runs / "choice.json"]


def ask(lab: Lab) -> None:
    """All that reads the files; an error that says what to do is an answer, too."""
    for question in (
        lab.products.stamps,
        lambda: lab.products.fault("base", hashed=True),
        lab.records.sections,
        lambda: lab.records.checkpoints("01"),
        resolve_profile,
        lab.summary,
    ):
        with contextlib.suppress(LabError):
            question()


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(which=st.integers(0, 2), data=st.data())
def test_no_content_of_a_state_file_makes_a_traceback(finished, which, data):
    """Any bytes, any JSON, and valid files of which one value is another one."""
    lab, files = finished
    before = [file.read_bytes() for file in files]
    valid = json.loads(before[which])
    key = data.draw(st.sampled_from(sorted(valid)))
    changed = st.builds(lambda value: json.dumps(valid | {key: value}).encode(), JSON)
    anything = st.builds(lambda value: json.dumps(value).encode(), JSON)
    files[which].write_bytes(data.draw(st.binary(max_size=60) | anything | changed))
    try:
        ask(lab)
    finally:
        for file, content in zip(files, before, strict=True):
            file.write_bytes(content)
