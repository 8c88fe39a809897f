"""Extra 12's search, whole, on a tiny model: what is tried, measured and kept."""

import json
import math

import onnx
import pytest
from samples import CPU, qa

import labkit
from labkit.passes.builder import LoraModelBuilder
from labkit.profiles import ROOT
from labkit.session import Lab

WIDE = {"most_perplexity": 1e9, "most_ms": 1e9, "most_bytes": 1e12}
NOTHING_IS_SO_GOOD = {"most_perplexity": 1e-9}
TRIED = {
    "algorithm": ["nearest", "awq"],
    "group_size": [16, 32],
    "int4_is_symmetric": [False, True],
    "int4_algo_config": ["rtn_last"],
    "int4_accuracy_level": [4],
}


@pytest.fixture
def search(tiny, runs):
    """A function that runs the search with other limits and gives the footprint of Olive."""
    import olive

    lab, shape = Lab("12", CPU), json.loads((tiny / "config.json").read_text())
    heads, layers = shape["num_key_value_heads"], shape["num_hidden_layers"]
    size = shape["hidden_size"] // shape["num_attention_heads"]
    past = [f"past_key_values.{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    runs.mkdir(exist_ok=True)
    heldout, calibration = runs / "heldout.jsonl", runs / "calibration.jsonl"
    heldout.write_text("".join(json.dumps(record) + "\n" for record in map(qa, range(3))))
    calibration.write_text(json.dumps({"token_ids": list(range(200))}) + "\n")

    def run(**limits):
        workflow = lab.workflow(
            "search",
            model=tiny,
            tied=False,
            calibration=calibration,
            heldout=heldout,
            script=ROOT / "notebooks" / "extras" / "search_evaluator.py",
            names=["input_ids", "attention_mask", *past],
            shapes=[[1, 1], [1, 65]] + [[1, heads, 64, size]] * len(past),
            types=["int64"] * 2 + ["float32"] * len(past),
            seed=7,
            **{"tries": None} | WIDE | limits,
        )
        workflow["search_strategy"]["sampler"] = "sequential"
        workflow["search_strategy"].pop("sampler_config")
        for one in workflow["passes"].values():
            one |= {name: values for name, values in TRIED.items() if name in one}
        places = {"cache_dir": str(runs / "cache"), "output_dir": str(runs / "out")}
        olive.run(workflow | places, package_config=labkit.olive_passes())
        return json.loads((runs / "out" / "footprint.json").read_text())

    return run


def measured(nodes) -> list[dict]:
    return [
        {name: one["value"] for name, one in node["metrics"]["value"].items()}
        for node in nodes.values()
        if node["metrics"] and node["metrics"]["value"]
    ]


def test_all_that_share_a_pass_are_measured_and_a_second_search_takes_the_first_one_s_figures(
    search, runs
):
    nodes = search(**NOTHING_IS_SO_GOOD)
    found = measured(nodes)
    assert len(found) == math.prod(map(len, TRIED.values()))
    for one in found:
        assert math.isfinite(one["answers-perplexity"]) and one["answers-perplexity"] > 1
        assert one["token-p50"] > 0 and one["size-bytes"] > 1000
    assert len({one["size-bytes"] for one in found}) >= 4  # groups, and zero points
    assert measured(search(**NOTHING_IS_SO_GOOD)) == found
    for node in nodes.values():
        if node["metrics"] and node["metrics"]["value"]:
            path = node["model_config_data"]["config"]["model_path"]
            folder = path if path.endswith(".onnx") else f"{path}/model.onnx"
            assert_groups(onnx.load(folder, load_external_data=False), nodes, node)


def assert_groups(model, nodes, node) -> None:
    """The graph has the groups and the kind of grid that its search point says."""
    settings = {}
    while node["parent_model_id"]:
        settings |= {k: v for k, v in node["pass_run_config"].items() if k in TRIED}
        node = nodes[node["parent_model_id"]]
    products = [
        one for one in model.graph.node if one.op_type == "MatMulNBits" and "/layers." in one.name
    ]
    assert products
    for one in products:
        sizes = {a.name: a.i for a in one.attribute}
        assert sizes["block_size"] == settings["group_size"] and sizes["bits"] == 4
        has_zeros = len(one.input) > 3 and bool(one.input[3])
        assert has_zeros != settings["int4_is_symmetric"]


def test_a_search_stops_at_the_first_model_that_keeps_the_limits(search):
    assert len(measured(search())) == 1


def test_what_an_interrupted_search_has_built_is_not_built_again(search, monkeypatch):
    built, build = [], LoraModelBuilder._run_for_config

    def count(self, model, config, out):
        built.append(out)
        if len(built) == 3:
            raise KeyboardInterrupt
        return build(self, model, config, out)

    monkeypatch.setattr(LoraModelBuilder, "_run_for_config", count)
    with pytest.raises(KeyboardInterrupt):
        search(**NOTHING_IS_SO_GOOD)
    assert len(measured(search(**NOTHING_IS_SO_GOOD))) == math.prod(map(len, TRIED.values()))
    assert len(built) == len(set(built)) + 1  # the one that was interrupted


def test_a_model_that_cannot_be_built_meets_no_goals_and_is_tried_again(search, monkeypatch):
    build, ways = LoraModelBuilder._run_for_config, math.prod(map(len, TRIED.values()))

    def full(self, model, config, out):
        if config.int4_is_symmetric:
            raise OSError(28, "No space left on device")
        return build(self, model, config, out)

    with monkeypatch.context() as patch:
        patch.setattr(LoraModelBuilder, "_run_for_config", full)
        assert len(measured(search(**NOTHING_IS_SO_GOOD))) == ways / 2
    assert len(measured(search(**NOTHING_IS_SO_GOOD))) == ways
