"""Held-out loss and speed, of a torch model and of an ONNX model, measured the same way."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from labkit.errors import LabError
from labkit.machine import threads
from labkit.profiles import SEED
from labkit.prompts import chat_ids


def eval_loss(
    model,
    tokenizer,
    records: list[dict],
    *,
    name: str,
    provider: str = "CPUExecutionProvider",
    adapter: Path | None = None,
) -> dict[str, dict[str, float]]:
    """{"eval_loss": {name: mean}, "eval_loss_low": ..., "eval_loss_high": ...}: cross-entropy per response token.

    Natural logarithm, the end of the turn included; low and high are the 95 % interval of :func:`interval` over records.
    *model* is a transformers causal model, or the folder of an ONNX model with the weights of an *adapter* file as inputs.
    Raises LabError where ONNX Runtime falls back to another *provider*, of which it makes no more than a log line.
    """
    rows = record_losses(model, tokenizer, records, provider=provider, adapter=adapter)
    tokens = [len(row) for row in rows]
    low, high = interval([sum(row) / len(row) for row in rows], weights=tokens)
    return {
        "eval_loss": {name: sum(map(sum, rows)) / sum(tokens)},
        "eval_loss_low": {name: low},
        "eval_loss_high": {name: high},
    }


def record_losses(
    model,
    tokenizer,
    records: list[dict],
    *,
    provider: str = "CPUExecutionProvider",
    adapter: Path | None = None,
) -> list[list[float]]:
    """Cross-entropy of each response token, one list a record; arguments as in :func:`eval_loss`.

    Each record runs alone, so that padding cannot matter.
    """
    import torch

    def torch_logits(ids):
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids], device=model.device)).logits[0]

    logits = _onnx_logits(model, provider, adapter) if isinstance(model, Path) else torch_logits
    losses = []
    for ids, start in (chat_ids(tokenizer, record) for record in records):
        predicted = logits(ids)[start - 1 : -1].float()
        wanted = torch.tensor(ids[start:], device=predicted.device)
        losses.append(
            torch.nn.functional.cross_entropy(predicted, wanted, reduction="none").tolist()
        )
    return losses


def interval(
    values: Sequence[float], *, weights: Sequence[float] | None = None, draws: int = 2000
) -> tuple[float, float]:
    """95 % interval of the (weighted) mean of *values*, by the percentile bootstrap. Source: Efron 1979."""
    import numpy as np

    values, weights = (
        np.asarray(values, float),
        np.ones(len(values)) if weights is None else np.asarray(weights, float),
    )
    chosen = np.random.default_rng(SEED).integers(len(values), size=(draws, len(values)))
    means = (values * weights)[chosen].sum(1) / weights[chosen].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def decode_speed(
    stream: Callable[[], Iterable], *, name: str, repeats: int = 5, warmup: int = 1
) -> dict[str, dict[str, float]]:
    """Tokens per second after the first token, and milliseconds to it, of *stream*: medians and quartiles.

    {"tokens_per_s": {name: median}, "tokens_per_s_low": ..., "tokens_per_s_high": ..., "first_token_ms": ...}.
    *stream* starts one generation and yields once a token. Raises LabError where it yields fewer than three.
    """
    speeds, first = [], []
    for run in range(warmup + repeats):
        times = [time.perf_counter()]
        times += [time.perf_counter() for _ in stream()]
        if len(times) < 4:
            raise LabError(
                "an answer of fewer than 3 tokens has no speed: take a question with a longer answer."
            )
        if run >= warmup:
            speeds.append((len(times) - 2) / (times[-1] - times[1]))
            first.append(1000 * (times[1] - times[0]))
    found = {}
    for section, values in (("tokens_per_s", speeds), ("first_token_ms", first)):
        low, median, high = (
            statistics.quantiles(values, n=4, method="inclusive")
            if len(values) > 1
            else values * 3
        )
        found |= {
            section: {name: median},
            f"{section}_low": {name: low},
            f"{section}_high": {name: high},
        }
    return found


def _onnx_logits(folder: Path, provider: str, adapter: Path | None) -> Callable:
    """Runs the graph in ONNX Runtime itself, because GenAI returns the logits of the last position only."""
    import numpy as np
    import onnxruntime as ort
    import torch

    options, run = ort.SessionOptions(), ort.RunOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = run.log_severity_level = 3
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=[provider])
    if (used := session.get_providers()[0]) != provider:
        raise LabError(
            f"ONNX Runtime runs on {used}, not on {provider}. Run './lab setup --gpu', or use the cpu profile."
        )
    weights = ort.LoraAdapter()
    if adapter:
        weights.Load(str(adapter))
        run.add_active_adapter(weights)
    inputs = {i.name: i for i in session.get_inputs()}
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    cache = {
        n: np.zeros((1, i.shape[1], 0, i.shape[3]), types[i.type])
        for n, i in inputs.items()
        if n.startswith("past_key_values")
    }

    def logits(ids):
        feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        feed["position_ids"] = np.arange(len(ids))[None]
        feed = {name: value for name, value in feed.items() if name in inputs}
        return torch.from_numpy(session.run(["logits"], feed | cache, run)[0][0])

    logits.adapter = weights  # the options of a run do not keep it alive
    return logits
