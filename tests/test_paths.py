"""Checkouts as git's settings make them, and folders whose names mean something to a shell."""

import hashlib
import subprocess

import pytest

from labkit.profiles import ROOT


@pytest.fixture
def clone(tmp_path):
    """A function that clones HEAD into a folder of the given name, with settings of git's own."""

    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def make(name="clone", *settings):
        options = [part for setting in settings for part in ("-c", setting)]
        command = ["git", "clone", "-q", *options, str(ROOT), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    "settings",
    [("core.autocrlf=true",), ("core.autocrlf=false", "core.eol=crlf"), ("core.autocrlf=input",)],
)
def test_every_checkout_has_the_bytes_that_were_committed(clone, settings):
    home = clone("clone", *settings)
    stored = subprocess.run(
        ["git", "ls-tree", "-r", "HEAD"], cwd=home, capture_output=True, text=True, check=True
    ).stdout
    wrong = []
    for line in stored.splitlines():
        about, _, name = line.partition("\t")
        path = home / name
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != about.split()[2]:
            wrong.append(name)
    assert not wrong
    assert b"\r" not in (home / "data" / "travel.jsonl").read_bytes()
    assert not subprocess.run(
        ["git", "status", "--porcelain"], cwd=home, capture_output=True, text=True, check=True
    ).stdout
    done = subprocess.run([home / "lab", "help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: ./lab" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "name", ["brackets [1-9] {a,b}", "ünï ço dé", "$HOME *?'\" quotes", "-dash"]
)
def test_a_clone_may_lie_in_a_folder_of_any_name(clone, name):
    done = subprocess.run([clone(name) / "lab", "status"], capture_output=True, text=True)
    assert done.returncode == 0 and "01 setup" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["s3::clone", "a:b"])
def test_a_clone_with_a_colon_in_its_path_is_refused_in_one_sentence(clone, name):
    home = clone(name)
    (home / "lab").write_bytes((ROOT / "lab").read_bytes())
    done = subprocess.run([home / "lab", "status"], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert (
        done.stderr == f"error: the folder of the labs, {home}, has a colon in its path. "
        "Move it to a path without one and run ./lab again.\n"
    )
