"""The set-up script of ./lab room: what it does on an instance, on this machine."""

import http.server
import os
import subprocess
import threading

import pytest

from labkit.profiles import ROOT
from labkit.room.script import Setup

LAB = """#!/usr/bin/env bash
echo "lab $*" >>"$HOME/done"
if [[ $1 == setup ]]; then
    mkdir -p .venv/bin
    printf '#!/usr/bin/env bash\\necho "python $*" >>"$HOME/done"\\n' >.venv/bin/python
    chmod +x .venv/bin/python
fi
[[ $1 != "$FAILS" ]]
"""


@pytest.fixture
def repository(tmp_path):
    """A repository with a ./lab that notes what it is asked for, and two commits."""
    folder = tmp_path / "it's a repository"
    folder.mkdir()
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    for content in (LAB, "exit 1"):
        (folder / "lab").write_text(content)
        (folder / "lab").chmod(0o755)
        subprocess.run([*git, "add", "lab"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    return folder


@pytest.fixture
def run(tmp_path):
    """A function that runs a script in a home of its own; what it did, and how it ended."""
    home = tmp_path / "home"
    home.mkdir()

    def run(setup: Setup, **env):
        keep = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        ended = subprocess.run(
            ["bash", "-s"],
            input=setup.script().encode(),
            cwd=tmp_path,
            env=keep | {"HOME": str(home)} | env,
            capture_output=True,
        )
        done = home / "done"
        return ended, done.read_text().splitlines() if done.exists() else []

    run.home = home
    return run


BUNDLE = "https://example.com/b.tar?sig=a'b$(touch x)&c=%3D"


def test_it_clones_sets_up_and_catches_up(run, repository):
    setup = Setup(str(repository), "HEAD~1", BUNDLE, "0a1b", "04")
    ended, done = run(setup)
    assert ended.returncode == 0, ended.stderr
    wanted = ["lab help", "lab setup", "python -m ipykernel install --user --name on-device-lab"]
    wanted += ["lab doctor", f"lab catch-up 04 --from {BUNDLE} --fingerprint 0a1b"]
    assert done == wanted
    later = subprocess.run([run.home / "localfiles/catch-up", "05"], env={"HOME": str(run.home)})
    assert later.returncode == 0
    assert (run.home / "done").read_text().splitlines()[-1] == wanted[-1].replace("04", "05")
    assert not list(run.home.rglob("x"))


def test_without_a_bundle_there_is_nothing_to_catch_up_from(run, repository):
    ended, done = run(Setup(str(repository), "HEAD~1"))
    assert ended.returncode == 0 and done[-1] == "lab doctor"
    assert not (run.home / "localfiles/catch-up").exists()


@pytest.mark.parametrize("step", ["setup", "doctor", "catch-up"])
def test_a_step_that_fails_ends_it_so_that_azure_says_so(run, repository, step):
    setup = Setup(str(repository), "HEAD~1", BUNDLE, "0a1b", "04")
    ended, done = run(setup, FAILS=step)
    assert ended.returncode != 0 and done[-1].startswith(f"lab {step}")
    ended, again = run(setup)  # a startup, or somebody by hand
    assert ended.returncode == 0 and again[-1].startswith("lab catch-up 04")


def test_an_unknown_commit_leaves_no_half_clone(run, repository):
    ended, done = run(Setup(str(repository), "no-such-ref"))
    assert ended.returncode != 0 and not done
    assert not (run.home / "localfiles/on-device-lab").exists()


@pytest.mark.slow
def test_it_sets_up_this_clone_and_catches_up_from_a_server(run, tmp_path, monkeypatch):
    """All for real: git clone, ./lab setup, the kernel, and a bundle by http."""
    from labkit.bundles import write_bundle
    from labkit.course import LABS
    from labkit.profiles import resolve_profile
    from labkit.session import Lab

    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "instructor"))
    lab = Lab("01", resolve_profile())
    for name in LABS["01"].makes:
        lab.keep(name, lambda _, out: out.write_text("made"), {"of": 1})
    _, fingerprint = write_bundle(lab.products, lab.profile, tmp_path / "bundle.tar")

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_):
            """Nothing is printed."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/bundle.tar"
    try:
        ended, _ = run(Setup(str(ROOT), "HEAD", address, fingerprint, "02"))
    finally:
        server.shutdown()
        server.server_close()
    said = (ended.stdout + ended.stderr).decode()
    assert ended.returncode == 0, said[-3000:]
    clone = run.home / "localfiles" / "on-device-lab"
    for name in LABS["01"].makes:
        assert (clone / "runs" / "cpu" / name).read_text() == "made"
    kernel = run.home / ".local/share/jupyter/kernels/on-device-lab/kernel.json"
    assert str(clone / ".venv") in kernel.read_text()
