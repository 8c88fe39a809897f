"""What the six notebooks of this test run, with little training, left behind."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
from settings import damaged

from labkit.course import LABS, notebook_path
from labkit.profiles import ROOT

FIGURES = {
    # section -> the names that README, report and tests read
    "eval_loss": "base rtn_int4 awq_int4 awq_lora onnx_int4 onnx_int4_adapter",
    "eval_loss_above_base": "rtn_int4 awq_int4",
    "eval_loss_added": "head4 baked merged",
    "sizes_mb": "base_fp16 awq_int4 onnx_int4 adapter",
    "tokens_per_s": ("transformers_fp32 transformers_bf16 onnx_int4 onnx_int4_adapter onnx_baked"),
    "first_token_ms": (
        "transformers_fp32 transformers_bf16 onnx_int4 onnx_int4_adapter onnx_baked"
    ),
    "tone_accuracy": "without with",
    "answers_style": "without with",
    "answers_sights": "without with",
    "answers_other_cities": "without with",
    "answers_ended": "without with",
}
UNITS = {"eval_loss": "nats per token", "sizes_mb": "MB", "tokens_per_s": "tokens/s"}
UNITS |= {"first_token_ms": "ms", "tone_accuracy": "%", "answers_style": "%"}


@pytest.fixture
def summary(notebook_runs):
    return json.loads((notebook_runs / "summary.json").read_text())


@pytest.fixture
def loss(summary):
    """Name -> mean held-out loss."""
    return {name: figure["mean"] for name, figure in summary["eval_loss"].items()}


@pytest.mark.parametrize("section", FIGURES)
def test_every_figure_is_there_finite_and_within_its_interval(summary, section):
    assert set(FIGURES[section].split()) <= summary[section].keys()
    for name, figure in summary[section].items():
        assert figure.keys() == {"mean", "low", "high", "unit"}, name
        assert all(math.isfinite(figure[end]) for end in ("mean", "low", "high")), name
        assert figure["low"] <= figure["mean"] <= figure["high"], name
        assert figure["unit"] == UNITS.get(section, figure["unit"]), name


def test_memory_and_times_are_there(summary):
    assert summary["seconds"]["labs"].keys() == set(LABS)
    assert 500 < summary["peak_rss_mb"] <= 6000


def test_awq_does_at_most_80_percent_of_the_harm(summary, loss):
    assert loss["awq_int4"] - loss["base"] <= 0.8 * (loss["rtn_int4"] - loss["base"])
    harm = {name: figure["mean"] for name, figure in summary["eval_loss_above_base"].items()}
    for name in ("awq_int4", "rtn_int4"):
        assert harm[name] == pytest.approx(loss[name] - loss["base"], abs=1e-6)


def test_nothing_is_lost_on_the_way_to_onnx(loss):
    assert abs(loss["onnx_int4_adapter"] - loss["awq_lora"]) <= 0.01
    assert abs(loss["onnx_int4"] - loss["awq_int4"]) <= 0.02


def test_nothing_is_lost_by_baking_the_adapter_in(summary):
    baked, merged = (summary["eval_loss_added"][name] for name in ("baked", "merged"))
    assert abs(baked["mean"]) < 0.005 < merged["mean"]


def test_the_model_is_small(summary):
    sizes = {name: figure["mean"] for name, figure in summary["sizes_mb"].items()}
    assert sizes["onnx_int4"] <= 115 and sizes["base_fp16"] / sizes["onnx_int4"] >= 2.4


def test_even_a_few_steps_lowered_the_loss(loss):
    assert loss["onnx_int4_adapter"] < loss["onnx_int4"]


def test_the_onnx_folder_is_whole_and_names_no_path(notebook_runs):
    folder = notebook_runs / "onnx"
    names = {path.name for path in folder.iterdir()}
    assert {
        "model.onnx",
        "genai_config.json",
        "tokenizer.json",
        "adapter_weights.onnx_adapter",
    } <= names
    for path in folder.glob("*.json"):
        assert str(notebook_runs) not in path.read_text()


@pytest.mark.parametrize(
    "product", ["awq", "awq-dense", "merged", "onnx", "onnx-baked", "onnx-merged", "downloaded"]
)
def test_every_setting_is_that_of_the_base_model(notebook_runs, product):
    """Among them the cache, without which each token reads everything again, and the tokens that
    end an answer.
    """
    assert not damaged(notebook_runs / "base", notebook_runs / product)
    assert json.loads((notebook_runs / "base" / "config.json").read_text())["use_cache"] is True


def test_the_graph_shares_the_head_and_keeps_lora_float(notebook_runs):
    import onnx

    graph = onnx.load(notebook_runs / "onnx" / "model.onnx").graph
    head = next(
        node for node in graph.node if node.op_type == "MatMulNBits" and "lm_head" in node.name
    )
    lookup = next(node for node in graph.node if node.op_type == "GatherBlockQuantized")
    assert set(head.input) & set(lookup.input), "embedding and head do not share their weights"
    lora = [node.op_type for node in graph.node if "lora_" in node.name and "MatMul" in node.name]
    assert lora and set(lora) == {"MatMul"}


def test_heldout_records_are_the_runs_own(notebook_runs):
    rows = [
        json.loads(line) for line in (notebook_runs / "heldout.jsonl").read_text().splitlines()
    ]
    assert len(rows) >= 40 and all(row["prompt"] and row["response"] for row in rows)


@pytest.mark.slow
def test_run_writes_a_report_and_then_skips_all(notebook_runs):
    """The same folder again: the steps are kept, so that only the notebooks themselves are run; a
    second time nothing is.
    """
    env = os.environ | {"PYTHONPATH": str(ROOT), "LAB_PYTHON": sys.executable}
    command = [sys.executable, "-m", "labkit", "run"]
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    report = (notebook_runs / "report.html").read_text()
    assert report.count("data:image/png;base64") >= 8 and "<script src=" not in report
    second = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert second.returncode == 0 and second.stdout.count("complete and unchanged") == len(LABS)
    for number in LABS:
        every_chart_has_an_alternative_text(
            notebook_runs / "notebooks" / notebook_path(number).name
        )


def every_chart_has_an_alternative_text(executed):
    text = executed.read_text()
    assert '"image/png":' not in text, executed
    pictures = re.findall(r'<img alt=\\"(.*?)\\" src=\\"data', text)
    assert pictures and all(len(alt) > 20 for alt in pictures), executed
