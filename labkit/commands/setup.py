"""./lab setup: the locked environment in .venv, from an index, or from a folder of wheels where
there is no network.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from labkit import extras
from labkit.commands.installer import CPU_INDEX, UV, WHEEL, Installer, tail
from labkit.errors import LabError
from labkit.extras import pins
from labkit.folders import MARK, own, remove
from labkit.machine import TELEMETRY_OFF
from labkit.profiles import ROOT
from labkit.progress import Progress, clock

VENV = ROOT / ".venv"
# the extras with packages of their own
EXTRAS = [path.stem.removeprefix("extras-") for path in (ROOT / "locks").glob("extras-*.txt")]
CONDA = "on-device-lab"  # the name in environment.yml
# In .venv, until all is installed: on its disk, whose files then are links, and with nothing left
# that a damaged file would come back from.
CACHE = "uv-cache"
BUILD = ("--no-deps", "--no-build-isolation")  # with the setuptools of the lock
CHECK = """
import importlib, importlib.metadata, time
for module in "torch", "onnxruntime_genai", "olive":
    started = time.perf_counter()
    importlib.import_module(module)
    seconds = time.perf_counter() - started
    package = importlib.metadata.packages_distributions()[module][0]
    version = importlib.metadata.version(package)
    print(f"  {package} {version}: imported in {seconds:.1f} s", flush=True)
"""


def main(arguments: list[str]) -> int:
    """Installs, or with --download only fetches."""
    parser = argparse.ArgumentParser(
        prog="./lab setup", description="Installs the locked environment into .venv."
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="CUDA 12 packages for the gpu profile (4.7 GB to download)",
    )
    parser.add_argument(
        "--download",
        metavar="DIR",
        type=Path,
        help="only fill DIR with all wheels, for --wheels elsewhere",
    )
    parser.add_argument(
        "--wheels", metavar="DIR", type=Path, help="install from DIR alone, without any network"
    )
    parser.add_argument(
        "--extra",
        metavar="NAME",
        choices=sorted(EXTRAS),
        help=f"only what an extra needs beside the labs: {', '.join(sorted(EXTRAS))}",
    )
    options = parser.parse_args(arguments)
    if options.wheels and not options.wheels.is_dir():
        raise LabError(
            f"the folder {options.wheels} is missing. Fill it with './lab setup --download DIR' "
            "where there is a network."
        )
    if options.download:
        download(options.download.resolve(), gpu=options.gpu)
    elif options.extra:
        install_extra(options.extra, wheels=options.wheels and options.wheels.resolve())
    elif ready(gpu=options.gpu):
        print(
            f"{VENV} is complete and in step with {_marker()['lock']}. To install it anew, "
            "delete that folder first."
        )
    else:
        install(gpu=options.gpu, wheels=options.wheels.resolve() if options.wheels else None)
    return 0


def enter(argv: list[str], *, install_first: bool) -> None:
    """Replaces this process by the same command in the environment, installing it where told to.

    LAB_PYTHON names the python of another environment to use; in the conda environment of
    environment.yml, that one is.
    """
    python = os.environ.get("LAB_PYTHON") or str(VENV / "bin" / "python")
    entered = os.environ.pop("LAB_ENTERED", None)  # a program that starts a python of another name
    if (
        os.environ.get("CONDA_DEFAULT_ENV") == CONDA
        or os.path.abspath(sys.executable) == os.path.abspath(python)
        or entered == python
    ):
        os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
        return
    if not os.environ.get("LAB_PYTHON") and not ready():
        if not install_first:
            return
        install(gpu=_marker().get("lock") == "gpu.txt")
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    sys.stdout.flush()
    try:
        os.execve(
            python,
            [python, "-P", "-m", "labkit", *argv],
            os.environ | {"PATH": path, "LAB_ENTERED": python},
        )
    except OSError as error:
        raise LabError(
            f"LAB_PYTHON names {python}, which is no program ({error.strerror}). Unset it to use "
            f"{VENV}, or name the python of an environment."
        ) from None


def ready(*, gpu: bool | None = None) -> bool:
    """Whether .venv is complete and made from the lock as it is now (with *gpu* given: from the
    lock of that kind).
    """
    marker = _marker()
    return bool(
        marker
        and gpu in (None, marker["lock"] == "gpu.txt")
        and marker["folder"] == str(VENV)
        and marker["digest"] == _digest(ROOT / "locks" / marker["lock"])
        and (VENV / "bin" / "python").exists()
    )


def install(*, gpu: bool = False, wheels: Path | None = None) -> None:
    """Makes .venv from scratch and installs a lock into it; LabError says what to do where that
    fails.
    """
    started = time.monotonic()
    python = VENV / "bin" / "python"
    with _hold(), Progress() as progress:
        _need_space(VENV, 15 if gpu else 5)
        progress.show("make .venv")
        # what an interrupted call has fetched is not fetched again
        kept = {"labkit-setup.lock", MARK} | (set() if _marker() else {CACHE})
        for old in VENV.iterdir():
            if old.name not in kept:
                remove(old, inside=VENV)
        _make_venv(VENV)
        progress.line(f"make .venv: Python {sys.version.split()[0]}, {clock(progress.elapsed())}")
        installer = Installer(python, wheels, progress)
        installer.use_uv(VENV / CACHE)
        lock, source = ("gpu.txt", installer.sources[0]) if gpu else _choose(installer, VENV)
        path = ROOT / "locks" / lock
        _install_builder(installer, path, source)
        installer.run(f"packages of {lock}", ["install", *BUILD, *source, "-r", str(path)])
        progress.line(
            f"packages of {lock}: {len(pins(path))} with {installer.name}, "
            f"{clock(progress.elapsed())}"
        )
        site = subprocess.run(
            [python, "-c", "import site; print(site.getsitepackages()[0])"],
            capture_output=True,
            text=True,
            check=True,
        )
        Path(site.stdout.strip(), "on-device-lab.pth").write_text(f"{ROOT}\n")
        progress.show("first import")
        with ThreadPoolExecutor() as pool:
            # what is installed stays: it is a further name of the same files
            dropped = pool.submit(remove, VENV / CACHE, inside=VENV)
            _check(python, progress)
        dropped.result()
        aside = VENV / "labkit-lock.json.new"
        aside.write_text(json.dumps({"lock": lock, "digest": _digest(path), "folder": str(VENV)}))
        aside.replace(VENV / "labkit-lock.json")
    print(
        f"ready after {clock(time.monotonic() - started)}. Next: './lab run' (all labs) or "
        "'./lab open' (JupyterLab)."
    )


def install_extra(name: str, *, wheels: Path | None = None) -> None:
    """Installs the lock of the extra *name* into a folder of its own in .venv."""
    if not ready():
        raise LabError("the labs are not installed. Run './lab setup' first.")
    lock, folder = extras.lock_of(name), extras.FOLDER / name
    partial = folder.with_name(f".partial-{name}")
    with _hold(), Progress() as progress:
        _need_space(VENV, 1)
        remove(partial, inside=VENV)
        installer = Installer(VENV / "bin" / "python", wheels, progress)
        installer.use_uv(VENV / CACHE)
        command = ["install", "--no-deps", *installer.sources[0], "--target", str(partial)]
        installer.run(f"packages of {lock.name}", [*command, "-r", str(lock)])
        (partial / extras.MARKER).write_text(extras.digest_of(name))
        remove(folder, inside=VENV)
        partial.rename(folder)
        remove(VENV / CACHE, inside=VENV)
        progress.line(f"packages of {lock.name}: {len(pins(lock))}, {clock(progress.elapsed())}")


def download(folder: Path, *, gpu: bool = False) -> None:
    """Fills *folder* with a wheel of every package of the lock, for the Python that runs this."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, Progress() as progress:
        _need_space(folder, 15 if gpu else 5)
        progress.show("make a temporary environment")
        python = Path(temporary, "bin", "python")
        _make_venv(Path(temporary))
        # with pip: uv downloads only what it installs
        installer = Installer(python, None, progress)
        lock, source = ("gpu.txt", ()) if gpu else _choose(installer, folder)
        path = ROOT / "locks" / lock
        # what an interrupted call has fetched is not fetched again
        source = (*source, "--find-links", str(folder))
        _install_builder(installer, path, source)
        # the one package that comes as source is built here, so that --wheels needs no build
        command = ["wheel", *BUILD, *source, "--wheel-dir", str(folder)]
        installer.run(f"packages of {lock}", [*command, "-r", str(path)])
        taken = clock(progress.elapsed())
        with contextlib.suppress(LabError):  # --wheels can do without
            installer.run("uv", [*command, WHEEL, UV], PIP_RETRIES="1")
        mb = sum(file.stat().st_size for file in folder.glob("*.whl")) / 1e6
        progress.line(f"packages of {lock}: {len(pins(path))}, {mb:,.0f} MB in {folder}, {taken}")
    print(
        f"Next, on a machine with Python 3.{sys.version_info[1]}, DIR being a copy of that "
        f"folder: './lab setup{' --gpu' if gpu else ''} --wheels DIR'."
    )


def _choose(installer: Installer, target: Path) -> tuple[str, tuple[str, ...]]:
    """The lock that fits the build of torch that is found here, and the source that has it."""
    progress = installer.progress
    progress.show("look for a CPU build of torch")
    found, source = installer.find_torch(pins(ROOT / "locks" / "cpu.txt")["torch"])
    # only the default build of torch for Linux asks for the CUDA libraries
    if "+cpu" in found or not sys.platform.startswith("linux"):
        progress.line(f"look for a CPU build of torch: {found}, {clock(progress.elapsed())}")
        return "cpu.txt", source
    _need_space(target, 15)
    progress.line(
        "look for a CPU build of torch: none can be reached, so the default build is "
        "taken, with its CUDA libraries: about 3 GB to download, 8 GB on disk. To avoid "
        f"that, press Ctrl-C and use a network that reaches {CPU_INDEX[1]}."
    )
    return "cpu-cuda-torch.txt", source


def _install_builder(installer: Installer, lock: Path, source: tuple[str, ...]) -> None:
    """Installs the locked setuptools: packages that come as source are built with it, not with
    today's newest.
    """
    builder = f"setuptools=={pins(lock)['setuptools']}"
    installer.run("setuptools", ["install", "--no-deps", *source, builder])


def _make_venv(folder: Path) -> None:
    # within an environment, its own base: the environment may be the one that is made anew
    base = getattr(sys, "_base_executable", sys.executable)
    made = subprocess.run(
        [base, "-P", "-m", "venv", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if made.returncode:
        raise LabError(
            f"{base} cannot make a virtual environment in {folder}. On Debian and Ubuntu "
            f"install python3.{sys.version_info[1]}-venv ('sudo apt install ...') and run "
            f"'./lab setup' again.{tail([made.stdout])}"
        )


def _check(python: Path, progress: Progress) -> None:
    # what it imports is compiled here, and kept: uv compiles nothing, and each kernel would anew
    unset = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    env = TELEMETRY_OFF | {key: value for key, value in os.environ.items() if key not in unset}
    done = subprocess.run([python, "-c", CHECK], capture_output=True, text=True, env=env)
    if done.returncode:
        raise LabError(
            "the packages are installed, but one cannot be imported. Run './lab setup' again; "
            "if that does not help, report what "
            f"follows.{tail(done.stderr.splitlines(keepends=True))}"
        )
    progress.line(f"first import: {clock(progress.elapsed())}\n{done.stdout.rstrip()}")


@contextlib.contextmanager
def _hold():
    """Holds .venv for one setup; LabError where another one is at work, or where .venv is somebody
    else's.
    """
    lock = VENV / "labkit-setup.lock"
    try:
        if VENV.exists() and any(VENV.iterdir()) and not lock.exists():
            raise LabError(
                f"{VENV} was not made by './lab setup', which would have to delete it. Move it "
                "away and run './lab setup' again."
            )
        own(VENV)
        lock.touch()
    except PermissionError:
        raise LabError(
            f"{VENV} cannot be made or changed by you. Run './lab setup' as the user whose clone "
            "this is. The user of a dev container is not root: there, take a clone that is not "
            "root's."
        ) from None
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(
                "another './lab setup' is at work in this folder. Wait until it has ended."
            ) from None
        yield


def _need_space(folder: Path, gb: int) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < gb:
        raise LabError(
            f"{folder} is on a disk with {free:.1f} GB free, and {gb} GB are needed. Free some "
            "space, or move the folder of the labs to a larger disk, and run './lab setup' "
            "again."
        )


def _marker() -> dict:
    """What setup noted when it was done; {} where it was not, or the note cannot be read."""
    try:
        note = json.loads((VENV / "labkit-lock.json").read_text())
        return {key: str(note[key]) for key in ("lock", "folder", "digest")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _digest(path: Path) -> str:
    # of the pins alone: another comment is no reason to install anew
    return hashlib.sha256(json.dumps(pins(path)).encode()).hexdigest() if path.exists() else ""
