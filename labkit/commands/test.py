"""./lab test: the tests, those marked slow only with --all."""

import os
import subprocess
import sys

from labkit.commands import setup
from labkit.errors import LabError
from labkit.extras import extra_packages
from labkit.profiles import ROOT

HELP = """usage: ./lab test [--quick | --all] [pytest's arguments]

  --quick  some two minutes, while you work. It leaves out the notebooks and what takes their
           products, tests/faults, tests/passes, models and architectures, the emulated Azure,
           and the faults of a network
  --all    also the tests marked slow

Installs what the extras need, where it can. Two workers share the tests. With arguments, pytest
runs in one process, and nothing is installed."""


def main(arguments: list[str]) -> int:
    """Exit status of pytest, to which all arguments but --quick and --all are passed on."""
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    rest = [argument for argument in arguments if argument not in ("--quick", "--all")]
    options = [] if "--all" in arguments else ["-m", "not slow"]
    quick = ["--quick"] * ("--quick" in arguments)
    if not rest and not quick:
        _install_extras()
    workers = [] if rest else ["-n", "2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *quick, *workers, *rest], cwd=ROOT, env=env
    ).returncode


def _install_extras() -> None:
    for name in setup.EXTRAS:
        try:
            extra_packages(name)
        except LabError:
            try:
                setup.install_extra(name)
            except LabError as error:
                print(f"not installed, and what needs it is skipped: {name} ({error})")
