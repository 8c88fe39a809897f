"""What goes on in a long command or cell: one live line, or a line now and then where no line can
live.
"""

import shutil
import sys
import threading
import time
from collections.abc import Callable

from labkit.errors import plain


class Progress:
    """Within the block, shows what goes on and for how long, until the next :meth:`show`.

    *every* is the time in seconds between two lines where there is no terminal. In a notebook the
    line
    is written over, as on a terminal.
    """

    def __init__(self, every: float = 30.0):
        self.out = sys.stdout  # as it is now: what libraries print later goes into a log
        self.in_notebook = type(self.out).__module__.startswith("ipykernel")
        self.live = self.in_notebook or self.out.isatty()
        self.every = 1.0 if self.in_notebook else every
        self.text, self.since, self.expected, self.told = "", 0.0, None, 0.0
        self.detail: Callable[[], str] = str
        self.lock, self.done = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.line("")

    def show(
        self,
        text: str,
        *,
        expected: float | None = None,
        restart: bool = True,
        detail: Callable[[], str] = str,
    ) -> None:
        """What goes on now. *expected* seconds in all; *restart* starts the clock anew.

        *detail* is asked for the latest news at each tick.
        """
        with self.lock:
            self.text, self.expected, self.detail = text, expected, detail
            if restart:
                self.since = self.told = time.monotonic()

    def line(self, text: str) -> None:
        """Prints *text* as a line that stays; nothing goes on until the next show."""
        with self.lock:
            self.text = ""
            print(self._over(plain(text)), end="\n" if text else "", flush=True, file=self.out)

    def elapsed(self) -> float:
        """Seconds since the clock was started."""
        return time.monotonic() - self.since

    def _over(self, text: str) -> str:
        if not self.live:
            return text
        # a notebook knows no escape sequence that clears a line
        return f"\r{text:<100}\r{text}" if self.in_notebook else f"\r\x1b[K{text}"

    def _tick(self) -> None:
        while not self.done.wait(0.5):
            with self.lock:
                if not self.text:
                    continue
                about = f" of about {clock(self.expected)}" if self.expected else ""
                parts = [f"{self.text}  {clock(self.elapsed())}{about}", self.detail()]
                now = plain("  ".join(filter(None, parts)))
                due = time.monotonic() - self.told >= self.every
                if self.live and (due or not self.in_notebook):
                    width = 99 if self.in_notebook else shutil.get_terminal_size().columns - 1
                    print(self._over(now[:width]), end="", flush=True, file=self.out)
                elif due:
                    print(f"  ... {now}", flush=True, file=self.out)
                if due:
                    self.told = time.monotonic()


def clock(seconds: float) -> str:
    """ "48 s" or "2 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
