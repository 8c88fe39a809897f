"""A package, a registry in a folder, and the emulated Azure with a registry in it."""

import contextlib
from types import SimpleNamespace

import pytest
from registering import NAME

import labkit
from labkit.registry.local import LocalRegistry


@pytest.fixture
def package(tmp_path):
    """A folder with a file in a sub-folder, an empty file, and one whose name needs quoting."""
    folder = tmp_path / "package"
    (folder / "extra files").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights" * 1000)
    (folder / "empty.txt").touch()
    (folder / "extra files" / "ümlaut & more.json").write_text("{}")
    labkit.write_manifest(folder, NAME)
    return folder


@pytest.fixture
def local(tmp_path):
    return LocalRegistry(tmp_path / "registry", tmp_path / "logs")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working folder with no workspace configured."""
    monkeypatch.delenv("LAB_REHEARSE")
    home = tmp_path / "clone" / "notebooks"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def azure(rig, monkeypatch, elsewhere):
    """The rig, with this process as its client."""
    rig.apply(monkeypatch)
    return rig


@pytest.fixture
def lab(tmp_path):
    """As much of a lab as a registry needs."""
    return SimpleNamespace(folder=tmp_path / "run", logs=tmp_path / "run" / "logs")


@pytest.fixture
def registry(azure, lab):
    return labkit.open_registry(lab)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """What a job is sent is two folders of one file."""
    from labkit.cluster import jobs

    folders = tmp_path / "code", tmp_path / "environment"
    for folder in folders:
        folder.mkdir()
        (folder / "Dockerfile").write_text(f"FROM {folder.name}" + " " * 2000)
    monkeypatch.setattr(jobs, "staged", lambda _, clone=False: contextlib.nullcontext(folders))
