"""What a machine must have before the first step, each failing check with what to do."""

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from labkit.errors import LabError
from labkit.profiles import ROOT, Profile, runs_folder
from labkit.workspace import threads

MINIMUM_DRIVER = 525  # NVIDIA's oldest driver for CUDA 12


@dataclass(frozen=True)
class Check:
    """One requirement: what was found, and what to do where it is not enough."""

    name: str
    ok: bool
    found: str
    advice: str


class Checks(list):
    """A list of checks that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{'&#10003;' if c.ok else '&#10007;'}</td><td style='text-align:left'>{c.name}</td>"
            f"<td style='text-align:left'>{c.found}</td><td style='text-align:left'>{'' if c.ok else c.advice}</td></tr>"
            for c in self
        )
        return f"<table><tr><th></th><th>check</th><th>found</th><th>what to do</th></tr>{rows}</table>"

    def __str__(self) -> str:
        return "\n".join(f"{'ok  ' if c.ok else 'FAIL'}  {c.name:<10} {c.found}{'' if c.ok else '  ->  ' + c.advice}" for c in self)

    def require(self) -> None:
        """Raises LabError naming each failing check and its advice."""
        bad = [f"{c.name}: {c.found}. {c.advice}" for c in self if not c.ok]
        if bad:
            raise LabError("this machine is not ready. " + " ".join(bad))


def preflight(profile: Profile) -> Checks:
    """Python, cores, memory, free disk, package versions against the lock, and where the profile needs one GPU and driver."""
    import psutil

    ram, disk = psutil.virtual_memory().total / 1e9, shutil.disk_usage(_existing(runs_folder())).free / 1e9
    python = platform.python_version_tuple()
    checks = [
        Check(
            "Python",
            (3, 11) <= (int(python[0]), int(python[1])) < (3, 14),
            platform.python_version(),
            "Install Python 3.11 and run './lab setup'.",
        ),
        Check("cores", threads() >= 2, f"{threads()}", "Use a machine with at least 2 cores; on one, each lab takes twice as long."),
        Check(
            "memory",
            ram >= profile.ram_gb,
            f"{ram:.1f} GB, {profile.ram_gb:g} GB needed",
            "Close other programs or use a larger machine.",
        ),
        Check(
            "free disk",
            disk >= profile.disk_gb or (runs_folder() / profile.name / "summary.json").exists(),
            f"{disk:.1f} GB, {profile.disk_gb:g} GB needed",
            f"Free some space, or set LAB_RUNS to a folder on a larger disk than {runs_folder()}.",
        ),
        _packages("gpu" if profile.device == "cuda" else "cpu"),
        _gpu(needed=profile.device == "cuda"),
    ]
    return Checks(checks)


def _gpu_and_driver() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else None


def _gpu(*, needed: bool) -> Check:
    name = _gpu_and_driver()
    if not name:
        return Check("GPU", not needed, "none", "Check 'nvidia-smi', or use the cpu profile: LAB_PROFILE=cpu, or PROFILE = 'cpu' here.")
    if not needed:
        return Check("GPU", True, f"{name}: unused. For Phi-3.5-mini on it: './lab setup --gpu', then PROFILE = 'gpu' in lab 01", "")
    driver = int(name.rsplit(",", 1)[1].strip().split(".")[0])
    return Check("GPU", driver >= MINIMUM_DRIVER, name, f"Install an NVIDIA driver of version {MINIMUM_DRIVER} or later (CUDA 12).")


def _packages(lock: str) -> Check:
    wanted = re.findall(r"^([\w.-]+)==([^\s;#]+)", (ROOT / "locks" / f"{lock}.txt").read_text(), re.MULTILINE)
    wrong = [f"{name} {_version(name)} for {pin}" for name, pin in wanted if _version(name) != pin.split("+")[0]]
    found = f"{len(wanted)} as in locks/{lock}.txt" if not wrong else f"{len(wrong)} differ ({', '.join(_first(wrong))})"
    return Check("packages", not wrong, found, "Run './lab setup' and choose its kernel, .venv.")


def _version(name: str) -> str:
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return "missing"


def _first(names: Sequence[str], count: int = 3) -> list[str]:
    return [*names[:count], *(["..."] if len(names) > count else [])]


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
