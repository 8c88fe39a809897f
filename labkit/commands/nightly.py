"""./lab nightly: all that a night runs, and one page that says what it found."""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from labkit.commands import setup
from labkit.errors import LabError
from labkit.extras import extra_packages
from labkit.folders import half_done_is_deleted, remove
from labkit.machine import git_commit, machine_name
from labkit.night import causes, nights
from labkit.night.page import decides, verdict, write_page
from labkit.night.parts import Part, parts, run
from labkit.products import folder_lock
from labkit.profiles import PROFILES, resolve_profile, runs_folder
from labkit.state import read_state

RESERVE = ".reserve"  # a file of 1 MB, so that a disk that fills up has room for the page


def main(arguments: list[str]) -> int:
    """Runs the parts, one after the other; 1 where the night has failed."""
    parser = argparse.ArgumentParser(
        prog="./lab nightly", description="Runs everything, and writes night.html and night.md."
    )
    parser.add_argument("--only", metavar="PART", nargs="+", default=[], help="these parts alone")
    parser.add_argument("--out", metavar="DIR", type=Path, help="default: runs/night")
    parser.add_argument(
        "--history", metavar="DIR", type=Path, help="earlier nights; default: OUT/history"
    )
    parser.add_argument(
        "--accept",
        action="store_true",
        help="this night's figures are the new measure: earlier nights are not compared any more",
    )
    options = parser.parse_args(arguments)
    out = (options.out or runs_folder() / "night").resolve()
    history = (options.history or out / "history").resolve()
    known = parts(out)
    if unknown := set(options.only) - known.keys():
        raise LabError(
            f"'{min(unknown)}' is no part of the night. The parts are: {', '.join(known)}."
        )
    with folder_lock(out), half_done_is_deleted(out / RESERVE, inside=out):
        return _night(options, out, history, known)


def _night(options, out: Path, history: Path, known: dict[str, Part]) -> int:
    (out / "logs").mkdir(exist_ok=True)
    reserve = out / RESERVE
    reserve.write_bytes(os.urandom(2**20))
    chosen = {name: part for name, part in known.items() if name in (options.only or known)}
    night = nights.Night(nights.now(), git_commit(), machine_name(), accepted=options.accept)
    earlier = nights.read_nights(history)
    good = sum(one.good for one in earlier)
    for name, part in chosen.items():
        undone = ", ".join(one for one in chosen if one not in night.seconds)
        cut_off = causes.Failure(
            "night", "time", "", f"it was cut off before these ended: {undone}"
        )
        so_far = replace(night, failures=[*night.failures, cut_off])
        with contextlib.suppress(OSError, LabError):  # a full disk has room for the last page only
            rows = nights.compare(night, earlier)
            write_page(out, so_far, rows, known, compared=good)
        print(f"\n=== {name}: {part.what}", flush=True)
        _run_part(name, part, out, night)
        if "labs" in night.seconds:
            summary = read_state(out / "runs" / "cpu" / "summary.json", dict) or {}
            night.figures = nights.figures_of(summary) | _experiments(out, night.seconds)
    rows = nights.compare(night, earlier)
    if not options.accept:
        night.failures += nights.regressions(rows)
    night.good = not any(decides(one.part, known) for one in night.failures)
    print(f"\n{verdict(night, known)}", flush=True)
    for one in night.failures:
        print(f"  {one.cause}: {one.part} {one.where}: {one.what}", file=sys.stderr)
    remove(reserve, inside=out)
    pages = write_page(out, night, rows, known, compared=good)
    print("\n".join(str(page) for page in pages))
    if "labs" in night.seconds and resolve_profile(profile="cpu") == PROFILES["cpu"]:
        nights.keep(night, history)  # not what was measured with another model, data or steps
    return int(not night.good)


def _run_part(name: str, part: Part, out: Path, night: nights.Night) -> None:
    """Runs a part, and adds to *night* how long it took and what failed."""
    run_folder, junit = out / "runs" / "cpu", out / "tests.xml"
    # what an earlier night has left is not taken for this one's
    for left in {"labs": [run_folder / "summary.json"], "tests": [junit]}.get(name, []):
        remove(left, inside=out)
    remove(out / f"{name}.json", inside=out)
    settings = {"LAB_RUNS": str(out / "runs"), "LAB_PROFILE": "cpu"}
    if name == "tests":
        addopts = f"{os.environ.get('PYTEST_ADDOPTS', '')} --junitxml={shlex.quote(str(junit))}"
        settings = {"PYTEST_ADDOPTS": addopts}
        if (run_folder / "summary.json").exists():
            settings["LAB_TRAINED_RUN"] = str(run_folder)
    try:
        if name == "audit":
            _install_audit()
        ran = run(part, out / "logs" / f"{name}.log", **settings)
    except LabError as error:  # of the installation
        cause = causes.cause_of(str(error), otherwise="command")
        night.failures.append(causes.Failure(name, cause, "", causes.short(str(error))))
        night.seconds[name] = 0.0
        return
    night.seconds[name] = ran.seconds
    if ran.status == 0:
        return
    if name == "labs":
        night.failures += causes.of_labs(run_folder, ran)
    elif name == "tests":
        night.failures += causes.of_tests(junit, ran)
    else:
        night.failures.append(causes.of_command(name, ran))


def _install_audit() -> None:
    try:
        extra_packages("audit")
    except LabError:
        setup.install_extra("audit")


def _experiments(out: Path, ran: Container[str]) -> dict[str, nights.Figure]:
    """The losses that the experiments have measured tonight, those of the parts that *ran*."""
    found = {}
    for name, section in (("order", "losses"), ("groups", "figures")):
        stored = name in ran and read_state(out / f"{name}.json", dict) or {}
        for what, one in stored.get(section, {}).items():
            found[f"experiment.{name}.{what}"] = nights.Figure(float(one["mean"]), "nats/token")
    return found
