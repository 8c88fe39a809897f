"""A registry in a folder, to rehearse in: what lab 06 does in a workspace, without one."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from labkit.errors import LabError, plain
from labkit.files import dir_mb, listing
from labkit.folders import half_done_is_deleted, own, remove
from labkit.registry.base import Registry, altered, number, taken
from labkit.registry.manifest import check_names, files_to_send

LIMIT = 2**20  # bytes of a model.yml, which has a description and a few dozen figures
SCHEMA = "https://azuremlschemas.azureedge.net/latest/model.schema.json"


@dataclass
class LocalClient:
    """As much of MLClient as a lab's cell calls: client.models.create_or_update(asset)."""

    models: "LocalRegistry"


class LocalRegistry(Registry):
    """FOLDER/NAME/VERSION/: the files in model/, and model.yml for `az ml model create --file`."""

    def __init__(self, folder: Path, logs: Path):
        super().__init__(LocalClient(self), logs, workspace=None)
        self.folder = folder
        self._told: set[str] = set()

    def create_or_update(self, asset) -> None:
        """Copies the folder of *asset*, writes model.yml; LabError for a version that exists."""
        home = self._home(asset.name, asset.version)
        partial = self._home(asset.name) / ".partial"
        if asset.version in self.contents(asset.name):
            raise taken(asset.name, asset.version)
        files_to_send(Path(asset.path))
        own(self.folder)
        remove(partial, inside=self.folder)
        # an interrupted removal left it: a version has a model.yml
        remove(home, inside=self.folder)
        with half_done_is_deleted(partial, inside=self.folder):
            shutil.copytree(asset.path, partial / "model")
            keys = ("name", "version", "type", "description", "tags", "properties")
            fields = {key: getattr(asset, key) for key in keys if getattr(asset, key) is not None}
            fields |= {"$schema": SCHEMA, "path": "model"}
            text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
            (partial / "model.yml").write_text(text)
        partial.rename(home)

    def contents(self, name: str) -> dict[str, str | None]:
        """As the base says; None also where a model.yml is damaged.

        That is printed once, as is what stands in the place of a version and is none.
        """
        home, contents = self._home(name), {}
        places = home.iterdir() if home.exists() else ()
        for version in sorted((place.name for place in places), key=lambda v: (number(v), v)):
            # an interrupted removal has left a folder without it: that is no version
            if version.startswith(".") or not os.path.lexists(home / version / "model.yml"):
                continue
            try:
                self._home(name, version)
                contents[version] = None
                contents[version] = self.vouched(name, version)
            except LabError as error:
                if version not in self._told:
                    print(f"version {plain(version)} of {name} cannot be used: {error}")
                self._told.add(version)
        return contents

    def vouched(self, name: str, version: str) -> str | None:
        return _registered(self._home(name, version) / "model.yml")

    def files(self, name: str, version: str) -> dict[str, int]:
        return listing(self._home(name, version) / "model")

    def costs(self, name: str) -> list[str]:
        sizes_mb = {version: dir_mb(self._home(name, version)) for version in self.contents(name)}
        return [f"version {v} of {name}: {mb:,.1f} MB of this disk" for v, mb in sizes_mb.items()]

    def remove(self, name: str, version: str) -> None:
        self.content(name, version)
        home = self._home(name, version)
        # from here on it is no version, whatever happens
        remove(home / "model.yml", inside=self.folder)
        remove(home, inside=self.folder)

    def stop(self, compute: str) -> None:
        raise LabError(f"this is a rehearsal: there is no compute '{compute}' to stop.")

    def url(self, name: str, version: str) -> str:
        return str(self._home(name, version))

    def fetch(self, name: str, version: str, out: Path) -> None:
        stored = self._home(name, version) / "model"
        try:
            files_to_send(stored)  # no link is followed, and no pipe or device is read
        except LabError as error:
            remove(out.parent, inside=out.parent)
            raise altered(name, version, error) from error
        remove(out, inside=out.parent)
        with half_done_is_deleted(out, inside=out.parent):
            shutil.copytree(stored, out, symlinks=True)

    def _home(self, name: str, *version: str) -> Path:
        """Where the versions of *name* are, or one of them; LabError for what leads elsewhere."""
        check_names(name, *version)
        home = self.folder.joinpath(name, *version)
        names = (self.folder / name, self.folder / name / ".partial", home, home / "model")
        for place in (self.folder, *names):
            if place.is_symlink() and place != self.folder:
                raise LabError(
                    f"{place} is a link, and would lead out of the registry. "
                    "Delete it and run the cell again."
                )
            if os.path.lexists(place) and not place.is_dir():
                raise LabError(
                    f"{place} is no folder, and the registry needs one there. "
                    "Delete it and run the cell again."
                )
        return home


class _NoAliases(yaml.SafeLoader):
    """YAML as it is dumped here: a few lines with aliases can fill any memory."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def _registered(path: Path) -> str | None:
    """The content_sha256 of a model.yml's properties; LabError where it is damaged."""
    try:
        if not path.is_file() or path.is_symlink():
            raise ValueError("no file")
        with open(path, "rb") as file:
            data = file.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise ValueError(f"more than {LIMIT} bytes")
        fields = yaml.load(data.decode(), _NoAliases)
        if (str(fields["name"]), str(fields["version"])) != path.parts[-3:-1]:
            raise ValueError("of another version")
        if fields.get("path") != "model":  # the last line, which one that was cut off lacks
            raise ValueError("without its path")
        content = (fields.get("properties") or {}).get("content_sha256")
        if content is not None and not re.fullmatch("[0-9a-f]{64}", content):
            raise ValueError("no SHA-256")
        return content
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = error
    except (yaml.YAMLError, RecursionError) as error:
        why = error
    raise LabError(
        f"{path} is damaged ({type(why).__name__}: {' '.join(str(why).split())[:100]}). Remove "
        "that version (lab 06, 'Clean up') and register the model again."
    ) from why
