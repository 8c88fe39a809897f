"""The package of a model: what may be in it, and a manifest that says whether it is unchanged."""

import hashlib
import json
import re
import unicodedata
from pathlib import Path

from labkit.errors import LabError, plain
from labkit.files import OLIVE_NOTES, sha256, write_json

MANIFEST = "manifest.json"
# the SDK obeys them silently, and would leave weights behind
IGNORE_FILES = (".gitignore", ".amlignore")
# the rule that azureml-core had for models; the SDK in use leaves it to the service
LIMIT = 2**24  # bytes of a manifest: a hundred thousand files
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"


def write_manifest(folder: Path, name: str) -> dict:
    """Writes manifest.json into *folder*, the package of model *name*, and returns it.

    It has size in bytes and SHA-256 of every other file, and "content_sha256", one over them all
    and the name. Raises LabError as :func:`check_names` and :func:`files_to_send` do.
    """
    check_names(name)
    manifest = _manifest(name, _listed(folder))
    write_json(folder / MANIFEST, manifest)
    return manifest


def check_manifest(folder: Path, content: str | None = None, name: str | None = None) -> dict:
    """The manifest of *folder*: as :func:`write_manifest` would write it anew, and nothing else.

    It must be that of *content* and of the model *name* where these are given. Raises LabError
    that names the first file that is missing, surplus, altered or refused.
    """
    found = _listed(folder)
    try:
        with open(folder / MANIFEST, "rb") as file:
            manifest = read_manifest(file.read(LIMIT + 1))
    except (OSError, ValueError) as error:
        raise LabError(
            f"{folder} has no readable {MANIFEST} ({type(error).__name__}). "
            "Package the model again."
        ) from error
    whole, listed = _manifest(name or manifest["name"], found), manifest["files"]
    if manifest == whole and content in (None, whole["content_sha256"]):
        return manifest
    wrong = sorted(path for path in listed | found if listed.get(path) != found.get(path))
    raise LabError(
        f"{folder}: {(wrong or [MANIFEST])[0]} is missing, surplus or altered. "
        "Delete the folder and make it again."
    )


def read_manifest(data: bytes) -> dict:
    """What a manifest of these bytes says: a name, files and a content_sha256.

    Raises ValueError for anything else, such as a key that is there twice.
    """
    if len(data) > LIMIT:
        raise ValueError(f"more than {LIMIT} bytes")
    try:
        manifest = json.loads(data, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("brackets in brackets") from error
    kinds = {"name": str, "files": dict, "content_sha256": str}
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(key), kind) for key, kind in kinds.items()
    ):
        raise ValueError("no manifest")
    return manifest


def _once(pairs: list[tuple[str, object]]) -> dict:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")  # of which readers take the one or the other
    return found


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
    files, elsewhere = {}, {}
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
        if plain(path) != path or set("\\\n\t") & set(path):
            raise LabError(
                f"{folder} holds {path!r}, whose name other systems read as another one. Rename "
                "it: no backslash, and nothing that cannot be printed."
            )
        same = elsewhere.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        if same != path:
            raise LabError(
                f"{folder} holds {path} and {same}, which are one file where capitals or the "
                "spelling of accents do not count. Rename one of them."
            )
        if file.is_file() and path != MANIFEST:
            files[path] = file
    if not files:
        raise LabError(f"{folder} is empty: nothing to register. Run lab 04 first.")
    return files


def _listed(folder: Path) -> dict[str, dict]:
    return {
        path: {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for path, file in files_to_send(folder).items()
    }


def _manifest(name: str, files: dict) -> dict:
    told = {"name": name, "files": files}
    content = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return told | {"content_sha256": content}
