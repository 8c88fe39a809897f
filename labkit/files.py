"""Files: one way each to write, read, hash and weigh them; folders.py deletes them."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from labkit.errors import LabError

SHARD = "1GB"  # a checkpoint is written in files of this size, which are read side by side
PART = 2**29  # bytes of a file that one core hashes
CHUNK = 2**20  # bytes that are read at once
# what Olive writes beside a model: it holds paths of this machine
OLIVE_NOTES = ("model_config.json", "footprint.json", "output_footprint.json", "run_history.txt")


def write_text(path: Path, text: str) -> None:
    """Puts *text* in the place of the file *path*, whole or not at all; makes its folder.

    It is on the disk when this returns: after a power cut there is the old text or the new one.
    Raises LabError where a folder stands in its place, or a file in that of its folder.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise LabError(
            f"{path} cannot be written: there is a folder of that name, or a file where its "
            "folder should be. Delete that, and run this again."
        ) from None
    finally:
        with contextlib.suppress(NotADirectoryError):
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Puts *value* as JSON in the place of the file *path*, as :func:`write_text` does."""
    write_text(path, json.dumps(value, indent=1))


def read_json(path: Path) -> dict:
    """What the JSON file *path* of the clone holds; {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    A large file is read once by this process, while nobody writes to it.
    """
    return _once(path, "whole", lambda file, _: hashlib.file_digest(file, "sha256").hexdigest())


def mark_of(path: Path) -> str:
    """What tells a file's content from another: its SHA-256.

    Of a file that is larger than PART, it is that of the SHA-256 of its parts, which are read side
    by side: one core alone reads a large model for ten seconds.
    """
    return _once(path, "parts", _in_parts) if path.stat().st_size > PART else sha256(path)


def _in_parts(file: BinaryIO, size: int) -> str:
    def part(start: int) -> bytes:
        digest, end = hashlib.sha256(), min(start + PART, size)
        for at in range(start, end, CHUNK):
            digest.update(os.pread(file.fileno(), min(CHUNK, end - at), at))
        return digest.digest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = b"".join(pool.map(part, range(0, size, PART)))
    return f"parts-{hashlib.sha256(digests).hexdigest()}"


def marks_of(files: dict[str, Path]) -> dict[str, str]:
    """Name -> :func:`mark_of`, of what :func:`files_of` finds; one on each core at once."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(files, pool.map(mark_of, files.values()), strict=True))


def has_mark(path: Path, mark: str) -> bool:
    """Whether the content of *path* is what *mark* tells: of its parts, or as it was made before
    2026-12-01, when that of a large file was the SHA-256 of all of it.
    """
    in_parts = path.stat().st_size > PART
    return mark == (sha256(path) if in_parts and "-" not in mark else mark_of(path))


def differing(files: dict[str, Path], marks: dict[str, str]) -> list[str]:
    """Names of those *files* that have not their mark of *marks*; one on each core at once."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        same = pool.map(has_mark, files.values(), [marks[name] for name in files])
        return [name for name, one in zip(files, same, strict=True) if not one]


def _once(path: Path, kind: str, read: Callable[[BinaryIO, int], str]) -> str:
    """What *read* finds in *path*; of a large file, what it found while the file was the same."""
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        key = kind, *_seen(found)
        if key in _found:
            return _found[key]
        value = read(file, found.st_size)
        # a small file may be written again before the clock of its times ticks
        if found.st_size > 2**24 and _seen(os.fstat(file.fileno())) == key[1:]:
            _found[key] = value
        return value


def _seen(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


_found: dict[tuple, str] = {}  # what the system says of a file -> its hash


def files_of(path: Path) -> dict[str, Path]:
    """Relative name -> path, of the file *path* or of every file under the folder *path*."""
    if path.is_file():
        return {path.name: path}
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    return {str(p.relative_to(path)): p for p in found}


def listing(path: Path) -> dict[str, int]:
    """Relative name -> size in bytes, of the files that :func:`files_of` finds."""
    return {name: file.stat().st_size for name, file in files_of(path).items()}


def dir_mb(path: Path, *, without: str = "") -> float:
    """Size of *path*, a file or all files under a folder but those that match *without*, in MB.

    One MB is 10**6 bytes.
    """
    sizes = listing(Path(path)).items()
    return sum(size for name, size in sizes if not (without and Path(name).match(without))) / 1e6
