"""The one live line of a long step."""

import io
import time

import pytest

from labkit.progress import Progress, clock


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
