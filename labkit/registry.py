"""Model registries with one interface: an Azure ML workspace, and a folder in which to rehearse."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from labkit import cloud
from labkit.capture import redirect_output
from labkit.errors import LabError
from labkit.files import OLIVE_NOTES, dir_mb, sha256
from labkit.session import Lab

MANIFEST = "manifest.json"
IGNORE_FILES = (
    ".gitignore",
    ".amlignore",
)  # the SDK obeys them silently, and would leave weights behind
SCHEMA = "https://azuremlschemas.azureedge.net/latest/model.schema.json"
TRIES = 4


def write_manifest(folder: Path, name: str) -> dict:
    """Writes manifest.json into *folder*, the package of model *name*: size in bytes and SHA-256 of every other file.

    "content_sha256" is one over them all and the name. Raises LabError for a name that no registry takes, and for a folder
    that is empty, or that holds a link, an ignore file or Olive's notes.
    """
    _check_names(name)
    paths = _to_upload(folder)
    manifest = {
        "name": name,
        "files": {
            path: {"bytes": p.stat().st_size, "sha256": sha256(p)} for path, p in paths.items()
        },
    }
    manifest["content_sha256"] = hashlib.sha256(
        json.dumps(manifest, sort_keys=True).encode()
    ).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return manifest


def check_manifest(folder: Path) -> dict:
    """The manifest of *folder*; LabError naming the first file that is missing, surplus, altered or must not be there."""
    found = _to_upload(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = {path: entry["sha256"] for path, entry in manifest["files"].items()}
        _ = manifest["name"], manifest["content_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabError(
            f"{folder} has no readable {MANIFEST} ({type(error).__name__}). Package the model again."
        ) from error
    for path in sorted(files.keys() | found.keys()):
        if path not in found or path not in files or sha256(found[path]) != files[path]:
            raise LabError(
                f"{folder}: {path} is missing, surplus or altered. Delete the folder and make it again."
            )
    return manifest


def _check_names(name: str, *versions: str) -> None:
    """LabError where *name* or a version would be refused by Azure ML, or could lead out of a folder of models.

    The rule is the one that azureml-core had for models; the SDK in use leaves it to the service.
    """
    for kind, text in [("name", name), *(("version", version) for version in versions)]:
        if not (isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", text)):
            raise LabError(
                f"{text!r} cannot be the {kind} of a model. Choose a text of at most 255 letters (a to z, A to Z), digits, "
                "dots, dashes and underscores, that begins with a letter or a digit."
            )


def _to_upload(folder: Path) -> dict[str, Path]:
    """Relative path -> path, of all files but the manifest; LabError where one must not be uploaded, or there is none."""
    inside = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*"))}
    # what a link leads to may lie outside, may be a folder without an end, and may change after its SHA-256 was taken
    if odd := [
        path for path, p in inside.items() if p.is_symlink() or not (p.is_file() or p.is_dir())
    ]:
        raise LabError(
            f"{folder}: {odd[0]} is a link, a pipe or a device, and only files and folders are registered. Delete it, or put "
            "what it leads to in its place: 'cp -rL FOLDER COPY' makes a copy without links."
        )
    paths = {path: p for path, p in inside.items() if p.is_file()}
    paths.pop(MANIFEST, None)
    names = {path.name for path in paths.values()}
    if ignoring := names.intersection(IGNORE_FILES):
        raise LabError(
            f"{folder} holds {', '.join(ignoring)}: the upload would leave files out silently. Delete it and run the cell again."
        )
    if notes := names.intersection(OLIVE_NOTES):
        raise LabError(
            f"{folder} holds {', '.join(notes)}: Olive's notes, with paths of this machine. Delete them."
        )
    if not paths:
        raise LabError(f"{folder} is empty: nothing to register. Run lab 04 first.")
    return paths


def _may_be_replaced(out: Path) -> bool:
    """Whether *out* is new, empty, or an earlier download: a folder with no other files than its own manifest lists."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    try:
        listed = {*json.loads((out / MANIFEST).read_text())["files"], MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return listed.issuperset(
        p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_symlink() or not p.is_dir()
    )


def open_registry(lab: Lab) -> "Registry":
    """The registry of the configured workspace, or a local one in the run folder; prints which, and who is signed in.

    A workspace is found as :func:`labkit.cloud.find_workspace` says; LAB_REHEARSE=1 leaves it alone. Raises LabError where
    it is unknown or cannot be reached, or nobody is signed in.
    """
    rehearse = os.environ.get("LAB_REHEARSE", "0") not in ("", "0")
    workspace = None if rehearse else cloud.find_workspace()
    if workspace is None:
        print(f"no workspace is configured: a rehearsal, in {lab.folder / 'registry'}")
        return LocalRegistry(lab.folder / "registry", lab.logs)
    return WorkspaceRegistry(workspace, lab.logs)


class Registry:
    """What both kinds share: register once, verify, get back. Versions are texts; a version's content never changes."""

    workspace = ("SUBSCRIPTION", "RG", "WORKSPACE")

    def __init__(self, client, logs: Path):
        self.client = client  # .models.create_or_update(Model), as MLClient has it
        self.logs = logs

    def register(self, folder: Path, name: str, create, *, version: str | None = None) -> dict:
        """Has *create*(version) register *folder* as a version of model *name*; returns its name, version, id, url and mb.

        Asks first: content that is there already is a success that sends nothing ("new" is False). Without *version* the
        next free one is taken. Retried after a dropped connection; names and sizes of what was stored are compared with
        the manifest afterwards. Raises LabError for a version with other content, a folder that differs from its manifest
        or is of another model, a name or version that no registry takes, or a refusal of the service.
        """
        _check_names(name, *([] if version is None else [version]))
        manifest = check_manifest(folder)
        if manifest["name"] != name:
            raise LabError(
                f"{folder} was packaged as '{manifest['name']}', not as '{name}'. Package it again under this name."
            )
        with self._errors(f"registering {name}"):
            existing = self.contents(name)
            same = [
                number
                for number, content in existing.items()
                if content == manifest["content_sha256"]
            ]
            if version is None and same:
                version = same[-1]
            elif version in existing and version not in same:
                raise _taken(name, version)
            known = version in same
            if not known:
                version = self._send(folder, name, create, version, existing)
            return self._verified(name, version, manifest) | {"new": not known}

    def download(self, name: str, version: str, out: Path) -> Path:
        """Writes a version's files to the folder *out*, each compared with the manifest; LabError where one differs.

        *out* appears when it is whole, in the place of an earlier download. An interrupted call goes on where it was.
        """
        out = Path(out).resolve()  # a link is followed, and ".." gets a name
        if not _may_be_replaced(out):
            raise LabError(
                f"{out} holds other files than a downloaded model. Name an empty folder, or a new one."
            )
        with self._errors(f"downloading {name} {version}"):
            content = self._existing(name, version)
            # of another registry or version nothing must be taken for a part of this one
            key = hashlib.sha256(
                json.dumps([str(self), name, version, content]).encode()
            ).hexdigest()[:12]
            aside = out.with_name(f".{out.name}.{key}.download")
            self._fetch(name, version, aside)
        try:
            check_manifest(aside)
        except LabError as error:
            shutil.rmtree(aside)  # the next call shall not go on from there
            raise LabError(
                f"version {version} of {name} was altered in the registry ({error}). Remove that version (lab 06, 'Clean up') "
                "and register the model again."
            ) from error
        if out.exists():
            shutil.rmtree(out)
        aside.rename(out)
        return out

    def _existing(self, name: str, version: str) -> str | None:
        _check_names(name, version)
        contents = self.contents(name)
        if version not in contents:
            raise LabError(
                f"the registry has no version {version} of {name}; it has: {', '.join(contents) or 'none'}."
            )
        return contents[version]

    def _send(self, folder: Path, name: str, create, version: str | None, existing: dict) -> str:
        from azure.ai.ml.exceptions import AssetPathException
        from azure.core.exceptions import AzureError, ResourceExistsError

        mb, attempt, taken = dir_mb(folder), 1, 0
        until = (
            time.monotonic() + 120 + mb / 0.5
        )  # MB/s: slower than that, another try makes no sense
        while True:
            chosen = version or str(max([taken, *map(_number, existing)]) + 1)
            try:
                with self._progress(mb), redirect_output(self.logs / f"06-upload-{attempt}.log"):
                    create(chosen)
                return chosen
            except AzureError as error:
                if time.monotonic() > until:
                    raise
                if isinstance(error, AssetPathException) or "Asset paths cannot be updated" in str(
                    error
                ):
                    if version:
                        raise
                    taken, existing = (
                        int(chosen),
                        self.contents(name),
                    )  # somebody else was faster and has this number now
                    time.sleep(random.uniform(0.1, 0.5))
                    continue
                # what a killed upload left behind makes the SDK's first try fail with ResourceExistsError
                if attempt == TRIES or not (
                    cloud.cut_off(error) or isinstance(error, ResourceExistsError)
                ):
                    raise
                print(f"try {attempt} of {TRIES} was cut off ({type(error).__name__}): once more")
                attempt += 1

    def _verified(self, name: str, version: str, manifest: dict) -> dict:
        stored, wanted = (
            self.files(name, version),
            {path: entry["bytes"] for path, entry in manifest["files"].items()},
        )
        stored.pop(MANIFEST, None)
        wrong = [
            path
            for path in sorted(wanted.keys() | stored.keys())
            if wanted.get(path) != stored.get(path)
        ]
        if wrong or self.contents(name).get(version) != manifest["content_sha256"]:
            raise LabError(
                f"version {version} of {name} is not what was sent: {', '.join(wrong[:3]) or 'its content'} differs. Remove that "
                "version (lab 06, 'Clean up') and register again."
            )
        return {
            "name": name,
            "version": version,
            "mb": sum(wanted.values()) / 1e6,
        } | self._address(name, version)


class LocalRegistry(Registry):
    """A folder: FOLDER/NAME/VERSION/model.yml, which `az ml model create --file` reads, and the files in model/."""

    def __init__(self, folder: Path, logs: Path):
        super().__init__(SimpleNamespace(models=self), logs)
        self.folder = folder

    def create_or_update(self, asset):
        """Copies what the *asset*'s path names, and writes model.yml; as MLClient.models.create_or_update."""
        import yaml
        from azure.ai.ml import load_model

        package, partial = (
            self._home(asset.name, asset.version),
            self._home(asset.name) / ".partial",
        )
        if asset.version in self.contents(
            asset.name
        ):  # create_or_update may be called without register around it
            raise _taken(asset.name, asset.version)
        _to_upload(Path(asset.path))
        for leftover in (
            partial,
            package,
        ):  # of a call that was interrupted: a version has a model.yml
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.copytree(asset.path, partial / "model")
        fields = {"$schema": SCHEMA} | {
            key: getattr(asset, key) for key in ("name", "version", "type", "description")
        }
        fields |= {"path": "model", "tags": asset.tags, "properties": asset.properties}
        given = {key: value for key, value in fields.items() if value is not None}
        (partial / "model.yml").write_text(
            yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
        )
        made = load_model(partial / "model.yml")
        partial.rename(package)
        return made

    def contents(self, name: str) -> dict[str, str | None]:
        """Version -> content, the oldest first."""
        from azure.ai.ml import load_model

        found = sorted(
            self._home(name).glob("[!.]*/model.yml"), key=lambda p: _number(p.parent.name)
        )
        return {
            p.parent.name: (load_model(p).properties or {}).get("content_sha256") for p in found
        }

    def files(self, name: str, version: str) -> dict[str, int]:
        """Path -> size in bytes, of a version's files."""
        home = self._home(name, version) / "model"
        return {
            p.relative_to(home).as_posix(): p.stat().st_size
            for p in home.rglob("*")
            if p.is_file()
        }

    def costs(self, name: str) -> list[str]:
        """What takes space, one line each."""
        return [
            f"version {v} of {name}: {dir_mb(self._home(name, v)):,.1f} MB of this disk"
            for v in self.contents(name)
        ]

    def remove(self, name: str, version: str) -> None:
        """Deletes a version; LabError where there is none."""
        self._existing(name, version)
        (
            self._home(name, version) / "model.yml"
        ).unlink()  # from here on it is no version, whatever happens
        shutil.rmtree(self._home(name, version))

    def stop(self, compute: str) -> None:
        """Raises LabError: a folder has no compute."""
        raise LabError(f"this is a rehearsal: there is no compute '{compute}' to stop.")

    def __str__(self):
        return str(self.folder)

    def _home(self, name: str, *version: str) -> Path:
        """Where the versions of *name* lie, or one of them; LabError for what is no name and could lead elsewhere."""
        _check_names(name, *version)
        home = self.folder.joinpath(name, *version)
        for place in (self.folder / name, self.folder / name / ".partial", home, home / "model"):
            if place.is_symlink():
                raise LabError(
                    f"{place} is a link, and would lead out of the registry. Delete it and run the cell again."
                )
        return home

    def _errors(self, doing: str):
        return cloud.azure_errors(doing)

    def _progress(self, mb: float):
        return contextlib.nullcontext()

    def _fetch(self, name: str, version: str, out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(
            self._home(name, version) / "model", out, symlinks=True
        )  # a link is refused afterwards

    def _address(self, name: str, version: str) -> dict:
        return {"id": f"{name}:{version}", "url": str(self._home(name, version))}


class WorkspaceRegistry(Registry):
    """The models of an Azure ML workspace."""

    def __init__(self, workspace: tuple[str, str, str], logs: Path):
        signed_in = cloud.credential()
        super().__init__(cloud.client(signed_in, *workspace), logs)
        self.workspace = workspace
        with self._errors(f"opening the workspace {workspace[2]}"):
            who, self.tenant = cloud.identity(signed_in)
            print(f"signed in as {who}")
            place = self.client.workspaces.get(workspace[2]).location
        print(
            f"workspace {workspace[2]} ({place}), resource group {workspace[1]}, subscription {workspace[0]}"
        )

    def contents(self, name: str) -> dict[str, str | None]:
        """Version -> content, the oldest first; None where it is archived, or was registered without a manifest."""
        contents = dict.fromkeys(model.version for model in self._versions(name, archived=True))
        for model in self._versions(name):
            contents[model.version] = (model.properties or {}).get(
                "content_sha256"
            ) or self._stored_content(model)
        return contents

    def files(self, name: str, version: str) -> dict[str, int]:
        """Path -> size in bytes, of a version's files in the storage account."""
        _check_names(name, version)
        return {
            path: blob.size
            for path, blob in cloud.blobs(*cloud.stored(self.client, name, version)).items()
        }

    def costs(self, name: str) -> list[str]:
        """What costs money in this workspace, one line each: compute that runs, endpoints, this model's storage."""
        with self._errors("listing the costs"):
            rows = []
            for compute in self.client.compute.list():
                state = getattr(compute, "state", None)
                state = getattr(state, "value", state) or ""
                if nodes := getattr(compute, "min_instances", None) or 0:
                    rows.append(f"cluster {compute.name}: keeps {nodes} nodes also at rest")
                elif state and state.lower() not in ("stopped", "stopping", "deleting"):
                    rows.append(f"compute {compute.name}: {state}")
            rows += [
                f"endpoint {one.name}: by the hour, while it exists"
                for one in self.client.online_endpoints.list()
            ]
            active = {model.version for model in self._versions(name)}
            for model in self._versions(name, archived=True):
                mb = (
                    sum(self.files(name, model.version).values()) / 1e6
                    if model.tags.get("files") != "deleted"
                    else 0
                )
                if mb:
                    kind = "version" if model.version in active else "archived version"
                    rows.append(f"{kind} {model.version} of {name}: {mb:,.1f} MB of storage")
            return rows

    def remove(self, name: str, version: str) -> None:
        """Archives a version, whose number stays taken, and deletes its files where no other version of the model has the same.

        Other models have other files: the name is part of the content that the storage's path is made from.
        """
        with self._errors(f"removing {name} {version}"):
            self._existing(name, version)
            container, prefix = cloud.stored(self.client, name, version)
            model = self.client.models.get(name, version)
            model.tags["files"] = "deleted"
            self.client.models.create_or_update(model)
            self.client.models.archive(name, version)
            left = [
                m.version
                for m in self._versions(name, archived=True)
                if m.tags.get("files") != "deleted"
            ]
            if prefix not in {cloud.stored(self.client, name, other)[1] for other in left}:
                for path in cloud.blobs(container, prefix):
                    container.delete_blob(prefix + path)

    def stop(self, compute: str) -> None:
        """Stops a compute instance, and waits for that at most ten minutes; LabError where it takes longer."""
        with self._errors(f"stopping {compute}"):
            poller = self.client.compute.begin_stop(compute)
            poller.result(timeout=600)
            if not poller.done():
                raise LabError(
                    f"{compute} has not stopped after ten minutes. Look at it in the studio, 'Compute'."
                )

    def _versions(self, name: str, *, archived: bool = False) -> list:
        """The model's versions as MLClient lists them, the oldest first; with *archived* those as well."""
        _check_names(name)
        from azure.ai.ml.constants import ListViewType
        from azure.core.exceptions import ResourceNotFoundError

        view = ListViewType.ALL if archived else ListViewType.ACTIVE_ONLY
        try:
            return sorted(
                self.client.models.list(name, list_view_type=view),
                key=lambda model: _number(model.version),
            )
        except ResourceNotFoundError:
            return []

    def __str__(self):
        return "/".join(self.workspace)

    def _errors(self, doing: str):
        return cloud.azure_errors(doing, self.workspace)

    def _fetch(self, name: str, version: str, out: Path) -> None:
        cloud.download(*cloud.stored(self.client, name, version), out)

    def _progress(self, mb: float):
        return _Sent(mb)

    def _stored_content(self, model) -> str | None:
        """What the manifest among a version's files says; None where another tool made the version and there is none."""
        from azure.core.exceptions import AzureError

        try:
            container, prefix = cloud.stored(self.client, model.name, model.version)
            return json.loads(container.download_blob(prefix + MANIFEST).readall())[
                "content_sha256"
            ]
        except (AzureError, LabError, ValueError, KeyError, TypeError) as error:
            if cloud.cut_off(error):
                raise
            return None

    def _address(self, name: str, version: str) -> dict:
        subscription, group, workspace = self.workspace
        scope = f"/subscriptions/{subscription}/resourcegroups/{group}/workspaces/{workspace}"
        url = f"https://ml.azure.com/model/{name}:{version}/details?wsid={scope}&tid={self.tenant}"
        return {"id": self.client.models.get(name, version).id, "url": url}


def _taken(name: str, version: str) -> LabError:
    return LabError(
        f"version {version} of {name} exists with other content; nothing was sent. Leave the version out, and the next free one "
        "is taken."
    )


def _number(version: str) -> int:
    return int(version) if version.isascii() and version.isdecimal() else 0


class _Sent:
    """Within the block, prints now and then how much was sent: the SDK counts whole files only, and a model is one file."""

    every = 5.0  # seconds

    def __init__(self, mb: float):
        self.mb, self.out, self.done = mb, sys.stdout, threading.Event()

    def __enter__(self):
        threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.done.set()

    def _tick(self) -> None:
        import psutil

        started, before = time.monotonic(), psutil.net_io_counters().bytes_sent
        while not self.done.wait(self.every):
            mb = (psutil.net_io_counters().bytes_sent - before) / 1e6
            seconds = time.monotonic() - started
            print(
                f"  {self.mb:,.0f} MB to send; this machine has sent {mb:,.0f} MB in {seconds:.0f} s",
                file=self.out,
                flush=True,
            )
