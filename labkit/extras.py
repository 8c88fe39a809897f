"""Packages that only an extra needs: in a folder of their own, beside those of the labs."""

import hashlib
from pathlib import Path

from labkit.errors import LabError
from labkit.profiles import ROOT

FOLDER = ROOT / ".venv" / "extras"
MARKER = "labkit-lock.txt"


def lock_of(name: str) -> Path:
    """The lock of the extra *name*, which may not exist."""
    return ROOT / "locks" / f"extras-{name}.txt"


def pins(lock: Path) -> dict[str, str]:
    """Package -> version, of a lock file."""
    lines = (line.split("#")[0].strip() for line in lock.read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def digest_of(name: str) -> str:
    """SHA-256 of the lock of the extra *name*."""
    return hashlib.sha256(lock_of(name).read_bytes()).hexdigest()


def extra_packages(name: str) -> Path:
    """Folder of the packages of locks/extras-NAME.txt, for the PYTHONPATH of another process.

    Raises LabError with the command that installs them where they are missing or of another lock.
    """
    marker = FOLDER / name / MARKER
    if not marker.is_file() or marker.read_text() != digest_of(name):
        raise LabError(
            f"the packages of this extra are not installed. Run './lab setup --extra {name}' in a "
            "terminal, then this once more."
        )
    return FOLDER / name
