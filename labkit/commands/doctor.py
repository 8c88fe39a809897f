"""./lab doctor: whether this machine can run the labs."""

import argparse
import importlib.util

from labkit.errors import LabError
from labkit.profiles import resolve_profile


def main(arguments: list[str]) -> int:
    """Prints a table of checks; LabError with what to do about each that fails."""
    argparse.ArgumentParser(
        prog="./lab doctor", description="Checks this machine for the profile in force."
    ).parse_args(arguments)
    if importlib.util.find_spec("psutil") is None:
        raise LabError(
            "the environment is not set up yet. Run './lab setup', then './lab doctor'."
        )
    from labkit.machine import require

    require(resolve_profile())
    return 0
