"""What is kept between cells, kernels and days: files in the run folder.

The one place that knows whether a file is current. A product's stamp holds what it was made from:
a recipe of plain values, the products that it needed, and the versions that count. It is current
while its files are as they were left and what it needed is current; it is kept while a new request
is decided by the same. Nothing is read out of source code.
"""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from labkit.errors import LabError
from labkit.files import differing, files_of, marks_of
from labkit.folders import own, remove
from labkit.machine import machine_name, versions
from labkit.passes import VERSION
from labkit.profiles import ROOT
from labkit.state import STRICT, read_state, write_state

NAME = r"\w[\w .-]*(/\w[\w .-]*)?"
MISSING = "is missing"  # why a product that was deleted cannot be used
LONGEST = 200  # bytes, of the 255 that a name may have where something is put around it
# what else a run folder holds
RESERVED = {"logs", "records", "workflows", "registry", "downloaded", "report.html"}
RESERVED |= {"summary.json", "notebooks", "route.png", "bundle.tar"}


@dataclass(frozen=True)
class FileMark:
    """One file of a product as it was left: its size in bytes, its SHA-256 (of a large file that
    of its parts, see labkit.files.mark_of), and what the system changes when somebody writes to
    it.
    """

    bytes: int
    sha256: str
    seen: tuple[int, int, int]  # inode; times of the last change of content and of inode, in ns


@dataclass(frozen=True)
class Decision:
    """What decides a product; *needs* maps the products it is made from to their ids."""

    recipe: Any
    needs: dict[str, str | None]
    versions: dict[str, str]
    labkit: str


@dataclass(frozen=True)
class Stamp:
    """The record of a finished product; *seconds* and memory (MB) are what making it took."""

    __pydantic_config__ = STRICT

    name: str
    lab: str
    id: str  # what products that need this one compare
    decided_by: Decision
    files: dict[str, FileMark]
    finished: str
    machine: str  # where it was made
    origin: tuple[str, ...] = ()  # model and SHA-256 of the data that it serves
    seconds: float = 0.0
    peak_rss_mb: float | None = None
    peak_gpu_mb: float = 0.0

    @property
    def made_at(self) -> str:
        """Date and time to the second, for people."""
        return self.finished[:19].replace("T", " ")

    @property
    def mb(self) -> float:
        """Size of all files, in MB."""
        return sum(file.bytes for file in self.files.values()) / 1e6


class Products:
    """The products of one run *folder*, by name: a file or a folder in there, and its stamp."""

    def __init__(self, folder: Path):
        self.folder = folder

    def stamp(self, name: str) -> Stamp | None:
        """The record of a finished product; None where there is none, or none that can be read."""
        stamp = read_state(self._stamp_path(name), Stamp)
        return stamp if stamp and stamp.name == name else None

    def stamps(self) -> list[Stamp]:
        """The records of all finished products, the oldest first."""
        folder = self.folder / ".stamps"
        names = [str(path.relative_to(folder))[: -len(".json")] for path in folder.rglob("*.json")]
        found = [self.stamp(name) for name in names if re.fullmatch(NAME, name)]
        return sorted(
            filter(None, found), key=lambda stamp: (stamp.finished, stamp.lab, stamp.name)
        )

    def identity(self, name: str) -> str | None:
        """What products that need *name* compare; None where it is not finished."""
        stamp = self.stamp(name)
        return stamp.id if stamp else None

    def is_current(self, name: str, *, hashed: bool = False) -> bool:
        """Whether :meth:`fault` finds none."""
        return not self.fault(name, hashed=hashed)

    def fault(self, name: str, *, hashed: bool = False) -> str:
        """Why *name* cannot be used: unfinished, altered, or made from what was remade; else "".

        What it was made from may be gone, to save room. A file whose size and times are as they
        were left is taken for unchanged, unless *hashed*: then each byte of *name* counts.
        """
        return self._fault(name, hashed, {})

    def _fault(self, name: str, hashed: bool, known: dict[str, str]) -> str:
        if name not in known:
            known[name] = "needs itself"  # which only a forged stamp says
            known[name] = self._find_fault(name, hashed, known)
        return known[name]

    def _find_fault(self, name: str, hashed: bool, known: dict[str, str]) -> str:
        stamp = self.stamp(name)
        if not stamp:
            there = (self.folder / name).exists()
            return "is not from a finished run" if there else MISSING
        for need, made in stamp.decided_by.needs.items():
            if self.identity(need) != made:
                return f"was made from {need}, which was made anew since"
            if self._fault(need, False, known) not in ("", MISSING):
                return f"was made from {need}, which is no longer current"
        found = files_of(self.folder / name)
        for part in sorted(found.keys() | stamp.files.keys()):
            if part not in found:
                return MISSING if not found else f"has lost its file {part}"
            if part not in stamp.files or found[part].stat().st_size != stamp.files[part].bytes:
                return f"was altered since it was made ({part})"
        if not hashed:
            found = {p: path for p, path in found.items() if _seen(path) != stamp.files[p].seen}
        marks = {part: stamp.files[part].sha256 for part in found}
        for part in differing(found, marks):
            return f"was altered since it was made ({part})"
        return ""

    def decision(self, recipe: object, needs: Iterable[str] = ()) -> Decision:
        """What decides a product, as plain values that are the same for the same run in another
        place.
        """
        plain = json.loads(json.dumps(recipe, sort_keys=True, default=str))
        places = {str(self.folder): "RUN", str(ROOT): "ROOT"}
        made_from = {need: self.identity(need) for need in needs}
        return Decision(_without_places(plain, places), made_from, versions(), VERSION)

    def change(self, name: str, decision: Decision) -> str:
        """Why *name* must be made anew for this *decision*; "" where it can be kept."""
        stamp = self.stamp(name)
        if not stamp:
            return "it is not from a finished run"
        if changed := first_difference(asdict(stamp.decided_by), asdict(decision)):
            return changed
        fault = self.fault(name, hashed=True)
        return fault and f"it {fault}"

    def put(
        self, name: str, written: Path, decision: Decision, *, identity: str = "", **facts
    ) -> Stamp:
        """Moves *written* into the place of *name* and stamps it, with *facts*; returns the stamp.

        *identity* is what products that need this one compare: a new one, if it is not given.
        Raises LabError for a name that leads out of the folder, or is that of no product.
        """
        self._move(name, written)
        stamp = Stamp(
            name=name,
            id=identity or uuid.uuid4().hex,
            decided_by=decision,
            files=self._marks(name),
            finished=datetime.now().isoformat(timespec="microseconds"),
            machine=machine_name(),
            **facts,
        )
        return self._write(stamp)

    def take(self, stamp: Stamp, written: Path) -> Stamp:
        """Moves *written*, which another run has made and stamped, into its place; its stamp, with
        the marks that the files have here.
        """
        self._move(stamp.name, written)
        return self._write(replace(stamp, files=self._marks(stamp.name)))

    def _move(self, name: str, written: Path) -> None:
        check_name(name)
        own(self.folder)
        target, old = self.folder / name, self.folder / f".{name.replace('/', '-')}.old"
        remove(old, inside=self.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() or target.is_symlink():
            target.rename(old)
        try:
            written.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        remove(old, inside=self.folder)

    def _marks(self, name: str) -> dict[str, FileMark]:
        files = files_of(self.folder / name)
        digests = marks_of(files)
        return {
            part: FileMark(path.stat().st_size, digests[part], _seen(path))
            for part, path in files.items()
        }

    def serve(self, name: str, origin: tuple[str, ...]) -> Stamp:
        """The stamp of *name*, which stays the same product and now serves *origin*, too.

        Its files were hashed and found the same: their times are noted as they are now, so that a
        copy is hashed once.
        """
        stamp = self.stamp(name)
        found = files_of(self.folder / name)
        files = {
            part: replace(mark, seen=_seen(found[part])) for part, mark in stamp.files.items()
        }
        stamp = replace(stamp, origin=origin, files=files)
        return self._write(stamp)

    def forget(self, name: str) -> None:
        """Takes the stamp of *name* away: it is not finished any more. Its files stay."""
        remove(self._stamp_path(name), inside=self.folder)

    def delete(self, name: str) -> bool:
        """Deletes *name* and its stamp; whether there was anything.

        LabError where the name would lead out of the folder, or what is there cannot be deleted.
        """
        check_name(name)
        path = self.folder / name
        there = path.exists() or path.is_symlink() or self._stamp_path(name).exists()
        self.forget(name)
        remove(path, inside=self.folder)
        return there

    def _write(self, stamp: Stamp) -> Stamp:
        path = self._stamp_path(stamp.name)
        if path.is_dir():
            self.forget(stamp.name)
        write_state(path, stamp)
        return stamp

    def _stamp_path(self, name: str) -> Path:
        return self.folder / ".stamps" / f"{name}.json"


@contextlib.contextmanager
def folder_lock(folder: Path):
    """Holds *folder* for one run; the kernels of `./lab run` use the hold of their parent.

    Raises LabError where another process holds it.
    """
    if os.environ.get("LAB_LOCK_HELD") == str(folder):
        yield
        return
    own(folder)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise LabError(
            f"another run is writing to {folder}. Wait until it has ended, or give this one a "
            "folder of its own: LAB_RUNS=/some/folder."
        ) from None


def check_name(name: str) -> None:
    """Raises LabError where *name* is none of a product."""
    first = name.split("/")[0].casefold()  # where capitals do not count, Logs are the logs
    taken = name.casefold() in RESERVED or first in RESERVED - {"notebooks"}
    if not re.fullmatch(NAME, name) or taken or len(name.encode()) > LONGEST:
        raise LabError(
            f"{name!r} cannot be the name of a product: take letters, digits, dots, dashes and "
            f"underscores, {LONGEST} at most, the first a letter, and none of "
            f"{', '.join(sorted(RESERVED))}."
        )


def _seen(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _without_places(value: object, names: dict[str, str]) -> object:
    """*value* with the folders in its texts replaced by their *names*."""
    if isinstance(value, dict):
        return {key: _without_places(part, names) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_places(part, names) for part in value]
    for place, name in names.items() if isinstance(value, str) else ():
        value = value.replace(place, name)
    return value


def first_difference(old: object, new: object, place: str = "") -> str:
    """Where two trees of plain values differ first, in words; "" where they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            here = f"{place}.{key}".lstrip(".")
            if key in old and key in new:
                if found := first_difference(old[key], new[key], here):
                    return found
            else:
                return f"{here} is {'new' if key in new else 'gone'}"
        return ""
    if old == new:
        return ""
    if place.startswith("needs."):
        return f"{place.removeprefix('needs.')} was made anew"
    shown = [
        text if len(text := json.dumps(value)) <= 60 else "other text" for value in (old, new)
    ]
    return (
        f"{place} was {shown[0]} and is {shown[1]}"
        if shown[0] != shown[1]
        else f"{place} has changed"
    )
