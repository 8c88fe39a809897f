"""What is the same, and what is not: a byte of a product, a setting, a machine, another place."""

import json
import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from samples import CPU, write_lines, writes
from tiny_course import make

from labkit import course as labs
from labkit import profiles
from labkit.commands import main, run, status
from labkit.errors import LabError
from labkit.figures import Estimate
from labkit.files import write_json
from labkit.models import model_source
from labkit.products import Products
from labkit.profiles import ROOT, resolve_profile
from labkit.session import Lab

# ---- a byte


def flip(lab: Lab, name: str, *, at: int = 100) -> None:
    """Changes one bit of a file of lab 04's product; size and times are as they were left, as
    with a failing disk.
    """
    path = lab.folder / "onnx" / name
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    # no program can put back the time at which an inode was changed: so the stamp is changed
    status, stamp = path.stat(), lab.folder / ".stamps" / "onnx.json"
    record = json.loads(stamp.read_text())
    seen = [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    record["files"][name]["seen"] = seen
    write_json(stamp, record)
    assert lab.products.is_current("onnx"), "size and times do not tell"


@pytest.fixture
def folder_product(runs):
    """Lab 04 with a product of two files, as ONNX models are."""

    def build(recipe, out):
        out.mkdir()
        (out / "model.onnx").write_bytes(bytes(1000))
        (out / "model.onnx.data").write_bytes(bytes(10_000))

    lab = Lab("04", CPU)
    lab.keep("onnx", build, "recipe")
    return lab


def test_a_flipped_bit_is_found_where_the_product_is_loaded(folder_product):
    flip(folder_product, "model.onnx.data", at=9_000)
    with pytest.raises(LabError, match=r"run lab 04 first.*was altered.*\(model.onnx.data\)"):
        Lab("05", CPU).path("onnx")


def test_a_flipped_bit_is_found_where_the_product_would_be_kept(folder_product, capsys):
    flip(folder_product, "model.onnx")
    folder_product.keep("onnx", writes("anew"), "recipe")
    assert "made anew, because it was altered since it was made (model.onnx)" in (
        capsys.readouterr().out
    )


def test_a_flipped_bit_of_what_is_needed_is_found_before_it_is_built_upon(folder_product):
    flip(folder_product, "model.onnx")
    with pytest.raises(LabError, match="run lab 04 first.*was altered"):
        folder_product.keep("onnx-merged", writes("x"), needs=("onnx",))
    assert not (folder_product.folder / "onnx-merged").exists()


def with_one_more(folder):
    (folder / "model.onnx.data2").touch()


def with_another_name(folder):
    (folder / "model.onnx.data").rename(folder / "model.onnx.dat")


def with_two_exchanged(folder):
    for source, out in (("model.onnx", "x"), ("model.onnx.data", "model.onnx"), ("x", "data")):
        (folder / source).rename(folder / out)


def replaced_by_a_link(folder):
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(folder / "model.onnx.data")


@pytest.mark.parametrize(
    "change",
    [with_one_more, with_another_name, with_two_exchanged, replaced_by_a_link],
    ids=lambda change: change.__name__,
)
def test_a_folder_with_other_files_is_another_product(folder_product, change):
    change(folder_product.folder / "onnx")
    assert not folder_product.products.is_current("onnx")


def test_a_local_model_of_the_same_size_is_another_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"old weights")
    profile = replace(CPU, model=str(tmp_path))
    before = model_source(profile)
    (tmp_path / "model.safetensors").write_bytes(b"new weights")
    assert model_source(profile) != before


# ---- what decides a run


def a_step_more(monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_STEPS", "9")


def a_workspace(monkeypatch, tmp_path):
    monkeypatch.delenv("LAB_REHEARSE")
    for name in ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE"):
        monkeypatch.setenv(name, "mine")


def a_workspace_s_file(monkeypatch, tmp_path):
    monkeypatch.delenv("LAB_REHEARSE")
    monkeypatch.setattr("labkit.registry.ROOT", tmp_path)
    (tmp_path / "config.json").write_text('{"workspace_name": "mine"}')


def a_changed_tone_file(monkeypatch, tmp_path):
    write_lines(tmp_path / "tone.jsonl", {"prompt": "Is it good?", "response": "no"})


def a_changed_stored_experiment(monkeypatch, tmp_path):
    shutil.copytree(ROOT / "data", tmp_path / "root" / "data")
    for folder in ("labkit", "notebooks/workflows"):
        shutil.copytree(ROOT / folder, tmp_path / "root" / folder)
    monkeypatch.setattr(run, "ROOT", tmp_path / "root")
    write_json(tmp_path / "root" / "data" / "order.json", {"changed": 1})


def another_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "machine_name", lambda: "another processor, 4 threads")


def another_package(monkeypatch, tmp_path):
    monkeypatch.setattr("labkit.products.versions", lambda: {"python": "4"})


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (a_step_more, ["01", "02", "03"]),
        (a_workspace, ["03"]),
        (a_workspace_s_file, ["03"]),
        (a_changed_tone_file, ["01", "02", "03"]),
        (a_changed_stored_experiment, ["01", "02", "03"]),
        (another_machine, ["01", "02", "03"]),
        (another_package, ["01", "02", "03"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_finished_run_is_not_finished_for_other_settings(
    executed, course, monkeypatch, tmp_path, capsys, change, again
):
    monkeypatch.setenv("LAB_REHEARSE", "1")
    tone = write_lines(tmp_path / "tone.jsonl", {"prompt": "Is it good?", "response": "yes"})
    monkeypatch.setitem(profiles.PROFILES, "cpu", replace(CPU, tone_data=str(tone)))
    assert main(["run"]) == 0
    executed.clear()
    assert main(["run"]) == 0 and executed == []
    change(monkeypatch, tmp_path)
    main(["status"])
    assert f"{again[0]} {labs.LABS[again[0]].name}" in capsys.readouterr().out
    assert main(["run"]) == 0 and executed == again


def test_speeds_hold_on_the_machine_they_were_measured_on(runs, monkeypatch, capsys):
    lab = Lab("01", CPU)
    lab.keep("base", writes("x"))
    lab.record("tokens_per_s", base=Estimate(20.0, unit="tokens/s"))
    lab.record("eval_loss", base=Estimate(3.0, unit="nats per token"))
    for module in ("summary", "session"):
        monkeypatch.setattr(f"labkit.{module}.machine_name", lambda: "another, 64 threads")
    elsewhere = Lab("01", CPU)
    assert elsewhere.figure("eval_loss", "base").mean == 3.0
    with pytest.raises(LabError, match="the figure tokens_per_s base is missing"):
        elsewhere.figure("tokens_per_s", "base")
    elsewhere.keep("base", writes("x"))
    assert "on another machine (" in capsys.readouterr().out
    assert elsewhere.summary()["made_on_another_machine"] == ["base"]


# ---- another place


@pytest.mark.parametrize("place", ["elsewhere", "Bücher ü", 'with "quotes" and \\', "a [1] b"])
def test_a_finished_run_stays_finished_where_it_is_copied_to(
    executed, course, monkeypatch, tmp_path, capsys, place
):
    def keep(folder):
        recipe = {"path": str(folder / "base"), "data": str(ROOT / "data")}
        Lab("01", resolve_profile()).keep("mine", writes("x"), recipe, needs=("base",))

    main(["run"])
    keep(course)
    executed.clear()
    shutil.copytree(course, tmp_path / place / "cpu", copy_function=shutil.copyfile)
    shutil.rmtree(course)
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / place))
    assert main(["run"]) == 0 and executed == []
    capsys.readouterr()
    keep(tmp_path / place / "cpu")
    assert "mine: kept" in capsys.readouterr().out


def test_products_of_one_second_are_in_the_order_in_which_they_were_made(runs):
    lab = Lab("01", CPU)
    names = [f"z{9 - n}" for n in range(9)]
    for name in names:
        lab.products.put(name, _file(lab.folder / ".w"), lab.products.decision(None), lab="01")
    assert [stamp.name for stamp in lab.products.stamps()] == names


def _file(path: Path) -> Path:
    path.write_text("x")
    return path


# ---- finished, and not


def test_a_run_that_failed_says_so_in_its_summary(executed, course):
    executed.fails = {"02"}
    assert main(["run"]) == 1
    summary = json.loads((course / "summary.json").read_text())
    assert summary["unfinished"] == ["02", "03"]
    assert summary["seconds"]["labs"].keys() == {"01"}, "no zeros for what never ran"
    executed.fails = set()
    assert main(["run"]) == 0
    assert json.loads((course / "summary.json").read_text())["unfinished"] == []


def test_a_lab_that_failed_after_its_last_product_is_unfinished(executed, course, monkeypatch):
    def execute(folder, profile, number, out, progress, *, expected=None):
        out.parent.mkdir(exist_ok=True)
        out.write_text("{}")
        make(number, LAB_LOCK_HELD=str(folder))
        return "03: FAILED" if number == "03" else ""

    monkeypatch.setattr(run, "execute", execute)
    assert main(["run"]) == 1
    assert json.loads((course / "summary.json").read_text())["unfinished"] == ["03"]


def test_a_run_killed_after_its_last_product_is_not_complete(executed, course, monkeypatch):
    """The lab has made all it makes, and its executed notebook is still that of the run before."""
    main(["run"])
    old = (course / "notebooks" / "03_infer.ipynb").read_text()
    child = os.fork()
    if child == 0:  # a process of its own, so that it can be killed like one
        Products(course).forget(run.executed("03"))

        def killed(folder, profile, number, out, progress, *, expected=None):
            make(number, LAB_LOCK_HELD=str(folder))
            os.kill(os.getpid(), signal.SIGKILL)

        run.execute = killed
        main(["run"])
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    products, profile = Products(course), resolve_profile()
    assert run.is_made(products, profile, "03") and not run.unchanged(products, profile, "03")
    assert not (course / "notebooks" / "03_infer.ipynb").exists() and old
    executed.clear()
    assert main(["run"]) == 0 and executed == ["03"]


def test_a_notebook_saved_by_jupyterlab_is_the_same_notebook(executed, course):
    """Outputs, counts, and metadata are no cells."""
    import nbformat

    main(["run"])
    executed.clear()
    path = labs.notebook_path("02")
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        cell.metadata["collapsed"] = True
        if cell.cell_type == "code":
            cell.execution_count = 7
            cell.outputs = [nbformat.v4.new_output("stream", text="2\n")]
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(book, path)
    assert main(["run"]) == 0 and executed == []
    assert status.state(Products(course), resolve_profile(), "02") == "complete"


def test_a_stamp_is_as_it_was_written(runs):
    lab = Lab("01", CPU)
    lab.keep("base", writes("x"), {"steps": [1, 2.5, None, "é"]})
    stamp = lab.products.stamp("base")
    path = lab.folder / ".stamps" / "base.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(asdict(stamp)))
