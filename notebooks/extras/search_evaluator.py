"""The evaluator of extra 12: what Olive measures of each model that its search builds."""

import math
from pathlib import Path

from olive.evaluator.metric_result import MetricResult
from olive.evaluator.olive_evaluator import OnnxEvaluator
from olive.evaluator.registry import Registry

import labkit


@Registry.register("HeldoutAnswers")
class HeldoutAnswers(OnnxEvaluator):
    """Olive's own for ONNX models, which measures latency, with two metrics that are ours.

    "perplexity" is exp(loss) of every third answer in the file *heldout*; "bytes" are those
    of the graph and its weights, and count as an objective.
    """

    def __init__(self, heldout: str, **kwargs):
        super().__init__(**kwargs)
        self.records = labkit.load_records(Path(heldout))[::3]

    def _evaluate_accuracy(self, model, metric, *_):
        folder = Path(model.model_path).parent
        tokenizer = labkit.load_tokenizer(folder)
        losses = labkit.record_losses(labkit.OnnxLogits(folder), tokenizer, self.records)
        return result(metric, math.exp(labkit.mean_loss(losses).mean))

    def _evaluate_size_on_disk(self, model, metric, *_):
        files = Path(model.model_path).parent.glob("model.onnx*")
        return result(metric, sum(file.stat().st_size for file in files))


def result(metric, value: float) -> MetricResult:
    """*value* as that of the one thing that *metric* asks for."""
    (asked,) = metric.sub_types
    found = {"value": value, "priority": asked.priority}
    return MetricResult.model_validate(
        {asked.name: found | {"higher_is_better": asked.higher_is_better}}
    )
