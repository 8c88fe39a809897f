"""Extra 15's backend for lm-eval: its log-likelihoods are ours, with an adapter and without."""

import json
import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from samples import CPU, qa, tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import labkit
from labkit.errors import LabError
from labkit.profiles import ROOT
from labkit.session import Lab

RECORDS = [qa(number) for number in (1, 22, 333)]


@pytest.fixture(scope="module")
def packages():
    """Folder of lm-eval and what it needs."""
    try:
        return labkit.extra_packages("evaluate")
    except LabError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def optimized(tmp_path_factory, byte_tokenizer):
    """Folder of a tiny ONNX model with an adapter, as lab 04 makes it."""
    import olive

    folder = tmp_path_factory.mktemp("harness")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(folder / "tiny")
    byte_tokenizer.save_pretrained(folder / "tiny")
    lora = LoraConfig(r=4, lora_alpha=200, target_modules="all-linear", init_lora_weights=False)
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny")
    get_peft_model(model, lora).save_pretrained(folder / "adapter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_RUNS", str(folder / "runs"))
        workflow = Lab("04", CPU).workflow(
            "optimize", model=folder / "tiny", adapter=folder / "adapter", tied=True
        )
    places = {"output_dir": str(folder / "onnx"), "cache_dir": str(folder / "cache")}
    olive.run(workflow | places, package_config=labkit.olive_passes())
    return folder / "onnx"


def harness(packages, folder, adapters, tasks):
    """(what harness.py prints, its exit status, its last words)."""
    request = {"folder": str(folder), "adapters": adapters, "tasks": tasks}
    done = subprocess.run(
        [sys.executable, ROOT / "notebooks" / "extras" / "harness.py"],
        input=json.dumps(request),
        env=os.environ | {"PYTHONPATH": str(packages), "HTTPS_PROXY": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    return done.stdout, done.returncode, done.stderr[-2000:]


@pytest.fixture
def task(tmp_path):
    """A task of our records, in their chat format."""
    return {
        "task": "heldout",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "heldout.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "asked",
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc"}],
    }


def test_the_log_likelihoods_are_those_of_our_losses(packages, optimized, task, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(optimized)
    asked = [labkit.prompt_text(tokenizer, record) for record in RECORDS]
    rows = [
        {"asked": text, "answer": record["response"] + "<end>"}
        for text, record in zip(asked, RECORDS, strict=True)
    ]
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = optimized / "adapter_weights.onnx_adapter"
    adapters = {"none": None, "adapter": str(file)}
    printed, status, said = harness(packages, optimized, adapters, [task])
    assert status == 0, said
    found = {
        name: value for line in printed.splitlines() for name, value in json.loads(line).items()
    }
    for name, adapter in (("none", None), ("adapter", file)):
        logits = labkit.OnnxLogits(optimized, adapter=adapter)
        ours = labkit.record_losses(logits, tokenizer, RECORDS)
        theirs = [one["log_likelihood"] for (one,) in found[name]["heldout"]["records"]]
        assert theirs == pytest.approx([-sum(losses) for losses in ours], rel=1e-4)
