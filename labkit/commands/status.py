"""./lab status: which labs are complete."""

import argparse
from pathlib import Path

from labkit import workspace
from labkit.commands import run
from labkit.profiles import resolve_profile, runs_folder


def main(arguments: list[str]) -> int:
    """Prints a line per lab."""
    argparse.ArgumentParser(
        prog="./lab status", description="Says which labs are complete."
    ).parse_args(arguments)
    folder = runs_folder() / resolve_profile().name
    print(f"outputs in {folder}\n\n{'lab':14}{'state':12}{'seconds':>8}")
    for number, (name, _) in workspace.LABS.items():
        seconds = run.lab_seconds(folder).get(number) or sum(
            s["seconds"] for s in workspace.stamps(folder) if s["lab"] == number
        )
        now = state(folder, number)
        print(
            f"{number + ' ' + name:14}{now:12}{f'{seconds:.1f}' if seconds and now != 'not run' else '':>8}"
        )
    return 0


def state(folder: Path, number: str) -> str:
    """complete; stale: what it was made from has changed since; incomplete: begun, in JupyterLab or by a failed run; not run."""
    if run.complete(folder, number):
        return "complete"
    if run.executed_path(folder, number).exists():
        return "stale"
    failed = list((folder / "notebooks").glob(f"{number}_*.failed.ipynb"))
    return (
        "incomplete"
        if failed or any(stamp["lab"] == number for stamp in workspace.stamps(folder))
        else "not run"
    )
