"""A disk that takes no more: one sentence says so, nothing half done stays on it, and once there
is space the same call works.

The disks are real: small ones in memory, filled to the last byte.
"""

import errno
import os
import re
import shutil
import subprocess

import pytest
from azure.ai.ml.entities import Model
from samples import CPU, writes
from tiny_course import only_lab, write_notebook

from labkit.commands import main, run
from labkit.course import Entry
from labkit.errors import LabError, disk_is_full, disk_reason, file_problem
from labkit.folders import MARK, own
from labkit.products import Products
from labkit.registry.local import LocalRegistry
from labkit.registry.manifest import write_manifest
from labkit.session import Lab

FULL = r"the disk that holds .* is full\. Free some space"
FILL = """
def fill(path, left=0):
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass
        file.truncate(file.tell() - left)
"""
exec(FILL)  # the same text runs in kernels


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A disk of 4 MB that holds the run folders, and a function that takes its free space."""

    class Disk:
        place = tmp_path / "disk"
        filler = place / "filler"

        def fill(self, left=0):
            fill(self.filler, left)  # noqa: F821

        def free(self):
            self.filler.unlink()

        def read_only(self, on=True):
            mode = "remount,ro" if on else "remount,rw"
            subprocess.run(["mount", "-o", mode, Disk.place], check=True)

    Disk.place.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "none", Disk.place],
            stderr=subprocess.DEVNULL,
        ).returncode
    )
    if not mounted:
        pytest.skip("no disk can be mounted here: that needs root")
    monkeypatch.setenv("LAB_RUNS", str(Disk.place / "runs"))
    yield Disk()
    subprocess.run(["umount", "--lazy", Disk.place], check=True)


@pytest.fixture
def lab(disk):
    lab = Lab("02", CPU)
    lab.keep("base", writes("whole"))
    return lab


def told(pattern: str, text: str) -> bool:
    return bool(re.search(f"^error: .*{pattern}", text, re.MULTILINE))


def tree(folder) -> dict[str, str]:
    """Path -> text, of the files of a run folder that no other call writes."""
    return {
        str(path.relative_to(folder)): path.read_text(errors="replace")
        for path in folder.rglob("*")
        if path.is_file() and "logs" not in path.parts and path.name not in (".lock", "awq")
    }


# ---- a step that meets it, and what the libraries say


def torch_save(recipe, out):
    import torch

    out.mkdir()
    torch.save(torch.zeros(2_000_000), out / "model.pt")


def safetensors(recipe, out):
    import torch
    from safetensors.torch import save_file

    out.mkdir()
    save_file({"weights": torch.zeros(2_000_000)}, out / "model.safetensors")


def numpy_save(recipe, out):
    import numpy as np

    out.mkdir()
    np.save(out / "weights.npy", np.zeros(1_000_000))


def copied(recipe, out):
    big = out.parent.parent.parent.parent / "big"
    big.mkdir(exist_ok=True)
    (big / "file").write_bytes(bytes(8_000_000))
    shutil.copytree(big, out)


def prints(recipe, out):
    print("a line\n" * 10_000)
    os.write(1, b"from C\n")
    out.write_bytes(bytes(8_000_000))


def wrapped(recipe, out):
    out.mkdir()
    try:
        (out / "file").write_bytes(bytes(8_000_000))
    except OSError as error:
        raise ValueError("the library says nothing of a disk") from error


STEPS = {
    "safetensors": safetensors,
    "torch.save, which says 'unexpected pos'": torch_save,
    "numpy, which says '... requested and ... written'": numpy_save,
    "copytree, whose error has no number": copied,
    "a step that prints much": prints,
    "an error wrapped in another": wrapped,
}


@pytest.mark.parametrize("left", [0, 40_000, 1_000_000], ids=lambda left: f"{left} bytes left")
@pytest.mark.parametrize("build", STEPS.values(), ids=STEPS)
def test_a_step_on_a_full_disk(disk, lab, build, left):
    before = tree(lab.folder)
    disk.fill(left)
    with pytest.raises(LabError, match=f"^awq: {FULL}") as caught:
        lab.keep("awq", build)
    assert "and run the cell again." in str(caught.value)
    assert tree(lab.folder) == before
    assert not list(lab.folder.glob(".partial*")), "what is half done keeps the disk full"
    assert lab.path("base").read_text() == "whole"
    disk.free()
    assert lab.keep("awq", writes("now")).read_text() == "now"


def test_a_step_on_a_read_only_disk(disk, lab):
    """The lock of the folder meets it first; a notebook shows the paragraph."""
    disk.read_only()
    with pytest.raises(OSError) as caught:
        lab.keep("awq", writes("x"))
    said = file_problem(caught.value)
    assert re.match(r"the disk that holds .* is read-only\. .*LAB_RUNS", said)
    assert lab.path("base").read_text() == "whole"
    disk.read_only(False)
    assert lab.keep("awq", writes("now")).read_text() == "now"


def test_a_quota_is_told_from_a_full_disk(disk, lab):
    def build(recipe, out):
        out.mkdir()
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with pytest.raises(LabError, match="^awq: the disk that holds .* your quota is used up"):
        lab.keep("awq", build)
    assert not list(lab.folder.glob(".partial*"))


def test_a_product_that_is_whole_and_finds_no_room_for_its_stamp(disk, lab, monkeypatch):
    put = lab.products.put

    def on_a_full_disk(*arguments, **facts):
        disk.fill()
        return put(*arguments, **facts)

    monkeypatch.setattr(lab.products, "put", on_a_full_disk)
    with pytest.raises(LabError, match=f"^awq: {FULL}"):
        lab.keep("awq", writes("too late"))
    assert not lab.products.is_current("awq")
    monkeypatch.undo()
    disk.free()
    assert lab.keep("awq", writes("now")).read_text() == "now"


def test_the_log_alone_finds_no_room(disk, lab):
    """The step itself needs none, and must not fail."""
    disk.fill()

    def build(recipe, out):
        print("a line\n" * 10_000)
        disk.free()
        out.write_text("whole")

    assert lab.keep("awq", build).read_text() == "whole"


# ---- Olive, which logs the error and returns no model


@pytest.mark.parametrize("left", [0, 300_000], ids=lambda left: f"{left} bytes left")
def test_an_olive_run_on_a_full_disk(disk, lab, tiny, left):
    import olive

    def build(workflow, out):
        places = {"output_dir": str(out), "cache_dir": str(lab.folder / ".olive-cache")}
        return olive.run(
            {
                "input_model": {"type": "HfModel", "model_path": str(tiny)},
                "passes": {"capture": {"type": "ModelBuilder", "precision": "fp32"}},
                "log_severity_level": 1,
            }
            | places
        )

    disk.fill(left)
    with pytest.raises(LabError, match=f"^onnx: {FULL}") as caught:
        lab.keep("onnx", build)
    assert "Olive produced no model" not in str(caught.value).split("The end of")[0]
    assert {path.name for path in lab.folder.iterdir()} <= {
        ".stamps",
        ".lock",
        "logs",
        "base",
        MARK,
    }
    disk.free()
    assert (lab.keep("onnx", build) / "model.onnx").exists()


# ---- ./lab run

SETUP = FILL + (
    "import os\n"
    "from pathlib import Path\n"
    "from labkit.errors import LabError\n"
    "from labkit.profiles import resolve_profile\n"
    "from labkit.session import Lab\n"
    "from labkit.starting import _show_known_errors_in_short\n"
    "_show_known_errors_in_short()\n"
    "lab = Lab('01', resolve_profile())\n"
    "disk = Path(os.environ['LAB_RUNS']).parent\n"
    "first = not (disk.parent / 'once').exists()\n"
    "(disk.parent / 'once').touch()\n"
    "lab.keep('base', lambda recipe, out: out.write_text('whole'))\n"
)
CELLS = {
    "in a step": (
        "def build(recipe, out):\n"
        "    out.mkdir()\n"
        "    if first: fill(disk / 'filler')\n"
        "    (out / 'file').write_bytes(bytes(100_000))\n"
        "lab.keep('awq', build)\n",
        "awq: " + FULL,
    ),
    "in a plain cell": (
        "if first: fill(disk / 'filler')\nlab.write('train.jsonl', 'x' * 100_000)",
        FULL,
    ),
    "while the failed notebook is written": (
        "if first:\n    fill(disk / 'filler')\n    raise LabError('the paragraph.')",
        r"the paragraph\.",
    ),
    "while the executed notebook is written": ("if first: fill(disk / 'filler')", FULL),
}


@pytest.fixture
def one_lab(disk, course, monkeypatch):
    monkeypatch.setenv("LAB_RUNS", str(disk.place / "runs"))
    only_lab(Entry("setup", makes=("base",)))
    return disk.place / "runs" / "cpu"


@pytest.mark.parametrize("when", CELLS)
def test_a_run_that_fills_the_disk(disk, one_lab, when, capfd):
    code, said = CELLS[when]
    write_notebook("01", SETUP + code)
    assert main(["run"]) == 1
    out, err = capfd.readouterr()
    assert told(said, out), out + err
    assert "Traceback" not in out + err
    assert not list(one_lab.glob(".partial*")) and not list(one_lab.glob("notebooks/.*partial*"))
    assert (one_lab / "base").read_text() == "whole"
    disk.free()
    assert main(["run"]) == 0
    assert Products(one_lab).is_current("notebooks/01_setup.ipynb")
    assert not list(one_lab.glob("notebooks/*failed*"))


@pytest.mark.parametrize("what", ["write_summary", "write_report"])
def test_the_table_of_a_run_comes_before_what_finds_no_room(
    disk, one_lab, what, monkeypatch, capsys
):
    write_notebook("01", SETUP)
    real = getattr(run, what)

    def on_a_full_disk(*arguments, **options):
        disk.fill()
        return real(*arguments, **options)

    monkeypatch.setattr(run, what, on_a_full_disk)
    assert main(["run"]) == 1
    out, err = capsys.readouterr()
    assert "01 setup      complete" in out
    assert told(FULL, err) and "Traceback" not in err
    monkeypatch.setattr(run, what, real)
    disk.free()
    assert main(["run"]) == 0
    assert "complete and unchanged" in capsys.readouterr().out
    assert (one_lab / "summary.json").exists() and (one_lab / "report.html").exists()


def test_a_run_on_a_read_only_disk(disk, one_lab, capsys):
    write_notebook("01", SETUP)
    disk.read_only()
    assert main(["run"]) == 1
    assert told("the disk that holds .* is read-only", capsys.readouterr().err)
    disk.read_only(False)
    assert main(["run"]) == 0


# ---- the registry of the rehearsal


def test_a_registry_on_a_full_disk(disk, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "model.onnx").write_bytes(bytes(300_000))
    write_manifest(package, "m")
    registry = LocalRegistry(disk.place / "registry", tmp_path / "logs")

    def register():
        return registry.register(
            Model(name="m", path=package), registry.client.models.create_or_update
        )

    def there():
        return sorted(path.name for path in disk.place.rglob("*") if path.is_file())

    own(disk.place / "registry")
    disk.fill(200_000)
    before = there()
    with pytest.raises(LabError, match="registering m: no space is left on the disk"):
        register()
    assert there() == before
    disk.free()
    assert register() == "1"
    disk.fill(200_000)
    before = there()
    with pytest.raises(LabError, match="downloading m 1: no space is left on the disk"):
        registry.download("m", "1", disk.place / "out")
    assert set(there()) == set(before)
    disk.free()
    assert (registry.download("m", "1", disk.place / "out") / "model.onnx").exists()


# ---- how it is told


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError("Not enough disk space. Needed: Unknown size"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("Error 28 of 30 records"), False),
    ],
    ids=str,
)
def test_a_full_disk_is_told_from_others(error, full):
    assert disk_is_full(error) == full
    outer = KeyError("x")
    outer.__context__ = error
    assert disk_is_full(outer) == full


def test_a_log_may_know_what_the_error_does_not():
    log = "[ERROR] Pass run failed.\nOSError: [Errno 28] No space left on device\n"
    assert disk_reason(LabError("Olive produced no model."), log=log).startswith("is full")
