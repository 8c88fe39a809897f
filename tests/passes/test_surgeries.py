"""Passes on a graph whose weights stay in their file: the graph that Olive's own passes give."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import assert_valid
from samples import CPU
from test_optimize import phi3

import labkit
from labkit.passes import surgeries
from labkit.session import Lab

OLIVES = {
    "GraphSurgeries": "olive.passes.onnx.graph_surgeries.GraphSurgeries",
    "LoraExtractor": "olive.passes.onnx.extract_adapters.ExtractAdapters",
}


@pytest.fixture
def captured(byte_tokenizer, tmp_path, runs, monkeypatch):
    """A function (output folder, passes -> module paths) that runs what follows the capture."""
    import olive
    import torch
    from olive.package_config import OlivePackageConfig
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    phi3(tie_word_embeddings=False).save_pretrained(model)
    byte_tokenizer.save_pretrained(model)
    lora = LoraConfig(r=4, target_modules=list(CPU.lora_targets), init_lora_weights=False)
    get_peft_model(phi3(), lora).save_pretrained(adapter)
    places = {"model": str(model), "adapter": str(adapter), "tied": False}
    workflow = Lab("04", CPU).workflow("optimize", **places)
    passes = dict(workflow["passes"])

    def run(out, passes, package=None, **model):
        places = {"output_dir": str(out), "cache_dir": str(tmp_path / f"cache-{out.name}")}
        package = package or labkit.olive_passes()
        # a process keeps the first class of a name, whatever a later configuration says
        monkeypatch.setattr(OlivePackageConfig, "_pass_modules", {})
        assert olive.run(
            workflow | places | {"passes": passes} | model, package_config=package
        ).has_output_model()

    run(tmp_path / "captured", {"capture": passes.pop("capture")})
    source = {"type": "ONNXModel", "model_path": str(tmp_path / "captured")}
    source["onnx_file_name"] = "model.onnx"

    def follow(out, own=()):
        package = labkit.olive_passes()
        for name in own:
            package["passes"][name]["module_path"] = OLIVES[name]
        mine = {name: dict(one) for name, one in passes.items()}
        if "LoraExtractor" in own:
            package["passes"]["ExtractAdapters"] = package["passes"].pop("LoraExtractor")
            mine["extract"]["type"] = "ExtractAdapters"
        run(out, mine, package, input_model=source)
        return out

    return follow


@pytest.mark.parametrize("most", [surgeries.ONE_FILE, 0], ids=["small", "large"])
def test_the_graph_is_the_one_of_olives_own_passes(captured, tmp_path, monkeypatch, most):
    wanted = captured(tmp_path / "olives", own=OLIVES)
    monkeypatch.setattr(surgeries, "ONE_FILE", most)
    found = captured(tmp_path / "ours")
    assert (found / "model.onnx.data").exists() == (most == 0)
    file = "adapter_weights.onnx_adapter"
    assert (found / file).read_bytes() == (wanted / file).read_bytes()
    one, other = (ir.load(folder / "model.onnx").graph for folder in (found, wanted))
    names = [[(node.name, node.op_type) for node in graph] for graph in (one, other)]
    assert names[0] == names[1] and "GatherBlockQuantized" in dict(map(reversed, names[0]))
    assert one.initializers.keys() == other.initializers.keys()
    for name, value in one.initializers.items():
        wanted_value = other.initializers[name].const_value.numpy()
        np.testing.assert_array_equal(value.const_value.numpy(), wanted_value, name)
    signatures = [
        {value.name: (value.dtype, str(value.shape)) for value in (*graph.inputs, *graph.outputs)}
        for graph in (one, other)
    ]
    assert signatures[0] == signatures[1]
    assert_valid(found / "model.onnx")
    graph = onnx.load(found / "model.onnx", load_external_data=False).graph
    assert len({one.name for one in graph.input}) == len(graph.input)
