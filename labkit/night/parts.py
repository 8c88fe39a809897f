"""What a night runs: each part a command of its own, and none of them ends the others."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from labkit.profiles import ROOT

TAIL = 2000  # lines that are kept in memory: a full disk takes no log
PYTHON = sys.executable


class Part(NamedTuple):
    """A part of the night: *what* it is, its *command*, the *minutes* that it may take, and
    whether it *decides*: the night has not failed because of one that does not.
    """

    what: str
    command: tuple[str, ...]
    minutes: float
    decides: bool = True


class Ran(NamedTuple):
    """How a part ended: its exit *status* (negative: by that signal; None: it ran past its time),
    the *seconds* that it took, the *end* of what it printed.
    """

    status: int | None
    seconds: float
    end: str


def parts(night: Path) -> dict[str, Part]:
    """Name -> part, in order; *night* is the folder that all of them write to."""
    run = night / "runs" / "cpu"
    experiment = "tests/benchmarks/{}.py"
    return {
        "labs": Part(
            "The six labs, as attendees get them", (PYTHON, "-m", "labkit", "run", "--force"), 90
        ),
        "tests": Part(
            "All tests: extras, solutions, slow faults",
            (PYTHON, "-m", "labkit", "test", "--all"),
            240,
        ),
        "order": Part(
            "The experiment of lab 03",
            (PYTHON, experiment.format("order"), "--out", str(night / "order.json")),
            60,
        ),
        "groups": Part(
            "The experiment of lab 02",
            (PYTHON, experiment.format("group_sizes"))
            + ("--run", str(run), "--out", str(night / "groups.json")),
            90,
        ),
        "audit": Part(
            "Known weaknesses of the locked packages",
            (PYTHON, "-m", "labkit.night.audit", str(night)),
            15,
        ),
        "canary": Part(
            "Newest packages, and newest GenAI", (PYTHON, "tests/canary.py", str(run)), 90, False
        ),
    }


def run(part: Part, log: Path, **settings: str) -> Ran:
    """Runs *part* with *settings* in its environment, and writes what it prints to *log*, too.

    On KeyboardInterrupt it is ended, with all that it has started.
    """
    lines: deque[str] = deque(maxlen=TAIL)
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | settings
    started = time.monotonic()
    process = subprocess.Popen(
        part.command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that kernels that it has started end with it
    )
    written, late = _Log(log), False

    def read() -> None:
        for line in process.stdout:
            with contextlib.suppress(OSError, ValueError):  # a terminal that is gone, or knows few
                print(line, end="", flush=True)
            lines.append(line)
            written.write(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        process.wait(timeout=part.minutes * 60)
    except subprocess.TimeoutExpired:
        late = True
        _end(process)
    except BaseException:
        _end(process)
        raise
    finally:
        reader.join(timeout=5)  # what outlives the part may hold its output open
        written.close()
    seconds = round(time.monotonic() - started, 1)
    return Ran(None if late else process.returncode, seconds, "".join(list(lines)))


class _Log:
    """Writes lines to a file, until the disk takes no more."""

    def __init__(self, path: Path):
        self.file = None
        with contextlib.suppress(OSError):
            self.file = path.open("w", encoding="utf-8", errors="replace", buffering=1)

    def write(self, line: str) -> None:
        if self.file:
            try:
                self.file.write(line)
            except OSError:
                self.close()  # what is printed stays in memory, and on the terminal

    def close(self) -> None:
        file, self.file = self.file, None
        with contextlib.suppress(OSError):
            if file:
                file.close()


def _end(process: subprocess.Popen) -> None:
    """Ends *process* with all that it has started: kernels have sessions of their own."""
    import psutil

    started = []
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
    try:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)
    finally:  # also on a second Ctrl-C
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for child in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()
