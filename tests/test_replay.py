"""On stage: what is prepared is shown from its recording, in seconds, and never taken for more."""

import json
import os
import time

import pytest
from samples import CPU
from test_progress import Screen

from labkit import replay
from labkit.products import Products
from labkit.progress import MOST_REPORTS, Progress, report
from labkit.session import Lab
from labkit.summary import write_summary

NAME = "lora"


@pytest.fixture
def lab(runs, monkeypatch):
    monkeypatch.delenv("LAB_PRESENT", raising=False)
    monkeypatch.setattr(replay, "WORTH_S", 0.0)
    monkeypatch.setattr(replay, "LONGEST_S", 1.5)
    return Lab("03", CPU)


def train(recipe, out):
    for step in range(1, 41):
        report("steps", step, 40, loss=5 - step / 20)
    out.write_text("weights")


def recording(lab):
    return lab.folder / ".stamps" / ".progress" / f"{NAME}.json"


def slow(lab, reports: list, **changes) -> None:
    """The recording of *lab*'s product becomes another one."""
    made = lab.products.identity(NAME)
    recording(lab).write_text(json.dumps({"id": made, "reports": reports} | changes))


def shown(lab, monkeypatch, recipe=None, **settings) -> tuple[str, float]:
    """What keeping the product on stage shows in a terminal, and how many seconds it takes."""
    screen = Screen(terminal=True)
    for name, value in ({"LAB_PRESENT": "1"} | settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((200, 24)))
    monkeypatch.setattr("sys.stdout", screen)
    started = time.monotonic()
    assert lab.keep(NAME, train, recipe).read_text() == "weights"
    took = time.monotonic() - started
    monkeypatch.undo()
    return screen.getvalue(), took


HOUR = [(90.0 * step, "steps", step, 40, {"loss": 5 - step / 20}) for step in range(41)]


def test_an_hour_is_replayed_in_seconds_and_says_what_it_is(lab, monkeypatch, capsys):
    lab.keep(NAME, train)
    slow(lab, HOUR)
    stamp = lab.products.stamp(NAME)
    text, took = shown(lab, monkeypatch)
    assert 1.4 < took < 4
    assert f"RECORDED: {NAME}, {stamp.made_at}, 2400 times as fast  " in text
    assert "of 40 steps, loss" in text and " min" in text.split("steps, loss")[1]
    # its clock is that of the recording
    assert "times as fast: 40 steps in 60 min 00 s, loss 5.00 to 3.00\n" in text
    assert f"that was a recording of {stamp.made_at} on {stamp.machine}, where it took 0 s" in text
    assert text.endswith("Nothing was made now\n")
    assert lab.products.stamp(NAME).finished == stamp.finished


def test_what_is_made_is_recorded_and_bounded(lab, monkeypatch):
    lab.keep(NAME, train)
    kept = json.loads(recording(lab).read_text())
    assert kept["id"] == lab.products.identity(NAME) and len(kept["reports"]) == 40
    assert kept["reports"][-1][1:] == ["steps", 40, 40, {"loss": 3.0}]
    with Progress() as progress:
        for step in range(10_001):
            report("steps", step, 10_000)
    assert MOST_REPORTS / 2 <= len(progress.reports) <= MOST_REPORTS
    assert progress.reports[0][2] == 0 and progress.reports[-1][2] > 9_900


def test_attendees_see_what_they_saw(lab, monkeypatch, capsys):
    lab.keep(NAME, train)
    slow(lab, HOUR)
    for setting in ("", "0"):
        text, took = shown(lab, monkeypatch, LAB_PRESENT=setting)
        assert took < 1 and text.count("\n") == 1 and text.startswith(f"{NAME}: kept, made at ")


def test_an_edited_recipe_is_built_and_shows_no_recording(lab, monkeypatch, capsys):
    lab.keep(NAME, train, {"steps": 40})
    slow(lab, HOUR)
    text, _ = shown(lab, monkeypatch, {"steps": 20})
    assert "made anew, because recipe.steps was 40 and is 20" in text
    assert "record" not in text.lower() and "MB written" in text


def test_the_recording_of_another_product_is_not_shown(lab, monkeypatch, capsys):
    lab.keep(NAME, train)
    slow(lab, HOUR, id="of another")
    text, took = shown(lab, monkeypatch)
    assert took < 1 and text.endswith(
        f"{NAME}: prepared. There is no recording of how it was made\n"
    )


@pytest.mark.parametrize(
    ("reports", "why"),
    [
        (HOUR * 20, "more than 600 entries"),
        (HOUR[::-1], "do not go forward"),
        ([(-5.0, "steps", 1, 2, {})], "do not go forward"),
        ([(0.0, "steps", 1, 2, {}), (1e300, "steps", 2, 2, {})], "too large"),
        ([(0.0, "steps", -1e300, 2, {})], "too large"),
        ([(0.0, "steps", 1, 2, {"loss": 1e300})], "too large"),
        ([(0.0, "s" * 41, 1, 2, {})], "too long"),
        ([(0.0, "steps", 1, 2, dict.fromkeys("abcdef", 1.0))], "too many names"),
        ([(0.0, "steps", 1, 2, {r"$\foo$": 1.0})], "with a $"),
        ([(0.0, "steps", 1, 2)], "unreadable"),
        ([(0.0, "steps", 1, 2, {"loss": "<script>"})], "unreadable"),
        ("a" * 17 * 2**20, "unreadable"),
    ],
)
def test_a_hostile_recording_is_ignored_with_a_sentence(lab, monkeypatch, capsys, reports, why):
    lab.keep(NAME, train)
    slow(lab, reports)
    text, took = shown(lab, monkeypatch)
    said = text + capsys.readouterr().err
    assert why in said and took < 1 and "RECORDED" not in text and "<script>" not in said


def test_no_figure_comes_of_a_replay(lab, monkeypatch, capsys):
    lab.keep(NAME, train)
    before = write_summary(Products(lab.folder), CPU)
    slow(lab, HOUR)
    shown(lab, monkeypatch)
    assert write_summary(Products(lab.folder), CPU) == before
    assert lab.records.sections() == {}
