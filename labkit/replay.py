"""On stage, a product that is kept shows how it was made, from a recording, in seconds.

Recorded is what was reported while it was made. It is shown as what it is: nothing is made then,
nothing measured, and no figure comes of it.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError, plain
from labkit.products import Stamp
from labkit.progress import MOST_REPORTS, Progress, Report, clock
from labkit.state import STRICT, read_state, write_state

LONGEST_S = 6.0
WORTH_S = 2.0  # what was made in less is not replayed
LONGEST_NAME, MOST_NAMES, LARGEST = 40, 4, 1e12


@dataclass(frozen=True)
class Recording:
    """What was reported while the product with this *id* was made."""

    __pydantic_config__ = STRICT

    id: str
    reports: tuple[Report, ...]


class _Replay(Progress):
    """A Progress whose clock goes *factor* times as fast."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor, self.every, self.chart_every = factor, 0.4, 0.8

    def now(self) -> float:
        return self.factor * time.monotonic()


def save_recording(folder: Path, stamp: Stamp, reports: list[Report]) -> None:
    """Keeps the *reports* of the product of *stamp* in the run *folder*, if that can be done."""
    if reports:
        with contextlib.suppress(OSError, LabError):  # the product is there all the same
            write_state(_path(folder, stamp), Recording(stamp.id, tuple(reports)))


def replay(folder: Path, stamp: Stamp) -> None:
    """Shows how the product of *stamp* was made, in LONGEST_S seconds at most, and says so."""
    if stamp.seconds < WORTH_S:
        return
    reports = _reports(folder, stamp)
    if not reports:
        print(f"{stamp.name}: prepared. There is no recording of how it was made")
        return
    factor = max(1.0, reports[-1][0] / LONGEST_S)
    with _Replay(factor) as progress:
        started = time.monotonic()
        pace = f", {factor:.0f} times as fast" if factor > 1.5 else ""
        progress.show(f"RECORDED: {stamp.name}, {stamp.made_at}{pace}")
        for at, unit, done, total, values in reports:
            time.sleep(max(0.0, started + at / factor - time.monotonic()))
            progress.advance(unit, done, total, values)
    print(
        plain(
            f"{stamp.name}: that was a recording of {stamp.made_at} on {stamp.machine}, where it "
            f"took {clock(stamp.seconds)}. Nothing was made now"
        )
    )


def _reports(folder: Path, stamp: Stamp) -> tuple[Report, ...]:
    """What was recorded of *stamp*'s product; () where that is another one's, or nonsense."""
    recording = read_state(_path(folder, stamp), Recording)
    if not recording or recording.id != stamp.id:
        return ()
    if fault := _fault(recording.reports):
        print(f"{stamp.name}: its recording is ignored: {fault}")
        return ()
    return recording.reports


def _fault(reports: tuple[Report, ...]) -> str:
    """Why the labs have not recorded these *reports*; "" where they may have."""
    if len(reports) > MOST_REPORTS:
        return f"it has more than {MOST_REPORTS} entries"
    names = {name for _, unit, _, _, values in reports for name in (unit, *values)}
    # a chart takes what stands between two $ for a formula
    if len(names) > MOST_NAMES or any(len(n) > LONGEST_NAME or "$" in n for n in names):
        return "it has too many names, or too long ones, or one with a $"
    times = [at for at, *_ in reports]
    if times != sorted(times) or times[:1] < [0.0]:
        return "its times do not go forward"
    numbers = (n for at, _, *ends, values in reports for n in (at, *ends, *values.values()))
    return "a number in it is too large" if any(abs(n) > LARGEST for n in numbers) else ""


def _path(folder: Path, stamp: Stamp) -> Path:
    return folder / ".stamps" / ".progress" / f"{stamp.name}.json"
