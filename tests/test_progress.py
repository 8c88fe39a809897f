"""What a waiting person sees of a long step: a live line, or one output of a notebook."""

import io
import re
import time

import nbformat
import pytest
from labs import kernel_env
from nbclient import NotebookClient

from labkit import progress
from labkit.commands.execute import _live
from labkit.progress import CHART_S, Progress, Stage, clock, report, track


class Screen(io.StringIO):
    """A terminal, or a file, that keeps what was printed."""

    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def shown(monkeypatch, *, terminal: bool, every: float = 0.1) -> str:
    """What a step of about a second prints."""
    screen = Screen(terminal)
    monkeypatch.setattr("sys.stdout", screen)
    with Progress(every=every) as progress:
        progress.show("awq", expected=65, detail=lambda: "layer 3 of 30")
        time.sleep(1.2)
        progress.line("awq: done")
    monkeypatch.undo()
    return screen.getvalue()


def test_a_terminal_has_one_line_that_is_written_over(monkeypatch):
    text = shown(monkeypatch, terminal=True)
    assert "\r\x1b[Kawq  1 s of about 1 min 05 s  layer 3 of 30" in text
    assert text.count("\n") == 1 and text.rstrip("\r\x1b[K").endswith("awq: done\n")


def test_a_file_gets_a_line_now_and_then(monkeypatch):
    text = shown(monkeypatch, terminal=False)
    assert "  ... awq  1 s of about 1 min 05 s  layer 3 of 30\n" in text
    assert "\r" not in text and text.strip().endswith("awq: done")
    assert shown(monkeypatch, terminal=False, every=30.0).strip() == "awq: done"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (125, "2 min 05 s")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def steps_shown(monkeypatch, columns: int, *, terminal: bool = True) -> str:
    """What a terminal of so many *columns*, or a file, shows of a training that reports."""
    screen = Screen(terminal)
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    with Progress(every=0.1) as shown:
        shown.show("03 finetune: Step 4: Train the adapter", expected=65, detail=lambda: "a log")
        report("steps", 0, 80)
        report("steps", 12, 80, loss=4.61)
        report("steps", 14, 80, loss=3.9, held_out=3.8)
        time.sleep(1.2)
    monkeypatch.undo()
    return screen.getvalue()


def test_a_terminal_shows_step_of_steps_and_the_loss(monkeypatch):
    text = steps_shown(monkeypatch, 120)
    assert "  1 s  14 of 80 steps, loss 3.90, held out 3.80, 0 s left" in text
    assert "of about" not in text and "a log" not in text  # the pace is known better
    assert text.endswith("14 of 80 steps in 0 s, loss 4.61 to 3.90, held out 3.80 to 3.80\n")


def test_a_narrow_terminal_cuts_the_text_and_not_the_news(monkeypatch):
    lines = steps_shown(monkeypatch, 80).split("\r\x1b[K")[1:-1]
    assert lines and all("steps, loss 3.90, held out 3.80, 0 s left" in one for one in lines)
    assert max(map(len, lines)) < 80


def test_a_file_gets_the_step_and_how_it_ended(monkeypatch):
    lines = steps_shown(monkeypatch, 80, terminal=False).splitlines()
    assert re.search(r"  \d s  14 of 80 steps, loss 3.90, held out 3.80, 0 s left$", lines[0])
    assert "in 0 s, loss 4.61 to 3.90" in lines[-1] and "\x1b" not in "".join(lines)


def test_the_time_left_is_that_of_the_pace_up_to_now():
    now = time.monotonic()
    halfway = Stage("blocks", 30, first=10, began=now - 20, done=20, at=now)
    assert halfway.left() == pytest.approx(20, abs=0.5)  # the ten of before took no time
    assert Stage("blocks", 30, first=10, began=now, done=10, at=now).left() is None
    assert Stage("blocks", 30, first=0, began=now - 20, done=30, at=now).left() is None
    late = Stage("blocks", 30, first=0, began=now - 100, done=29, at=now - 60)
    assert late.left() == 0


def test_where_nothing_listens_a_report_is_nothing(capsys):
    report("steps", 1, 2, loss=3.0)
    assert capsys.readouterr() == ("", "")


def test_what_is_tracked_is_reported_to_what_runs_or_to_a_line_of_its_own(monkeypatch):
    with Progress() as outer:
        outer.show("onnx")
        assert list(track("abc", "layers")) == ["a", "b", "c"]
        assert str(outer.stage) == "3 of 3 layers"
        report("records", 1, 9)
        assert str(outer.stage) == "1 of 9 records"
    screen = Screen(terminal=True)
    monkeypatch.setattr("sys.stdout", screen)
    for _ in track(range(2), "records"):
        time.sleep(0.7)
    monkeypatch.undo()
    assert "s  0 of 2 records" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")


def test_a_loop_that_fails_leaves_nothing_running():
    with pytest.raises(ZeroDivisionError):
        for one in track([1, 0], "records"):
            1 / one
    for _ in track([1, 0], "records"):
        break
    assert not progress._running


KERNEL = """
import pathlib, time
from labkit.capture import redirect_output
from labkit.progress import Progress, report, track

print("before")
with Progress() as progress:
    progress.show("lora", detail=lambda: "reads <data>")
    with redirect_output(pathlib.Path(LOG)):
        time.sleep(1.8)
        for step in range(9):
            print("what a library prints")
            report("steps", step, 8, loss=5 - step / 4)
            time.sleep(SECONDS / 8)
print("lora: kept")
for _ in track(range(4), "records"):
    time.sleep(0.5)
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(A cell that was run in a kernel, all states of its output, what ./lab run saw of them)."""
    log = tmp_path_factory.mktemp("logs") / "lora.log"
    code = KERNEL.replace("LOG", repr(str(log))).replace("SECONDS", str(2 * CHART_S + 2))
    cell = nbformat.v4.new_code_cell(code)
    states, seen = [], []

    class Client(NotebookClient):
        def _update_display_id(self, display_id, msg):
            seen.append(_live(cell))
            states.append(msg["content"]["data"])
            super()._update_display_id(display_id, msg)

    book = nbformat.v4.new_notebook(cells=[cell])
    Client(book, kernel_name="python3", coalesce_streams=True).execute(env=kernel_env({}))
    assert log.read_text().splitlines() == ["what a library prints"] * 9
    return cell, states, seen


def test_a_notebook_ends_with_one_line_and_no_frames(ran):
    cell, _, _ = ran
    streams = "".join(one.text for one in cell.outputs if one.output_type == "stream")
    assert streams == "before\nlora: kept\n"
    first, second = (one for one in cell.outputs if one.output_type == "display_data")
    assert first.data.keys() == {"text/plain"} and not first.metadata
    assert first.data["text/plain"].startswith("lora: 8 steps in ")
    assert first.data["text/plain"].endswith(" s, loss 5.00 to 3.00")
    assert set(second.data.values()) == {""} and not second.metadata
    assert not _live(cell)


def test_while_it_runs_a_notebook_has_a_bar_and_a_chart(ran):
    _, states, _ = ran
    pages = [state.get("text/html", "") for state in states]
    assert any("<progress" in page and "steps, loss" in page and " left" in page for page in pages)
    assert 1 < len({page.partition("base64,")[2] for page in pages}) <= 5  # it costs time
    assert any("records" in page and "<progress" in page for page in pages)


def test_lab_run_sees_the_same(ran):
    _, _, seen = ran
    assert "lora: reads <data>" in seen
    assert any("of 8 steps, loss" in one and one.endswith(" left") for one in seen)


def test_a_stage_that_begins_anew_has_not_the_chart_of_the_one_before(monkeypatch):
    monkeypatch.setattr(progress, "CHART_S", 0.0)
    shown = Progress()
    for step in range(3):
        shown.advance("steps", step, 3, {"loss": 3.0 - step})
    assert "<img" in shown._page()["text/html"]
    shown.advance("records", 0, 8, {})
    assert "<img" not in shown._page()["text/html"]
    for record in range(1, 4):  # as many values as the chart before had
        shown.advance("records", record, 8, {"loss": 1.0})
    assert "of 8 records" in shown._page()["text/html"].split("<img")[1]
