"""./lab test: the tests, those marked slow only with --all."""

import os
import subprocess
import sys

from labkit.profiles import ROOT

HELP = """usage: ./lab test [--quick | --all] [pytest's arguments]

  --quick  less than 90 s, while you work: no notebook and no real model, no fault that takes a
           process, a kernel, a disk or a browser of its own, no Azure
  --all    also the tests marked slow
  Two tests are run at a time, unless pytest is given arguments."""


def main(arguments: list[str]) -> int:
    """Exit status of pytest, to which all arguments but --quick and --all are passed on."""
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    rest = [argument for argument in arguments if argument not in ("--quick", "--all")]
    options = [] if "--all" in arguments else ["-m", "not slow"]
    if "--quick" in arguments:
        options.append("--quick")
    if not rest:
        options += ["-n", "2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *rest], cwd=ROOT, env=env
    ).returncode
