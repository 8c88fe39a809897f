"""Lab 06's registries: the local one here, the one of a workspace against the emulated Azure of azure_rig/."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from azure.ai.ml.entities import Model

import labkit
from labkit import cloud
from labkit.errors import LabError
from labkit.registry import LocalRegistry, check_manifest

NAME = "ft-for-travel"


@pytest.fixture
def package(tmp_path):
    """A folder to register, with a file in a sub-folder, an empty one, and one whose name needs quoting."""
    folder = tmp_path / "package"
    (folder / "extra files").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights" * 1000)
    (folder / "empty.txt").touch()
    (folder / "extra files" / "ümlaut & more.json").write_text("{}")
    labkit.write_manifest(folder, NAME)
    return folder


def creator(registry, folder, calls=None, **fields):
    """What the notebook's cell defines."""

    def create(version):
        if calls is not None:
            calls.append(version)
        properties = {
            "content_sha256": json.loads((folder / "manifest.json").read_text())["content_sha256"]
        }
        asset = Model(
            name=NAME,
            version=version,
            type="custom_model",
            path=folder,
            properties=properties,
            **fields,
        )
        return registry.client.models.create_or_update(asset)

    return create


def change(folder) -> None:
    (folder / "model.onnx").write_bytes(b"others!" * 1000)
    labkit.write_manifest(folder, NAME)


# ---- the manifest


def test_the_manifest_covers_every_file_and_comes_out_the_same(package):
    first = json.loads((package / "manifest.json").read_text())
    assert set(first["files"]) == {"model.onnx", "empty.txt", "extra files/ümlaut & more.json"}
    assert labkit.write_manifest(package, NAME) == first == check_manifest(package)
    change(package)
    assert (
        json.loads((package / "manifest.json").read_text())["content_sha256"]
        != first["content_sha256"]
    )


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (".amlignore", "leave files out silently"),
        ("extra files/.gitignore", "leave files out silently"),
        ("model_config.json", "Olive's notes"),
    ],
)
def test_what_must_not_be_uploaded_is_refused(package, file, said):
    (package / file).write_text("*.onnx")
    with pytest.raises(LabError, match=said):
        labkit.write_manifest(package, NAME)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "void").mkdir()
    with pytest.raises(LabError, match="is empty: nothing to register"):
        labkit.write_manifest(tmp_path / "void", NAME)


def odd_file(package, kind: str) -> str:
    """Puts something that is neither file nor folder into *package*; returns the name of what holds it."""
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
        }
        targets |= {"loop": package, "self": at, "nothing": outside / "gone"}
        at.symlink_to(targets[kind], target_is_directory=kind in ("folder", "loop"))
    return at.relative_to(package).as_posix()


KINDS = ("folder", "file", "inside", "loop", "self", "nothing", "fifo", "socket")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_neither_file_nor_folder_is_refused_by_name(package, tmp_path, kind):
    registry, before = (
        LocalRegistry(tmp_path / "registry", tmp_path / "logs"),
        (package / "manifest.json").read_bytes(),
    )
    said = f"{odd_file(package, kind)} is a link, a pipe or a device.*cp -rL FOLDER COPY"
    create = creator(registry, package)
    for call in (
        lambda: labkit.write_manifest(package, NAME),
        lambda: check_manifest(package),
        lambda: registry.register(package, NAME, create),
        lambda: create("1"),
    ):
        with pytest.raises(LabError, match=said):
            call()
    assert (package / "manifest.json").read_bytes() == before and not (
        tmp_path / "registry"
    ).exists()


@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_a_manifest_that_leads_elsewhere_is_neither_read_nor_written(package, tmp_path, kind):
    (package / "manifest.json").unlink()
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text("mine")
    if kind == "fifo":
        os.mkfifo(package / "manifest.json")  # which one would wait for, for ever
    else:
        (package / "manifest.json").symlink_to(elsewhere)
    for call in (lambda: labkit.write_manifest(package, NAME), lambda: check_manifest(package)):
        with pytest.raises(LabError, match="manifest.json is a link, a pipe or a device"):
            call()
    assert elsewhere.read_text() == "mine"


def test_the_advice_against_links_is_right(package, tmp_path):
    odd_file(package, "folder")
    subprocess.run(["cp", "-rL", package, tmp_path / "copy"], check=True)
    assert "extra files/odd/secret.txt" in labkit.write_manifest(tmp_path / "copy", NAME)["files"]


def test_a_package_may_be_reached_by_a_link(package, tmp_path):
    (tmp_path / "by-link").symlink_to(package)
    assert labkit.write_manifest(tmp_path / "by-link", NAME) == check_manifest(package)


@pytest.mark.parametrize("harm", ["altered", "missing", "surplus", "no manifest"])
def test_a_harmed_package_is_noticed_before_it_is_sent(package, tmp_path, harm):
    file = package / ("manifest.json" if harm == "no manifest" else "model.onnx")
    if harm == "altered":
        file.write_bytes(b"weighte" * 1000)
    elif harm == "surplus":
        (package / "more.bin").touch()
    else:
        file.unlink()
    registry, calls = LocalRegistry(tmp_path / "registry", tmp_path / "logs"), []
    with pytest.raises(
        LabError,
        match="no readable manifest.json"
        if harm == "no manifest"
        else "missing, surplus or altered",
    ):
        registry.register(package, NAME, creator(registry, package, calls))
    assert not calls


@pytest.mark.parametrize(
    "text", ["[]", '{"files": {}}', '{"files": {"model.onnx": 1}}', "half a fi"]
)
def test_a_manifest_of_another_form_is_one_error(package, text):
    (package / "manifest.json").write_text(text)
    with pytest.raises(LabError, match="no readable manifest.json"):
        check_manifest(package)


# ---- the local registry


def test_rehearsal_registers_recognises_and_refuses(package, tmp_path):
    registry, calls = LocalRegistry(tmp_path / "registry", tmp_path / "logs"), []
    create = creator(registry, package, calls, description="d", tags={"a": "b"})
    first = registry.register(package, NAME, create)
    assert (first["version"], first["new"], calls) == ("1", True, ["1"])
    again = registry.register(package, NAME, create)
    assert (again["version"], again["new"], calls) == ("1", False, ["1"])
    assert registry.register(package, NAME, create, version="1")["new"] is False
    change(package)
    with pytest.raises(
        LabError, match="version 1 of ft-for-travel exists with other content; nothing was sent"
    ):
        registry.register(package, NAME, create, version="1")
    assert calls == ["1"]
    assert registry.register(package, NAME, create)["version"] == "2"
    assert len(registry.costs(NAME)) == 2
    registry.remove(NAME, "1")
    assert list(registry.contents(NAME)) == ["2"]
    with pytest.raises(LabError, match="no version 1 of ft-for-travel; it has: 2"):
        registry.remove(NAME, "1")
    with pytest.raises(LabError, match="no compute 'ci'"):
        registry.stop("ci")


def test_the_bare_call_of_the_cell_overwrites_no_version(package, tmp_path):
    registry = LocalRegistry(tmp_path / "registry", tmp_path / "logs")
    registry.register(package, NAME, creator(registry, package))
    before = registry.contents(NAME)
    change(package)
    with pytest.raises(LabError, match="version 1 of ft-for-travel exists with other content"):
        creator(registry, package)("1")
    assert registry.contents(NAME) == before and check_manifest(
        registry.download(NAME, "1", tmp_path / "back")
    )


@pytest.mark.parametrize("file", [".gitignore", "model_config.json"])
def test_what_came_into_the_package_later_is_refused_too(package, tmp_path, file):
    (package / file).write_text("*.onnx")
    registry, calls = LocalRegistry(tmp_path / "registry", tmp_path / "logs"), []
    with pytest.raises(LabError, match="leave files out silently|Olive's notes"):
        registry.register(package, NAME, creator(registry, package, calls))
    assert not calls


def test_rehearsal_gives_back_the_same_bytes_and_notices_other_ones(package, tmp_path):
    registry = LocalRegistry(tmp_path / "registry", tmp_path / "logs")
    registry.register(package, NAME, creator(registry, package))
    back = registry.download(NAME, "1", tmp_path / "back")
    assert check_manifest(back) == check_manifest(package)
    assert (back / "extra files" / "ümlaut & more.json").read_text() == "{}"
    (tmp_path / "registry" / NAME / "1" / "model" / "model.onnx").write_bytes(b"weighte" * 1000)
    with pytest.raises(
        LabError,
        match="version 1 of ft-for-travel was altered in the registry .*model.onnx is missing",
    ):
        registry.download(NAME, "1", tmp_path / "back")
    assert check_manifest(back), "the earlier download was lost"


def test_a_download_does_not_touch_a_folder_of_other_files(package, tmp_path):
    registry = LocalRegistry(tmp_path / "registry", tmp_path / "logs")
    registry.register(package, NAME, creator(registry, package))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(LabError, match="mine holds other files than a downloaded model"):
        registry.download(NAME, "1", tmp_path / "mine")
    (tmp_path / "mine" / "manifest.json").write_text(
        '{"files": {"icon.png": {}}}'
    )  # as browser extensions have one, too
    for out in (
        tmp_path / "mine",
        tmp_path / "mine" / "thesis.txt",
        tmp_path / "mine" / ".." / "mine",
    ):
        with pytest.raises(LabError, match="holds other files than a downloaded model"):
            registry.download(NAME, "1", out)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(LabError, match="no version 9 of ft-for-travel; it has: 1"):
        registry.download(NAME, "9", tmp_path / "back")


def test_a_download_takes_the_place_of_an_earlier_one_also_by_a_link_and_by_dots(
    package, tmp_path, monkeypatch
):
    registry = LocalRegistry(tmp_path / "registry", tmp_path / "logs")
    registry.register(package, NAME, creator(registry, package))
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "sub")
    monkeypatch.chdir(tmp_path / "real")
    for out in (tmp_path / "link", tmp_path / "link", Path("..") / "real" / "sub"):
        assert check_manifest(registry.download(NAME, "1", out)) == check_manifest(package)
    assert sorted(p.name for p in (tmp_path / "real").iterdir()) == ["sub"]


def test_a_link_in_the_rehearsals_folder_is_noticed_and_not_followed(package, tmp_path):
    registry = LocalRegistry(tmp_path / "registry", tmp_path / "logs")
    registry.register(package, NAME, creator(registry, package))
    home = tmp_path / "registry" / NAME / "1" / "model"
    (home / "again").symlink_to(home)
    with pytest.raises(LabError, match="was altered in the registry .*again is a link"):
        registry.download(NAME, "1", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_package_of_another_name_is_refused(package, tmp_path):
    registry = LocalRegistry(tmp_path / "registry", tmp_path / "logs")
    with pytest.raises(LabError, match="packaged as 'ft-for-travel', not as 'other'"):
        registry.register(package, "other", creator(registry, package))


def test_the_rehearsal_counts_beyond_nine_and_past_odd_versions(package, tmp_path):
    registry = LocalRegistry(tmp_path / "registry", tmp_path / "logs")
    create = creator(registry, package)
    for version in ("10", "9", "v1", "1.0"):
        assert registry.register(package, NAME, create, version=version)["version"] == version
    change(package)
    assert registry.register(package, NAME, create)["version"] == "11"


NO_NAMES = (
    "../escape",
    "../../x",
    "/abs",
    "a/b",
    ".",
    "..",
    ".hidden",
    "",
    "a b",
    "naïve",
    "x" * 256,
    "1\n",
    "²",
    1,
    None,
)
NAMES = ("Phi-3.5_mini.int4", "7", "a..b", "x" * 255)


@pytest.mark.parametrize("wrong", NO_NAMES, ids=lambda wrong: repr(wrong)[:12])
def test_a_name_that_no_registry_takes_is_refused_wherever_it_is_given(package, tmp_path, wrong):
    registry = LocalRegistry(tmp_path / "deep" / "registry", tmp_path / "logs")
    registry.register(package, NAME, creator(registry, package))
    everything = sorted(tmp_path.rglob("*"))
    refuses_names(registry, package, tmp_path / "back", wrong)
    assert sorted(tmp_path.rglob("*")) == everything


def refuses_names(registry, package, out, wrong):
    """Tries every call that takes a name or a version."""
    calls, again = (
        {
            "name": [
                lambda: labkit.write_manifest(package, wrong),
                lambda: registry.register(package, wrong, None),
                lambda: registry.contents(wrong),
                lambda: registry.costs(wrong),
                lambda: registry.files(wrong, "1"),
                lambda: registry.download(wrong, "1", out),
                lambda: registry.remove(wrong, "1"),
            ],
            "version": [
                lambda: registry.files(NAME, wrong),
                lambda: registry.download(NAME, wrong, out),
                lambda: registry.remove(NAME, wrong),
            ],
        },
        registry.contents(NAME),
    )
    if wrong is not None:  # then the next free one is taken
        calls["version"].append(lambda: registry.register(package, NAME, None, version=wrong))
    for kind in calls:
        for call in calls[kind]:
            with pytest.raises(
                LabError, match=f"cannot be the {kind} of a model.*at most 255 letters"
            ):
                call()
    assert registry.contents(NAME) == again


@pytest.mark.parametrize("wrong", ["../escape", "/abs", "..", "."])
def test_the_bare_call_of_the_cell_writes_nothing_outside_either(package, tmp_path, wrong):
    registry = LocalRegistry(tmp_path / "deep" / "registry", tmp_path / "logs")
    for name, version in ((wrong, "1"), (NAME, wrong)):
        with pytest.raises(LabError, match="of a model"):
            registry.create_or_update(SimpleNamespace(name=name, version=version, path=package))
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:12])
def test_names_that_azure_takes_go_through(package, tmp_path, name):
    labkit.write_manifest(package, name)
    registry = LocalRegistry(tmp_path / "registry", tmp_path / "logs")

    def create(version):
        properties = {"content_sha256": check_manifest(package)["content_sha256"]}
        asset = Model(
            name=name, version=version, type="custom_model", path=package, properties=properties
        )
        return registry.client.models.create_or_update(asset)

    assert registry.register(package, name, create, version=name)["version"] == name
    assert check_manifest(registry.download(name, name, tmp_path / "back"))["name"] == name
    registry.remove(name, name)
    assert not registry.contents(name)


def test_a_full_disk_in_the_rehearsal_says_so(package, tmp_path, monkeypatch):
    registry = LocalRegistry(tmp_path / "registry", tmp_path / "logs")

    def full(*_, **__):
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(LabError, match="registering ft-for-travel: no space is left on the disk"):
        registry.register(package, NAME, creator(registry, package))


def test_a_rehearsal_that_was_cut_off_is_no_version(package, tmp_path, monkeypatch):
    registry = LocalRegistry(tmp_path / "registry", tmp_path / "logs")
    with monkeypatch.context() as patched:
        patched.setattr("yaml.safe_dump", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            registry.register(package, NAME, creator(registry, package))
    assert not registry.contents(NAME)
    assert registry.register(package, NAME, creator(registry, package))["version"] == "1"


# ---- which workspace


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working folder with no workspace configured."""
    monkeypatch.delenv("LAB_REHEARSE")
    home = tmp_path / "clone" / "notebooks"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    return home


def test_no_workspace_is_a_rehearsal(elsewhere, tmp_path, capsys):
    lab = SimpleNamespace(folder=tmp_path / "run", logs=tmp_path / "run" / "logs")
    assert cloud.find_workspace() is None
    assert isinstance(labkit.open_registry(lab), LocalRegistry)
    assert "a rehearsal" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "rehearses"), [("1", True), ("0", False)])
def test_lab_rehearse_leaves_a_configured_workspace_alone(
    elsewhere, tmp_path, monkeypatch, value, rehearses
):
    lab = SimpleNamespace(folder=tmp_path / "run", logs=tmp_path / "run" / "logs")
    monkeypatch.setenv("LAB_REHEARSE", value)
    monkeypatch.setattr("labkit.registry.WorkspaceRegistry", lambda *_: "the workspace")
    for name in cloud.WORKSPACE:
        monkeypatch.setenv(name, "x")
    assert isinstance(labkit.open_registry(lab), LocalRegistry) == rehearses


def test_three_variables_or_none(elsewhere, monkeypatch):
    monkeypatch.setenv("AZURE_RESOURCE_GROUP", "rg")
    with pytest.raises(
        LabError, match="half configured: AZURE_SUBSCRIPTION_ID, AZURE_ML_WORKSPACE is not set"
    ):
        cloud.find_workspace()
    monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", "s")
    monkeypatch.setenv("AZURE_ML_WORKSPACE", "ws")
    assert cloud.find_workspace() == ("s", "rg", "ws")


@pytest.mark.parametrize("place", ["config.json", ".azureml/config.json"])
def test_a_config_json_above(elsewhere, place):
    path = elsewhere.parent / place
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"subscription_id": "s", "resource_group": "rg", "workspace_name": "ws"}')
    assert cloud.find_workspace() == ("s", "rg", "ws")
    path.write_text('{"subscription_id": "s"')
    with pytest.raises(LabError, match="names no usable workspace"):
        cloud.find_workspace()
    path.write_text('{"subscription_id": "s"}')
    with pytest.raises(LabError, match="names no usable workspace"):
        cloud.find_workspace()


@pytest.mark.parametrize("place", [NAME, f"{NAME}/.partial", f"{NAME}/3", f"{NAME}/3/model"])
def test_a_link_in_the_rehearsal_leads_nowhere(place, package, tmp_path):
    registry, outside = (
        LocalRegistry(tmp_path / "registry", tmp_path / "logs"),
        tmp_path / "outside",
    )
    (outside / "kept").mkdir(parents=True)
    link = tmp_path / "registry" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(LabError, match="is a link, and would lead out of the registry"):
        if place.startswith(f"{NAME}/3"):
            registry._home(NAME, "3")
        else:
            registry.register(package, NAME, creator(registry, package), version="3")
    assert [path.name for path in outside.iterdir()] == ["kept"]
