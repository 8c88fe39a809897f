"""The package and its manifest: what is refused, and what is noticed."""

import json
import os
import subprocess

import pytest
from registering import NAME, change, model, odd_file, register

import labkit
from labkit.errors import LabError
from labkit.registry import check_manifest


def test_the_manifest_covers_every_file_and_comes_out_the_same(package):
    first = json.loads((package / "manifest.json").read_text())
    assert set(first["files"]) == {"model.onnx", "empty.txt", "extra files/ümlaut & more.json"}
    assert labkit.write_manifest(package, NAME) == first == check_manifest(package)
    change(package)
    assert check_manifest(package)["content_sha256"] != first["content_sha256"]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (".amlignore", "leave files out silently"),
        ("extra files/.gitignore", "leave files out silently"),
        ("model_config.json", "Olive's notes"),
    ],
)
def test_what_must_not_be_uploaded_is_refused(package, local, file, said):
    (package / file).write_text("*.onnx")
    with pytest.raises(LabError, match=said):
        labkit.write_manifest(package, NAME)
    calls = []
    with pytest.raises(LabError, match=said):
        register(local, package, calls=calls)
    assert not calls


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "void").mkdir()
    with pytest.raises(LabError, match="is empty: nothing to register"):
        labkit.write_manifest(tmp_path / "void", NAME)


KINDS = ("folder", "file", "inside", "loop", "self", "nothing", "fifo", "socket")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_neither_file_nor_folder_is_refused_by_name(package, local, kind):
    before = (package / "manifest.json").read_bytes()
    said = f"{odd_file(package, kind)} is a link, a pipe or a device.*'cp -rL FOLDER COPY'"
    for call in (
        lambda: labkit.write_manifest(package, NAME),
        lambda: check_manifest(package),
        lambda: register(local, package),
        lambda: local.client.models.create_or_update(model(package, "1")),
    ):
        with pytest.raises(LabError, match=said):
            call()
    assert (package / "manifest.json").read_bytes() == before
    assert not local.folder.exists()


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


HARMS = {
    "altered": "model.onnx is missing, surplus or altered",
    "missing": "model.onnx is missing, surplus or altered",
    "surplus": "more.bin is missing, surplus or altered",
    "no manifest": "no readable manifest.json",
    "another content": "manifest.json is missing, surplus or altered",
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_package_is_noticed_before_it_is_sent(package, local, harm):
    manifest = package / "manifest.json"
    if harm == "altered":
        (package / "model.onnx").write_bytes(b"weighte" * 1000)
    elif harm == "missing":
        (package / "model.onnx").unlink()
    elif harm == "surplus":
        (package / "more.bin").touch()
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(json.dumps(check_manifest(package) | {"content_sha256": "0" * 64}))
    calls = []
    with pytest.raises(LabError, match=HARMS[harm]):
        register(local, package, calls=calls)
    assert not calls


@pytest.mark.parametrize(
    "text", ["[]", '{"files": {}}', '{"files": {"model.onnx": 1}}', "half a fi"]
)
def test_a_manifest_of_another_form_is_one_error(package, text):
    (package / "manifest.json").write_text(text)
    with pytest.raises(LabError, match="no readable manifest.json"):
        check_manifest(package)


def test_a_package_of_another_name_is_refused(package, local):
    with pytest.raises(LabError, match="packaged as 'ft-for-travel', not as 'other'"):
        register(local, package, name="other")
