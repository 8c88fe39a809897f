"""./lab doctor: whether this machine can run the labs."""

import argparse
import importlib.util

from labkit.errors import LabError
from labkit.profiles import resolve_profile


def main(arguments: list[str]) -> int:
    """Prints a table of checks; 1 where one fails."""
    argparse.ArgumentParser(
        prog="./lab doctor", description="Checks this machine for the profile in force."
    ).parse_args(arguments)
    if importlib.util.find_spec("psutil") is None:
        raise LabError(
            "the environment is not set up yet. Run './lab setup', then './lab doctor'."
        )
    from labkit.machine import preflight

    checks = preflight(resolve_profile())
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:{width}}  {check.found}")
        if not check.ok:
            print(f"      {'':{width}}  {check.advice}")
    return int(not all(check.ok for check in checks))
