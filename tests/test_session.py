"""A lab at its start: what it sets, what it refuses, and what it takes from the labs before it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from samples import CPU, qa, write_lines, writes

from labkit import starting
from labkit.course import LABS
from labkit.errors import LabError
from labkit.figures import Estimate
from labkit.machine import TELEMETRY_OFF, threads
from labkit.profiles import PROFILES, ROOT, resolve_profile
from labkit.session import Lab

SLOTS = {
    # what the notebooks pass beside the profile's values
    "quantize": {"model": Path("base"), "calibration": Path("calibration.jsonl")},
    "finetune": {"model": "awq-dense", "train": "train.jsonl", "heldout": "h.jsonl", "steps": 10},
    "optimize": {"model": "awq-dense", "adapter": "lora", "tied": True},
    "quantizers": {"model": Path("base"), "calibration": "c.jsonl"},
    "search": {"model": Path("base"), "tied": True, "calibration": "c.jsonl", "seed": 7}
    | {"heldout": "h.jsonl", "script": "s.py", "names": ["n"], "shapes": [[1]], "types": ["t"]}
    | {"most_perplexity": 99.0, "most_ms": 9, "most_bytes": 9e7, "tries": 5},
}


# ---- start


def test_lab_01_saves_the_choice_and_the_labs_after_it_follow(runs, capsys, tmp_path):
    data = str(write_lines(tmp_path / "d.jsonl", qa(1)))
    starting.start("01", data=data, steps=3)
    assert (resolve_profile().data, resolve_profile().steps) == (data, 8)  # LAB_STEPS is stronger
    assert json.loads((runs / "choice.json").read_text()) == {
        "profile": "cpu",
        "data": data,
        "steps": 3,
    }
    starting.start("01")
    assert resolve_profile().data == CPU.data
    assert "lab 01 setup | profile cpu | model SmolLM2-135M-Instruct" in capsys.readouterr().out


def test_a_lab_does_not_start_without_the_products_of_those_before_it(runs):
    with pytest.raises(LabError, match="run lab 01 first: .*base is missing"):
        starting.start("02")
    for product in LABS["02"].needs:
        Lab("01", resolve_profile()).keep(product, writes("x"))
    starting.start("02")


def test_start_sets_telemetry_off_threads_and_the_run_s_own_caches(runs, monkeypatch):
    names = [*TELEMETRY_OFF, "OMP_NUM_THREADS", "HF_DATASETS_CACHE", "HF_HUB_CACHE"]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "the user's own")
    starting.start("01")
    assert os.environ["OLIVE_DISABLE_TELEMETRY"] == os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["DO_NOT_TRACK"] == "the user's own"
    assert os.environ["OMP_NUM_THREADS"] == str(threads())
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        assert os.environ[name].startswith(str(runs))


def test_a_model_of_the_hub_keeps_the_user_s_cache(runs, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    starting.start("01", model="someone/some-model")
    assert "HF_HUB_CACHE" not in os.environ


def test_no_telemetry_of_olive_and_onnx_runtime_is_prepared(runs, tmp_path):
    """Both keep a device id and a queue under the home folder where they report; Olive does so
    before it reads its switch.
    """
    code = (
        "import labkit, time; labkit.start('01'); import olive, onnxruntime, onnxruntime_genai\n"
        "from olive.telemetry.telemetry import Telemetry\nTelemetry(); time.sleep(1)"
    )
    dropped = {*TELEMETRY_OFF, "CI", "GITHUB_ACTIONS"}
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    env |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    env |= {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    traces = {"deviceid", "olive.json", "onnxruntime.db"}
    assert not [path for path in tmp_path.rglob("*") if path.name in traces]


def test_seeds_are_the_same_at_each_start(runs):
    import random

    import numpy as np
    import torch

    def draw():
        starting.start("01")
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


def test_a_folder_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("LAB_RUNS", "/proc/runs")
    with pytest.raises(LabError, match="outputs cannot be written to .* Set LAB_RUNS"):
        starting.start("01")


def test_the_gpu_profile_without_a_gpu(runs, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LabError, match="profile gpu needs an NVIDIA GPU, and torch finds none"):
        starting.start("01", profile="gpu")


def test_a_lab_says_who_holds_the_gpu(runs, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * 10**9, 24 * 10**9))
    said = r"5\.0 GB of the GPU's memory are free.*Restart this kernel.*Shut Down All"
    with pytest.raises(LabError, match=said):
        starting.start("01", profile="gpu")


def test_a_gpus_attention_needs_no_plan_for_each_length(runs, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 * 10**9, 80 * 10**9))
    torch.backends.cuda.enable_cudnn_sdp(True)
    starting.start("01", profile="gpu")
    found = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)  # for the tests that follow
    assert not found


# ---- Olive's workflows


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", SLOTS)
def test_every_slot_of_a_workflow_has_a_value(runs, name, profile):
    lab = Lab("02", PROFILES[profile])
    workflow = lab.workflow(name, **SLOTS[name])
    assert '"$' not in json.dumps(workflow)
    assert workflow["input_model"]["model_path"] == str(SLOTS[name]["model"])
    accelerator = workflow["systems"]["local_system"]["accelerators"][0]
    expected = {"device": "gpu" if profile == "gpu" else "cpu"}
    assert accelerator == expected | {"execution_providers": [PROFILES[profile].provider]}


def test_a_kept_product_leaves_its_workflow_for_a_shell(runs):
    """Each under its product's name: two products may come of one workflow, with other slots."""
    lab, files = Lab("02", CPU), {}
    for steps in (4, 8):
        recipe = {"passes": {"lora": {"max_steps": steps}}}
        lab.keep(f"lora-{steps}", writes("adapter"), recipe)
        files[steps] = json.loads((lab.folder / "workflows" / f"lora-{steps}.json").read_text())
        assert files[steps] == recipe
    lab.keep("other", writes("other"), {"steps": 4})
    assert len(list((lab.folder / "workflows").iterdir())) == 2


def test_no_workflow_is_untested():
    files = (ROOT / "notebooks" / "workflows").glob("*.json")
    assert {path.stem for path in files if "input_model" in path.read_text()} == SLOTS.keys()


def test_a_slot_without_a_value_is_named(runs):
    with pytest.raises(LabError, match=r"quantize needs a value for \$calibration: pass it"):
        Lab("02", CPU).workflow("quantize", model="base")


def test_a_value_given_is_stronger_than_the_profile_s_and_others_follow_from_it(runs):
    passes = Lab("03", CPU).workflow("finetune", **SLOTS["finetune"])["passes"]
    arguments = passes["lora"]["training_args"]
    assert arguments["max_steps"] == arguments["save_steps"] == 10
    assert arguments["eval_steps"] == 2
    assert passes["lora"]["target_modules"] == list(CPU.lora_targets)


def test_another_provider_may_be_asked_for(runs):
    workflow = Lab("04", PROFILES["gpu"]).workflow(
        "optimize", provider="CPUExecutionProvider", **SLOTS["optimize"]
    )
    accelerator = workflow["systems"]["local_system"]["accelerators"][0]
    assert accelerator == {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}


# ---- figures and checkpoints of a lab


def test_a_figure_is_printed_and_there_for_the_labs_that_follow(runs, capsys):
    loss = Estimate(3.0, 2.5, 3.5, "nats per token")
    Lab("01", CPU).record("eval_loss", base=loss)
    assert "eval_loss base: 3.00 (2.50 to 3.50) nats per token" in capsys.readouterr().out
    assert Lab("02", CPU).figure("eval_loss", "base") == loss


@pytest.mark.parametrize(("section", "name"), [("eval_loss", "other"), ("other", "base")])
def test_a_figure_that_is_missing_is_said(runs, section, name):
    lab = Lab("01", CPU)
    lab.record("eval_loss", base=Estimate(3.0))
    with pytest.raises(LabError, match=f"the figure {section} {name} is missing"):
        lab.figure(section, name)


def test_a_figure_does_not_outlive_what_it_was_measured_on(runs):
    Lab("01", CPU).keep("base", writes("x"))
    lab = Lab("02", CPU)
    lab.path("base")
    lab.record("eval_loss", base=Estimate(3.0))
    Lab("01", CPU).keep("base", writes("x"), anew=True)
    with pytest.raises(LabError, match="made anew since"):
        lab.figure("eval_loss", "base")


def test_a_lab_notes_the_checkpoints_that_it_has_passed(runs):
    lab = Lab("02", CPU)
    lab.checkpoint("2.4", fine=True)
    with pytest.raises(LabError, match="checkpoint 2.5 failed.*Logs are in .*--from 02"):
        lab.checkpoint("2.5", fine=False)
    assert lab.records.checkpoints("02") == {"2.4"}
