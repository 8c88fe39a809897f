"""The six labs on Phi-3.5-mini: its configuration, settings and tokenizer as published, small, with random weights.

What must hold for it whatever it knows. On the published tokenizer where it is, on a small one with the same flags anywhere.
"""

import json

import pytest
from labs import run_lab
from phi_model import PUBLISHED_TOKENIZER, STOP_IDS, write_phi
from settings import damaged

from labkit.profiles import ROOT
from labkit.workspace import LABS

JUDGE_KNOWLEDGE = {
    "1.4": "loss below an even guess",
    "2.5": "awq harm at most 80 percent",
    "3.5": "answers are tones",
    "5.2": "not one word over and over",
    "5.3": "tone adapter 20 points better",
    "5.4": "nine of ten answers end by themselves",
}


@pytest.fixture(
    scope="module",
    params=[False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["untied", "tied"],
)
def phi(request, tmp_path_factory):
    """(folder of the source, run folder, what checkpoints found wrong by lab) of the whole route."""
    work = tmp_path_factory.mktemp("phi")
    tokenizer = PUBLISHED_TOKENIZER if PUBLISHED_TOKENIZER.is_dir() and not request.param else None
    write_phi(
        work / "model", tokenizer=tokenizer, layers=2, hidden=192, mlp=512, tied=request.param
    )
    records = (ROOT / "data" / "travel.jsonl").read_text().splitlines()[::9]
    (work / "data.jsonl").write_text("\n".join(records) + "\n")
    settings = {
        "LAB_PROFILE": "cpu",
        "LAB_MODEL": str(work / "model"),
        "LAB_DATA": str(work / "data.jsonl"),
        "LAB_STEPS": "2",
    }
    settings["LAB_RUNS"] = str(work / "runs")
    wrong = {number: run_lab(number, settings, work) for number in LABS}
    return work / "model", work / "runs" / "cpu", wrong


def test_only_checkpoints_that_judge_knowledge_fail(phi):
    _, _, wrong = phi
    unexpected = [
        text for texts in wrong.values() for text in texts
        if not any(text.startswith(f"checkpoint {n} failed: {claim}") for n, claim in JUDGE_KNOWLEDGE.items())
    ]  # fmt: skip
    assert not unexpected


def test_every_stop_token_reaches_the_onnx_model(phi):
    source, run, _ = phi
    assert json.loads((source / "generation_config.json").read_text())["eos_token_id"] == STOP_IDS
    for folder in ("onnx", "onnx-merged", "onnx-head4", "downloaded"):
        assert (
            json.loads((run / folder / "genai_config.json").read_text())["model"]["eos_token_id"]
            == STOP_IDS
        )


def test_every_setting_is_that_of_the_source(phi):
    source, run, _ = phi
    for product in ("base", "awq", "awq-dense", "merged", "onnx", "onnx-merged", "downloaded"):
        assert not damaged(source, run / product), product
