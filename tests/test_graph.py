"""The graphs that lab 04 has written: valid ONNX, and read by others than ONNX Runtime itself."""

import os

import numpy as np
import pytest
from azure_rig.install import RigUnavailable
from graph_readers import as_netron_shows_it, run_on_the_web
from graphs import assert_valid, weights_in

import labkit


@pytest.fixture
def onnx_dir(notebook_runs):
    return notebook_runs / "onnx"


@pytest.mark.parametrize("product", ["onnx", "onnx-baked", "onnx-merged", "onnx-head4"])
def test_the_graph_is_valid(notebook_runs, product):
    assert_valid(notebook_runs / product / "model.onnx")


def test_onnx_runtime_takes_each_weight_of_the_adapter_once(onnx_dir):
    """As an input that has a default: without an adapter, the graph runs, too."""
    logits = labkit.OnnxLogits(onnx_dir)
    file = onnx_dir / "adapter_weights.onnx_adapter"
    names = [one.name for one in logits.session.get_overridable_initializers()]
    assert sorted(names) == sorted(weights_in(file))
    plain, tuned = logits([[1, 2, 3]]), labkit.OnnxLogits(onnx_dir, adapter=file)([[1, 2, 3]])
    assert plain.isfinite().all() and (plain - tuned).abs().max() > 0.1


def test_genai_answers_without_and_with_the_adapter(onnx_dir):
    import onnxruntime_genai as og

    model = og.Model(str(onnx_dir))
    adapters = og.Adapters(model)
    adapters.load(str(onnx_dir / "adapter_weights.onnx_adapter"), "travel")
    turn = [{"role": "user", "content": "What should I see in Kyoto?"}]
    text = labkit.load_tokenizer(onnx_dir).apply_chat_template(
        turn, add_generation_prompt=True, tokenize=False
    )
    ids = og.Tokenizer(model).encode(text)
    answers = []
    for name in (None, "travel"):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + 24, do_sample=False)
        generator = og.Generator(model, params)
        if name:
            generator.set_active_adapter(adapters, name)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        answers.append(list(generator.get_sequence(0))[len(ids) :])
    assert all(len(answer) > 10 for answer in answers) and answers[0] != answers[1], answers


def read_by(reader, model) -> dict:
    try:
        return reader(model)
    except RigUnavailable as reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(reason))


@pytest.mark.slow
def test_netron_shows_the_graph(onnx_dir):
    import onnx

    graph = onnx.load(onnx_dir / "model.onnx", load_external_data=False).graph
    shown = read_by(as_netron_shows_it, onnx_dir / "model.onnx")
    assert shown["format"].startswith("ONNX")
    assert len(shown["inputs"]) == len(set(shown["inputs"])) and "input_ids" in shown["inputs"]
    nodes = [node for node in graph.node if node.op_type != "Constant"]  # a part of the rest
    assert len(nodes) <= shown["nodes"] <= len(graph.node)


@pytest.mark.slow
def test_the_graph_runs_in_a_browsers_runtime(onnx_dir):
    """On one token without the adapter, with the logits that it has natively."""
    found = read_by(run_on_the_web, onnx_dir / "model.onnx")
    assert "input_ids" in found["inputs"] and not [n for n in found["inputs"] if "lora" in n]
    wanted = labkit.OnnxLogits(onnx_dir)([[1]])[0, 0].numpy()
    error = np.linalg.norm(np.array(found["logits"]) - wanted) / np.linalg.norm(wanted)
    assert error < 0.05, error
