"""A graph on an execution provider that comes as a plug-in, in a process of its own.

    python targets.py PLUGIN < request.json

PLUGIN is the package of a plug-in; "" is ONNX Runtime's own provider for the processor. In
the request are "folder", that of the graph, "options" of the provider, and "adapters": a
name -> a file, or null for none. With each of them "texts" are read at once (the ids of a
question and its answer, and where that begins), and an answer to the first question is
written, of at most "limit" tokens and in some "seconds". Prints, in JSON, the device, the
nodes of each provider, and what was found.
"""

import copy
import importlib
import json
import sys
import time
from collections import Counter

import numpy as np
import onnxruntime as ort

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def first_device(plugin):
    """The first device of the provider that the package *plugin* brings."""
    package = importlib.import_module(plugin)
    ort.register_execution_provider_library(plugin, package.get_library_path())
    there = ort.get_ep_devices()
    own = [one for one in there if one.ep_name == package.get_ep_name()]
    if not own:
        seen = {f"{one.device.type.name} of {one.device.vendor}" for one in there}
        raise RuntimeError(f"the plug-in takes no device here; there is: {', '.join(seen)}")
    return own[0]


def nodes_by_provider(session):
    """provider -> the parts of the graph that it takes, and their nodes by kind."""
    found = {}
    for part in session.get_provider_graph_assignment_info():
        own = found.setdefault(part.ep_name, {"parts": 0, "nodes": Counter()})
        own["parts"] += 1
        own["nodes"].update(node.op_type for node in part.get_nodes())
    return found


def weights_of(session, file):
    """The adapter's weights, which are inputs; zeros, which change nothing, without one."""
    weights = {
        one.name: np.zeros(one.shape, TYPES[one.type])
        for one in session.get_inputs()
        if ".lora_" in one.name
    }
    if file:
        read = ort.AdapterFormat.read_adapter(file)  # its values are views of its memory
        for name, value in read.get_parameters().items():
            weights[name] = value.numpy().copy()
    return weights


class Reader:
    """Reads tokens after those that it has read before."""

    def __init__(self, session, weights):
        self.session, self.weights, self.count = session, weights, 0
        self.names = [one.name for one in session.get_outputs()]
        self.inputs = {one.name: one for one in session.get_inputs()}
        self.past = {
            name: np.zeros((1, one.shape[1], 0, one.shape[3]), TYPES[one.type])
            for name, one in self.inputs.items()
            if name.startswith("past_key_values")
        }

    def read(self, ids):
        """For each of *ids*, the logarithms of the probabilities of what follows."""
        before, self.count = self.count, self.count + len(ids)
        feed = {"input_ids": [ids], "attention_mask": [[1] * self.count]}
        feed["position_ids"] = [list(range(before, self.count))]
        feed = {
            name: np.array(value, np.int64)
            for name, value in feed.items()
            if name in self.inputs
        }
        values = self.session.run(None, feed | self.past | self.weights)
        found = dict(zip(self.names, values, strict=True))
        self.past = {
            name: found[name.replace("past_key_values", "present")] for name in self.past
        }
        logits = found["logits"][0].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def ask(session, weights, texts, limit, seconds):
    losses, likeliest, starts = [], [], []
    for ids, first in texts:
        reader = Reader(session, weights)
        told = reader.read(ids[:first])[-1:]
        starts.append((copy.copy(reader), told[0]))
        if len(ids) - first > 1:
            told = np.concatenate([told, reader.read(ids[first:-1])])
        rows = zip(told, ids[first:], strict=True)
        losses.append([-float(row[token]) for row, token in rows])
        likeliest.append(told.argmax(-1).tolist())
    reader, last = starts[0]  # as it was after the first question
    answer, started = [int(last.argmax())], time.perf_counter()
    while len(answer) < limit:
        if len(answer) > 1 and time.perf_counter() - started > seconds:
            break
        answer.append(int(reader.read(answer[-1:])[-1].argmax()))
    taken = time.perf_counter() - started
    return {"losses": losses, "likeliest": likeliest, "answer": answer, "seconds": taken}


def answers(plugin, request):
    options, found = ort.SessionOptions(), {}
    options.log_severity_level = 4  # what goes wrong is raised
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if plugin:
        device = first_device(plugin)
        options.add_provider_for_devices([device], request["options"])
        found["device"] = f"{device.device.type.name} of {device.device.vendor}"
    started = time.perf_counter()
    session = ort.InferenceSession(f"{request['folder']}/model.onnx", options)
    found["load_seconds"] = time.perf_counter() - started
    found["nodes"] = nodes_by_provider(session)
    for name, file in request["adapters"].items():
        rest = request["texts"], request["limit"], request["seconds"]
        found[name] = ask(session, weights_of(session, file), *rest)
    return found


def main():
    try:
        found = answers(sys.argv[1], json.load(sys.stdin))
    except Exception as error:  # of ONNX Runtime, of a plug-in
        said = " ".join(str(error).split())
        for mark in ("[ONNXRuntimeError] : ", "Status Message: ", "was false. "):
            said = said.rpartition(mark)[2]
        found = {"refused": said}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
