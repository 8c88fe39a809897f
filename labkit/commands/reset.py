"""./lab reset: deletes outputs of the profile in force, or the working copies of the notebooks."""

import argparse

from labkit import course
from labkit.commands import agreed, lab_number
from labkit.files import dir_mb
from labkit.folders import MARK, remove, require_own
from labkit.products import Products, folder_lock
from labkit.profiles import ROOT, profile_name, runs_folder
from labkit.working_copies import WorkingCopies

# in a run folder, what belongs to no lab alone, and what only a whole reset takes along
OF_ALL = (
    "report.html",
    "summary.json",
    "route.png",
    "bundle.tar",
    ".partial-*",
    "notebooks/.*.partial.ipynb",
)
OF_A_FOLDER = (".stamps", ".*.old", ".*.download", ".download-*", ".olive-cache", ".datasets")
OF_A_FOLDER += (".hub", ".catch-up*", ".writable-*", ".*.new", "workflows/*.json")


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
        return _delete_copies(WorkingCopies(ROOT), yes=options.yes)
    folder = runs_folder() / profile_name()
    first = None if options.all else options.first
    labs = f"labs {first} to {max(course.LABS)}" if first else "all labs"
    if not folder.exists():
        print(f"nothing to delete: {folder} does not exist")
    else:
        require_own(folder)
        with folder_lock(folder):
            before = dir_mb(folder)
            if not (
                options.yes
                or agreed(
                    "reset", f"delete the outputs of {labs} in {folder}, up to {before:,.0f} MB?"
                )
            ):
                print("nothing was deleted")
                return 1
            _delete(Products(folder), first)
            freed = before - dir_mb(folder)
        print(f"outputs of {labs} are deleted from {folder}: {freed:,.1f} MB")
        left = sorted(path.name for path in folder.iterdir() if path.name not in (MARK, ".lock"))
        if left and not first:
            print(f"left there, because no lab has made it: {ascii(', '.join(left))[1:-1]}")
    if options.all:
        (runs_folder() / "choice.json").unlink(missing_ok=True)  # a file that only labkit writes
    return 0


def _delete_copies(copies: WorkingCopies, *, yes: bool) -> int:
    names = copies.names()
    if not names:
        print("nothing to delete: no notebook of the labs was saved in JupyterLab")
        return 0
    listed = ", ".join(names)
    if not (yes or agreed("reset", f"delete your versions of the notebooks ({listed})?")):
        print("nothing was deleted")
        return 1
    copies.delete()
    print(f"{copies.folder} is deleted. The labs open as they came.")
    return 0


def _delete(products: Products, first: str | None) -> None:
    """Deletes what lab *first* and those after it have made, or all that the labs have made."""
    whole = course.LABS | course.EXTRAS
    folder, labs = products.folder, [number for number in whole if number >= (first or "")]
    made = {name for number in labs for name in whole[number].makes}
    for name in made | {stamp.name for stamp in products.stamps() if stamp.lab in labs}:
        products.delete(name)
    found = [folder / name for number in labs for name in whole[number].outputs]
    for number in labs:
        found += [
            *(folder / "notebooks").glob(f"{number}_*"),
            folder / "records" / f"{number}.json",
        ]
        found += (folder / "logs").glob(f"{number}-*")
    for pattern in OF_ALL if first else (*OF_ALL, *OF_A_FOLDER):
        found += folder.glob(pattern)
    for path in found:
        remove(path, inside=folder)
    for name in ("notebooks", "logs", "records", "workflows"):
        path = folder / name
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
