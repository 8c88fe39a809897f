"""The anatomy of every notebook, as attendees get it."""

import json
import re
from itertools import groupby

import pytest

from labkit.workspace import LABS, notebook_path

BANNED = r"(?m)^\s*(!|%pip|%%bash|%%capture|%%writefile|%%sh)|\binput\(|import \*|while True"


@pytest.fixture(params=LABS)
def cells(request):
    return json.loads(notebook_path(request.param).read_text())["cells"]


def source(cell) -> str:
    return "".join(cell["source"])


def code(cells) -> list[str]:
    return [source(c) for c in cells if c["cell_type"] == "code"]


def test_no_outputs_in_git_and_cell_ids(cells):
    assert all(
        not c["outputs"] and c["execution_count"] is None
        for c in cells
        if c["cell_type"] == "code"
    )
    ids = [c["id"] for c in cells]
    assert len(set(ids)) == len(ids)


def test_nothing_that_hides_or_blocks(cells):
    assert not [text for text in code(cells) if re.search(BANNED, text)]


def test_first_cell_says_goal_time_and_needs(cells):
    first = source(cells[0])
    assert first.startswith("# Lab ")
    for part in ("**Goal:**", "**You will**", "**Time:** read ", "**Needs:**"):
        assert part in first
    assert re.search(r"run (about )?\d+(\.\d+)? (s|min)", first)
    assert first.count("\n- ") == 3


def test_last_cell_closes(cells):
    last = source(cells[-1])
    assert "## What you did" in last and last.count("<details>") == 3
    assert "**Next:**" in last or "**Done.**" in last


def test_steps_carry_minutes_predictions_and_checkpoints(cells):
    text = "\n".join(source(c) for c in cells)
    steps = re.findall(r"^## Step (\d+): .+ \(about \d+ (?:s|min)", text, re.MULTILINE)
    assert 3 <= len(steps) <= 6 and steps == [str(i + 1) for i in range(len(steps))]
    assert "**Predict:**" in text
    tagged = [c for c in cells if "checkpoint" in c["metadata"].get("tags", [])]
    assert len(tagged) >= 2 and all("lab.checkpoint(" in source(c) for c in tagged)


def test_cells_are_short_and_prose_stands_between(cells):
    lines = sorted(
        len([line for line in text.splitlines() if line.strip()]) for text in code(cells)
    )
    assert lines[-1] <= 25 and lines[len(lines) // 2] <= 6
    assert 1.1 <= (len(cells) - len(lines)) / len(lines) <= 1.9
    assert (
        max(
            len(list(run))
            for kind, run in groupby(c["cell_type"] for c in cells)
            if kind == "code"
        )
        <= 2
    )


def test_exercises_have_a_hint_and_one_line_to_change(cells):
    found = [i for i, cell in enumerate(cells) if "exercise" in cell["metadata"].get("tags", [])]
    assert len(found) >= 2
    for i in found:
        assert source(cells[i - 1]).startswith(
            "### Exercise "
        ) and "<details><summary>Hint" in source(cells[i - 1])
        assert source(cells[i]).count("# TODO: ") == 1 and "lab.exercise(" in source(cells[i])


def test_olive_gets_a_copy(cells):
    """It rewrites the workflow that it is given; a step that reads it would not be kept when its cell is run again."""
    for cell in cells:
        for given in re.findall(r"olive\.run\((\w+)", source(cell)):
            made = rf"\b{given}(, \w+)? = (deepcopy|lab\.workflow)\("
            assert given == "deepcopy" or re.search(made, source(cell)), source(cell)


def test_the_taught_calls_are_in_the_cells():
    taught = {
        "02": "olive.run(",
        "03": "olive.run(",
        "04": "olive.run(",
        "05": "og.Generator(",
        "06": "models.create_or_update(",
    }
    for number, call in taught.items():
        assert call in "".join(code(json.loads(notebook_path(number).read_text())["cells"]))


@pytest.mark.parametrize("architecture", ["Llama", "Phi3"])
def test_lab_02_looks_at_the_layer_behind_the_normalisation(architecture):
    """Phi-3 lists its output projection first, whose activations no normalisation scales."""
    import torch
    import transformers

    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    lines = "\n".join(code(json.loads(notebook_path("02").read_text())["cells"])).splitlines()
    scope = {"block": model.model.layers[0], "torch": torch}
    exec(next(line for line in lines if line.startswith("name, layer = ")), scope)
    seen = {}
    model.model.layers[0].input_layernorm.register_forward_hook(
        lambda *given: seen.update(norm=given[2])
    )
    scope["layer"].register_forward_hook(lambda *given: seen.update(layer=given[1][0]))
    model(torch.tensor([[1, 2, 3]]))
    assert torch.equal(seen["norm"], seen["layer"])
