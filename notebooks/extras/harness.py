"""lm-eval's own backend for ONNX Runtime GenAI, with an adapter; in a process of its own.

    python harness.py < request.json

The request has "folder", a model that GenAI runs; "adapters", name -> file or null; and
"tasks", each as lm-eval has them in its YAML files. What is printed, a line of JSON for
each adapter: of each task lm-eval's result, and of each record the tokens that it scored
and their log-likelihood.
"""

import contextlib
import json
import sys

import numpy as np
from lm_eval import evaluate
from lm_eval.models.onnxruntime_genai import ONNXRuntimeGenAILM
from lm_eval.tasks import TaskManager


class WithAdapter(ONNXRuntimeGenAILM):
    """The backend knows no adapters, so what it asks of an engine is overridden here."""

    def __init__(self, folder, adapter):
        self.file = adapter
        super().__init__(folder)

    def _load(self):
        super()._load()
        self.adapters = self.og.Adapters(self.model)
        if self.file:
            self.adapters.load(self.file, "adapter")

    def _forward_logits(self, tokens):
        settings = self.og.GeneratorParams(self.model)
        settings.set_search_options(max_length=len(tokens), do_sample=False)
        generator = self.og.Generator(self.model, settings)
        if self.file:
            generator.set_active_adapter(self.adapters, "adapter")
        generator.append_tokens(np.asarray(tokens, np.int32))
        return np.asarray(generator.get_output("logits"), np.float32)[0]

    def _generate(self, *_):
        raise NotImplementedError("lm-eval's own would write without the adapter")


def scored(model, sample):
    """Of each request of a record: the tokens of its two parts, and the log-likelihood."""
    found = []
    for asked, (answer,) in zip(sample["arguments"], sample["resps"], strict=True):
        context, scored = model._encode_pair(*asked) if asked[0] else ([], [])
        found.append({"context": context, "scored": scored, "log_likelihood": answer[0]})
    return found


def scores(model, tasks):
    """Task -> lm-eval's result, and what it scored of each record, in their order."""
    found = evaluate(model, tasks, bootstrap_iters=1)  # the mean's error needs no bootstrap
    result = {}
    for name, samples in found["samples"].items():
        samples = sorted(samples, key=lambda one: one["doc_id"])
        records = [scored(model, one) for one in samples]
        result[name] = {"result": found["results"][name], "records": records}
    return result


def main():
    request = json.load(sys.stdin)
    for name, file in request["adapters"].items():
        with contextlib.redirect_stdout(sys.stderr):  # lm-eval prints there
            tasks = TaskManager(include_defaults=False).load(request["tasks"])
            found = scores(WithAdapter(request["folder"], file), tasks)
        print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main()
