"""Runs code in a process of its own that has the large libraries from its first line: it is forked
from a server that has imported them, and nothing more.
"""

import multiprocessing
import os
import sys
from pathlib import Path

import pytest

LIBRARIES = ["ipywidgets", "onnx", "onnxruntime", "onnxruntime_genai", "torch", "transformers"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(LIBRARIES)


def run_forked(
    code: str, folder: Path, *arguments: str, env: dict[str, str]
) -> tuple[int, str, str]:
    """(Exit status, what is printed, the error that ended it); a signal's status is negative.

    The *code* runs in *folder* with sys.argv[1:] of *arguments*.
    """
    printed, error = folder / "printed", folder / "error"
    child = CONTEXT.Process(target=_child, args=(code, folder, arguments, env, printed, error))
    child.start()
    child.join(120)
    if child.exitcode is None:
        child.kill()
        pytest.fail(f"it does not end:\n{code}")
    return child.exitcode, *(path.read_text(encoding="utf-8") for path in (printed, error))


def _child(code, folder, arguments, env, printed, failed):
    os.environ.update(env)
    os.chdir(folder)
    sys.argv[1:] = arguments
    for path, number in ((printed, 1), (failed, 2)):
        with open(path, "w") as file:
            os.dup2(file.fileno(), number)
    sys.stdout.reconfigure(encoding="utf-8")
    try:
        exec(code, {"__name__": "__main__"})
    except Exception as error:
        failed.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        sys.exit(1)
