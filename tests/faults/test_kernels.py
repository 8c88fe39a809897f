"""A kernel that is interrupted, ended or killed, and errors that labkit knows: a paragraph, and
no page of traceback.

The kernels are real, and so are the signals.
"""

import os
import signal
import threading
import time
from pathlib import Path

import nbformat
import pytest
from forked import run_forked
from jupyter_client.manager import start_new_kernel
from labs import kernel_env
from tiny_course import only_lab, write_notebook

from labkit.capture import RUNNING
from labkit.commands import main
from labkit.commands.execute import _why_dead
from labkit.course import Entry

IN_A_PROCESS = """
import asyncio, os, time
from pathlib import Path
from labkit.errors import LabError
from labkit.profiles import resolve_profile
from labkit.session import Lab
lab = Lab("01", resolve_profile())
"""
START = (
    IN_A_PROCESS
    + """
from labkit.starting import _show_known_errors_in_short
_show_known_errors_in_short()
_show_known_errors_in_short()  # the first cell may be run again
"""
)
# loaded before: an interrupt in the midst of torch's import leaves it half loaded
MODEL = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=300, num_hidden_layers=4, **sizes))
"""
INTERRUPTED = "the cell was interrupted. What was finished before stays"


class Kernel:
    """A kernel at work in a folder, and what its cells show."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "script.py").write_text(
            "from labkit.errors import LabError\nraise LabError('the paragraph')\n"
        )
        (folder / "sleep.py").write_text("import time\ntime.sleep(60)\n")
        self.manager, self.client = start_new_kernel(
            kernel_name="python3", env=kernel_env({"LAB_RUNS": str(folder)}), cwd=str(folder)
        )
        self.run(START)

    def signal(self, number: int) -> None:
        os.kill(self.manager.provisioner.process.pid, number)

    def run(self, code: str, number: int | None = None) -> tuple[str, str]:
        """(status, what is shown of an error and in red); *number* is a signal to it at work."""
        shown = []

        def show(message):
            content = message["content"]
            if message["msg_type"] == "execute_input" and number:
                threading.Timer(0.3, self.signal, [number]).start()
            elif message["msg_type"] == "error":
                shown.append("\n".join(content["traceback"]))
            elif message["msg_type"] == "stream" and content["name"] == "stderr":
                shown.append(content["text"])

        reply = self.client.execute_interactive(code, output_hook=show, timeout=60)
        return reply["content"]["status"], "\n".join(shown)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    kernel = Kernel(tmp_path_factory.mktemp("kernel"))
    kernel.run(MODEL)
    yield kernel
    kernel.manager.shutdown_kernel(now=True)


# ---- errors that labkit knows

KNOWN = {
    "in a cell": ("raise LabError('the paragraph')", "error", "LabError: the paragraph"),
    "while another is handled": (
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise LabError('the paragraph')",
        "error",
        "LabError: the paragraph",
    ),
    "while a group is handled": (
        "try:\n    raise ExceptionGroup('g', [KeyError(1)])\n"
        "except* KeyError:\n    error = LabError('the paragraph')\n"
        "    raise error",
        "error",
        "the paragraph",
    ),
    "in an async cell": (
        "await asyncio.sleep(0)\nraise LabError('the paragraph')",
        "error",
        "LabError: the paragraph",
    ),
    "in tasks beside one another": (
        "async def fails():\n    raise LabError('the paragraph')\n"
        "async with asyncio.TaskGroup() as group:\n    group.create_task(fails())",
        "error",
        "ExceptionGroup: the paragraph",
    ),
    "in %run, which lets the cell pass": ("%run script.py", "ok", "LabError: the paragraph"),
    "in %%time": ("%%time\nraise LabError('the paragraph')", "error", "LabError: the paragraph"),
    "in what shows an output": (
        "class A:\n    def _repr_html_(self):\n        raise LabError('the paragraph')\nA()",
        "error",
        "LabError: the paragraph",
    ),
    "a full disk": (
        "open('/dev/full', 'w').write('x' * 100_000)",
        "error",
        "OSError: the disk that holds this file is full. Free some space",
    ),
    "a full disk behind another error": (
        "try:\n    open('/dev/full', 'w').write('x' * 100_000)\n"
        "except OSError as error:\n    raise RuntimeError('not written') from error",
        "error",
        "RuntimeError: the disk that holds this file is full. Free some space",
    ),
    "a file that may not be written": (
        "error = PermissionError(13, 'Permission denied', '/srv/runs')\nraise error",
        "error",
        "PermissionError: /srv/runs may not be read or written by you (Permission denied). Set "
        "LAB_RUNS",
    ),
    "a disk that is read-only": (
        "raise OSError(30, 'Read-only file system', '/srv/runs')",
        "error",
        "OSError: the disk that holds /srv/runs is read-only",
    ),
}


@pytest.mark.parametrize("where", KNOWN)
def test_a_known_error_comes_without_traceback(kernel, where):
    code, status, said = KNOWN[where]
    found, shown = kernel.run(code)
    assert found == status and said in shown
    assert "Traceback" not in shown and len(shown.splitlines()) == 1


def test_the_traceback_of_a_known_error_can_be_asked_for(kernel):
    kernel.run("1 / 0")
    kernel.run("def mine():\n    raise PermissionError(13, 'no', '/srv/runs')\nmine()")
    shown = kernel.run("%tb")[1]
    assert "mine" in shown and "PermissionError" in shown and "ZeroDivision" not in shown
    kernel.run("raise LabError('the paragraph')")
    assert kernel.run("%tb")[1] == "LabError: the paragraph"
    assert kernel.run("import sys\nassert isinstance(sys.last_value, LabError)")[0] == "ok"


WITHOUT_TEXT = """
class Mine(Exception):
    def __str__(self):
        raise KeyError("in its text")
raise Mine()"""


@pytest.mark.parametrize(
    "code",
    ["1 / 0", "open('/nowhere/file')", "raise ValueError('x')", WITHOUT_TEXT]
    + ["try:\n    raise LabError('a')\nexcept LabError as error:\n    raise KeyError from error"],
    ids=lambda code: code.strip(),
)
def test_another_error_keeps_its_traceback(kernel, code):
    status, shown = kernel.run(code)
    assert status == "error" and "Traceback" in shown


# ---- interrupts

AT_WORK = {
    "in a plain cell": "time.sleep(60)",
    "deep in a library": (
        "while True:\n"
        "    model.generate(torch.ones(1, 4, dtype=int), min_new_tokens=900, max_new_tokens=1000)"
    ),
    "in an async cell": "await asyncio.sleep(60)",
    "in %%time": "%%time\ntime.sleep(60)",
    "while an error is handled": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    time.sleep(60)",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("where", AT_WORK)
def test_an_interrupt_is_one_line(kernel, where, number):
    started = time.monotonic()
    status, shown = kernel.run(AT_WORK[where], number)
    assert time.monotonic() - started < 30
    assert status == "error" and INTERRUPTED in shown
    assert len(shown.splitlines()) == 1
    assert kernel.run("1 + 1") == ("ok", ""), "the kernel goes on"


def test_an_interrupt_in_run_is_one_line(kernel):
    """IPython lets that cell pass."""
    _, shown = kernel.run("%run sleep.py", signal.SIGINT)
    assert INTERRUPTED in shown and len(shown.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupt_in_a_step_leaves_nothing_half_done(kernel, number):
    name = f"awq-{number}"
    kernel.run("lab.keep('base', lambda recipe, out: out.write_text('whole'))")
    status, shown = kernel.run(
        "def build(recipe, out):\n"
        "    out.mkdir()\n"
        "    (out / 'half').touch()\n"
        "    time.sleep(60)\n"
        f"lab.keep('{name}', build)",
        number,
    )
    assert status == "error"
    assert shown.startswith(f"LabError: {name}: interrupted. Nothing half done")
    assert len(shown.splitlines()) == 1
    folder = kernel.folder / "cpu"
    assert not list(folder.glob(".partial*")) and (folder / "base").read_text() == "whole"
    code = f"lab.keep('{name}', lambda recipe, out: out.write_text('now'))"
    assert kernel.run(code)[0] == "ok" and (folder / name).read_text() == "now"


def test_a_kernel_at_rest_ends_by_sigterm(tmp_path):
    kernel = Kernel(tmp_path)
    kernel.signal(signal.SIGTERM)
    kernel.manager.provisioner.process.wait(timeout=20)


# ---- ./lab run


@pytest.fixture
def one_lab(course):
    """Lab 01 alone: a function (its code, after START) -> what the failed run said."""
    only_lab(Entry("setup"))

    def failed(code: str, capsys) -> str:
        write_notebook("01", START + code)
        assert main(["run"]) == 1
        return capsys.readouterr().out

    return failed


KILLED = "os.kill(os.getpid(), 9)"
STEP = "lab.keep({!r}, lambda recipe, out: (print('at work on', {!r}), {}))\n"
WHOLE = "out.write_text('whole')"
DEATHS = {
    "in a step": (STEP.format("awq", "awq", KILLED), "awq"),
    "in the second step": (
        STEP.format("base", "base", WHOLE) + STEP.format("awq", "awq", KILLED),
        "awq",
    ),
    "in a step that is made anew, after another": (
        STEP.format("awq", "awq", WHOLE)
        + STEP.format("base", "base", WHOLE)
        + f"lab.keep('awq', lambda recipe, out: (print('at work on awq'), {KILLED}), anew=True)",
        "awq",
    ),
    "in a plain cell": (KILLED, ""),
    "in a plain cell, after a step": (STEP.format("base", "base", WHOLE) + KILLED, ""),
    "in a plain cell, after a step that failed": (
        "try:\n    lab.keep('awq', lambda recipe, out: 1 / 0)\nexcept LabError:\n    pass\n"
        + KILLED,
        "",
    ),
    "and its mark holds nothing, as on a full disk": (
        "(lab.folder / 'logs' / '.running').write_text('')\n" + KILLED,
        "",
    ),
    "and its mark leads elsewhere": (
        "(lab.folder / 'logs' / '.running').write_text('../../01-base.log')\n"
        "(lab.folder.parent / '01-base.log').write_text('elsewhere')\n" + KILLED,
        "",
    ),
    "and its mark is no text": (
        "(lab.folder / 'logs' / '.running').write_bytes(bytes([255, 0]))\n" + KILLED,
        "",
    ),
    "by native code": ("import ctypes\nctypes.string_at(0)", ""),
}


@pytest.fixture
def earlier_run(course):
    """The folder of the logs, with one of an earlier run that was killed, too."""
    logs = course / "logs"
    logs.mkdir(parents=True)
    (course / ".labkit").touch()
    (logs / "01-unrelated.log").write_text("an earlier run\n")
    (logs / RUNNING).write_text("01-unrelated.log")
    os.utime(logs / RUNNING, (1, 1))
    return logs


def names_the_log_of(step: str, said: str) -> bool:
    """Whether the log of *step* is named and quoted, and no other."""
    assert "the kernel died" in said and "unrelated" not in said and "01-base.log" not in said
    assert ("01-awq.log" in said) == ("at work on awq" in said)
    return ("01-awq.log" in said) == (step == "awq")


@pytest.mark.parametrize("where", DEATHS)
def test_a_killed_process_names_the_log_of_its_step(earlier_run, tmp_path, where):
    code, step = DEATHS[where]
    started = time.time()
    env = {"LAB_RUNS": os.environ["LAB_RUNS"], "LAB_LOCK_HELD": str(earlier_run.parent)}
    status, *_ = run_forked(IN_A_PROCESS + code, tmp_path, env=env)
    assert status in (-signal.SIGKILL, -signal.SIGSEGV)
    assert names_the_log_of(step, _why_dead(earlier_run, started))


@pytest.mark.parametrize("where", ["in a step", "by native code"])
def test_a_run_whose_kernel_is_killed_says_so(course, earlier_run, one_lab, capsys, where):
    code, step = DEATHS[where]
    out = one_lab(code, capsys)
    assert "error: the kernel died" in out and names_the_log_of(step, out)
    assert (course / "notebooks" / "01_setup.failed.ipynb").exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise LabError('the paragraph')", "error: the paragraph"),
        ("open('/dev/full', 'w').write('x' * 100_000)", "error: the disk that holds this file is"),
        ("import signal\nsignal.raise_signal(2)", f"error: {INTERRUPTED}"),
        ("1 / 0", "error: ZeroDivisionError: division by zero"),
    ],
    ids=["LabError", "full disk", "interrupt", "another"],
)
def test_a_run_says_it_in_a_paragraph_and_so_does_its_notebook(
    course, one_lab, capsys, code, said
):
    out = one_lab(code, capsys)
    assert said in out and "Traceback" not in out
    book = nbformat.read(course / "notebooks" / "01_setup.failed.ipynb", as_version=4)
    shown = [
        "\n".join(output.traceback)
        for cell in book.cells
        for output in cell.get("outputs", ())
        if output.output_type == "error"
    ]
    assert len(shown) == 1
    assert (len(shown[0].splitlines()) == 1) == (code != "1 / 0")
