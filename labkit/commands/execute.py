"""One notebook, executed in a kernel of its own."""

import asyncio
import atexit
import os
import re
import signal
import time
from pathlib import Path

from labkit.capture import RUNNING, last_lines
from labkit.course import LABS, notebook_path
from labkit.errors import file_problem
from labkit.files import write_text
from labkit.progress import MARK, Progress, clock


def execute(
    folder: Path,
    profile: str,
    number: str,
    out: Path,
    progress: Progress,
    *,
    expected: float | None = None,
) -> str:
    """Runs the notebook of lab *number*, written to *out* with its outputs; "" or what went wrong.

    *expected* is about how long it takes, in seconds. Raises KeyboardInterrupt where it is
    interrupted.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    source = notebook_path(number)
    notebook = nbformat.read(source, as_version=4)
    lab = f"{number} {LABS[number].name}"
    sections = _Sections(lab, progress)
    progress.show(f"{lab}: start the kernel", expected=expected)
    client = NotebookClient(
        notebook,
        timeout=None,
        startup_timeout=180,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
        on_cell_start=sections.enter,
        shutdown_kernel="immediate",
        coalesce_streams=True,  # else the report shows a streamed answer one token a line
        # it warns about its own transport, in the midst of the progress
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    env = os.environ | {
        "LAB_PROFILE": profile,
        "LAB_LOCK_HELD": str(folder),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    problem, started = "", time.time()
    try:
        client.execute(env=env)
        sections.leave()
    except CellExecutionError as error:
        problem = _paragraph(notebook, error.ename) or f"{error.ename}: {error.evalue}"
    except (DeadKernelError, asyncio.CancelledError):
        if sections.interrupted:
            atexit.unregister(client._cleanup_kernel)  # it has been, and would fail at the exit
            raise KeyboardInterrupt from None
        problem = _why_dead(folder / "logs", started)
    try:
        write_text(out, nbformat.writes(notebook))
    except OSError as error:
        problem = problem or file_problem(error) or f"{out} cannot be written: {error}"
    return f"{lab}: FAILED in '{sections.now}'\nerror: {problem}" if problem else ""


class _Sections:
    """Shows the section of the notebook that runs, and where there is no terminal, how long each
    took.
    """

    def __init__(self, lab: str, progress: Progress):
        self.lab, self.progress, self.interrupted = lab, progress, False
        self.now, self.since = "start", time.monotonic()

    def enter(self, cell, cell_index):
        # nbclient's own handler ends the kernel and then itself, with an assertion
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, asyncio.current_task())
        is_text = cell.cell_type == "markdown"
        headings = re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE) if is_text else []
        if headings:
            self.leave()
            self.now, self.since = headings[-1], time.monotonic()
        self.progress.show(
            f"{self.lab}: {self.now}",
            expected=self.progress.expected,
            restart=False,
            detail=lambda: _live(cell),
        )

    def leave(self):
        seconds = time.monotonic() - self.since
        if not self.progress.live and seconds >= 1:
            print(f"  {self.lab}: {self.now}, {clock(seconds)}", flush=True)

    def _stop(self, task):
        if not self.interrupted:  # a second signal would cut the kernel's end short
            self.interrupted = True
            task.cancel()


def _live(cell) -> str:
    """What the output of *cell* that is written over just now shows; "" where there is none."""
    shown = [one for one in cell.get("outputs", ()) if one.get("metadata") == MARK]
    return shown[-1].data["text/plain"] if shown else ""


def _paragraph(notebook, kind: str) -> str:
    """What the failed cell of *notebook* shows, without the *kind* of the error; "" for a
    traceback.
    """
    shown = [
        "\n".join(output.traceback)
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "error"
    ][-1:]
    return shown[0].removeprefix(f"{kind}: ") if shown and shown[0].startswith(f"{kind}: ") else ""


def _why_dead(logs: Path, started: float) -> str:
    """What is said of a kernel that died; with the log of the step that ran in it, if one did.

    *started* is when the kernel was started, in seconds since 1970: an older mark is that of
    another kernel.
    """
    problem = (
        "the kernel died, most often because memory ran out. Close other programs, or see what "
        "'./lab doctor' says of this machine."
    )
    running = logs / RUNNING
    if not running.exists() or running.stat().st_mtime < started:
        return problem
    name = running.read_text(errors="replace") if running.is_file() else ""
    if not name or name != Path(name).name or not (logs / name).is_file():  # a full disk kept none
        return problem
    log = logs / name
    end = f" The end of {log}:\n{last_lines(log)}" if last_lines(log) else ""
    return f"{problem} It was at work on what {log} is of.{end}"
