"""What a block of code prints, and the memory that it takes."""

import contextlib
import ctypes
import gc
import io
import logging
import os
import sys
import threading
from pathlib import Path

from labkit.errors import plain

TAIL = 100_000  # bytes of a log's end
RUNNING = ".running"  # in the folder of a log: the name of the log that is written just now


class _Log(io.FileIO):
    """A file that takes what a full disk has no room for as written: no step fails for its log."""

    def write(self, data):
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)


@contextlib.contextmanager
def redirect_output(path: Path):
    """Sends what libraries print within the block to *path*: from Python, loggers or C."""
    path.parent.mkdir(parents=True, exist_ok=True)
    running = path.with_name(RUNNING)
    path.unlink(missing_ok=True)  # a link would be written through, and a pipe waited for
    with contextlib.suppress(OSError):
        running.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    known = logging.Logger.manager.loggerDict.values()
    loggers = [logging.getLogger(), *(one for one in known if isinstance(one, logging.Logger))]
    with io.TextIOWrapper(
        io.BufferedWriter(_Log(path, "w")), encoding="utf-8", line_buffering=True
    ) as log:
        with contextlib.suppress(OSError):
            running.write_text(path.name)
        moved = [
            (handler, handler.setStream(log))
            for logger in loggers
            for handler in logger.handlers
            if isinstance(handler, logging.StreamHandler)
            and "stream" in vars(handler)
            and handler.stream in streams
        ]
        saved = os.dup(1), os.dup(2)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
        finally:
            for target, descriptor in zip((1, 2), saved, strict=True):
                os.dup2(descriptor, target)
                os.close(descriptor)
            for handler, stream in moved:
                handler.setStream(stream)
            with contextlib.suppress(OSError):
                running.unlink(missing_ok=True)


def last_lines(path: Path, count: int = 12) -> str:
    """The last *count* lines of a log, without empty ones at its end; "" where there is no log.

    Of its last 100,000 bytes: it is read again and again while it grows. What a terminal would
    obey in them is written out.
    """
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        text = file.read(TAIL).decode(errors="replace")
    return plain("\n".join(text.strip().splitlines()[-count:]))


class PeakMemory:
    """Memory within a block, in MB (10**6 bytes), looked at 20 times a second.

    *mb* is the peak of this process; *added_mb* what that is above what it had before the block;
    *gpu_mb* the peak in use on the first GPU, by whatever process, where *gpu* is set.
    """

    def __init__(self, *, gpu: bool = False):
        self.gpu, self.mb, self.gpu_mb, self.over = gpu, 0.0, 0.0, threading.Event()

    @property
    def added_mb(self) -> float:
        return self.mb - self.before

    def __enter__(self):
        import psutil

        self.process = psutil.Process()
        gc.collect()  # what is kept of earlier cells is not of this block
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)  # else glibc keeps freed memory, and the block would seem to need less
        if self.gpu:
            from torch import cuda

            cuda.empty_cache()
        self.before = self.process.memory_info().rss / 1e6
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self._look()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self._look()

    def _watch(self) -> None:
        while not self.over.wait(0.05):
            self._look()

    def _look(self) -> None:
        self.mb = max(self.mb, self.process.memory_info().rss / 1e6)
        if self.gpu:
            from torch import cuda

            free, total = cuda.mem_get_info()
            self.gpu_mb = max(self.gpu_mb, (total - free) / 1e6)
