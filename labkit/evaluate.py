"""Held-out loss and speed, of a torch model and of an ONNX model, measured the same way."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from labkit.errors import LabError
from labkit.figures import Estimate, bootstrap
from labkit.machine import threads
from labkit.progress import track
from labkit.prompts import chat_ids

NATS = "nats per token"


def torch_logits(model) -> Callable:
    """Token ids -> logits [tokens, vocabulary], of a transformers causal model."""
    import torch

    def logits(ids):
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids], device=model.device)).logits[0]

    return logits


class OnnxLogits:
    """Token ids -> logits [tokens, vocabulary], of the ONNX model in *folder*.

    With an *adapter* file or without. It is run in ONNX Runtime itself, because GenAI returns the
    logits of the last position only. Raises LabError where a file is missing or damaged, where
    ONNX Runtime falls back to another *provider*, of which it makes no more than a log line, and
    for ids that are no tokens, for which it reads memory beside the embedding.
    """

    def __init__(
        self, folder: Path, *, provider: str = "CPUExecutionProvider", adapter: Path | None = None
    ):
        import numpy as np
        import onnxruntime as ort

        options, self.options = ort.SessionOptions(), ort.RunOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = self.options.log_severity_level = 3
        self.adapter = ort.LoraAdapter()  # the options of a run do not keep it alive
        try:
            self.session = ort.InferenceSession(
                str(folder / "model.onnx"), options, providers=[provider]
            )
            if adapter:
                self.adapter.Load(str(adapter))
        except Exception as error:  # ONNX Runtime's own are of no common kind
            why = " ".join(str(error).split())[-200:]
            raise LabError(
                f"ONNX Runtime cannot load the model in {folder}, or its adapter: a file is "
                f"missing or damaged (...{why}). Make it again: run lab 04."
            ) from error
        if (used := self.session.get_providers()[0]) != provider:
            raise LabError(
                f"ONNX Runtime runs on {used}, not on {provider}. Run './lab setup --gpu', or "
                "use the cpu profile."
            )
        if adapter:
            self.options.add_active_adapter(self.adapter)
        inputs = {one.name: one for one in self.session.get_inputs()}
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.names = inputs.keys()
        shapes = {one.name: one.shape for one in self.session.get_outputs()}
        self.rows = shapes["logits"][-1]
        self.cache = {
            name: np.zeros((1, one.shape[1], 0, one.shape[3]), types[one.type])
            for name, one in inputs.items()
            if name.startswith("past_key_values")
        }

    def __call__(self, ids):
        import numpy as np
        import torch

        if not len(ids) or min(ids) < 0 or max(ids) >= self.rows:
            given = ", ".join(map(str, ids[:8])) or "none"
            raise LabError(
                f"the model reads at least one token, by its id from 0 to {self.rows - 1:,}; "
                f"these are {given}. Correct the cell that makes them."
            )
        feed = {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids))[None],
        }
        feed = {name: value for name, value in feed.items() if name in self.names}
        return torch.from_numpy(
            self.session.run(["logits"], feed | self.cache, self.options)[0][0]
        )


def record_losses(logits: Callable, tokenizer, records: list[dict]) -> list[list[float]]:
    """Cross-entropy of each response token in nats; one list a record.

    The token that ends the turn is one of them. *logits* maps token ids to logits, as
    :func:`torch_logits` and :class:`OnnxLogits` do. Each record runs alone, so that padding cannot
    matter.
    """
    import torch

    losses = []
    for record in track(records, "records"):
        ids, start = chat_ids(tokenizer, record)
        predicted = logits(ids)[start - 1 : -1].float()
        wanted = torch.tensor(ids[start:], device=predicted.device)
        losses.append(
            torch.nn.functional.cross_entropy(predicted, wanted, reduction="none").tolist()
        )
    return losses


def mean_loss(losses: Sequence[Sequence[float]]) -> Estimate:
    """Mean loss per token, with its 95 % interval over records; longer answers weigh more."""
    return bootstrap(
        [sum(row) / len(row) for row in losses], weights=[len(row) for row in losses], unit=NATS
    )


def loss_difference(
    losses: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]
) -> Estimate:
    """Mean of *losses* minus *reference* per token, with its paired 95 % interval.

    Both are of the same records: what makes a record hard for both models cancels. So the interval
    is narrower than those of the two means.
    """
    more = [
        (sum(row) - sum(other)) / len(row) for row, other in zip(losses, reference, strict=True)
    ]
    return bootstrap(more, weights=[len(row) for row in losses], unit=NATS)


def token_speed(
    stream: Callable[[], Iterable], *, repeats: int = 5, warmup: int = 1
) -> tuple[Estimate, Estimate]:
    """(tokens per second after the first token, milliseconds to it).

    Medians, with the quartiles as ends. *stream* starts one generation and yields once a token.
    Raises LabError where it yields fewer than three.
    """
    speeds, first = [], []
    for run in range(warmup + repeats):
        times = [time.perf_counter()]
        times += [time.perf_counter() for _ in stream()]
        if len(times) < 4:
            raise LabError(
                "an answer of fewer than 3 tokens has no speed: take a question with a longer "
                "answer."
            )
        if run >= warmup:
            speeds.append((len(times) - 2) / (times[-1] - times[1]))
            first.append(1000 * (times[1] - times[0]))
    return _median(speeds, "tokens/s"), _median(first, "ms")


def _median(values: list[float], unit: str) -> Estimate:
    if len(values) == 1:
        return Estimate(values[0], unit=unit)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Estimate(middle, low, high, unit)
