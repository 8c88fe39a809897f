"""data/search.json is of the space that extra 12's workflow describes, and its exercise can be
solved.
"""

import itertools
import json

from labkit.profiles import ROOT

STORED = json.loads((ROOT / "data" / "search.json").read_text())
POINTS = STORED["points"]
WORKFLOW = json.loads((ROOT / "notebooks" / "workflows" / "search.json").read_text())
SPACE = {
    name: values
    for config in WORKFLOW["passes"].values()
    for name, values in config.items()
    if isinstance(values, list) and name != "surgeries"
}
NOISE = {"loss": 0.01, "ms": 1, "mb": 0.5}  # as in the notebook


def test_every_way_to_build_it_was_measured_once():
    found = sorted(str([point[name] for name in SPACE]) for point in POINTS)
    assert found == sorted(str(list(one)) for one in itertools.product(*SPACE.values()))
    for point in POINTS:
        assert 4 < point["loss"] < 6 and point["ms"] > 1 and 80 < point["mb"] < 140, point
    assert {"processor", "threads", "seconds", "base"} <= STORED["about"].keys()


def test_half_of_the_ways_can_be_left_out_without_a_loss():
    def beats(one, other):
        as_good = all(one[name] <= other[name] + noise for name, noise in NOISE.items())
        return as_good and any(one[name] < other[name] - n for name, n in NOISE.items())

    frontier = [one for one in POINTS if not any(beats(other, one) for other in POINTS)]
    left = 1
    for name in SPACE:
        left *= len({point[name] for point in frontier})
    assert 2 <= len(frontier) < len(POINTS) and left <= len(POINTS) / 2
