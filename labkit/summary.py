"""The figures of a run: what each lab recorded, on which products, and all of them in
summary.json.
"""

import resource
import time
from dataclasses import asdict
from pathlib import Path

from labkit.course import LABS
from labkit.figures import Estimate
from labkit.files import read_json, sha256, write_json
from labkit.machine import git_commit, machine, versions
from labkit.products import Products
from labkit.profiles import SEED, Profile


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
        products *of* (name -> id).
        """
        path = self.folder / f"{lab}.json"
        kept = read_json(path)
        for name, figure in figures.items():
            kept.setdefault("figures", {}).setdefault(section, {})[name] = figure.as_dict() | {
                "of": of
            }
        kept["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        write_json(path, kept)

    def pass_checkpoint(self, lab: str, of: dict[str, str], number: str) -> None:
        """Notes that checkpoint *number* was passed."""
        path = self.folder / f"{lab}.json"
        kept = read_json(path)
        kept.setdefault("checkpoints", {})[number] = {
            "at": time.strftime("%Y-%m-%d %H:%M:%S"),
            "of": of,
        }
        write_json(path, kept)

    def checkpoints(self, lab: str) -> set[str]:
        """Numbers of the checkpoints that were passed in *lab*, on products that are still
        current.
        """
        passed = read_json(self.folder / f"{lab}.json").get("checkpoints", {})
        return {number for number, entry in passed.items() if self._counts(entry)}

    def sections(self) -> dict[str, dict[str, Estimate]]:
        """Section -> name -> figure, of all labs, the later lab's where two have one of the same
        name.
        """
        found: dict[str, dict[str, Estimate]] = {}
        for lab in LABS:
            for section, row in read_json(self.folder / f"{lab}.json").get("figures", {}).items():
                for name, entry in row.items():
                    if self._counts(entry):
                        values = {key: value for key, value in entry.items() if key != "of"}
                        found.setdefault(section, {})[name] = Estimate(**values)
        return found

    def peak_mb(self) -> dict[str, float]:
        """Lab -> the most memory in MB that its kernel had used when it last recorded a figure."""
        found = {lab: read_json(self.folder / f"{lab}.json").get("peak_rss_mb") for lab in LABS}
        return {lab: mb for lab, mb in found.items() if mb}

    def _counts(self, entry: dict) -> bool:
        return all(
            self.products.stamp(name).get("id") == made for name, made in entry["of"].items()
        )


def write_summary(products: Products, profile: Profile) -> dict:
    """Merges the figures of all labs, times, memory, versions and machine into summary.json;
    returns them.
    """
    done = [stamp for stamp in products.stamps() if products.is_current(stamp["name"])]
    steps = [stamp for stamp in done if not stamp["name"].startswith("notebooks/")]
    labs = {
        number: round(sum(s["seconds"] for s in steps if s["lab"] == number), 3) for number in LABS
    }
    labs |= {
        stamp["lab"]: stamp["seconds"] for stamp in done if stamp["name"].startswith("notebooks/")
    }
    peaks = {stamp["name"]: stamp["peak_rss_mb"] for stamp in steps if "peak_rss_mb" in stamp}
    records = Records(products)
    by_lab = records.peak_mb()
    summary = {
        "seconds": {"labs": labs, "steps": {stamp["name"]: stamp["seconds"] for stamp in steps}},
        "peak_rss_mb": max([*peaks.values(), *by_lab.values()], default=0.0),
        "peak_rss_mb_by_lab": by_lab,
        "peak_rss_mb_by_step": peaks,
        "peak_gpu_mb_by_step": {
            s["name"]: s["peak_gpu_mb"] for s in steps if s.get("peak_gpu_mb")
        },
        "versions": versions(),
        "machine": machine(),
        "profile": asdict(profile),
        "seed": SEED,
        "data_sha256": sha256(Path(profile.data)),
        "git_commit": git_commit(),
    }
    for section, row in records.sections().items():
        summary[section] = {name: figure.as_dict() for name, figure in row.items()}
    write_json(products.folder / "summary.json", summary)
    return summary
