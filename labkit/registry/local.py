"""A registry in a folder, to rehearse in: what lab 06 does in a workspace, without one."""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from azure.ai.ml import load_model

from labkit.errors import LabError
from labkit.files import dir_mb, listing
from labkit.folders import own, remove
from labkit.registry.base import Registry, number, taken
from labkit.registry.manifest import check_names, files_to_send

SCHEMA = "https://azuremlschemas.azureedge.net/latest/model.schema.json"


@contextlib.contextmanager
def _half_done_is_deleted(path: Path, *, inside: Path):
    """On an error within the block, *path* goes: it would keep a full disk full."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            remove(path, inside=inside)
        raise


@dataclass
class LocalClient:
    """As much of MLClient as a lab's cell calls: client.models.create_or_update(asset)."""

    models: "LocalRegistry"


class LocalRegistry(Registry):
    """FOLDER/NAME/VERSION/: the files in model/, and model.yml for `az ml model create --file`."""

    def __init__(self, folder: Path, logs: Path):
        super().__init__(LocalClient(self), logs, workspace=None)
        self.folder = folder

    def create_or_update(self, asset) -> None:
        """Copies the folder of *asset*, writes model.yml; LabError for a version that exists."""
        home = self._home(asset.name, asset.version)
        partial = self._home(asset.name) / ".partial"
        if asset.version in self.contents(asset.name):
            raise taken(asset.name, asset.version)
        files_to_send(Path(asset.path))
        own(self.folder)
        remove(partial, inside=self.folder)
        remove(
            home, inside=self.folder
        )  # an interrupted removal left it: a version has a model.yml
        with _half_done_is_deleted(partial, inside=self.folder):
            shutil.copytree(asset.path, partial / "model")
            keys = ("name", "version", "type", "description", "tags", "properties")
            fields = {key: getattr(asset, key) for key in keys if getattr(asset, key) is not None}
            fields |= {"$schema": SCHEMA, "path": "model"}
            text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
            (partial / "model.yml").write_text(text)
        partial.rename(home)

    def contents(self, name: str) -> dict[str, str | None]:
        homes = [path.parent for path in self._home(name).glob("[!.]*/model.yml")]
        homes.sort(key=lambda home: number(home.name))
        models = {home.name: load_model(home / "model.yml") for home in homes}
        return {v: (model.properties or {}).get("content_sha256") for v, model in models.items()}

    def files(self, name: str, version: str) -> dict[str, int]:
        return listing(self._home(name, version) / "model")

    def costs(self, name: str) -> list[str]:
        sizes_mb = {version: dir_mb(self._home(name, version)) for version in self.contents(name)}
        return [f"version {v} of {name}: {mb:,.1f} MB of this disk" for v, mb in sizes_mb.items()]

    def remove(self, name: str, version: str) -> None:
        self.content(name, version)
        home = self._home(name, version)
        (home / "model.yml").unlink()  # from here on it is no version, whatever happens
        remove(home, inside=self.folder)

    def stop(self, compute: str) -> None:
        raise LabError(f"this is a rehearsal: there is no compute '{compute}' to stop.")

    def url(self, name: str, version: str) -> str:
        return str(self._home(name, version))

    def fetch(self, name: str, version: str, out: Path) -> None:
        remove(out, inside=out.parent)
        with _half_done_is_deleted(out, inside=out.parent):
            # a link stays one, and is refused afterwards
            shutil.copytree(self._home(name, version) / "model", out, symlinks=True)

    def _home(self, name: str, *version: str) -> Path:
        """Where the versions of *name* are, or one of them; LabError for what leads elsewhere."""
        check_names(name, *version)
        home = self.folder.joinpath(name, *version)
        for place in (self.folder / name, self.folder / name / ".partial", home, home / "model"):
            if place.is_symlink():
                raise LabError(
                    f"{place} is a link, and would lead out of the registry. "
                    "Delete it and run the cell again."
                )
        return home
