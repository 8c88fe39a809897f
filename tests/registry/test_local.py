"""The registry in a folder, and which registry is opened."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from registering import NAME, NAMES, NO_NAMES, change, model, refuses_names, register

import labkit
from labkit.errors import LabError
from labkit.registry import check_manifest, sdk
from labkit.registry.base import Registry
from labkit.registry.local import LocalRegistry


def test_rehearsal_registers_recognises_and_refuses(package, local, capsys):
    calls = []
    assert register(local, package, calls=calls, description="d", tags={"a": "b"}) == "1"
    assert "ft-for-travel version 1: 0.0 MB registered" in capsys.readouterr().out
    assert register(local, package, calls=calls) == "1"
    assert "ft-for-travel version 1: 0.0 MB were there already" in capsys.readouterr().out
    assert register(local, package, "1", calls=calls) == "1"
    change(package)
    with pytest.raises(LabError, match="version 1 of ft-for-travel exists with other content"):
        register(local, package, "1", calls=calls)
    assert calls == ["1"]
    assert register(local, package) == "2"
    assert len(local.costs(NAME)) == 2
    local.remove(NAME, "1")
    assert list(local.contents(NAME)) == ["2"]
    with pytest.raises(LabError, match="no version 1 of ft-for-travel; it has: 2"):
        local.remove(NAME, "1")
    with pytest.raises(LabError, match="no compute 'ci'"):
        local.stop("ci")


def test_a_registry_must_have_all_that_the_base_asks_for(tmp_path):
    class Half(Registry):
        pass

    with pytest.raises(TypeError, match="abstract methods? .*contents.*costs.*fetch.*files"):
        Half(None, tmp_path, None)


def test_the_shell_command_has_what_a_rehearser_fills_in(local, package):
    said = local.shell_command(NAME, "1", package.with_name("a b"))
    assert f"--name {NAME} --version 1 --path '{package.with_name('a b')}' \\\n" in said
    assert "--resource-group RG --workspace-name WORKSPACE" in said


def test_the_bare_call_of_the_cell_overwrites_no_version(package, local, tmp_path):
    register(local, package)
    before = local.contents(NAME)
    change(package)
    with pytest.raises(LabError, match="version 1 of ft-for-travel exists with other content"):
        local.client.models.create_or_update(model(package, "1"))
    assert local.contents(NAME) == before
    assert check_manifest(local.download(NAME, "1", tmp_path / "back"))


def test_rehearsal_gives_back_the_same_bytes_and_notices_other_ones(package, local, tmp_path):
    register(local, package)
    back = local.download(NAME, "1", tmp_path / "back")
    assert check_manifest(back) == check_manifest(package)
    assert (back / "extra files" / "ümlaut & more.json").read_text() == "{}"
    (local.folder / NAME / "1" / "model" / "model.onnx").write_bytes(b"weighte" * 1000)
    said = "version 1 of ft-for-travel was altered in the registry .*model.onnx is missing"
    with pytest.raises(LabError, match=said):
        local.download(NAME, "1", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_forged_manifest_is_noticed_by_the_content_of_the_version(package, local, tmp_path):
    register(local, package)
    stored = local.folder / NAME / "1" / "model"
    change(stored)
    with pytest.raises(LabError, match="altered in the registry .*manifest.json is missing"):
        local.download(NAME, "1", tmp_path / "back")


def test_a_download_does_not_touch_a_folder_of_other_files(package, local, tmp_path):
    register(local, package)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for out in ("mine", "mine/thesis.txt", "mine/../mine"):
        with pytest.raises(LabError, match="is not empty. Delete it, or name a new folder"):
            local.download(NAME, "1", tmp_path / out)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(LabError, match="no version 9 of ft-for-travel; it has: 1"):
        local.download(NAME, "9", tmp_path / "back")


def test_a_download_goes_to_an_empty_folder_also_by_a_link_and_by_dots(
    package, local, tmp_path, monkeypatch
):
    register(local, package)
    folder = tmp_path / "real" / "sub"
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path / "real")
    for out in (tmp_path / "link", Path("..") / "real" / "sub"):
        assert check_manifest(local.download(NAME, "1", out)) == check_manifest(package)
        assert [path.name for path in (tmp_path / "real").iterdir()] == ["sub"]
        shutil.rmtree(folder)
        folder.mkdir()


def test_a_link_in_a_stored_version_is_noticed_and_not_followed(package, local, tmp_path):
    register(local, package)
    home = local.folder / NAME / "1" / "model"
    (home / "again").symlink_to(home)
    with pytest.raises(LabError, match="was altered in the registry .*again is a link"):
        local.download(NAME, "1", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("place", [NAME, f"{NAME}/.partial", f"{NAME}/3", f"{NAME}/3/model"])
def test_a_link_in_the_rehearsal_leads_nowhere(place, package, local, tmp_path):
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    link = local.folder / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(LabError, match="is a link, and would lead out of the registry"):
        register(local, package, "3")
    assert [path.name for path in outside.iterdir()] == ["kept"]


def test_the_rehearsal_counts_beyond_nine_and_past_odd_versions(package, local):
    for version in ("10", "9", "v1", "1.0"):
        assert register(local, package, version) == version
    change(package)
    assert register(local, package) == "11"


@pytest.mark.parametrize("wrong", NO_NAMES, ids=lambda wrong: repr(wrong)[:12])
def test_a_name_that_no_registry_takes_is_refused_wherever_it_is_given(package, tmp_path, wrong):
    registry = LocalRegistry(tmp_path / "deep" / "registry", tmp_path / "logs")
    register(registry, package)
    everything = sorted(tmp_path.rglob("*"))
    refuses_names(registry, package, tmp_path / "back", wrong)
    assert sorted(tmp_path.rglob("*")) == everything


@pytest.mark.parametrize("wrong", ["../escape", "/abs", "..", "."])
def test_the_bare_call_of_the_cell_writes_nothing_outside_either(package, local, wrong):
    for name, version in ((wrong, "1"), (NAME, wrong)):
        with pytest.raises(LabError, match="of a model"):
            local.create_or_update(SimpleNamespace(name=name, version=version, path=package))
    assert not local.folder.exists()


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:12])
def test_names_that_azure_takes_go_through(package, local, tmp_path, name):
    labkit.write_manifest(package, name)
    assert register(local, package, name, name=name) == name
    assert check_manifest(local.download(name, name, tmp_path / "back"))["name"] == name
    local.remove(name, name)
    assert not local.contents(name)


@pytest.mark.parametrize(
    "name", ["with [brackets] a-z", "s3::http colons", "ünï ço dé", "$HOME *?'\" quotes"]
)
def test_a_run_folder_may_have_any_name(package, tmp_path, name):
    runs = tmp_path / name
    sent = package.rename(tmp_path / f"package {name}")
    registry = LocalRegistry(runs / "registry", runs / "logs")
    for _ in range(2):
        assert register(registry, sent) == "1"
    assert check_manifest(registry.download(NAME, "1", runs / "back")) == check_manifest(sent)
    registry.remove(NAME, "1")
    assert not registry.contents(NAME)


def test_a_full_disk_in_the_rehearsal_says_so(package, local, monkeypatch):
    def full(*_, **__):
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(LabError, match="registering ft-for-travel: no space is left on the disk"):
        register(local, package)


def test_a_rehearsal_that_was_cut_off_is_no_version(package, local, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("yaml.safe_dump", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            register(local, package)
    assert not local.contents(NAME)
    assert register(local, package) == "1"


def test_the_azure_command_line_could_read_a_version(package, local):
    from azure.ai.ml import load_model

    register(local, package, description="what it is: ünï", tags={"a": "b"}, properties={"c": "d"})
    made = load_model(local.folder / NAME / "1" / "model.yml")
    content = json.loads((package / "manifest.json").read_text())["content_sha256"]
    assert (made.name, made.version, made.description) == (NAME, "1", "what it is: ünï")
    assert (made.tags, made.properties) == ({"a": "b"}, {"c": "d", "content_sha256": content})
    assert Path(made.path) == local.folder / NAME / "1" / "model"


# ---- which workspace


def test_no_workspace_is_a_rehearsal(elsewhere, lab, capsys):
    assert sdk.find_workspace() is None
    assert isinstance(labkit.open_registry(lab), LocalRegistry)
    assert "a rehearsal" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "rehearses"), [("1", True), ("0", False)])
def test_lab_rehearse_leaves_a_configured_workspace_alone(
    elsewhere, lab, monkeypatch, value, rehearses
):
    monkeypatch.setenv("LAB_REHEARSE", value)
    monkeypatch.setattr("labkit.registry.azure.WorkspaceRegistry", lambda *_: "the workspace")
    for name in sdk.VARIABLES:
        monkeypatch.setenv(name, "x")
    assert isinstance(labkit.open_registry(lab), LocalRegistry) == rehearses


def test_three_variables_or_none(elsewhere, monkeypatch):
    monkeypatch.setenv("AZURE_RESOURCE_GROUP", "rg")
    said = "half configured: AZURE_SUBSCRIPTION_ID, AZURE_ML_WORKSPACE is not set"
    with pytest.raises(LabError, match=said):
        sdk.find_workspace()
    monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", "s")
    monkeypatch.setenv("AZURE_ML_WORKSPACE", "ws")
    assert sdk.find_workspace() == ("s", "rg", "ws")


@pytest.mark.parametrize("place", ["config.json", ".azureml/config.json"])
def test_a_config_json_above(elsewhere, place):
    path = elsewhere.parent / place
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"subscription_id": "s", "resource_group": "rg", "workspace_name": "ws"}')
    assert sdk.find_workspace() == ("s", "rg", "ws")
    for damaged in ('{"subscription_id": "s"', '{"subscription_id": "s"}'):
        path.write_text(damaged)
        with pytest.raises(LabError, match="names no usable workspace"):
            sdk.find_workspace()
