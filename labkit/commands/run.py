"""./lab run: all labs in order, what is complete and unchanged skipped, and one report of them
all.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from labkit import course, pace
from labkit.commands import lab_number
from labkit.commands.execute import execute
from labkit.commands.report import write_report
from labkit.errors import LabError
from labkit.files import sha256
from labkit.folders import remove
from labkit.machine import machine_name
from labkit.products import Decision, Products, folder_lock
from labkit.profiles import ROOT, Profile, resolve_profile, runs_folder, saved_choice
from labkit.progress import Progress, clock
from labkit.registry import destination
from labkit.summary import write_summary


def main(arguments: list[str]) -> int:
    """Runs the labs; 1 where one failed."""
    parser = argparse.ArgumentParser(
        prog="./lab run", description="Runs all labs in order and writes a report."
    )
    parser.add_argument("--force", action="store_true", help="keep no earlier result")
    parser.add_argument(
        "--from",
        dest="first",
        metavar="NN",
        type=lab_number,
        help="keep no result of lab NN and those after it",
    )
    parser.add_argument(
        "--only", metavar="NN", type=lab_number, help="run lab NN alone, on what there is"
    )
    options = parser.parse_args(arguments)
    profile = resolve_profile()
    products = Products(runs_folder() / profile.name)
    if options.first:
        print(f"results of lab {options.first} and the labs after it are made anew", flush=True)
    with folder_lock(products.folder):
        first = min(course.LABS) if options.force else options.first
        for stamp in products.stamps() if first else ():
            if stamp.lab >= first:
                products.forget(stamp.name)
        rows = _run_labs(products, profile, only=options.only)
        _print_table(rows)  # before files are written, for which the disk may have no room
        failed = [number for number, (state, _) in rows.items() if state in ("FAILED", "not run")]
        write_summary(products, profile, failed=failed)
        report = write_report(products)
    for what, path in {
        "report": report,
        "figures": products.folder / "summary.json",
        "model": products.folder / "onnx",
    }.items():
        if path and path.exists():
            print(f"{what:8}{path}")
    return int(bool(failed))


def executed(number: str) -> str:
    """The product that the executed notebook of lab *number* is."""
    return f"notebooks/{course.notebook_path(number).name}"


def decision(products: Products, profile: Profile, number: str) -> Decision:
    """What decides the outcome of lab *number*: its cells, the settings, labkit, data, machine,
    and the labs before it.
    """
    cells = json.loads(course.notebook_path(number).read_text(encoding="utf-8"))["cells"]
    files = [
        *(ROOT / "notebooks" / "workflows").glob("*.json"),
        *(ROOT / "labkit").rglob("*.py"),
        *(ROOT / "data").glob("*.json*"),
    ]
    recipe = {
        "cells": ["".join(cell["source"]) for cell in cells],
        "profile": asdict(profile),
        "data": [sha256(Path(path)) for path in (profile.data, profile.tone_data)],
        "machine": machine_name(),
        "registry": destination() if number == max(course.LABS) else None,
        "files": {str(path.relative_to(ROOT)): sha256(path) for path in sorted(files)},
    }
    earlier = [executed(other) for other in course.LABS if other < number]
    return products.decision(recipe, [*course.LABS[number].needs, *earlier[-1:]])


def unchanged(products: Products, profile: Profile, number: str) -> bool:
    """Whether running lab *number* again would bring nothing new."""
    change = products.change(executed(number), decision(products, profile, number))
    return not change and is_made(products, profile, number)


def is_made(products: Products, profile: Profile, number: str) -> bool:
    """Whether all products of lab *number* are there, and current."""
    current = {name for name in course.LABS[number].makes if products.is_current(name)}
    return not course.missing(number, current, device=profile.device)


def _run_labs(
    products: Products, profile: Profile, *, only: str | None = None
) -> dict[str, tuple[str, float | None]]:
    """Lab -> (state, seconds)."""
    rows: dict[str, tuple[str, float | None]] = {}
    with Progress() as progress:
        for number, lab in course.LABS.items():
            if only not in (None, number):
                continue
            if unchanged(products, profile, number):
                progress.line(f"{number} {lab.name}: complete and unchanged")
                rows[number] = ("unchanged", products.stamp(executed(number)).seconds)
                continue
            bad = [
                earlier for earlier, (state, _) in rows.items() if state in ("FAILED", "not run")
            ]
            missing = [
                need
                for need in lab.needs
                if course.maker(need) in bad or not products.is_current(need)
            ]
            if bad and missing:
                progress.line(f"{number} {lab.name}: not run, it needs {', '.join(missing)}")
                rows[number] = ("not run", None)
                continue
            rows[number] = _run_lab(products, profile, number, progress)
            if saved_choice().get("profile", profile.name) != profile.name:
                raise LabError(
                    f"lab 01 sets PROFILE = '{saved_choice()['profile']}', and this run was "
                    f"started for the profile {profile.name}. Run './lab run' again, without "
                    "LAB_PROFILE, or set PROFILE in lab 01 back to None."
                )
    return rows


def _run_lab(
    products: Products, profile: Profile, number: str, progress: Progress
) -> tuple[str, float]:
    started, name = time.monotonic(), course.LABS[number].name
    last = products.stamp(executed(number))
    # from here on its outputs are those of an earlier run, and contradict what the folder holds
    products.delete(executed(number))
    partial = products.folder / "notebooks" / f".{number}.partial.ipynb"
    took = last.seconds if last and last.machine == machine_name() else None
    expected = took or pace.seconds(profile, number)
    problem = execute(products.folder, profile.name, number, partial, progress, expected=expected)
    seconds = time.monotonic() - started
    target = products.folder / executed(number)
    failed = target.with_name(f"{target.stem}.failed.ipynb")
    if problem:
        progress.line(problem)  # first: the disk may have no room for anything else
        remove(failed, inside=products.folder)
        if partial.exists():
            partial.replace(failed)
            progress.line(f"The notebook as far as it ran: {failed}")
        return "FAILED", seconds
    remove(failed, inside=products.folder)
    # after the lab, because it has made the products that the next decision is compared with
    products.put(
        executed(number), partial, decision(products, profile, number), lab=number, seconds=seconds
    )
    progress.line(f"{number} {name}: complete, {clock(seconds)}")
    return "complete", seconds


def _print_table(rows: dict[str, tuple[str, float | None]]) -> None:
    print(f"\n{'lab':14}{'state':12}{'seconds':>8}")
    for number, (state, seconds) in rows.items():
        lab = f"{number} {course.LABS[number].name}"
        print(f"{lab:14}{state:12}{'' if seconds is None else f'{seconds:.1f}':>8}")
    print(flush=True)
