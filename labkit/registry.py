"""A model registry in a folder, for the rehearsal of an upload, and the client of an Azure ML workspace."""

import json
import os
import shutil
import time
from pathlib import Path

from labkit.errors import LabError
from labkit.workspace import dir_mb, sha256

NEVER_UPLOADED = {"model_config.json"}  # Olive's own notes: they hold paths of this machine
IGNORE_FILES = {".gitignore", ".amlignore"}  # the SDK obeys them silently, and would leave weights behind
SCHEMA = "https://azuremlschemas.azureedge.net/latest/model.schema.json"
WORKSPACE = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE")


def register(
    folder: Path, name: str, *, registry: Path, version: int | None = None, description: str = "", tags: dict | None = None
) -> Path:
    """Packages *folder* as a version of model *name* in a local *registry*; returns the package's folder.

    registry/NAME/VERSION holds `model/` (the files to upload), `manifest.json` (size in bytes and SHA-256 of each) and
    `model.yml` (what `az ml model create --file` reads, checked against azure-ai-ml's schema). Content that is already
    registered is returned as it is. Raises LabError for a version that exists with other content, an ignore file in
    the folder, or a copy that differs from its source.
    """
    import yaml

    files = {
        p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in NEVER_UPLOADED
    }
    if ignoring := IGNORE_FILES & {Path(f).name for f in files}:
        raise LabError(
            f"{folder} holds {', '.join(ignoring)}: the upload would leave files out silently. Delete it and run the cell again."
        )
    if not files:
        raise LabError(f"{folder} is empty: nothing to register. Run lab 04 first.")
    contents = {path: {"bytes": p.stat().st_size, "sha256": sha256(p)} for path, p in files.items()}
    home = registry / name
    existing = {int(p.name): p for p in home.glob("*") if p.name.isdigit()} if home.is_dir() else {}
    for number, package in sorted(existing.items()):
        if version in (None, number) and _manifest(package) == contents:
            verify(package)
            return package
    if version in existing:
        raise LabError(
            f"version {version} of {name} exists with other content. Leave the version out, and the next free one is taken."
        )
    version = version or max(existing, default=0) + 1
    package, partial = home / str(version), home / f".{version}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for path, source in files.items():
        target = partial / "model" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    manifest = {"name": name, "version": version, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "files": contents}
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
    asset = {"$schema": SCHEMA, "name": name, "version": str(version), "type": "custom_model", "path": "model"}
    asset |= {"description": description, "tags": {key: str(value) for key, value in (tags or {}).items()}}
    (partial / "model.yml").write_text(yaml.safe_dump(asset, sort_keys=False, allow_unicode=True))
    verify(partial)
    partial.rename(package)
    return package


def verify(package: Path) -> float:
    """Size of the package's model in MB, after every file was compared with the manifest and model.yml with the schema.

    Raises LabError naming the first file that is missing, surplus or altered.
    """
    from azure.ai.ml import load_model

    wanted = _manifest(package)
    found = {p.relative_to(package / "model").as_posix(): p for p in (package / "model").rglob("*") if p.is_file()}
    for path in sorted(wanted.keys() | found.keys()):
        if path not in found or path not in wanted or sha256(found[path]) != wanted[path]["sha256"]:
            raise LabError(f"{package}: {path} is missing, surplus or altered. Delete this version's folder and register again.")
    load_model(package / "model.yml")
    return dir_mb(package / "model")


def workspace_client():
    """MLClient of the configured workspace, or None: three environment variables, else a config.json as the SDK finds it.

    Asks nothing interactively, and reports no telemetry. LAB_REHEARSE=1 leaves a workspace that is there alone.
    """
    if os.environ.get("LAB_REHEARSE"):
        return None
    from azure.ai.ml import MLClient
    from azure.core.exceptions import ResourceNotFoundError
    from azure.identity import DefaultAzureCredential

    given = [os.environ.get(name) for name in WORKSPACE]
    if any(given) and not all(given):
        missing = ", ".join(n for n, v in zip(WORKSPACE, given, strict=True) if not v)
        raise LabError(f"the workspace is half configured: {missing} is not set. Set all three variables, or none to rehearse.")
    credential = DefaultAzureCredential(exclude_interactive_browser_credential=True)
    if all(given):
        return MLClient(credential, *given, enable_telemetry=False)
    here = Path.cwd()
    configs = [
        f / sub for f in (here, *here.parents) for sub in ("config.json", ".azureml/config.json", "aml_config/config.json")
    ]
    config = next((c for c in configs if c.is_file() and "workspace_name" in c.read_text(errors="replace")), None)
    if config is None:
        return None
    try:
        return MLClient.from_config(credential, path=str(config), enable_telemetry=False)
    except (ResourceNotFoundError, ValueError, KeyError) as error:
        raise LabError(
            f"{config} names no usable workspace ({error}). Download it again from the studio, or delete it."
        ) from error


def _manifest(package: Path) -> dict:
    return json.loads((package / "manifest.json").read_text())["files"]
