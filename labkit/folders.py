"""Folders that labkit makes: each bears a mark, and only in these anything is deleted."""

import contextlib
import os
import re
import shutil
from pathlib import Path

from labkit.errors import LabError

MARK = ".labkit"
TEXT = "labkit made this folder, and deletes files of its own in it.\n"
# what labkit has written into folders before it marked them
SIGNS = (".stamps", "pyvenv.cfg", "made_from.json", "*/*/model.yml")


def own(folder: Path) -> None:
    """Makes *folder*, where there is none, and marks it.

    Raises LabError where it holds files already, and no mark.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_own(folder):
        return
    others = [path.name for path in folder.iterdir() if path.suffix != ".lock"]
    if others and not any(any(folder.glob(sign)) for sign in SIGNS):
        raise LabError(
            f"{folder} holds files that are not of the labs ({min(others)}). Move them to another "
            "place, or give the labs a folder of their own: LAB_RUNS=/some/folder."
        )
    (folder / MARK).write_text(TEXT)


def is_own(folder: Path) -> bool:
    """Whether labkit has made *folder*; a link to one is none."""
    return (folder / MARK).is_file() and not folder.is_symlink()


def require_own(folder: Path) -> None:
    """Raises LabError unless *folder* is one in which files may be deleted."""
    if not is_own(folder):
        what = "is a link" if folder.is_symlink() else "was not made by the labs"
        raise LabError(
            f"{folder} {what}, so that nothing in it is deleted. Delete what you do not need by "
            "hand."
        )


def remove(path: Path, *, inside: Path) -> None:
    """Deletes *path*: a file, a folder with all in it, or a link, but not what it leads to.

    It lies in the folder *inside*, which labkit has made, or is that folder. Raises LabError,
    before anything is deleted, where it lies elsewhere or behind a link, and where something is
    mounted in it.
    """
    if not path.is_relative_to(inside) or ".." in path.relative_to(inside).parts:
        raise LabError(f"{path} does not lie in {inside}, and is not deleted.")
    if not path.exists() and not path.is_symlink():
        return
    require_own(inside)
    for parent in path.parents:
        if parent.is_relative_to(inside) and parent != inside and parent.is_symlink():
            raise LabError(f"{path} lies behind the link {parent}, and is not deleted.")
    if path.is_dir() and not path.is_symlink():
        if mounted := _mounted_in(path.resolve()):
            raise LabError(
                f"{path} is not deleted, because {mounted} is another folder or disk that is "
                "mounted there. Unmount it, and run this again."
            )
        try:
            shutil.rmtree(path)
        except PermissionError:  # of a copy of a folder that is read-only
            for place, _, _ in os.walk(path):
                os.chmod(place, 0o700)
            shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def half_done_is_deleted(path: Path, *, inside: Path):
    """On an error within the block *path* goes: it would keep a full disk full."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            remove(path, inside=inside)
        raise


def _mounted_in(folder: Path) -> str:
    """Where in *folder* something else is mounted; "" where nothing is, or nobody can say."""
    table = Path("/proc/self/mountinfo")  # os.path.ismount does not know a bind mount
    lines = table.read_text(errors="surrogateescape").splitlines() if table.exists() else ()
    for line in lines:
        place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split()[4])
        if Path(place).is_relative_to(folder):
            return place
    return ""
