"""Held-out loss and speed, of a torch model and of an ONNX model, measured the same way."""

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from labkit.data import chat_ids
from labkit.errors import LabError
from labkit.machine import threads


def eval_loss(model, tokenizer, records: list[dict]) -> dict[str, float]:
    """{"loss", "spread"}: mean cross-entropy per response token (natural log, end-of-turn token included), standard error.

    *model* is a transformers causal model; each record runs alone, so that padding cannot matter.
    """
    import torch

    def logits(ids):
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids], device=model.device)).logits[0]

    return _loss(logits, tokenizer, records)


def onnx_eval_loss(
    folder: Path, tokenizer, records: list[dict], *, provider: str, adapter: Path | None = None
) -> dict[str, float]:
    """The same figures of the ONNX model in *folder*, with the weights of an *adapter* file as inputs or without.

    Runs the graph in ONNX Runtime itself, because GenAI returns the logits of the last position only.
    Raises LabError where the session falls back to another *provider*, as ONNX Runtime does with no more than a log line.
    """
    import numpy as np
    import onnxruntime as ort
    import torch

    options, run = ort.SessionOptions(), ort.RunOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = run.log_severity_level = 3
    session = ort.InferenceSession(str(Path(folder) / "model.onnx"), options, providers=[provider])
    if (used := session.get_providers()[0]) != provider:
        raise LabError(f"ONNX Runtime runs on {used}, not on {provider}. Run './lab setup --gpu', or use the cpu profile.")
    if adapter:
        weights = ort.LoraAdapter()
        weights.Load(str(adapter))
        run.add_active_adapter(weights)
    inputs = {i.name: i for i in session.get_inputs()}
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    cache = {
        n: np.zeros((1, i.shape[1], 0, i.shape[3]), types[i.type]) for n, i in inputs.items() if n.startswith("past_key_values")
    }

    def logits(ids):
        feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        feed["position_ids"] = np.arange(len(ids))[None]
        feed = {name: value for name, value in feed.items() if name in inputs}
        return torch.from_numpy(session.run(["logits"], feed | cache, run)[0][0])

    return _loss(logits, tokenizer, records)


def decode_speed(stream: Callable[[], Iterable], *, repeats: int = 5, warmup: int = 1) -> dict[str, float]:
    """Tokens per second after the first token, and milliseconds to it, of *stream*: median and interquartile range.

    *stream* starts one generation and yields once a token.
    """
    speeds, first = [], []
    for run in range(warmup + repeats):
        times = [time.perf_counter()]
        times += [time.perf_counter() for _ in stream()]
        if len(times) < 4:
            raise LabError("an answer of fewer than 3 tokens has no speed: take a question with a longer answer.")
        if run >= warmup:
            speeds.append((len(times) - 2) / (times[-1] - times[1]))
            first.append(1000 * (times[1] - times[0]))
    return {
        "tokens_per_s": statistics.median(speeds),
        "tokens_per_s_spread": _spread(speeds),
        "ttft_ms": statistics.median(first),
        "ttft_ms_spread": _spread(first),
    }


def _loss(logits: Callable, tokenizer, records: list[dict]) -> dict[str, float]:
    import torch

    losses = []
    for ids, start in (chat_ids(tokenizer, record) for record in records):
        predicted = logits(ids)[start - 1 : -1].float()
        wanted = torch.tensor(ids[start:], device=predicted.device)
        losses.append(torch.nn.functional.cross_entropy(predicted, wanted, reduction="none").tolist())
    return _mean_per_token(losses)


def _mean_per_token(losses: list[list[float]]) -> dict[str, float]:
    """Mean over all tokens; the standard error treats a record, not a token, as one draw."""
    tokens = sum(map(len, losses))
    mean = sum(map(sum, losses)) / tokens
    residuals = [sum(row) - mean * len(row) for row in losses]
    return {"loss": mean, "spread": sum(r * r for r in residuals) ** 0.5 / tokens}


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low
