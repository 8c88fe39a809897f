"""The bars of quality, on a whole run of the labs with all training steps.

Where that run is, says the environment: LAB_TRAINED_RUN=runs/cpu ./lab test tests/test_trained.py
"""

import json
import os
from pathlib import Path

import pytest

from labkit.profiles import PROFILES, ROOT


@pytest.fixture(scope="module")
def summary():
    """The figures of a finished run of the cpu profile."""
    run = os.environ.get("LAB_TRAINED_RUN")
    if not run:
        pytest.skip("LAB_TRAINED_RUN names no finished run: './lab run', then set it to runs/cpu")
    found = json.loads((ROOT / Path(run).expanduser() / "summary.json").read_text())
    expected = PROFILES["cpu"]
    ran = {name: found["profile"][name] for name in ("name", "model", "steps", "tone_steps")}
    assert ran == {name: getattr(expected, name) for name in ran}, "another run than is judged"
    return found


@pytest.mark.parametrize(
    ("name", "loss"),
    [("base", 4.553), ("awq_int4", 4.687), ("awq_lora", 3.395), ("onnx_int4_adapter", 3.395)],
)
def test_the_losses_are_those_of_the_readme(summary, name, loss):
    assert summary["eval_loss"][name]["mean"] == pytest.approx(loss, abs=0.02)


def test_awq_is_better_than_rounding_beyond_chance(summary):
    harm = summary["eval_loss_above_base"]
    assert harm["awq_int4"]["high"] < harm["rtn_int4"]["low"]


@pytest.mark.parametrize(
    ("section", "percent"), [("answers_style", 90), ("tone_accuracy", 80), ("answers_ended", 90)]
)
def test_the_answers_are_as_they_were_taught(summary, section, percent):
    assert summary[section]["with"]["unit"] == "%"
    assert summary[section]["with"]["mean"] >= percent


def test_the_adapters_are_what_taught_it(summary):
    for section in ("answers_style", "tone_accuracy"):
        assert summary[section]["with"]["low"] >= summary[section]["without"]["mean"] + 20


def test_the_model_is_small(summary):
    assert summary["sizes_mb"]["onnx_int4"]["mean"] <= 115
