"""The figures of a run: what each lab recorded, on which products, and all of them in
summary.json.
"""

import resource
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from labkit.course import EXTRAS, LABS, missing
from labkit.errors import LabError
from labkit.figures import Estimate
from labkit.files import sha256, write_json
from labkit.machine import git_commit, machine, machine_name, versions
from labkit.products import Products
from labkit.profiles import SEED, Profile
from labkit.state import STRICT, read_state, write_state

# what summary.json holds beside the sections
OF_A_RUN = ("unfinished", "seconds", "peak_rss_mb", "peak_rss_mb_by_lab", "peak_rss_mb_by_step")
OF_A_RUN += ("peak_gpu_mb_by_step", "versions", "machine", "profile", "seed", "data_sha256")
OF_A_RUN += ("git_commit", "made_on_another_machine")
OF_A_MACHINE = ("tokens/s", "ms")  # units of figures that hold on one machine only


@dataclass(frozen=True)
class Measured:
    """A figure with the products that it was measured *of* (name -> id), and where."""

    figure: Estimate
    of: dict[str, str]
    machine: str


@dataclass(frozen=True)
class Passed:
    """A checkpoint that was passed, with the products that it was passed with."""

    at: str
    of: dict[str, str]


@dataclass
class Record:
    """The file of one lab: section -> name -> figure, number -> checkpoint, memory in MB."""

    __pydantic_config__ = STRICT

    figures: dict[str, dict[str, Measured]] = field(default_factory=dict)
    checkpoints: dict[str, Passed] = field(default_factory=dict)
    peak_rss_mb: float = 0.0


class Records:
    """The figures and checkpoints of one run folder; one file a lab, in the folder records/.

    Each is stored with the products it was measured on. Once one of them is made anew, it counts
    no more.
    """

    def __init__(self, products: Products):
        self.products = products
        self.folder = products.folder / "records"

    def add(
        self, lab: str, of: dict[str, str], section: str, figures: dict[str, Estimate]
    ) -> None:
        """Stores the *figures* of a *section* (name -> Estimate), measured in *lab* on the
        products *of* (name -> id). Raises LabError for others, and a section that is taken.
        """
        if section in OF_A_RUN:
            raise LabError(
                f"'{section}' cannot be the section of a figure: summary.json has something else "
                "of that name. Take another one."
            )
        record = self.of(lab)
        record.figures.setdefault(section, {}).update(
            {name: Measured(figure, of, machine_name()) for name, figure in figures.items()}
        )
        record.peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        self._write(lab, record)

    def pass_checkpoint(self, lab: str, of: dict[str, str], number: str) -> None:
        """Notes that checkpoint *number* was passed."""
        record = self.of(lab)
        record.checkpoints[number] = Passed(time.strftime("%Y-%m-%d %H:%M:%S"), of)
        self._write(lab, record)

    def checkpoints(self, lab: str) -> set[str]:
        """Numbers of the checkpoints that were passed in *lab*, on products that are still
        current.
        """
        passed = self.of(lab).checkpoints
        return {number for number, entry in passed.items() if self._counts(entry.of)}

    def sections(self) -> dict[str, dict[str, Estimate]]:
        """Section -> name -> figure, of all labs, the later lab's where two have one of the same
        name.
        """
        found: dict[str, dict[str, Estimate]] = {}
        for lab in (*LABS, *EXTRAS):
            for section, row in self.of(lab).figures.items():
                for name, one in row.items():
                    here = one.machine == machine_name() or one.figure.unit not in OF_A_MACHINE
                    if here and self._counts(one.of):
                        found.setdefault(section, {})[name] = one.figure
        return found

    def peak_mb(self) -> dict[str, float]:
        """Lab -> the most memory in MB that its kernel had used when it last recorded a figure."""
        found = {lab: self.of(lab).peak_rss_mb for lab in LABS}
        return {lab: mb for lab, mb in found.items() if mb}

    def _counts(self, of: dict[str, str]) -> bool:
        return all(self.products.identity(name) == made for name, made in of.items())

    def of(self, lab: str) -> Record:
        """All that *lab* has recorded, whether it still counts or not."""
        return read_state(self.folder / f"{lab}.json", Record) or Record()

    def _write(self, lab: str, record: Record) -> None:
        write_state(self.folder / f"{lab}.json", record)


def write_summary(products: Products, profile: Profile, *, failed: Iterable[str] = ()) -> dict:
    """Merges the figures of all labs, times, memory, versions and machine into summary.json;
    returns them.

    "unfinished" lists the labs that have *failed*, or whose products are not all there: what they
    would have measured is left out.
    """
    done = [stamp for stamp in products.stamps() if products.is_current(stamp.name)]
    steps = [stamp for stamp in done if not stamp.name.startswith("notebooks/")]
    labs = {
        number: round(sum(stamp.seconds for stamp in steps if stamp.lab == number), 3)
        for number in LABS
        if any(stamp.lab == number for stamp in steps)
    }
    labs |= {stamp.lab: stamp.seconds for stamp in done if stamp.name.startswith("notebooks/")}
    peaks = {stamp.name: stamp.peak_rss_mb for stamp in steps if stamp.peak_rss_mb is not None}
    records = Records(products)
    by_lab = records.peak_mb()
    present = {stamp.name for stamp in done}
    unfinished = {n for n in LABS if missing(n, present, device=profile.device)} | set(failed)
    summary = {
        "unfinished": sorted(unfinished),
        "seconds": {"labs": labs, "steps": {stamp.name: stamp.seconds for stamp in steps}},
        "peak_rss_mb": max([*peaks.values(), *by_lab.values()], default=0.0),
        "peak_rss_mb_by_lab": by_lab,
        "peak_rss_mb_by_step": peaks,
        "peak_gpu_mb_by_step": {
            stamp.name: stamp.peak_gpu_mb for stamp in steps if stamp.peak_gpu_mb
        },
        "versions": versions(),
        "machine": machine(),
        "profile": asdict(profile),
        "seed": SEED,
        "data_sha256": sha256(Path(profile.data)),
        "git_commit": git_commit(),
    }
    for section, row in records.sections().items():
        if section not in OF_A_RUN:  # which only an edited record has
            summary[section] = {name: figure.as_dict() for name, figure in row.items()}
    if elsewhere := sorted(stamp.name for stamp in steps if stamp.machine != machine_name()):
        summary["made_on_another_machine"] = elsewhere  # their seconds are that machine's
    write_json(products.folder / "summary.json", summary)
    return summary
