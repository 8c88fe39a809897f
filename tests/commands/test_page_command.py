"""'./lab page': what it fetches, what it serves and to whom."""

import asyncio
import base64
import hashlib
import io
import json
import os
import tarfile
from dataclasses import replace

import pytest

from labkit.commands import page
from labkit.errors import LabError
from labkit.page import library, write_weights
from labkit.profiles import resolve_profile
from labkit.session import Lab

NPM = """#!/usr/bin/env python3
import json, pathlib, shutil, sys
if {fails}:
    sys.exit("npm error network getaddrinfo ENOTFOUND")
shutil.copyfile({archive!r}, "package.tgz")
print(json.dumps([{{"filename": "package.tgz"}}]))
"""


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """npm(files, fails): the machine's npm packs *files*, or finds no network; its archive."""
    monkeypatch.setattr(library, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(library, "LOCK", tmp_path / "lock.json")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def make(files, *, fails=False) -> bytes:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            for name, text in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text))
        (tmp_path / "archive").write_bytes(content.getvalue())
        script = NPM.format(fails=fails, archive=str(tmp_path / "archive"))
        for name in ("npm", "node"):
            (tmp_path / name).write_text(script)
            (tmp_path / name).chmod(0o755)
        digest = base64.b64encode(hashlib.sha512(content.getvalue()).digest()).decode()
        pin = {"version": "1.0.0", "integrity": f"sha512-{digest}", "files": ["a/b.mjs"]}
        library.LOCK.write_text(json.dumps({"some": pin}))
        return content.getvalue()

    return make


def test_only_the_files_of_the_lock_are_kept_and_only_fetched_once(npm, tmp_path):
    npm({"package/a/b.mjs": b"export {}", "package/../../evil": b"x", "package/install.js": b"x"})
    folder = library.fetch()
    assert [path.name for path in folder.iterdir()] == ["b.mjs"]
    (tmp_path / "npm").write_text("#!/bin/sh\nexit 1\n")
    assert library.fetch() == folder and (folder / "b.mjs").read_bytes() == b"export {}"


def test_another_package_than_the_lock_s_is_refused(npm, tmp_path):
    npm({"package/a/b.mjs": b"export {}"})
    (tmp_path / "archive").write_bytes((tmp_path / "archive").read_bytes()[:-1] + b"\1")
    with pytest.raises(LabError, match="is not the one in lock.json"):
        library.fetch()
    assert not list((tmp_path / "kept" / "lib").iterdir())


def test_without_a_network_npm_s_own_words_are_said(npm):
    npm({}, fails=True)
    with pytest.raises(LabError, match="npm could not fetch some@1.0.0.*ENOTFOUND.*cache/page"):
        library.fetch()


def test_without_npm_and_without_pip_it_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    monkeypatch.setattr(library.sys, "executable", "/bin/false")
    with pytest.raises(LabError, match="the page needs npm once.*apt-get install npm"):
        library.fetch()


def requested(folder, path, **headers):
    from tornado.httpclient import AsyncHTTPClient

    async def run():
        server, port = page.listen(folder, 0)
        try:
            return await AsyncHTTPClient().fetch(
                f"http://127.0.0.1:{port}{path}", headers=headers, raise_error=False
            )
        finally:
            server.stop()

    return asyncio.run(run())


def test_files_are_served_with_the_headers_that_threads_need(tmp_path):
    (tmp_path / "index.html").write_text("a page")
    found = requested(tmp_path, "/")
    assert (found.code, found.body) == (200, b"a page")
    assert found.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert found.headers["Cross-Origin-Embedder-Policy"] == "require-corp"


@pytest.mark.parametrize(
    "path", ["/../secret", "/%2e%2e/secret", "/..%2fsecret", "//etc/passwd", "/lib/../../secret"]
)
def test_nothing_beside_the_folder_is_served(tmp_path, path):
    (tmp_path / "secret").write_text("a secret")
    (tmp_path / "site" / "lib").mkdir(parents=True)
    found = requested(tmp_path / "site", path)
    assert found.code in (400, 403, 404) and b"a secret" not in (found.body or b"")


def test_a_name_of_another_site_is_not_answered(tmp_path):
    (tmp_path / "index.html").write_text("a page")
    assert requested(tmp_path, "/", Host="evil.example").code == 421


def test_a_port_in_use_is_said(tmp_path):
    async def twice():
        server, port = page.listen(tmp_path, 0)
        try:
            page.listen(tmp_path, port)
        finally:
            server.stop()

    with pytest.raises(LabError, match="--port N"):
        asyncio.run(twice())


def test_it_listens_on_loopback_unless_told(tmp_path):
    async def address(lan):
        server, _ = page.listen(tmp_path, 0, lan=lan)
        found = {one.getsockname()[0] for one in server._sockets.values()}
        server.stop()
        return found

    assert asyncio.run(address(False)) == {"127.0.0.1"}
    assert "0.0.0.0" in asyncio.run(address(True))


def adapter(path):
    """Writes a real adapter of one weight to *path*."""
    import numpy as np
    import onnxruntime as ort

    file = ort.AdapterFormat()
    file.set_parameters({"a": ort.OrtValue.ortvalue_from_numpy(np.zeros((4, 2), np.float32))})
    file.export_adapter(str(path))


def test_the_page_takes_each_adapter_of_the_run_that_is_current_and_whole(runs, capsys):
    def folder(_, out):
        out.mkdir()
        adapter(out / "adapter_weights.onnx_adapter")

    def build(_, out):
        adapter(out)

    lab = Lab("04", resolve_profile())
    lab.keep("onnx", folder)
    with pytest.raises(LabError, match="run lab 04 first: its product .*tone.onnx_adapter"):
        page.adapters_of(lab)
    for name in ("tone", "mine", "none", "form", "altered"):
        lab.keep(f"{name}.onnx_adapter", build)
    lab.write("damaged.onnx_adapter", "no adapter")
    (lab.folder / "altered.onnx_adapter").write_text("another")
    (lab.folder / "unknown.onnx_adapter").write_text("of no lab")
    other = Lab("07", replace(resolve_profile(), model="another/model"))
    other.write("foreign.onnx_adapter", "of another model")
    capsys.readouterr()
    assert page.adapters_of(lab).keys() == {"travel", "tone", "mine"}
    said = capsys.readouterr().out
    for name, why in {
        "altered": "it was altered",
        "foreign": "LabError: run lab 01 first",
        "damaged": "",
        "none": "ValueError: its name",
        "form": "LabError: run lab 07 first",  # without form-heldout.jsonl
    }.items():
        assert f"{name}.onnx_adapter is left out: {why}" in said, said
    lab.write("form-heldout.jsonl", "{}")
    assert "form" in page.adapters_of(lab)


def test_an_adapter_that_is_damaged_or_of_another_graph_is_said(tmp_path):
    import numpy as np
    import onnxruntime as ort

    path = tmp_path / "one.onnx_adapter"
    path.write_bytes(b"no adapter")
    with pytest.raises(LabError, match="cannot be read for the page"):
        write_weights(path, tmp_path / "out", {"a": [4, 0]})
    file = ort.AdapterFormat()
    file.set_parameters({"a": ort.OrtValue.ortvalue_from_numpy(np.ones((4, 2), np.float32))})
    file.export_adapter(str(path))
    for inputs in ({"b": [4, 0]}, {"a": [5, 0]}):
        with pytest.raises(LabError, match="does not fit the model of the page"):
            write_weights(path, tmp_path / "out", inputs)
    write_weights(path, tmp_path / "out", {"a": [4, 0]})
    assert (tmp_path / "out").exists()
