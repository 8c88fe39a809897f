"""Extra 15's backend for lm-eval: its log-likelihoods are ours, with an adapter and without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from samples import CPU, qa, tiny_config, write_lines
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
def task(optimized, tmp_path):
    """A task of our records in their chat format; "broken" has a line break before the answer."""
    tokenizer = AutoTokenizer.from_pretrained(optimized)
    rows = []
    for record in RECORDS:
        asked = labkit.prompt_text(tokenizer, record)
        row = {"asked": asked, "broken": f"{asked}\n", "answer": f"{record['response']}<end>"}
        rows.append(row)
    return {
        "task": "heldout",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(write_lines(tmp_path / "r.jsonl", *rows))}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "asked",
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc"}],
    }


def test_the_log_likelihoods_are_those_of_our_losses(packages, optimized, task):
    adapters = {"none": None, "adapter": str(optimized / "adapter_weights.onnx_adapter")}
    broken = task | {"task": "broken", "doc_to_text": "broken"}
    printed, status, said = harness(packages, optimized, adapters, [task, broken])
    assert status == 0, said
    found = dict(item for line in printed.splitlines() for item in json.loads(line).items())
    assert found.keys() == adapters.keys()
    tokenizer = AutoTokenizer.from_pretrained(optimized)
    losses = {}
    for name, file in adapters.items():
        logits = labkit.OnnxLogits(optimized, adapter=file and Path(file))
        ours = labkit.record_losses(logits, tokenizer, RECORDS)
        asked = [one for (one,) in found[name]["heldout"]["records"]]
        losses[name] = [-one["log_likelihood"] for one in asked]
        assert losses[name] == pytest.approx(list(map(sum, ours)), rel=1e-4)
        for one, record in zip(asked, RECORDS, strict=True):
            ids, first = labkit.chat_ids(tokenizer, record)
            assert (one["context"], one["scored"]) == (ids[:first], ids[first:])
    assert losses["none"] != pytest.approx(losses["adapter"], rel=1e-2)
    # lm-eval moves white space to the answer, which the extra explains
    plain, moved = (found["none"][name]["records"][0][0] for name in ("heldout", "broken"))
    assert plain["context"] == moved["context"]
    assert moved["scored"] == tokenizer.encode("\n") + plain["scored"]


def test_nothing_is_written_without_the_adapter(packages, optimized, task):
    writes = {"output_type": "generate_until", "metric_list": [{"metric": "exact_match"}]}
    adapters = {"adapter": str(optimized / "adapter_weights.onnx_adapter")}
    printed, status, said = harness(packages, optimized, adapters, [task | writes])
    assert status and not printed and "would write without the adapter" in said


def test_an_adapter_that_is_missing_is_an_error(packages, optimized, task):
    printed, status, said = harness(packages, optimized, {"gone": "/gone.onnx_adapter"}, [task])
    assert status and not printed and "ONNXRuntimeError" in said
