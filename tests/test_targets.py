"""Extra 14: the program that asks a graph on a provider, and what is stored of all providers."""

import importlib.util
import inspect
import io
import json
import re
import sys
from importlib.metadata import version
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from labkit.commands.setup import pins
from labkit.extras import lock_of
from labkit.profiles import ROOT

STORED = json.loads((ROOT / "data" / "targets.json").read_text())
ROWS = {row["provider"]: row for row in STORED["rows"]}
BUILT = [row for row in ROWS.values() if not row["why not"]]


@pytest.fixture(scope="module")
def program():
    path = ROOT / "notebooks" / "extras" / "targets.py"
    spec = importlib.util.spec_from_file_location("targets_program", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Counting:
    """A session of 8 tokens: the likeliest is one above the last, plus what its cache holds."""

    def get_inputs(self):
        def one(name, kind, shape):
            return SimpleNamespace(name=name, type=f"tensor({kind})", shape=shape)

        cache = one("past_key_values.0.key", "float16", ["batch_size", 1, "past", 1])
        lora = one("model.layers.0.mlp.up_proj.lora_A.weight", "float", [2, 3])
        return [one("input_ids", "int64", []), one("attention_mask", "int64", []), cache, lora]

    def get_outputs(self):
        return [SimpleNamespace(name="logits"), SimpleNamespace(name="present.0.key")]

    def run(self, _, feed):
        assert feed.keys() == {one.name for one in self.get_inputs()}
        ids, past = feed["input_ids"], feed["past_key_values.0.key"]
        assert past.dtype == np.float16
        assert feed["attention_mask"].shape == (1, past.shape[2] + ids.shape[1])
        seen = np.concatenate([past, ids[:, None, :, None].astype(np.float16)], 2)
        logits = 10 * np.eye(8)[(ids + 1) % 8]
        return [logits.astype(np.float32), seen]


def test_the_losses_are_those_of_the_answer_and_the_cache_is_fed(program):
    session = Counting()
    weights = program.weights_of(session, None)
    assert [value.shape for value in weights.values()] == [(2, 3)] and not any(
        value.any() for value in weights.values()
    )
    texts = [[[1, 2, 3, 4, 7], 3], [[5, 6], 1]]
    found = program.ask(session, weights, texts, limit=4, seconds=99)
    assert found["answer"] == [4, 5, 6, 7]
    assert found["likeliest"] == [[4, 5], [6]]
    assert [len(one) for one in found["losses"]] == [2, 1]
    assert found["losses"][0][0] < 0.01 and found["losses"][0][1] == pytest.approx(10, abs=0.01)
    assert len(program.ask(session, weights, texts, limit=4, seconds=0)["answer"]) == 2


def said(program, monkeypatch, capsys, plugin: str) -> dict:
    request = {"folder": "/no/such", "adapters": {}, "texts": [], "options": {}}
    monkeypatch.setattr("sys.argv", ["targets.py", plugin])
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    program.main()
    return json.loads(capsys.readouterr().out)


def test_what_goes_wrong_is_one_line(program, monkeypatch, capsys):
    assert "/no/such/model.onnx" in said(program, monkeypatch, capsys, "")["refused"]
    assert "no_such_plugin" in said(program, monkeypatch, capsys, "no_such_plugin")["refused"]


def test_a_plug_in_without_a_device_says_what_there_is(program, monkeypatch, capsys):
    package = ModuleType("its_plugin")
    package.get_library_path, package.get_ep_name = lambda: "", lambda: "ItsProvider"
    device = SimpleNamespace(type=SimpleNamespace(name="CPU"), vendor="Somebody")
    there = [SimpleNamespace(ep_name="CPUExecutionProvider", device=device)]
    monkeypatch.setitem(sys.modules, "its_plugin", package)
    monkeypatch.setattr(program.ort, "register_execution_provider_library", lambda *_: None)
    monkeypatch.setattr(program.ort, "get_ep_devices", lambda: there)
    refused = said(program, monkeypatch, capsys, "its_plugin")["refused"]
    assert refused == "the plug-in takes no device here; there is: CPU of Somebody"


# ---- data/targets.json


def test_the_stored_table_is_of_these_packages_and_has_every_provider():
    from olive.hardware.constants import ExecutionProvider

    names = [one.value.removesuffix("ExecutionProvider") for one in ExecutionProvider]
    assert list(ROWS) == names and names[0] == "CPU"
    for name, stored in STORED["about"].items():
        if name in ("olive-ai", "onnxruntime", "onnxruntime-genai"):
            assert version(name) == stored, "run tests/benchmarks/targets.py"
    assert pins(lock_of("targets")).items() <= STORED["about"].items()


def test_each_is_built_with_an_adapter_or_has_a_reason():
    assert len(BUILT) < len(ROWS)
    for row in ROWS.values():
        assert re.match(r"\w+Error: .|$", row["why not"])
        assert bool(row["why not"]) != (row.get("adapter inputs", 0) > 0)


def test_a_name_that_olive_does_not_pass_on_gets_the_processors_graph():
    from olive.passes.onnx.model_builder import ModelBuilder
    from onnxruntime_genai.models import builder

    takes = r'"--execution_provider",.*?choices=(\[.*?\])'
    offered = json.loads(re.search(takes, inspect.getsource(builder), re.DOTALL)[1])
    processor = ROWS["CPU"]
    for name, row in ROWS.items():
        passed_on = ModelBuilder.EP_MAP.get(f"{name}ExecutionProvider")
        if passed_on is None:
            assert (row["graph"], row["options"]) == (processor["graph"], processor["options"])
        elif name != "CPU":
            assert (passed_on in offered) == (not row["why not"]), name
            assert row["why not"] or row["options"] != processor["options"]


def test_each_form_reads_as_the_processors_does():
    assert {f"{row['provider']}ExecutionProvider" for row in BUILT} == STORED["forms"].keys()
    for name, form in STORED["forms"].items():
        for adapter in ("without", "with adapter"):
            assert abs(form[adapter]["above"]) < 0.05, name
            assert form[adapter]["same"] > 0.9 * form[adapter]["of"], name
        assert form["with adapter"]["loss"] < form["without"]["loss"] - 0.5, name


def test_the_plug_ins_answered_where_it_was_stored():
    found = {row["provider"]: row for row in STORED["answers"]}
    assert found.keys() == {"CPU", "OpenVINO", "WebGpu"}
    for row in found.values():
        assert row["answers"].startswith("yes") and row["nodes"] > 600
        assert "real difference" not in row["beside the processor's"]
