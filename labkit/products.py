"""What is kept between cells, kernels and days: files in the run folder.

The one place that knows whether a file is current. A product's stamp holds what it was made from:
a recipe of plain values, the products that it needed, and the versions that count. It is current
while its files are as they were left and what it needed is current; it is kept while a new request
is decided by the same. Nothing is read out of source code.
"""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from labkit.errors import LabError
from labkit.files import listing, read_json, remove, write_json
from labkit.machine import versions
from labkit.passes import VERSION
from labkit.profiles import ROOT


class Products:
    """The products of one run *folder*, by name: a file or a folder in there, and its stamp."""

    def __init__(self, folder: Path):
        self.folder = folder

    def stamp(self, name: str) -> dict:
        """The record of a finished product; {} where there is none."""
        return read_json(self._stamp_path(name))

    def stamps(self) -> list[dict]:
        """The records of all finished products, the oldest first."""
        found = [read_json(path) for path in (self.folder / ".stamps").rglob("*.json")]
        return sorted(found, key=lambda stamp: (stamp["finished"], stamp["lab"]))

    def is_current(self, name: str) -> bool:
        """Whether *name* is finished, has the files it was left with, and what it needed was not
        remade.
        """
        stamp = self.stamp(name)
        if not stamp or listing(self.folder / name) != stamp["files"]:
            return False
        needs = stamp["decided_by"]["needs"]
        return all(self.stamp(need).get("id") == made for need, made in needs.items()) and all(
            map(self.is_current, needs)
        )

    def decision(self, recipe: object, needs: Iterable[str] = ()) -> dict:
        """What decides a product, as plain values that are the same for the same run in another
        place.
        """
        decided_by = {
            "recipe": recipe,
            "needs": {need: self.stamp(need).get("id") for need in needs},
            "versions": versions(),
            "labkit": VERSION,
        }
        text = json.dumps(decided_by, sort_keys=True, default=str)
        return json.loads(text.replace(str(self.folder), "RUN").replace(str(ROOT), "ROOT"))

    def change(self, name: str, decision: dict) -> str:
        """Why *name* must be made anew for this *decision*; "" where it can be kept."""
        stamp = self.stamp(name)
        if not stamp:
            return "it is not finished"
        if changed := _first_difference(stamp["decided_by"], decision):
            return changed
        return "" if self.is_current(name) else "its files are not as they were left"

    def put(
        self, name: str, written: Path, decision: dict, *, identity: str = "", **facts
    ) -> dict:
        """Moves *written* into the place of *name* and stamps it, with *facts*; returns the stamp.

        *identity* is what products that need this one compare: a new one, if it is not given.
        """
        target, old = self.folder / name, self.folder / f".{name.replace('/', '-')}.old"
        remove(old)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(old)
        written.rename(target)
        remove(old)
        stamp = facts | {
            "name": name,
            "id": identity or uuid.uuid4().hex,
            "decided_by": decision,
            "files": listing(target),
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        write_json(self._stamp_path(name), stamp)
        return stamp

    def restamp(self, name: str, **facts) -> dict:
        """The stamp of *name* with other *facts*; it stays the same product."""
        stamp = self.stamp(name) | facts
        write_json(self._stamp_path(name), stamp)
        return stamp

    def forget(self, name: str) -> None:
        """Takes the stamp of *name* away: it is not finished any more. Its files stay."""
        self._stamp_path(name).unlink(missing_ok=True)

    def delete(self, name: str) -> bool:
        """Deletes *name* and its stamp; whether there was anything.

        LabError where it lies outside the folder.
        """
        path = self.folder / name
        parent = path.parent.resolve()
        if self.folder.resolve() not in (parent, *parent.parents):
            raise LabError(
                f"{path} lies outside {self.folder}, so it is not deleted. Delete the stamps in "
                f"{self.folder / '.stamps'} by hand."
            )
        there = path.exists() or path.is_symlink() or bool(self.stamp(name))
        self.forget(name)
        remove(path)
        return there

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
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise LabError(
            f"another run is writing to {folder}. Wait until it has ended, or give this one a "
            "folder of its own: LAB_RUNS=/some/folder."
        ) from None


def _first_difference(old: object, new: object, place: str = "") -> str:
    """Where two trees of plain values differ first, in words; "" where they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            here = f"{place}.{key}".lstrip(".")
            if key in old and key in new:
                if found := _first_difference(old[key], new[key], here):
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
