"""Extra 13's measure of what four bits in one product cost, against a whole new computation."""

import json

import pytest
import torch
from samples import CPU
from transformers import AutoModelForCausalLM

from labkit.course import notebook_path

ROWS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]


@pytest.fixture
def names(tiny):
    """What the cell with the measure defines, with a tiny model."""
    cells = json.loads(notebook_path("13").read_text())["cells"]
    text = next("".join(c["source"]) for c in cells if "class Sensitivity" in "".join(c["source"]))
    found = {"base_dir": tiny, "profile": CPU, "torch": torch}
    found["AutoModelForCausalLM"] = AutoModelForCausalLM
    exec(text, found)
    return found


def predicted(model) -> torch.Tensor:
    with torch.no_grad():
        rows = [model(torch.tensor([row])).logits[0] for row in ROWS]
    return torch.cat(rows).log_softmax(-1)


@pytest.mark.parametrize(
    ("block", "product", "layers"),
    [
        (0, "qkv", ("q_proj", "k_proj", "v_proj")),
        (0, "gate_up", ("gate_proj", "up_proj")),
        (1, "down", ("down_proj",)),
    ],
)
def test_it_is_the_divergence_of_the_whole_model_and_leaves_the_weights(
    names, tiny, block, product, layers
):
    probe, model = names["Sensitivity"](ROWS), names["model"]
    before = predicted(model)
    changed = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    for name, layer in changed.model.layers[block].named_modules():
        if name.split(".")[-1] in layers:
            layer.weight.data = names["nearest"].fake_quantize(layer.weight.data)
    wanted = (before.exp() * (before - predicted(changed))).sum(-1).mean()
    # of some 1e-6, in float32: the order of the sums shows in the third digit
    assert probe.of(block, product) == pytest.approx(wanted.item(), rel=0.02)
    assert wanted > 1e-6 and torch.equal(predicted(model), before)
