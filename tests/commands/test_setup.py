"""./lab setup: what it installs, and what it refuses."""

import functools
import http.server
import importlib.metadata
import json
import os
import shutil
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from labkit import extras
from labkit.commands import installer, main, setup
from labkit.errors import LabError
from labkit.profiles import ROOT

PACKAGES = {"torch": "2.0", "onnxruntime-genai": "1.0", "olive-ai": "1.0", "setuptools": "1.0"}
MODULES = {"onnxruntime-genai": "onnxruntime_genai", "olive-ai": "olive"}
INDEXES: list[http.server.HTTPServer] = []  # that a test has opened


@pytest.fixture(autouse=True)
def closed():
    """No index is left open by a test."""
    yield
    while INDEXES:
        with INDEXES.pop() as index:
            index.shutdown()


@pytest.fixture
def venv(tmp_path, monkeypatch):
    """A .venv of the test's own."""
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    return tmp_path / ".venv"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A virtual environment as setup makes it, to copy."""
    folder = tmp_path_factory.mktemp("bare")
    setup._make_venv(folder)
    return folder


@pytest.fixture
def course(bare, venv, tmp_path, monkeypatch):
    """A folder of labs with locks of small packages, and no settings of pip or uv but the test's:
    no index can be reached.
    """
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nindex-url = http://127.0.0.1:9/index\nretries = 0\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    monkeypatch.setattr(installer, "CPU_INDEX", ("--extra-index-url", "http://127.0.0.1:9/cpu"))
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    copy = functools.partial(shutil.copytree, bare, symlinks=True, dirs_exist_ok=True)
    monkeypatch.setattr(setup, "_make_venv", copy)
    (tmp_path / "locks").mkdir()
    lock = "".join(f"{name}=={version}  # needed\n" for name, version in PACKAGES.items())
    (tmp_path / "locks" / "cpu.txt").write_text(lock)
    (tmp_path / "locks" / "cpu-cuda-torch.txt").write_text(lock + "triton==1.0\n")
    return settings


def write_wheel(folder, name, version, files, tag="py3-none-any"):
    """A wheel in *folder* that holds *files* (path in it -> content) and its own metadata."""
    folder.mkdir(exist_ok=True)
    name = name.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as wheel:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o100755 << 16  # as pip wants it for a program
            wheel.writestr(entry, content)


def write_packages(folder, *, build="+cpu"):
    for name, version in PACKAGES.items():
        module = MODULES.get(name, name)
        version += build if name == "torch" else ""
        write_wheel(folder, name, version, {f"{module}/__init__.py": ""})
    return folder


@functools.cache
def uv_files() -> dict[str, bytes]:
    """The uv of this environment, where ./lab setup has put it."""
    try:
        files = importlib.metadata.files("uv")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no uv here: pip has made this environment")
    found = {str(file): file.read_binary() for file in files if file.parts[0] == "uv"}
    program = next(file for file in files if file.name == "uv")
    version = installer.UV.split("==")[1]
    return found | {f"uv-{version}.data/scripts/uv": program.read_binary()}


def write_uv(folder, code=None):
    """A wheel of uv: the true one, or Python *code*."""
    files = uv_files() if code is None else {"uv/__init__.py": "", "uv/__main__.py": code}
    write_wheel(folder, "uv", installer.UV.split("==")[1], files)


def installed(venv) -> dict[str, str]:
    site = next(venv.glob("lib/*/site-packages"))
    return {
        d.name.replace("_", "-"): d.version for d in importlib.metadata.distributions(path=[site])
    }


def installers(venv) -> set[str]:
    """Which programs have installed the packages of the lock."""
    site = next(venv.glob("lib/*/site-packages"))
    return {
        (site / f"{name}.dist-info" / "INSTALLER").read_text().strip()
        for name in ("torch-2.0+cpu", "olive_ai-1.0", "onnxruntime_genai-1.0")
    }


def serve(folder: Path):
    """An index on this machine of the wheels in *folder*: its address, and what it was asked."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            parts = self.path.strip("/").split("/")
            if parts[0] != "index":
                return super().do_GET()
            name = parts[1].replace("-", "_")
            links = "".join(
                f'<a href="/{w.name}">{w.name}</a>' for w in folder.glob(f"{name}-*.whl")
            )
            body = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
            self.send_response(200 if links else 404)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
    )
    INDEXES.append(server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/index", asked


def serve_to_pip(settings: Path, folder: Path) -> list[str]:
    """pip.conf names an index of all packages, from *folder*, as its only one; what is asked."""
    write_uv(write_packages(folder))
    address, asked = serve(folder)
    settings.write_text(f"[global]\nindex-url = {address}\n")
    return asked


def test_setup_installs_a_folder_of_wheels_with_uv(course, venv, tmp_path, capfd):
    write_uv(write_packages(tmp_path / "wheels"))
    assert main(["setup", "--wheels", str(tmp_path / "wheels")]) == 0, capfd.readouterr().err
    assert installed(venv).items() >= (PACKAGES | {"torch": "2.0+cpu"}).items()
    assert installers(venv) == {"uv"} and setup.ready(gpu=False)
    assert "cpu.txt: 4 with uv" in capfd.readouterr().out
    assert not (venv / "uv-cache").exists(), "it would hold all packages once more"
    compiled = list(venv.glob("lib/*/site-packages/olive/__pycache__/*.pyc"))
    assert compiled, "each process would compile anew what is imported"


def test_setup_gives_uv_the_settings_of_pip(course, venv, tmp_path, capfd):
    write_uv(write_packages(tmp_path / "wheels"))
    address, asked = serve(tmp_path / "wheels")
    # one index has none of them, as a company's own may
    (tmp_path / "none").mkdir()
    empty, _ = serve(tmp_path / "none")
    course.write_text(f"[global]\nindex-url = {empty}\n[install]\nextra-index-url = {address}\n")
    assert main(["setup"]) == 0, capfd.readouterr().err
    assert installers(venv) == {"uv"} and any("olive" in path for path in asked)


def test_setup_prefers_uvs_own_settings(course, venv, tmp_path, monkeypatch, capfd):
    serve_to_pip(course, tmp_path / "wheels")
    write_packages(tmp_path / "mine")
    mine, asked = serve(tmp_path / "mine")
    monkeypatch.setenv("UV_INDEX_URL", mine)
    assert main(["setup"]) == 0, capfd.readouterr().err
    assert installers(venv) == {"uv"} and any("olive" in path for path in asked)


def test_setup_passes_over_empty_settings(course, venv, tmp_path, monkeypatch, capfd):
    """As pip does: they do not lead past a company's index to that of everybody."""
    asked = serve_to_pip(course, tmp_path / "wheels")
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, "")
    assert main(["setup"]) == 0, capfd.readouterr().err
    assert installers(venv) == {"uv"} and any("olive" in path for path in asked)


def test_setup_shows_no_password_of_an_address_that_uv_cannot_read(
    course, venv, tmp_path, monkeypatch, capfd
):
    serve_to_pip(course, tmp_path / "wheels")
    monkeypatch.setenv("UV_INDEX", "https://me:s3/cret@127.0.0.1:9/index")  # a slash is %2F
    assert main(["setup"]) == 0, capfd.readouterr().err
    said = "".join(capfd.readouterr())
    assert "invalid value 'https://****@127.0.0.1:9/index'" in said and "cret" not in said


FAILS = "print('error: no such luck'); raise SystemExit(2)"
FINDS = "import sys; '--dry-run' in sys.argv and sys.exit(print(' + torch==2.0+cpu'))\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "uv cannot be had, so pip"),
        (FAILS, "(error: no such luck)"),
        (FINDS + FAILS, "(error: no such luck)"),
    ],
    ids=["no uv", "uv fails", "uv fails to install"],
)
def test_setup_installs_with_pip_where_uv_does_not(course, venv, tmp_path, capfd, code, said):
    wheels = write_packages(tmp_path / "wheels")
    if code:
        write_uv(wheels, code)
    assert main(["setup", "--wheels", str(wheels)]) == 0, capfd.readouterr().err
    out = capfd.readouterr().out
    assert installers(venv) == {"pip"} and setup.ready() and "cpu.txt: 4 with pip" in out
    assert said in out and out.count("so pip installs") == 1


def test_download_fills_a_folder_and_goes_on_where_it_was_interrupted(
    course, venv, tmp_path, capfd
):
    served = write_packages(tmp_path / "served")
    write_uv(served, FAILS)
    address, asked = serve(served)
    course.write_text(f"[global]\nindex-url = {address}\nno-cache-dir = true\n")
    target = tmp_path / "target"
    assert main(["setup", "--download", str(target)]) == 0, capfd.readouterr().err
    assert {path.name for path in served.iterdir()} == {path.name for path in target.iterdir()}
    (target / "olive_ai-1.0-py3-none-any.whl").unlink()
    asked.clear()
    assert main(["setup", "--download", str(target)]) == 0
    fetched = {path for path in asked if path.endswith("any.whl") and "setuptools" not in path}
    assert "/olive_ai-1.0-py3-none-any.whl" in fetched
    assert not [path for path in fetched if "onnxruntime" in path]


def test_setup_keeps_what_an_interrupted_call_has_fetched(course, venv, tmp_path, capfd):
    wheels = write_packages(tmp_path / "wheels")
    write_uv(wheels, "import os; raise SystemExit(str(os.listdir(os.environ['UV_CACHE_DIR'])))")
    cache = venv / "uv-cache"
    setup.own(venv)
    (venv / "labkit-setup.lock").touch()
    cache.mkdir()
    (cache / "fetched").touch()
    assert main(["setup", "--wheels", str(wheels)]) == 0
    assert "(['fetched'])" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("name", "builds", "lock", "index"),
    [
        ("uv", ("+cpu", ""), "cpu.txt", False),
        ("uv", ("", "+cpu"), "cpu.txt", True),
        ("uv", ("", None), "cpu-cuda-torch.txt", False),
        ("pip", ("", "+cpu"), "cpu.txt", True),
        ("pip", ("", ""), "cpu-cuda-torch.txt", False),
    ],
)
def test_setup_chooses_the_lock_by_the_torch_that_is_found(
    course, venv, tmp_path, monkeypatch, capsys, name, builds, lock, index
):
    """*builds*: of torch on the default index and on PyTorch's; None where it is out of reach."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e12))
    addresses = []
    for number, build in enumerate(builds):
        folder = tmp_path / str(number)
        if build is None:
            addresses.append("http://127.0.0.1:9/index")
            continue
        write_packages(folder, build=build)
        if name == "uv":
            write_uv(folder)
        addresses.append(serve(folder)[0])
    course.write_text(f"[global]\nindex-url = {addresses[0]}\nretries = 0\n")
    cpu = ("--extra-index-url", addresses[1])
    monkeypatch.setattr(installer, "CPU_INDEX", cpu)
    setup._make_venv(venv)
    with setup.Progress() as progress:
        made = installer.Installer(venv / "bin" / "python", None, progress)
        made.use_uv(tmp_path / "cache")
        assert setup._choose(made, venv) == (lock, cpu if index else ())
        assert made.name == name
    assert ("3 GB" in capsys.readouterr().out) == (lock != "cpu.txt")


def test_setup_failure_says_what_to_do(course, venv, capsys):
    assert main(["setup"]) == 1
    out, error = capsys.readouterr()
    assert "uv cannot be had, so pip installs" in out
    assert (
        error.startswith("error: ")
        and "--wheels DIR" in error
        and "No matching distribution" in error
    )
    assert "Traceback" not in error and not setup.ready()


def test_setup_failure_of_the_install_shows_the_end_of_pip(course, venv, tmp_path, capsys):
    wheels = write_packages(tmp_path / "wheels")
    (wheels / "olive_ai-1.0-py3-none-any.whl").unlink()
    assert main(["setup", "--wheels", str(wheels)]) == 1
    error = capsys.readouterr().err
    assert "pip failed (exit 1)" in error and "No matching distribution" in error
    assert len(error.splitlines()) < 20 and not setup.ready()


def test_setup_leaves_a_foreign_environment_alone(venv, capsys):
    (venv / "bin").mkdir(parents=True)
    assert main(["setup"]) == 1
    assert "was not made by" in capsys.readouterr().err and (venv / "bin").exists()


def test_setup_refuses_a_full_disk(venv, monkeypatch, capsys):
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    assert main(["setup"]) == 1
    assert "1.0 GB free, and 5 GB are needed" in capsys.readouterr().err


def test_setup_says_that_a_folder_of_wheels_is_missing(capsys):
    assert main(["setup", "--wheels", "/no/such/folder"]) == 1
    assert "/no/such/folder is missing" in capsys.readouterr().err


def test_marker_of_another_lock_or_folder_is_not_ready(venv):
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    marker = {
        "lock": "cpu.txt",
        "digest": setup._digest(ROOT / "locks" / "cpu.txt"),
        "folder": str(venv),
    }

    def ready(**changes):
        (venv / "labkit-lock.json").write_text(json.dumps(marker | changes))
        return setup.ready(gpu=False)

    assert ready()
    assert not ready(digest="other") and not ready(folder="/moved") and not setup.ready(gpu=True)


# ---- what an extra needs beside the labs


@pytest.fixture
def extra(course, venv, tmp_path, monkeypatch):
    """Installs the labs, and writes the lock of the extra "app" and a folder with its wheel."""
    wheels = write_packages(tmp_path / "wheels")
    write_uv(wheels)
    assert main(["setup", "--wheels", str(wheels)]) == 0
    write_wheel(wheels, "engine", "1.0", {"engine/__init__.py": ""})
    (tmp_path / "locks" / "extras-app.txt").write_text("engine==1.0\n")
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    monkeypatch.setattr(extras, "FOLDER", venv / "extras")
    return ["setup", "--extra", "app", "--wheels", str(wheels)]


def test_an_extra_is_installed_beside_the_labs(extra, venv, tmp_path, capfd):
    with pytest.raises(LabError, match="Run './lab setup --extra app'"):
        extras.extra_packages("app")
    assert main(extra) == 0, capfd.readouterr().err
    folder = extras.extra_packages("app")
    assert (folder / "engine" / "__init__.py").exists() and "engine" not in installed(venv)
    assert setup.ready(gpu=False) and not (venv / "uv-cache").exists()
    (tmp_path / "locks" / "extras-app.txt").write_text("engine==2.0\n")
    with pytest.raises(LabError, match="Run './lab setup --extra app'"):
        extras.extra_packages("app")
    assert main(extra) == 1 and "pip failed" in capfd.readouterr().err
    assert folder.exists(), "what was installed stays until the new one is there"


def test_an_extra_needs_the_labs(venv, capsys):
    assert main(["setup", "--extra", "app"]) == 1
    assert "Run './lab setup' first" in capsys.readouterr().err


@pytest.mark.parametrize("refused", [(setup, "own"), (Path, "touch")])
def test_a_clone_of_another_user(venv, monkeypatch, capsys, refused):
    """As in a dev container, whose user is not root, on a clone of root's."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(venv))

    monkeypatch.setattr(*refused, refuse)
    assert main(["setup"]) == 1
    said = capsys.readouterr().err
    assert f"{venv} cannot be made or changed by you" in said and "LAB_RUNS" not in said
