"""Files: one way each to write, delete, hash and weigh them."""

import hashlib
import json
import os
import shutil
from pathlib import Path

# what Olive writes beside a model: it holds paths of this machine
OLIVE_NOTES = ("model_config.json", "footprint.json", "output_footprint.json", "run_history.txt")


def write_text(path: Path, text: str) -> None:
    """Puts *text* in the place of the file *path*, whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    """Puts *value* as JSON in the place of the file *path*, as :func:`write_text` does."""
    write_text(path, json.dumps(value, indent=1))


def read_json(path: Path) -> dict:
    """What the JSON file *path* holds; {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def remove(path: Path) -> None:
    """Deletes *path*: a file, a folder with all in it, or a link, but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(path: Path) -> dict[str, int]:
    """File name -> size in bytes, of the file *path* or of everything under the folder *path*."""
    if path.is_file():
        return {path.name: path.stat().st_size}
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    return {str(p.relative_to(path)): p.stat().st_size for p in files}


def dir_mb(path: Path, *, without: str = "") -> float:
    """Size of *path*, a file or all files under a folder but those that match *without*, in MB.

    One MB is 10**6 bytes.
    """
    sizes = listing(Path(path)).items()
    return sum(size for name, size in sizes if not (without and Path(name).match(without))) / 1e6
