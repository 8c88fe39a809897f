"""./lab reset: deletes outputs of the profile in force, and nothing else."""

import argparse
import shutil
from pathlib import Path

from labkit import workspace
from labkit.commands import lab_number
from labkit.errors import LabError
from labkit.profiles import resolve_profile, runs_folder


def main(arguments: list[str]) -> int:
    """Deletes the results of some labs, or the whole folder of the profile."""
    parser = argparse.ArgumentParser(
        prog="./lab reset", description="Deletes outputs of the profile in force."
    )
    parser.add_argument(
        "--from",
        dest="first",
        metavar="NN",
        type=lab_number,
        help="only those of lab NN and the labs after it",
    )
    parser.add_argument(
        "--all", action="store_true", help="also what lab 01 saved: profile, model, data, steps"
    )
    options = parser.parse_args(arguments)
    # only the name counts: a saved data file that is gone must not stand in the way
    folder = runs_folder() / resolve_profile(data=__file__, steps=1).name
    if folder.exists():
        with workspace.folder_lock(folder):
            doomed = (
                _results(folder, options.first)
                if options.first and not options.all
                else _all(folder)
            )
            for path in doomed:
                _delete(folder, path)
    if options.all:
        (runs_folder() / "choice.json").unlink(missing_ok=True)
    labs = (
        f"labs {options.first} to {max(workspace.LABS)}"
        if options.first and not options.all
        else "all labs"
    )
    print(f"outputs of {labs} are deleted from {folder}")
    return 0


def _all(folder: Path) -> list[Path]:
    # the lock stays: whoever waits for it has it open
    return [path for path in folder.iterdir() if path.name != ".lock"]


def _results(folder: Path, first: str) -> list[Path]:
    """What lab *first* and the labs after it have made: products, stamps, executed notebooks, logs."""
    names = [stamp["name"] for stamp in workspace.stamps(folder) if stamp["lab"] >= first]
    names += [
        product
        for product, maker in (workspace.MAKER | workspace.NO_STEPS).items()
        if maker >= first
    ]
    paths = [folder / name for name in names] + [
        folder / ".steps" / f"{name}.json" for name in names
    ]
    for number in workspace.LABS:
        if number >= first:
            paths += [
                *(folder / "notebooks").glob(f"{number}_*.ipynb"),
                *(folder / "logs").glob(f"{number}-*"),
            ]
    return [*paths, folder / "report.html", folder / "summary.json"]


def _delete(folder: Path, path: Path) -> None:
    if (
        folder.resolve() not in path.parent.resolve().parents
        and path.parent.resolve() != folder.resolve()
    ):
        raise LabError(
            f"{path} lies outside {folder}, so it is not deleted. Delete the stamps in {folder / '.steps'} by hand."
        )
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
