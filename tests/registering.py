"""What the registry's tests do again and again: a model of a package, changed, registered."""

import contextlib
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from azure.ai.ml.entities import Model

import labkit
from labkit.errors import LabError

NAME = "ft-for-travel"
NAMES = ("Phi-3.5_mini.int4", "7", "a..b", "x" * 255)
NO_NAMES = ("../escape", "../../x", "/abs", "a/b", ".", "..", ".hidden", "", "a b", "naïve")
NO_NAMES += ("x" * 256, "1\n", "²", 1, None)


def model(folder: Path, version: str | None = None, name: str = NAME, **fields) -> Model:
    """What lab 06 gives to the registry."""
    return Model(name=name, version=version, type="custom_model", path=folder, **fields)


def register(registry, folder: Path, version=None, calls=None, **fields) -> str:
    """What lab 06's cells do; appends the version of each call of the client to *calls*."""

    def create(asset):
        if calls is not None:
            calls.append(asset.version)
        return registry.client.models.create_or_update(asset)

    return registry.register(model(folder, version, **fields), create)


def change(folder: Path) -> None:
    """Other content, under the same name."""
    (folder / "model.onnx").write_bytes(b"others!" * 1000)
    labkit.write_manifest(folder, NAME)


def odd_file(package: Path, kind: str) -> str:
    """Puts something that is neither file nor folder into *package*; returns its path in there."""
    outside = package.parent / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("of another project")
    at = package / "extra files" / "odd"
    if kind == "fifo":
        os.mkfifo(at)
    elif kind == "socket":
        at = package / "odd"  # a socket's path is short
        with contextlib.chdir(package), socket.socket(socket.AF_UNIX) as server:
            server.bind("odd")
    else:
        targets = {
            "folder": outside,
            "file": outside / "secret.txt",
            "inside": package / "model.onnx",
            "loop": package,
            "self": at,
            "nothing": outside / "gone",
        }
        at.symlink_to(targets[kind], target_is_directory=kind in ("folder", "loop"))
    return at.relative_to(package).as_posix()


def refuses_names(registry, package: Path, out: Path, wrong) -> None:
    """Tries every call that takes a name or a version."""
    versions = registry.contents(NAME)
    asset = SimpleNamespace(name=wrong, version=None, path=package)
    numbered = SimpleNamespace(name=NAME, version=wrong, path=package)
    said = "cannot be the {} of a model.*at most 255 letters"
    for call in (
        lambda: labkit.write_manifest(package, wrong),
        lambda: registry.register(asset, None),
        lambda: registry.contents(wrong),
        lambda: registry.costs(wrong),
        lambda: registry.files(wrong, "1"),
        lambda: registry.download(wrong, "1", out),
        lambda: registry.remove(wrong, "1"),
    ):
        with pytest.raises(LabError, match=said.format("name")):
            call()
    with pytest.raises(LabError, match=said.format("version")):
        registry.files(NAME, wrong)
    if wrong is not None:  # then the next free one is taken
        with pytest.raises(LabError, match=said.format("version")):
            registry.register(numbered, None)
    for call in (
        lambda: registry.download(NAME, wrong, out),
        lambda: registry.remove(NAME, wrong),
    ):
        with pytest.raises(LabError, match="the registry has no version"):
            call()
    assert registry.contents(NAME) == versions
