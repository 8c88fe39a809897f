"""This night's figures beside those of the last good nights, and what is beyond their noise.

Each kind of figure has a floor: what differs by less is no news. Above it, noise is what the
nights themselves show: three times their spread (median absolute deviation, times 1.4826, which
is the standard deviation of normal noise). Times are compared on the same machine only, and
relative to all others of the night: a slow machine slows every step, a regression one.
"""

import re
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from labkit.night.causes import Failure
from labkit.state import STRICT, read_state, write_state

COMPARED, LEAST = 7, 3  # nights; fewer than that say too little of their spread
SHORTEST_S = 2.0  # shorter steps are mostly the machine's
SLOW_NIGHT = 1.5  # all steps together: beyond that it is not the machine's mood


class Kind(NamedTuple):
    """Figures whose name fits *pattern*: which direction is *worse*, and the *floor* of the noise,
    as a share of the median; *timed* ones depend on the machine.
    """

    pattern: str
    worse: int
    floor: float
    timed: bool = False


KINDS = (
    Kind(r"sizes_mb\.", +1, 0.01),
    Kind(r"eval_loss\.|experiment\.", +1, 0.01),
    Kind(r"(answers_style|answers_ended|tone_accuracy)\.with$", -1, 0.05),
    Kind(r"peak_rss_mb", +1, 0.15),
    Kind(r"seconds\.steps\.", +1, 0.15, timed=True),
    Kind(r"tokens_per_s\.", -1, 0.15, timed=True),
)


@dataclass(frozen=True)
class Figure:
    """A number and its unit."""

    __pydantic_config__ = STRICT

    mean: float
    unit: str = ""


@dataclass
class Night:
    """What is kept of a night: a file of the history."""

    __pydantic_config__ = STRICT

    at: str
    commit: str
    machine: str
    good: bool = False
    accepted: bool = False  # its figures are the new measure: earlier nights are not compared
    seconds: dict[str, float] = field(default_factory=dict)  # part -> how long it took
    failures: list[Failure] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)


class Row(NamedTuple):
    """A figure of this night beside the median of *nights* earlier ones; *band* and *change* are
    shares of that median, *verdict* one of "as before", "better", "worse".
    """

    name: str
    now: float
    unit: str
    median: float
    change: float
    band: float
    verdict: str


def figures_of(summary: dict) -> dict[str, Figure]:
    """ "section.name" -> figure, of a summary.json: those that :data:`KINDS` compares."""
    found = {"peak_rss_mb": Figure(float(summary.get("peak_rss_mb", 0)), "MB")}
    for step, seconds in summary.get("seconds", {}).get("steps", {}).items():
        found[f"seconds.steps.{step}"] = Figure(float(seconds), "s")
    for section, row in summary.items():
        if isinstance(row, dict):
            for name, one in row.items():
                if isinstance(one, dict) and {"mean", "unit"} <= one.keys():
                    found[f"{section}.{name}"] = Figure(float(one["mean"]), str(one["unit"]))
    return {name: figure for name, figure in found.items() if kind_of(name) and figure.mean}


def kind_of(name: str) -> Kind | None:
    """The kind of the figure *name*; None where it is not compared."""
    return next((kind for kind in KINDS if re.match(kind.pattern, name)), None)


def read_nights(history: Path) -> list[Night]:
    """The nights in the folder *history*, the oldest first; what is no night's file is left out,
    which is printed.
    """
    paths = sorted(history.glob("night-*.json"))
    return [night for path in paths if (night := read_state(path, Night))]


def keep(night: Night, history: Path) -> Path:
    """Writes *night* into the folder *history*, under its time."""
    history.mkdir(parents=True, exist_ok=True)
    path = history / f"night-{re.sub(r'[^0-9]', '', night.at)}.json"
    write_state(path, night)
    return path


def compare(night: Night, earlier: list[Night]) -> list[Row]:
    """A row for each figure of *night* that enough of the *earlier* good nights have."""
    since = max((i for i, one in enumerate(earlier) if one.accepted), default=None)
    good = [one for one in earlier[since or 0 :] if one.good or one.accepted]
    least = LEAST if since is None else 1
    known = {}
    for name, figure in night.figures.items():
        if not (kind := kind_of(name)):
            continue
        values = [
            one.figures[name].mean
            for one in good
            if name in one.figures
            and one.figures[name].mean  # which nothing is a share of
            and (not kind.timed or one.machine == night.machine)
        ][-COMPARED:]
        short = figure.unit == "s" and values and statistics.median(values) < SHORTEST_S
        if len(values) >= least and not short:
            known[name] = values
    pace = _pace(night, known)
    rows = []
    if pace is not None:
        verdict = "worse" if pace > SLOW_NIGHT else "as before"
        rows.append(
            Row(
                "all steps together", pace, "times as long", 1.0, pace - 1, SLOW_NIGHT - 1, verdict
            )
        )
    return rows + [_row(name, night.figures[name], known[name], pace or 1.0) for name in known]


def regressions(rows: list[Row]) -> list[Failure]:
    """A failure for each of the *rows* that is worse beyond noise."""
    return [
        Failure("figures", "regression", row.name, said(row))
        for row in rows
        if row.verdict == "worse"
    ]


def said(row: Row) -> str:
    """A row in words."""
    return (
        f"{row.now:,.4g} {row.unit}, {row.change:+.0%} beside the last good nights "
        f"({row.median:,.4g}; noise is {row.band:.0%})"
    )


def now() -> str:
    """The time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())


def _pace(night: Night, known: dict[str, list[float]]) -> float | None:
    """How many times as long as before the steps took, in the middle; None of fewer than three."""
    ratios = [
        night.figures[name].mean / statistics.median(values)
        for name, values in known.items()
        if night.figures[name].unit == "s"
    ]
    return statistics.median(ratios) if len(ratios) >= 3 else None


def _row(name: str, figure: Figure, values: list[float], pace: float) -> Row:
    kind, median = kind_of(name), statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - median) for value in values)
    band = max(kind.floor, 3 * spread / abs(median))
    change = figure.mean / median - 1
    beside = change
    if kind.timed and pace > 1:  # a slow machine is forgiven, a fast one forgives nothing
        slower = pace if figure.unit == "s" else 1 / pace
        beside = figure.mean / (median * slower) - 1
    verdict = "as before"
    if kind.worse * beside > band:
        verdict = "worse"
    elif -kind.worse * change > band:
        verdict = "better"
    return Row(name, figure.mean, figure.unit, median, change, band, verdict)
