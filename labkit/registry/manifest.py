"""The package of a model: what may be in it, and a manifest that says whether it is unchanged."""

import hashlib
import json
import re
from pathlib import Path

from labkit.errors import LabError
from labkit.files import OLIVE_NOTES, sha256, write_json

MANIFEST = "manifest.json"
# the SDK obeys them silently, and would leave weights behind
IGNORE_FILES = (".gitignore", ".amlignore")
# the rule that azureml-core had for models; the SDK in use leaves it to the service
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"


def write_manifest(folder: Path, name: str) -> dict:
    """Writes manifest.json into *folder*, the package of model *name*, and returns it.

    It has size in bytes and SHA-256 of every other file, and "content_sha256", one over them all
    and the name. Raises LabError as :func:`check_names` and :func:`files_to_send` do.
    """
    check_names(name)
    files = {
        path: {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for path, file in files_to_send(folder).items()
    }
    manifest = {"name": name, "files": files, "content_sha256": _content(name, files)}
    write_json(folder / MANIFEST, manifest)
    return manifest


def check_manifest(folder: Path, content: str | None = None) -> dict:
    """The manifest of *folder*, which must fit every file, and *content* where that is given.

    Raises LabError that names the first file that is missing, surplus, altered or refused.
    """
    found = {path: sha256(file) for path, file in files_to_send(folder).items()}
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        listed = {path: str(file["sha256"]) for path, file in manifest["files"].items()}
        own = _content(manifest["name"], manifest["files"])
        contents = {own, manifest["content_sha256"], content or own}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabError(
            f"{folder} has no readable {MANIFEST} ({type(error).__name__}). "
            "Package the model again."
        ) from error
    wrong = sorted({path for path, _ in listed.items() ^ found.items()})
    if len(contents) > 1:
        wrong.append(MANIFEST)
    if wrong:
        raise LabError(
            f"{folder}: {wrong[0]} is missing, surplus or altered. "
            "Delete the folder and make it again."
        )
    return manifest


def check_names(name: str, *versions: str) -> None:
    """Raises LabError for what Azure ML refuses, or could lead out of a folder of models."""
    for kind, text in [("name", name), *(("version", version) for version in versions)]:
        if not (isinstance(text, str) and re.fullmatch(NAME, text)):
            raise LabError(
                f"{text!r} cannot be the {kind} of a model. Choose a text of at most 255 letters "
                "(a to z), digits, dots, dashes and underscores; the first is a letter or a digit."
            )


def files_to_send(folder: Path) -> dict[str, Path]:
    """Relative path -> path of all files but the manifest; LabError where one must not be sent."""
    files = {}
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder).as_posix()
        # what a link leads to may lie outside, and may change after its SHA-256 was taken
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            raise LabError(
                f"{folder}: {path} is a link, a pipe or a device, and only files and folders can "
                "be registered. Delete it, or register a copy without links, as 'cp -rL FOLDER "
                "COPY' makes it."
            )
        if file.name in IGNORE_FILES:
            raise LabError(
                f"{folder} holds {path}: the upload would leave files out silently. "
                "Delete it and run the cell again."
            )
        if file.name in OLIVE_NOTES:
            raise LabError(
                f"{folder} holds {path}: Olive's notes, with paths of this machine. Delete them."
            )
        if file.is_file() and path != MANIFEST:
            files[path] = file
    if not files:
        raise LabError(f"{folder} is empty: nothing to register. Run lab 04 first.")
    return files


def _content(name: str, files: dict) -> str:
    told = json.dumps({"name": name, "files": files}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
