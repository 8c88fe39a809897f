"""./lab open: what is saved there is a working copy; the tracked notebooks stay as they came."""

import asyncio
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import nbformat
import pytest
from jupyter_server.utils import origin_matches_pat
from tornado.web import HTTPError

from labkit.commands import main, reset
from labkit.commands.jupyterlab.contents import LabContents
from labkit.commands.open import codespace_origins, command, news
from labkit.profiles import ROOT
from labkit.working_copies import WorkingCopies

NAME = "02_quantize.ipynb"
API = f"notebooks/{NAME}"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with one lab, as it came."""
    clone = tmp_path / "clone"
    monkeypatch.setenv("LAB_RUNS", str(clone / "runs"))
    (clone / "notebooks").mkdir(parents=True)
    write(clone / API, "as it came")
    return clone


@pytest.fixture
def contents(clone):
    return LabContents(root_dir=str(clone), delete_to_trash=False)


def write(path: Path, text: str) -> None:
    nbformat.write(notebook(text), path)


def notebook(text: str):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text, id="a")])


def save(contents, text: str, path: str = API) -> dict:
    return asyncio.run(contents.save({"type": "notebook", "content": notebook(text)}, path))


def read(contents, path: str = API) -> str:
    return asyncio.run(contents.get(path))["content"]["cells"][0]["source"]


def text_of(path: Path) -> str:
    return nbformat.read(path, as_version=4).cells[0].source


def test_what_is_saved_is_read_again_and_the_notebook_stays(contents, clone):
    before = (clone / API).read_bytes()
    assert read(contents) == "as it came" and not (clone / "runs").exists()
    save(contents, "mine")
    assert read(contents) == "mine"
    assert (clone / API).read_bytes() == before
    assert text_of(clone / "runs" / "working" / NAME) == "mine"


def test_a_new_copy_is_as_old_as_the_notebook(contents, clone):
    """Else JupyterLab asks whether to overwrite a file that has changed."""
    seen = asyncio.run(contents.get(API, content=False))["last_modified"]
    WorkingCopies(clone).make(clone / API)
    assert asyncio.run(contents.get(API, content=False))["last_modified"] == seen


def test_other_files_are_saved_where_they_are(contents, clone):
    save(contents, "a notebook of my own", "notebooks/mine.ipynb")
    save(contents, "a lab elsewhere", NAME)
    assert text_of(clone / "notebooks" / "mine.ipynb") == "a notebook of my own"
    assert text_of(clone / NAME) == "a lab elsewhere"
    assert not (clone / "runs").exists()


def test_deleting_a_lab_brings_the_original_back(contents, clone):
    save(contents, "mine")
    asyncio.run(contents.delete(API))
    assert read(contents) == "as it came"
    with pytest.raises(HTTPError, match="as it came"):
        asyncio.run(contents.delete(API))
    assert read(contents) == "as it came"


def test_renaming_a_lab_keeps_the_original(contents, clone):
    save(contents, "mine")
    asyncio.run(contents.rename(API, "notebooks/mine.ipynb"))
    assert (read(contents, "notebooks/mine.ipynb"), read(contents)) == ("mine", "as it came")
    asyncio.run(contents.rename(API, "notebooks/again.ipynb"))
    assert read(contents, "notebooks/again.ipynb") == read(contents) == "as it came"
    assert text_of(clone / API) == "as it came"


def test_a_checkpoint_is_restored_into_the_copy(contents, clone):
    kept = asyncio.run(contents.create_checkpoint(API))
    write(clone / API, "a newer version of the lab")
    asyncio.run(contents.restore_checkpoint(kept["id"], API))
    assert read(contents) == "as it came"
    assert text_of(clone / API) == "a newer version of the lab"


def test_a_copy_of_an_older_version_is_kept_beside_the_new_one(contents, clone):
    save(contents, "mine")
    assert news(clone) == [] and read(contents) == "mine"
    for mine in ("mine", "mine of the same day"):
        save(contents, mine)
        write(clone / API, f"newer than {mine}")
        (line,) = news(clone)
        kept = clone / re.search(r"kept as (\S+)\.$", line)[1]
        assert NAME in line and text_of(kept) == mine
        assert read(contents) == f"newer than {mine}"
    assert len(WorkingCopies(clone).names()) == 2


def test_runs_that_the_browser_cannot_show_are_named(clone, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_RUNS", str(clone / "elsewhere"))
    assert news(clone) == []
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "far"))
    (line,) = news(clone)
    assert str(tmp_path / "far") in line


def test_reset_deletes_the_copies_and_nothing_else(contents, clone, monkeypatch, capsys):
    monkeypatch.setattr(reset, "ROOT", clone)
    monkeypatch.setattr("labkit.commands.setup.enter", lambda *_, **__: None)
    assert main(["reset", "--notebooks", "--yes"]) == 0
    assert "nothing to delete" in capsys.readouterr().out
    save(contents, "mine")
    (clone / "runs" / "cpu").mkdir()
    assert main(["reset", "--notebooks"]) == 1  # asks, and nobody can answer here
    assert read(contents) == "mine"
    assert main(["reset", "--notebooks", "--yes"]) == 0
    assert read(contents) == "as it came" and (clone / "runs" / "cpu").exists()


def test_it_takes_the_next_free_port_and_ends_at_one_interrupt(clone, tmp_path):
    env = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for name in [name for name in env if name.startswith(("JUPYTER", "XDG_"))]:
        del env[name]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = subprocess.Popen(
            command(clone, port),
            env=env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            address = next(line for line in server.stderr if "http://127.0.0.1:" in line)
            found = re.search(r":(\d+)/lab/tree/notebooks\?token=\w+", address)
            assert found and int(found[1]) != port
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=120)
        finally:
            server.kill()
    # it has ended, by itself or by the signal as it is; it must not ask and stay
    assert server.returncode in (0, -signal.SIGINT)


def test_the_browser_of_a_codespace_is_let_in_and_no_other(clone, monkeypatch):
    monkeypatch.delenv("CODESPACE_NAME", raising=False)
    assert not any("allow_origin" in argument for argument in command(clone, 8888))
    monkeypatch.setenv("CODESPACE_NAME", "fluffy-train-4x")
    for domain in "app.github.dev", "preview.app.github.dev":
        monkeypatch.setenv("GITHUB_CODESPACES_PORT_FORWARDING_DOMAIN", domain)
        pattern = codespace_origins()
        assert f"--ServerApp.allow_origin_pat={pattern}" in command(clone, 8888)
        assert origin_matches_pat(pattern, f"https://fluffy-train-4x-8888.{domain}")
        assert not origin_matches_pat(pattern, f"https://other-train-8888.{domain}")
        assert not origin_matches_pat(pattern, f"https://fluffy-train-4x-8888.{domain}.example")
        assert not origin_matches_pat(pattern, "https://fluffy-train-4x-8888xappxgithubxdev")
