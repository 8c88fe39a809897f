"""Working copies: what is saved in JupyterLab, so that the labs' own notebooks stay as they came.

A copy is made when the notebook of a lab is saved for the first time: runs/working/NN_name.ipynb.
From then on it is opened in the place of the notebook. It is in the clone, and not where LAB_RUNS
says, because it belongs to the notebooks, and because Jupyter serves nothing outside of its root.
"""

import shutil
import time
from pathlib import Path

from labkit.course import EXTRAS, LABS, notebook_path
from labkit.files import sha256, write_json
from labkit.folders import own, remove
from labkit.profiles import ROOT
from labkit.state import read_state


class WorkingCopies:
    """The working copies of the clone *root*: those of *kind* "working", or "presenting"."""

    def __init__(self, root: Path, kind: str = "working"):
        self.folder = root / "runs" / kind
        self.originals = {
            path.name: root / path.relative_to(ROOT)
            for path in map(notebook_path, (*LABS, *EXTRAS))
        }
        # name of the copy -> SHA-256 of the notebook that it was made from
        self._made_from = self.folder / "made_from.json"

    def is_original(self, path: Path) -> bool:
        """Whether *path* is the notebook of a lab, as it came with the clone."""
        return self.originals.get(path.name) == path

    def current(self, path: Path) -> Path:
        """The file to read for *path*: its working copy if there is one, else *path*."""
        copy = self.folder / path.name
        return copy if self.is_original(path) and copy.exists() else path

    def make(self, path: Path) -> None:
        """Makes the working copy of *path*, if that is the notebook of a lab and has none yet."""
        if not self.is_original(path) or self.current(path) != path or not path.exists():
            return
        own(self.folder)
        write_json(self._made_from, self._read() | {path.name: sha256(path)})
        # with its time: JupyterLab would else ask whether to overwrite a file that has changed
        shutil.copy2(path, self.folder / path.name)

    def names(self) -> list[str]:
        """Names of all copies, those that were set aside included."""
        return sorted(path.name for path in self.folder.glob("*.ipynb"))

    def set_aside_outdated(self) -> dict[str, Path]:
        """Renames each copy that was made from another version of its lab; name -> new path."""
        moved, made_from = {}, self._read()
        for name, original in self.originals.items():
            copy = self.folder / name
            if not (copy.exists() and original.exists()):
                continue
            if made_from.get(name) == sha256(original):
                continue
            moved[name] = self.set_aside(name)
        return moved

    def set_aside(self, name: str) -> Path:
        """Renames the copy *name*; its new path."""
        copy = self.folder / name
        aside = copy.with_name(f"{copy.stem}.yours-{time.strftime('%Y-%m-%d')}.ipynb")
        while aside.exists():
            aside = aside.with_name(f"{aside.stem}-again.ipynb")
        return copy.rename(aside)

    def delete(self) -> None:
        """Deletes all copies, and nothing else that lies in their folder."""
        for path in [*self.folder.glob("*.ipynb"), self.folder / ".ipynb_checkpoints"]:
            remove(path, inside=self.folder)
        remove(self._made_from, inside=self.folder)

    def _read(self) -> dict[str, str]:
        return read_state(self._made_from, dict[str, str]) or {}
