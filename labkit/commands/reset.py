"""./lab reset: deletes outputs of the profile in force, or the working copies of the notebooks."""

import argparse
import sys
from pathlib import Path

from labkit import course
from labkit.commands import lab_number
from labkit.errors import LabError
from labkit.files import dir_mb, remove
from labkit.products import Products, folder_lock
from labkit.profiles import ROOT, profile_name, runs_folder
from labkit.working_copies import WorkingCopies


def main(arguments: list[str]) -> int:
    """Deletes the results of some labs, or the whole folder of the profile; asks first on a
    terminal.
    """
    parser = argparse.ArgumentParser(
        prog="./lab reset", description="Deletes outputs of the profile in force."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--from",
        dest="first",
        metavar="NN",
        type=lab_number,
        help="only those of lab NN and the labs after it",
    )
    what.add_argument(
        "--all", action="store_true", help="also what lab 01 saved: profile, model, data, steps"
    )
    what.add_argument(
        "--notebooks",
        action="store_true",
        help="no outputs, but what you saved of the labs' notebooks in JupyterLab",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args(arguments)
    if options.notebooks:
        return _delete_copies(WorkingCopies(ROOT), agreed=options.yes)
    folder = runs_folder() / profile_name()
    first = None if options.all else options.first
    labs = f"labs {first} to {max(course.LABS)}" if first else "all labs"
    if not folder.exists():
        print(f"nothing to delete: {folder} does not exist")
    else:
        with folder_lock(folder):
            before = dir_mb(folder)
            if not (
                options.yes
                or _agreed(f"delete the outputs of {labs} in {folder}, up to {before:,.0f} MB?")
            ):
                print("nothing was deleted")
                return 1
            _delete(folder, first)
            freed = before - dir_mb(folder)
        print(f"outputs of {labs} are deleted from {folder}: {freed:,.1f} MB")
    if options.all:
        (runs_folder() / "choice.json").unlink(missing_ok=True)
    return 0


def _delete_copies(copies: WorkingCopies, *, agreed: bool) -> int:
    names = copies.names()
    if not names:
        print("nothing to delete: no notebook of the labs was saved in JupyterLab")
        return 0
    listed = ", ".join(names)
    if not (agreed or _agreed(f"delete your versions of the notebooks ({listed})?")):
        print("nothing was deleted")
        return 1
    copies.delete()
    print(f"{copies.folder} is deleted. The labs open as they came.")
    return 0


def _agreed(question: str) -> bool:
    """Whether the user says yes; a script is not asked, it says --yes."""
    if not sys.stdin.isatty():
        raise LabError(
            "'./lab reset' asks before it deletes, and nobody can answer here. Add --yes."
        )
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _delete(folder: Path, first: str | None) -> None:
    if first is None:
        for path in folder.iterdir():
            if path.name != ".lock":  # whoever waits for it has it open
                remove(path)
        return
    products = Products(folder)
    names = {stamp["name"] for stamp in products.stamps() if stamp["lab"] >= first}
    for number, lab in course.LABS.items():
        if number >= first:
            names.update(lab.makes, lab.outputs)
            leftovers = [
                *(folder / "notebooks").glob(f"{number}_*"),
                *(folder / "logs").glob(f"{number}-*"),
            ]
            for path in [*leftovers, folder / "records" / f"{number}.json"]:
                remove(path)
    for name in names:
        products.delete(name)
    for name in ("report.html", "summary.json"):
        remove(folder / name)
