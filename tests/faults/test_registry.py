"""A registry that was altered, damaged or made by others: nothing of it is believed, what is whole
stays usable, and nothing is waited for.
"""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from registering import NAME, change, model, register

import labkit
from labkit.errors import LabError
from labkit.registry import blobs, check_manifest
from labkit.registry.manifest import LIMIT

ALTERED = "version 1 of ft-for-travel was altered in the registry"


def edit_manifest(folder: Path, **changed) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


# ---- the checksum does not lie beside what it is to vouch for


def other_weights(folder: Path) -> None:
    """Other weights, and a manifest that fits them."""
    change(folder)


def other_weights_under_the_old_sum(folder: Path) -> None:
    before = json.loads((folder / "manifest.json").read_text())["content_sha256"]
    change(folder)
    edit_manifest(folder, content_sha256=before)


def another_size(folder: Path) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["model.onnx"]["bytes"] += 1
    edit_manifest(folder, files=files)


def a_key_more(folder: Path) -> None:
    edit_manifest(folder, note="trust me")


def a_file_with_a_key_more(folder: Path) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["model.onnx"]["note"] = "trust me"
    edit_manifest(folder, files=files)


def a_key_twice(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace("{", '{"files": {}, ', 1))


def another_path(path: str):
    def alter(folder: Path) -> None:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        files[path] = files.pop("model.onnx")
        edit_manifest(folder, files=files)

    return alter


def brackets(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


def huge(folder: Path) -> None:
    with open(folder / "manifest.json", "wb") as file:
        file.truncate(4 * LIMIT)  # a hole: zeros


def no_text(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe{")


ALTERATIONS = {
    "other weights and a manifest that fits": other_weights,
    "the same under the registered sum": other_weights_under_the_old_sum,
    "another size in the manifest": another_size,
    "a key more in the manifest": a_key_more,
    "a key more of a file": a_file_with_a_key_more,
    "a key twice": a_key_twice,
    "brackets in brackets": brackets,
    "a huge manifest": huge,
    "a manifest that is no text": no_text,
} | {
    f"the path {path!r}": another_path(path)
    for path in ("../x", "/abs", "extra files//x", "./model.onnx", "a\\b", "MODEL.onnx", "\ud800")
}
# wrong whoever says what the content is
NEVER_FITS = {case for case in ALTERATIONS if not case.startswith("other weights")}


@pytest.mark.parametrize("case", ALTERATIONS)
def test_what_was_altered_is_not_given_back_as_registered(case, package, local, tmp_path):
    register(local, package)
    ALTERATIONS[case](local.folder / NAME / "1" / "model")
    with pytest.raises(LabError, match=ALTERED):
        local.download(NAME, "1", tmp_path / "back")
    assert not [path for path in tmp_path.iterdir() if "back" in path.name]


@pytest.mark.parametrize(
    "case", ["other weights and a manifest that fits", "the same under the registered sum"]
)
def test_a_workspace_gives_no_altered_version_back_either(
    case, registry, azure, package, tmp_path
):
    register(registry, package)
    ALTERATIONS[case](package)
    for name in [blob.name for blob in azure.container.list_blobs()]:
        content = (package / name.split("/", 3)[3]).read_bytes()
        azure.container.upload_blob(name, content, overwrite=True)
    with pytest.raises(LabError, match=f"{ALTERED}.*manifest.json is missing, surplus or altered"):
        registry.download(NAME, "1", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_version_of_another_tool_is_said_to_vouch_for_itself(
    registry, azure, package, tmp_path, capsys
):
    """As './lab' prints the command for a shell: the property is missing."""
    registry.client.models.create_or_update(model(package, "1"))
    assert check_manifest(registry.download(NAME, "1", tmp_path / "back"))
    said = "only the manifest in its own files vouches for them"
    assert said in capsys.readouterr().out
    change(package)
    register(registry, package)
    registry.download(NAME, "2", tmp_path / "own")
    assert said not in capsys.readouterr().out


def test_the_rehearsal_says_so_too(package, local, tmp_path, capsys):
    register(local, package)
    note = local.folder / NAME / "1" / "model.yml"
    fields = yaml.safe_load(note.read_text())
    del fields["properties"]["content_sha256"]
    note.write_text(yaml.safe_dump(fields))
    assert check_manifest(local.download(NAME, "1", tmp_path / "back"))
    assert "only the manifest in its own files vouches for them" in capsys.readouterr().out
    edit = local.folder / NAME / "1" / "model"
    labkit.write_manifest(edit, "another-model")
    with pytest.raises(LabError, match=ALTERED):
        local.download(NAME, "1", tmp_path / "again")


@pytest.mark.parametrize("case", sorted(NEVER_FITS))
def test_a_package_with_such_a_manifest_is_not_sent(case, package, local):
    ALTERATIONS[case](package)
    with pytest.raises(LabError, match="is missing, surplus or altered|no readable manifest"):
        register(local, package)
    assert not local.folder.exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Model.onnx",), "which are one file where capitals"),
        (("é.json", "e\u0301.json"), "which are one file where capitals"),
        (("Straße", "STRASSE"), "which are one file where capitals"),
        (("a\\b",), "whose name other systems read as another one"),
        (("a\nb",), "whose name other systems read as another one"),
        (("a\x1b[31m",), "whose name other systems read as another one"),
        (("a\u202eb",), "whose name other systems read as another one"),
        (("\udcff",), "whose name other systems read as another one"),
    ],
    ids=ascii,
)
def test_names_that_another_system_reads_otherwise_are_refused(names, said, package):
    for name in names:
        (package / name).touch()
    with pytest.raises(LabError, match=said):
        labkit.write_manifest(package, NAME)


@pytest.mark.parametrize("name", ["../x", "/abs", "a//b", "./a", "a/../b", "a/"])
def test_a_stored_path_that_is_another_one_here_is_not_downloaded(name, tmp_path):
    evil = SimpleNamespace(name=f"b/{name}", size=0, etag="0", metadata=None)
    with pytest.raises(LabError, match="would lie outside"):
        blobs.download(SimpleNamespace(list_blobs=lambda **_: [evil]), "b/", tmp_path / "out")
    assert not list(tmp_path.iterdir())


# ---- the rehearsal's folder

BOMB = "a: &a [x, x]\n" + "".join(
    f"{one}: &{one} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, one in zip("abcdefghi", "bcdefghij", strict=True)
)
NOTES = {
    "empty": "",
    "cut off": None,
    "cut off before its properties": "name: ft-for-travel\nversion: '1'\n",
    "a list": "[]",
    "a word": "version",
    "no version": "name: ft-for-travel\n",
    "of another version": "name: ft-for-travel\nversion: '2'\n",
    "a content that is a list": "name: ft-for-travel\nversion: '1'\n"
    "properties: {content_sha256: [1]}\n",
    "properties that are a text": "name: ft-for-travel\nversion: '1'\nproperties: none\n",
    "a bomb of aliases": BOMB,
    "a bomb of merges": "a: &a {x: 1}\nb: {<<: [*a, *a]}\n",
    "a python object": "!!python/object/apply:os.system ['touch marker']\n",
    "a python name": "name: !!python/name:os.system\n",
    "brackets in brackets": "[" * 50_000,
    "a day that is none": "name: 2026-13-45\n",
    "no text": b"\xff\xfe\0",
    "a NUL": "name: \0",
    "huge": b"#" * 2**21,
}


@pytest.mark.parametrize("note", [*NOTES, "a pipe", "a folder", "a link", "a broken link"])
def test_a_damaged_note_costs_one_version_and_no_other(
    note, package, local, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    register(local, package)
    change(package)
    register(local, package)
    path = local.folder / NAME / "1" / "model.yml"
    whole = path.read_bytes()
    path.unlink()
    if note == "a pipe":
        os.mkfifo(path)
    elif note == "a folder":
        path.mkdir()
    elif note.endswith("link"):
        (tmp_path / "elsewhere.yml").write_bytes(whole)
        path.symlink_to(tmp_path / ("elsewhere.yml" if note == "a link" else "gone"))
    else:
        text = whole[: len(whole) // 2] if note == "cut off" else NOTES[note]
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    capsys.readouterr()
    assert local.contents(NAME) == {"1": None, "2": check_manifest(package)["content_sha256"]}
    assert capsys.readouterr().out.startswith("version 1 of ft-for-travel cannot be used: ")
    with pytest.raises(LabError, match="model.yml is damaged"):
        local.download(NAME, "1", tmp_path / "back")
    assert check_manifest(local.download(NAME, "2", tmp_path / "second"))
    assert len(local.costs(NAME)) == 2
    with pytest.raises(LabError, match="exists with other content"):  # its number stays taken
        register(local, package, "1")
    assert register(local, package) == "2"
    local.remove(NAME, "1")
    assert list(local.contents(NAME)) == ["2"] and not (tmp_path / "marker").exists()
    assert not note.endswith("a link") or (tmp_path / "elsewhere.yml").read_bytes() == whole


@pytest.mark.parametrize("kind", ["file", "pipe", "link to a device"])
@pytest.mark.parametrize("place", ["", NAME, f"{NAME}/1", f"{NAME}/1/model"])
def test_what_stands_in_the_place_of_a_folder(place, kind, package, local, tmp_path):
    path, others = local.folder / place, f"{NAME}/1" in place
    if others:
        register(local, package, "9")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(LabError, match="is no folder, and the registry|is a link, and would"):
        register(local, package, "1")
    if others:
        assert register(local, package) == "9"


def test_a_version_of_an_impossible_name_is_left_out(package, local, capsys):
    register(local, package)
    shutil.copytree(local.folder / NAME / "1", local.folder / NAME / "a b\x1b[31m")
    (local.folder / NAME / "3").symlink_to(local.folder / NAME / "1")
    assert list(local.contents(NAME)) == ["1"] and len(local.costs(NAME)) == 1
    out = capsys.readouterr().out
    assert "3 is a link" in out and "cannot be the version of a model" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_a_stored_file_that_is_none_is_neither_read_nor_waited_for(kind, package, local, tmp_path):
    register(local, package)
    path = local.folder / NAME / "1" / "model" / "model.onnx"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif os.getuid():
        pytest.skip("only root makes a device")
    else:
        os.mknod(path, 0o20644, os.makedev(1, 5))  # /dev/zero
    with pytest.raises(LabError, match=f"{ALTERED}.*is a link, a pipe or a device"):
        local.download(NAME, "1", tmp_path / "back")
    assert not [path for path in tmp_path.iterdir() if "back" in path.name]


@pytest.mark.parametrize("kind", ["pipe", "device", "hidden file"])
def test_a_place_for_a_download_that_is_no_empty_folder(kind, package, local, tmp_path):
    register(local, package)
    out = Path("/dev/null") if kind == "device" else tmp_path / "back"
    if kind == "pipe":
        os.mkfifo(out)
    elif kind == "hidden file":
        out.mkdir()
        (out / ".mine").touch()
    with pytest.raises(LabError, match="is not empty. Delete it, or name a new folder"):
        local.download(NAME, "1", out)
    assert os.path.lexists(out)
