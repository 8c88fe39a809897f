"""Signatures of folders and files, by sigstore's model-signing in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from labkit.errors import LabError
from labkit.extras import extra_packages

# without it model-signing neither signs nor misses a .gitignore, .gitattributes or .git/
ALL_FILES = "--no-ignore-git-paths"

# it would start whatever exporter of telemetry is installed, and Azure's SDK has brought one
NO_TELEMETRY = {
    "OTEL_PYTHON_DISTRO": "none",
    "OTEL_PYTHON_CONFIGURATOR": "none",
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*",
}


def model_signing(*arguments: str | Path) -> tuple[bool, str]:
    """Whether ``python -m model_signing ARGUMENTS`` succeeded, and what it said last.

    Raises LabError where it is not installed.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "model_signing", *map(str, arguments)],
        env=os.environ | NO_TELEMETRY | {"PYTHONPATH": str(extra_packages("sign"))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return done.returncode == 0, lines[-1] if lines else f"exit status {done.returncode}"


def signature_of(path: Path) -> Path:
    """Where the signature of the file *path* lies."""
    return path.with_name(f"{path.name}.sig")


def sign(path: Path, private_key: Path, signature: Path) -> None:
    """Writes the *signature* of the file or folder *path*; LabError where that fails."""
    key = ("--private_key", private_key, "--signature", signature)
    done, said = model_signing("sign", "key", ALL_FILES, *key, path)
    if not done:
        raise LabError(
            f"{path} was not signed ({said}). Name the file of a private key in PEM, of an "
            "elliptic curve, without a password: notebooks/extras/16_sign.ipynb makes one."
        )


def check_signature(path: Path, public_key: Path, signature: Path) -> None:
    """Raises LabError unless *signature* is that of the file or folder *path* as it is now, made
    with the private key of *public_key*.
    """
    key = ("--public_key", public_key, "--signature", signature)
    done, said = model_signing("verify", "key", ALL_FILES, *key, path)
    if not done:
        raise LabError(
            f"{path} is not what the owner of {public_key} has signed ({said}). Do not use it: "
            "get it, its signature and the public key again, each from where its owner put it."
        )
