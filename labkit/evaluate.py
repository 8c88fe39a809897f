"""Held-out loss and speed, of a torch model and of an ONNX model, measured the same way."""

import contextlib
import copy
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
AT_ONCE = 4  # records; more gain nothing on two cores, where four take 6/7 of the time of each


def torch_logits(model) -> Callable:
    """Lists of token ids -> logits [lists, tokens, vocabulary], of a transformers causal model.

    Called with a number *first* as well, it gives those of the tokens from there on. Shorter lists
    are padded behind their end, where nothing looks back from.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def logits(rows, first=0):
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        ids = ids.to(model.device)
        kept = torch.arange(first, ids.shape[1], device=ids.device)
        with torch.inference_mode():
            return model(input_ids=ids, logits_to_keep=kept).logits

    return logits


class OnnxLogits:
    """What :func:`torch_logits` returns, of the ONNX model in *folder*.

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

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 3
        self.folder = folder
        with self._explained():
            self.session = ort.InferenceSession(
                str(folder / "model.onnx"), options, providers=[provider]
            )
        if (used := self.session.get_providers()[0]) != provider:
            raise LabError(
                f"ONNX Runtime runs on {used}, not on {provider}. Run './lab setup --gpu', or "
                "use the cpu profile."
            )
        self._use(adapter)
        inputs = {one.name: one for one in self.session.get_inputs()}
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.names = inputs.keys()
        shapes = {one.name: one.shape for one in self.session.get_outputs()}
        self.rows = shapes["logits"][-1]
        self.cache = {
            name: ((one.shape[1], 0, one.shape[3]), types[one.type])
            for name, one in inputs.items()
            if name.startswith("past_key_values")
        }

    def __call__(self, rows, first=0):
        import numpy as np
        import torch

        for ids in rows:
            if not len(ids) or min(ids) < 0 or max(ids) >= self.rows:
                given = ", ".join(map(str, ids[:8])) or "none"
                raise LabError(
                    f"the model reads at least one token, by its id from 0 to {self.rows - 1:,}; "
                    f"these are {given}. Correct the cell that makes them."
                )
        shape = len(rows), max(map(len, rows))
        padded = np.zeros(shape, np.int64)
        for row, ids in zip(padded, rows, strict=True):
            row[: len(ids)] = ids
        feed = {
            "input_ids": padded,
            "attention_mask": np.ones(shape, np.int64),
            "position_ids": np.tile(np.arange(shape[1]), (shape[0], 1)),
        }
        feed = {name: value for name, value in feed.items() if name in self.names}
        for name, (sizes, kind) in self.cache.items():
            feed[name] = np.zeros((shape[0], *sizes), kind)
        return torch.from_numpy(self.session.run(["logits"], feed, self.options)[0][:, first:])

    def using(self, adapter: Path) -> "OnnxLogits":
        """The same model, loaded once, with the file *adapter*."""
        other = copy.copy(self)
        other._use(adapter)
        return other

    def _use(self, adapter: Path | None) -> None:
        import onnxruntime as ort

        self.options = ort.RunOptions()
        self.options.log_severity_level = 3
        self.adapter = ort.LoraAdapter()  # the options of a run do not keep it alive
        if adapter:
            with self._explained(f" {adapter}"):
                self.adapter.Load(str(adapter))
            self.options.add_active_adapter(self.adapter)

    @contextlib.contextmanager
    def _explained(self, adapter: str = ""):
        try:
            yield
        except Exception as error:  # ONNX Runtime's own are of no common kind
            why = " ".join(str(error).split())[-200:]
            raise LabError(
                f"ONNX Runtime cannot load the model in {self.folder}, or its adapter{adapter}: a "
                f"file is missing or damaged (...{why}). Make it again: run lab 04."
            ) from error


def record_losses(logits: Callable, tokenizer, records: list[dict]) -> list[list[float]]:
    """Cross-entropy of each response token in nats; one list a record.

    The token that ends the turn is one of them. *logits* is what :func:`torch_logits` returns, or
    an :class:`OnnxLogits`. Records of like length go through the model together.
    """
    from torch import tensor
    from torch.nn.functional import cross_entropy

    losses: list[list[float]] = [[] for _ in records]
    rows = [(*chat_ids(tokenizer, record), place) for place, record in enumerate(records)]
    rows.sort(key=lambda row: -len(row[0]))  # the longest first: the time left is no promise
    for at in track(range(0, len(rows), AT_ONCE), "batches"):
        together = rows[at : at + AT_ONCE]
        first = min(start for _, start, _ in together) - 1
        found = logits([ids for ids, _, _ in together], first)
        for one, (ids, start, place) in zip(found, together, strict=True):
            predicted = one[start - 1 - first : len(ids) - 1 - first].float()
            wanted = tensor(ids[start:], device=predicted.device)
            losses[place] = cross_entropy(predicted, wanted, reduction="none").tolist()
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
    return median(speeds, "tokens/s"), median(first, "ms")


def median(values: Sequence[float], unit: str) -> Estimate:
    """The median of *values*, with the quartiles as ends; one value has none."""
    if len(values) == 1:
        return Estimate(values[0], unit=unit)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Estimate(middle, low, high, unit)
