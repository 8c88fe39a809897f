"""Progress of long commands: one live line on a terminal, a line now and then elsewhere."""

import shutil
import sys
import threading
import time


class Progress:
    """Within the block, shows what goes on and for how long, until the next :meth:`show`."""

    def __init__(self, every: float = 30.0):
        self.every = every  # seconds between two lines where there is no terminal
        self.live = sys.stdout.isatty()
        self.text, self.since, self.expected, self.told = "", 0.0, None, 0.0
        self.lock, self.done = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.line("")

    def show(self, text: str, *, expected: float | None = None, restart: bool = True) -> None:
        """What goes on now. *expected* seconds in all; *restart* starts the clock anew."""
        with self.lock:
            self.text, self.expected = text, expected
            if restart:
                self.since = self.told = time.monotonic()

    def line(self, text: str) -> None:
        """Prints *text* as a line that stays; nothing goes on until the next show."""
        with self.lock:
            self.text = ""
            print(("\r\x1b[K" if self.live else "") + text, end="\n" if text else "", flush=True)

    def elapsed(self) -> float:
        """Seconds since the clock was started."""
        return time.monotonic() - self.since

    def _tick(self) -> None:
        while not self.done.wait(0.5):
            with self.lock:
                if not self.text:
                    continue
                now = f"{self.text}  {clock(self.elapsed())}" + (
                    f" of about {clock(self.expected)}" if self.expected else ""
                )
                if self.live:
                    print(
                        f"\r\x1b[K{now[: shutil.get_terminal_size().columns - 1]}",
                        end="",
                        flush=True,
                    )
                elif time.monotonic() - self.told >= self.every:
                    self.told = time.monotonic()
                    print(f"  ... {now}", flush=True)


def clock(seconds: float) -> str:
    """ "48 s" or "2 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
