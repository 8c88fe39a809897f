"""./lab test: the tests, those marked slow only with --all."""

import os
import subprocess
import sys

from labkit.profiles import ROOT

HELP = """usage: ./lab test [--quick | --all] [pytest's arguments]

  --quick  less than 90 s, while you work. It leaves out the notebooks and what takes their
           products, tests/faults, tests/passes, models and architectures, the emulated Azure,
           and the faults of a network
  --all    also the tests marked slow

Two workers share the tests. With arguments, pytest runs in one process."""


def main(arguments: list[str]) -> int:
    """Exit status of pytest, to which all arguments but --quick and --all are passed on."""
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    rest = [argument for argument in arguments if argument not in ("--quick", "--all")]
    options = [] if "--all" in arguments else ["-m", "not slow"]
    quick = ["--quick"] * ("--quick" in arguments)
    workers = [] if rest else ["-n", "2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *quick, *workers, *rest], cwd=ROOT, env=env
    ).returncode
