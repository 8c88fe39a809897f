"""The six labs on a small, random Phi-3.5-mini, its settings and tokenizer as published.

What must hold for it whatever it knows. On the published tokenizer where it is, on a small one
with the same flags anywhere.
"""

import json

import pytest
from labs import judges_knowledge, run_lab
from phi_model import PUBLISHED_TOKENIZER, STOP_IDS, write_phi
from settings import damaged

from labkit.course import LABS
from labkit.profiles import ROOT


@pytest.fixture(
    scope="module",
    params=[False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["untied", "tied"],
)
def phi(request, tmp_path_factory):
    """(folder of the source, run folder, what checkpoints found wrong by lab) of all labs."""
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
    found = [text for texts in wrong.values() for text in texts]
    unexpected = [text for text in found if not judges_knowledge(text)]
    assert not unexpected


def test_every_stop_token_reaches_the_onnx_model(phi):
    source, run, _ = phi
    assert json.loads((source / "generation_config.json").read_text())["eos_token_id"] == STOP_IDS
    for folder in ("onnx", "onnx-baked", "onnx-merged", "onnx-head4", "downloaded"):
        assert (
            json.loads((run / folder / "genai_config.json").read_text())["model"]["eos_token_id"]
            == STOP_IDS
        )


def test_every_setting_is_that_of_the_source(phi):
    source, run, _ = phi
    for product in (
        "base",
        "awq",
        "awq-dense",
        "merged",
        "onnx",
        "onnx-baked",
        "onnx-merged",
        "downloaded",
    ):
        assert not damaged(source, run / product), product
