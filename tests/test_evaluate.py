"""Losses and speeds, the source of every figure in the labs: against numpy, and torch against
ONNX.
"""

import numpy as np
import pytest
import torch
from samples import qa

import labkit
from labkit import evaluate
from labkit.errors import LabError
from labkit.evaluate import OnnxLogits, loss_difference, mean_loss, record_losses, token_speed

RECORDS = [qa(1), qa(2), {"prompt": "Where?", "response": "Here, and nowhere else at all."}]


@pytest.fixture
def table():
    """Logits of the next token, by the token before it: [257, 257]."""
    return np.random.default_rng(3).normal(0, 4, (257, 257)).astype(np.float32)


def known(table):
    """As torch_logits returns it, of a model that looks at the last token only."""

    def logits(rows, first=0):
        longest = max(map(len, rows))
        padded = [row + [0] * (longest - len(row)) for row in rows]
        return torch.tensor(table[padded])[:, first:]

    return logits


# ---- losses


def test_the_loss_is_minus_the_log_of_the_wanted_token_s_share(table, byte_tokenizer):
    """By hand, on known logits: of the response and the end of its turn, and of no other token."""
    found = record_losses(known(table), byte_tokenizer, RECORDS)
    for record, losses in zip(RECORDS, found, strict=True):
        text = f"user:{record['prompt']}<end>assistant:"
        prompt = byte_tokenizer.encode(text)
        ids = byte_tokenizer.encode(text + record["response"] + "<end>")
        by_hand = []
        for before, wanted in zip(ids[len(prompt) - 1 :], ids[len(prompt) :], strict=False):
            row = table[before].astype(np.float64)
            by_hand.append(np.log(np.exp(row).sum()) - row[wanted])
        assert len(losses) == len(record["response"]) + 1
        np.testing.assert_allclose(losses, by_hand, rtol=1e-5)


def test_half_precision_logits_are_summed_in_float32(table, byte_tokenizer):
    whole, half = (
        record_losses(known(t), byte_tokenizer, RECORDS) for t in (table, table.astype(np.float16))
    )
    np.testing.assert_allclose(sum(whole, []), sum(half, []), atol=0.02)


def test_the_mean_weighs_tokens_and_its_interval_draws_records():
    found = mean_loss([[1.0, 3.0], [5.0]])
    assert found.mean == 3.0 and (found.low, found.high) == (2.0, 5.0)
    assert found.unit == "nats per token"
    assert mean_loss([[1.0] * 30, [4.0] * 10]).mean == 1.75


@pytest.fixture
def two_models():
    """Losses of 60 records that differ much in hardness, and little between two models."""
    draw = np.random.default_rng(0)
    base, other = [], []
    for hardness in draw.normal(4, 1.5, 60):
        count = draw.integers(5, 40)
        base.append(list(hardness + draw.normal(0, 0.3, count)))
        other.append(list(hardness + 0.1 + draw.normal(0, 0.3, count)))
    return base, other


def test_the_paired_interval_is_narrower_than_the_unpaired(two_models):
    base, other = two_models
    paired = loss_difference(other, base)
    assert paired.mean == pytest.approx(mean_loss(other).mean - mean_loss(base).mean)
    assert paired.low > 0, "the difference is certain"
    width = paired.high - paired.low
    for model in (base, other):
        assert width < (mean_loss(model).high - mean_loss(model).low) / 4
    assert mean_loss(base).high > mean_loss(other).low, "which the two means alone do not say"


def test_a_difference_has_a_sign_and_wants_the_same_records(two_models):
    base, other = two_models
    assert loss_difference(base, other).mean == pytest.approx(-loss_difference(other, base).mean)
    assert loss_difference(base, base).exact
    with pytest.raises(ValueError, match="zip"):
        loss_difference(base, other[1:])


# ---- torch and ONNX


@pytest.fixture
def onnx_dir(tiny, tmp_path):
    """The tiny model as an ONNX graph in float32, by the builder alone."""
    from onnxruntime_genai.models.builder import create_model

    create_model(None, str(tiny), str(tmp_path / "onnx"), "fp32", "cpu", str(tmp_path / "cache"))
    return tmp_path / "onnx"


def test_torch_and_onnx_agree_on_one_model(tiny, onnx_dir):
    from transformers import AutoModelForCausalLM

    tokenizer = labkit.load_tokenizer(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    in_torch, in_onnx = labkit.torch_logits(model), OnnxLogits(onnx_dir)
    ids = [list(range(40, 60)), [7]]
    assert in_torch(ids).shape == in_onnx(ids).shape == (2, 20, 257)
    assert in_torch(ids, 15).shape == in_onnx(ids, 15).shape == (2, 5, 257)
    found = [record_losses(logits, tokenizer, RECORDS) for logits in (in_torch, in_onnx)]
    np.testing.assert_allclose(sum(found[0], []), sum(found[1], []), atol=1e-3)
    many = [*RECORDS, *map(qa, range(3, 9))]
    for logits in (in_torch, in_onnx):
        together = record_losses(logits, tokenizer, many)
        alone = [record_losses(logits, tokenizer, [record])[0] for record in many]
        assert [len(row) for row in alone] == [len(row) for row in together]
        np.testing.assert_allclose(sum(together, []), sum(alone, []), atol=1e-4)
    assert mean_loss(found[0]).mean == pytest.approx(mean_loss(found[1]).mean, abs=1e-4)


@pytest.fixture
def with_adapter(tmp_path):
    """(folder of a graph whose logits are one-hot ids plus an input, its adapter file)."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    eye = numpy_helper.from_array(np.eye(4, dtype=np.float32), "eye")
    zero = numpy_helper.from_array(np.zeros(4, np.float32), "added")
    nodes = [
        helper.make_node("Gather", ["eye", "input_ids"], ["rows"]),
        helper.make_node("Add", ["rows", "added"], ["logits"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "n"])
    added = helper.make_tensor_value_info("added", TensorProto.FLOAT, [4])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "n", 4])
    graph = helper.make_graph(nodes, "g", [ids, added], [out], [eye, zero])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "model.onnx")
    adapter = ort.AdapterFormat()
    values = ort.OrtValue.ortvalue_from_numpy(np.array([0, 0, 7, 0], np.float32))
    adapter.set_parameters({"added": values})
    adapter.export_adapter(str(tmp_path / "a.onnx_adapter"))
    return tmp_path, tmp_path / "a.onnx_adapter"


def test_the_adapter_is_active_as_long_as_the_logits_are(with_adapter):
    folder, adapter = with_adapter
    plain = OnnxLogits(folder)
    for tuned in [OnnxLogits(folder, adapter=adapter), plain.using(adapter)] * 2:
        assert plain([[1, 3]])[0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
        assert tuned([[1, 3]])[0].tolist() == [[0, 1, 7, 0], [0, 0, 7, 1]]


def test_a_provider_that_is_not_there_is_said(with_adapter, monkeypatch):
    import onnxruntime as ort

    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda _: ["CPUExecutionProvider"])
    said = "ONNX Runtime runs on CPUExecutionProvider, not on CUDAExecutionProvider"
    with pytest.raises(LabError, match=said):
        OnnxLogits(with_adapter[0], provider="CUDAExecutionProvider")


# ---- speed


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only as a stream says."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(evaluate, "time", clock)
    return clock


def streams(clock, *runs):
    """A function that starts the next of these *runs*: seconds before each token."""
    waiting = list(runs)

    def stream():
        for seconds in waiting.pop(0):
            clock.now += seconds
            yield "token"

    return stream


def test_the_speed_is_counted_after_the_first_token_and_without_the_warm_up(clock):
    runs = [[9.0, 9.0, 9.0], [0.5, 0.1, 0.1], [0.5, 0.1, 0.1], [0.5, 0.1, 0.1]]
    speed, first = token_speed(streams(clock, *runs), repeats=3)
    assert speed.mean == pytest.approx(10) and speed.unit == "tokens/s"
    assert first.mean == pytest.approx(500) and first.unit == "ms"
    assert (speed.low, speed.high) == pytest.approx((10, 10)), "the warm-up is not among them"


def test_speeds_are_medians_with_quartiles(clock):
    runs = [[seconds, seconds, seconds] for seconds in (0.1, 0.2, 0.4, 0.5, 1.0)]
    speed, first = token_speed(streams(clock, *runs), repeats=5, warmup=0)
    found = (speed.low, speed.mean, speed.high, first.low, first.mean, first.high)
    assert found == pytest.approx((2, 2.5, 5, 200, 400, 500))


def test_one_run_has_no_interval(clock):
    speed, _ = token_speed(streams(clock, [0.5, 0.1, 0.1]), repeats=1, warmup=0)
    assert speed.exact


def test_too_short_an_answer_has_no_speed(clock):
    with pytest.raises(LabError, match="fewer than 3 tokens has no speed"):
        token_speed(streams(clock, [0.5, 0.1]), repeats=1, warmup=0)
