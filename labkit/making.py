"""How a slow build is run: its output in a log, its progress on one line, its errors explained."""

import contextlib
import copy
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from labkit import pace
from labkit.capture import PeakMemory, last_lines, redirect_output
from labkit.errors import LabError, disk_reason
from labkit.files import OLIVE_NOTES
from labkit.folders import remove
from labkit.profiles import SEED, Profile
from labkit.progress import Progress, Report


def make(
    product: str,
    build: Callable[[object, Path], object],
    recipe: object,
    entry: str | tuple[str, ...],
    partial: Path,
    log: Path,
    profile: Profile,
) -> tuple[Path, dict[str, float], list[Report]]:
    """Runs *build*(copy of *recipe*, *partial*); (what to keep of it, its cost, what it reported).

    The cost is seconds, and memory in MB. Whatever goes wrong is raised: see :class:`Explained`.
    """
    remove(partial, inside=partial.parent)
    set_seed()  # whatever the cells before have drawn
    started = time.perf_counter()
    with Progress() as progress, PeakMemory(gpu=profile.device == "cuda") as peak:
        progress.show(product, expected=pace.seconds(profile, product))
        with redirect_output(log):
            result = build(copy.deepcopy(recipe), partial)
            written = _checked(product, partial, result, entry)
    cost = {
        "seconds": round(time.perf_counter() - started, 3),
        "peak_rss_mb": round(peak.mb, 1),
        "peak_gpu_mb": round(peak.gpu_mb, 1),
    }
    return written, cost, progress.reports


def set_seed() -> None:
    """Seeds Python, numpy and torch; as transformers.set_seed, which takes seconds to import."""
    import random

    import numpy as np
    import torch

    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


def _checked(product: str, partial: Path, result: object, entry: str | tuple[str, ...]) -> Path:
    """What shall be kept of *partial*, which a build has written; without Olive's notes, which
    hold local paths.
    """
    has_model = getattr(result, "has_output_model", None)
    if has_model is not None and not has_model():
        raise LabError("Olive produced no model.")
    if not partial.exists() or (partial.is_dir() and not any(partial.iterdir())):
        raise LabError(f"{product}: the step returned, but wrote nothing to {partial}.")
    for note in OLIVE_NOTES if partial.is_dir() else ():
        remove(partial / note, inside=partial.parent)
    written = partial / entry if isinstance(entry, str) else partial
    if not written.exists():
        raise LabError(f"{product}: the step wrote no {entry}.")
    if isinstance(entry, tuple) and entry:
        for path in partial.iterdir():
            if path.name not in entry:
                remove(path, inside=partial.parent)
    return written


class Explained:
    """Turns whatever goes wrong within the block into one paragraph that ends with the *log*, and
    deletes what is half done.

    *partial* is what the block writes *product* to. Raises LabError.
    """

    def __init__(self, product: str, partial: Path, log: Path):
        self.product, self.partial, self.log, self.folder = product, partial, log, partial.parent

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None or isinstance(error, SystemExit | GeneratorExit):
            return
        end = last_lines(self.log)
        # with no error of a disk in its log, it may be the log that has found no room
        reason = disk_reason(error, log=last_lines(self.log, 1000), folder=self.folder)
        half_done = [self.partial] + [self.folder / ".olive-cache"] * bool(reason)
        for path in half_done:  # else they keep the disk full
            with contextlib.suppress(OSError):
                remove(path, inside=self.folder)
        if isinstance(error, KeyboardInterrupt):
            raise LabError(
                f"{self.product}: interrupted. Nothing half done is kept, and what was finished "
                "before stays. Run the cell again to make it."
            ) from None
        what = f"{self.product} failed with {type(error).__name__}: {error}."
        if reason:
            what = (
                f"{self.product}: the disk that holds {self.folder} {reason}, and run the cell "
                "again."
            )
        elif isinstance(error, LabError):
            what = str(error)
        else:
            with contextlib.suppress(OSError), open(self.log, "a") as log:
                traceback.print_exception(error, file=log)
        raise LabError(what + f" The end of {self.log}:\n{end}" * bool(end)) from error
