"""How a slow step is run: its log, and what is said where it goes wrong."""

import os

import pytest
from samples import CPU, writes

from labkit.errors import LabError
from labkit.profiles import PROFILES
from labkit.session import Lab


@pytest.fixture
def lab(runs):
    return Lab("02", CPU)


class Olive:
    """What olive.run returns, with a model or without."""

    def __init__(self, model: bool):
        self.model = model

    def has_output_model(self):
        return self.model


def folder(*names, result=None):
    """A build that writes a folder with files of these *names* and returns *result*."""

    def build(recipe, out):
        out.mkdir()
        for name in names:
            (out / name).write_text(name)
        return result

    return build


def rest(lab) -> set[str]:
    """What lies in the run folder beside the product and the folders of every run."""
    return {path.name for path in lab.folder.iterdir()} - {".stamps", ".lock", ".labkit", "logs"}


def test_what_libraries_print_goes_to_the_log(lab, capfd):
    def build(recipe, out):
        out.write_text("x")
        print("from python")
        os.write(1, b"from C\n")

    lab.keep("awq", build)
    printed = capfd.readouterr().out
    assert "from python" not in printed and "from C" not in printed
    assert "awq: " in printed and "MB written" in printed
    log = (lab.logs / "02-awq.log").read_text()
    assert "from python" in log and "from C" in log


def test_what_it_cost_is_kept(lab):
    lab.keep("awq", writes("x"))
    stamp = lab.products.stamp("awq")
    assert 0 < stamp.seconds < 60 and stamp.peak_rss_mb > 10 and stamp.peak_gpu_mb == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LabError("it went wrong."), r"^it went wrong\. The end of .*02-awq.log:\n"),
        (RuntimeError("boom"), r"^awq failed with RuntimeError: boom\. The end of .*log:\n"),
        (OSError(28, "No space left on device"), "^awq: the disk that holds .* is full.*LAB_RUNS"),
        (KeyboardInterrupt(), "^awq: interrupted. Nothing half done is kept"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_paragraph_and_nothing_half_done_is_kept(lab, error, said):
    def build(recipe, out):
        print("the last words")
        out.mkdir()
        (out / "half").touch()
        raise error

    with pytest.raises(LabError, match=said) as raised:
        lab.keep("awq", build)
    assert ("the last words" in str(raised.value)) != isinstance(error, KeyboardInterrupt)
    assert not lab.products.stamp("awq") and "awq" not in rest(lab)
    assert lab.keep("awq", writes("whole")).read_text() == "whole"
    assert rest(lab) == {"awq"}


def test_an_error_of_python_leaves_its_trace_in_the_log(lab):
    def build(recipe, out):
        raise ZeroDivisionError("by zero")

    with pytest.raises(LabError):
        lab.keep("awq", build)
    assert "in build" in (lab.logs / "02-awq.log").read_text()


def test_olive_without_a_model_is_an_error(lab):
    with pytest.raises(LabError, match="Olive produced no model"):
        lab.keep("awq", folder("log", result=Olive(False)))
    assert lab.keep("awq", folder("model", result=Olive(True))).is_dir()


@pytest.mark.parametrize("build", [lambda recipe, out: None, folder()], ids=["nothing", "empty"])
def test_a_step_that_writes_nothing_is_an_error(lab, build):
    with pytest.raises(LabError, match="awq: the step returned, but wrote nothing"):
        lab.keep("awq", build)


def test_notes_with_paths_of_this_machine_are_left_out(lab):
    product = lab.keep("awq", folder("model.onnx", "model_config.json", "footprint.json"))
    assert [path.name for path in product.iterdir()] == ["model.onnx"]


def test_one_entry_of_the_folder_may_be_the_product(lab):
    def build(recipe, out):
        assert not out.suffix, "Olive would write beside a path that looks like a file's"
        return folder("weights", "other")(recipe, out)

    product = lab.keep("tone.onnx_adapter", build, entry="weights")
    assert product.name == "tone.onnx_adapter" and product.read_text() == "weights"
    assert rest(lab) == {"tone.onnx_adapter"}


def test_some_entries_of_the_folder_may_be_kept(lab):
    product = lab.keep("lora", folder("adapter", "trainer", "cache"), entry=("adapter", "trainer"))
    assert {path.name for path in product.iterdir()} == {"adapter", "trainer"}


def test_an_entry_that_is_missing_is_said(lab):
    with pytest.raises(LabError, match="awq: the step wrote no model"):
        lab.keep("awq", folder("other"), entry="model")


def test_torch_s_cache_on_a_gpu_is_emptied_before(runs, monkeypatch):
    """ONNX Runtime allocates on its own: what torch holds for later is lost to it."""
    import torch

    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * 10**9, 24 * 10**9))

    def build(recipe, out):
        out.write_text(str(len(freed)))

    lab = Lab("04", PROFILES["gpu"])
    assert lab.keep("onnx", build).read_text() == "1"
    assert lab.products.stamp("onnx").peak_gpu_mb == 19000
    Lab("04", CPU).keep("onnx", build)
    assert len(freed) == 1
