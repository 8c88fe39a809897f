"""data/quantizers.json holds every quantizer of extra 13, measured on the same records."""

import json

import labkit
from labkit.profiles import ROOT

STORED = json.loads((ROOT / "data" / "quantizers.json").read_text())
ABOUT, VARIANTS = STORED["about"], STORED["variants"]
MIXED = ("mixed", "mixed-rule", "mixed-random")


def losses(name: str) -> list[list[float]]:
    means = ABOUT["base_losses"] if name == "base" else VARIANTS[name]["losses"]
    return [[mean] * count for mean, count in zip(means, ABOUT["tokens"], strict=True)]


def minus(name: str, other: str) -> labkit.Estimate:
    return labkit.loss_difference(losses(name), losses(other))


def test_every_variant_was_measured_on_the_same_records():
    assert {"rtn", "awq", "gptq", "kquant", "builder", *MIXED} <= VARIANTS.keys()
    assert {"processor", "threads", "seconds", "model", "sensitivity"} <= ABOUT.keys()
    for name, one in VARIANTS.items():
        assert len(one["losses"]) == len(ABOUT["tokens"]) == 45, name
        assert 4 < labkit.mean_loss(losses(name)).mean < 6 and one["seconds"] > 1, name
        assert 80 < one["mb"] < 180 and one["speed"]["mean"] > 1 and one["peft"], name


def test_what_is_compared_is_of_one_size():
    four = [VARIANTS[name]["mb"] for name in ("rtn", "awq", "gptq", "kquant")]
    eight = [VARIANTS[name]["mb"] for name in MIXED]
    assert max(four) - min(four) < 0.1 and max(eight) - min(eight) < 1
    assert min(eight) > max(four) + 5


def test_all_that_leave_a_checkpoint_were_trained():
    for name, one in VARIANTS.items():
        if name == "builder":
            assert one["training"] is None
            continue
        before, after = (one["training"][when] for when in ("before", "after"))
        assert len(before) == len(after) == 15 and 0 < one["again"] <= 100, name
