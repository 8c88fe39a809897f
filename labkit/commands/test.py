"""./lab test: the tests, those marked slow only with --all."""

import os
import subprocess
import sys

from labkit.profiles import ROOT


def main(arguments: list[str]) -> int:
    """Exit status of pytest, to which all arguments but --all are passed on."""
    if {"-h", "--help"} & set(arguments):
        print(
            "usage: ./lab test [--all] [pytest's arguments]\n\n  --all  also the tests marked slow"
        )
        return 0
    marks = [] if "--all" in arguments else ["-m", "not slow"]
    rest = [argument for argument in arguments if argument != "--all"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *marks, *rest], cwd=ROOT, env=env
    ).returncode
