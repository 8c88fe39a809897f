"""How long things are said to take: one table, scaled to this machine."""

import json
import re
from dataclasses import replace

import pytest
from samples import CPU

from labkit import pace
from labkit.course import EXTRAS, LABS, notebook_path
from labkit.files import read_json
from labkit.machine import machine_name
from labkit.pace import Pace, measure_machine, seconds
from labkit.profiles import PROFILES, ROOT
from labkit.progress import clock
from labkit.state import write_state

TIMES = read_json(ROOT / "data" / "seconds.json")


def times(monkeypatch, factor: float) -> None:
    """The machine is *factor* times as fast as the one of the table."""
    monkeypatch.setattr(pace, "_layers_per_s", lambda _: factor * TIMES["cpu"]["layers_per_s"])


def test_what_is_measured_scales_the_times(runs, monkeypatch, capsys):
    lora, third = TIMES["cpu"]["products"]["lora"], TIMES["cpu"]["labs"]["03"]
    assert (seconds(CPU, "lora"), seconds(CPU, "03")) == (lora, third)
    times(monkeypatch, 0.5)
    measure_machine(CPU)
    labs = clock(2 * sum(TIMES["cpu"]["labs"].values()))
    assert f": the 6 labs take about {labs}\n" in capsys.readouterr().out
    assert (seconds(CPU, "lora"), seconds(CPU, "03")) == (2 * lora, 2 * third)
    assert seconds(CPU, "package") is None


def test_a_measurement_of_another_machine_or_of_none_scales_nothing(runs):
    lora, path = TIMES["cpu"]["products"]["lora"], runs / "cpu" / "pace.json"
    write_state(path, Pace("a machine of old", 1000.0))
    assert seconds(CPU, "lora") == lora
    path.write_text("[]")
    assert seconds(CPU, "lora") == lora
    write_state(path, Pace(machine_name(), 0.0))
    assert seconds(CPU, "lora") > lora


def test_the_times_are_of_the_default_model_and_steps(runs, monkeypatch, capsys):
    times(monkeypatch, 0.5)
    for other in ({"steps": 8}, {"model": "o/m"}, {"data": "d.jsonl"}):
        assert seconds(replace(CPU, **other), "lora") is None
        measure_machine(replace(CPU, **other))
    assert "take" not in capsys.readouterr().out


def test_a_gpu_is_not_measured(runs, monkeypatch, capsys):
    monkeypatch.setattr(pace, "_layers_per_s", lambda _: pytest.fail("measured"))
    measure_machine(PROFILES["gpu"])
    assert "on an H200" in capsys.readouterr().out
    assert seconds(PROFILES["gpu"], "03") == TIMES["gpu"]["labs"]["03"]


def test_the_measurement_is_a_rate_of_this_machine():
    for dtype in ("float32", "bfloat16"):
        assert 0.1 < pace._layers_per_s(dtype, 0.1) < 100_000


# ---- the table, and what is written of it elsewhere


def agrees(said: str, unit: str, of: float) -> bool:
    """Whether *of* seconds are what is *said*, a number, in its digits."""
    digits = len(said.partition(".")[2])
    return abs(float(said) - of / (60 if unit == "min" else 1)) <= 0.5001 * 10**-digits


@pytest.mark.parametrize("number", EXTRAS)
def test_an_extra_says_what_the_table_has(number):
    first = "".join(json.loads(notebook_path(number).read_text())["cells"][0]["source"])
    said = re.search(r"\*\*Time:\*\* .*?run ([\d.]+) (s|min) on two cores", first)
    assert said and agrees(*said.groups(), TIMES["cpu"]["extras"][number])


@pytest.mark.parametrize("number", LABS)
def test_a_notebook_says_what_the_table_has(number):
    first = "".join(json.loads(notebook_path(number).read_text())["cells"][0]["source"])
    line = re.search(r"\*\*Time:\*\* .*", first)[0]
    for profile, pattern in {
        "cpu": r"run (?:about )?([\d.]+) (s|min) on two cores",
        "gpu": r"([\d.]+) (s|min) on an H200",
    }.items():
        said = re.search(pattern, line)
        assert said and agrees(*said.groups(), TIMES[profile]["labs"][number]), (profile, line)


def test_the_readme_and_the_instructors_page_say_what_the_table_has():
    readme = (ROOT / "README.md").read_text()
    page = (ROOT / "docs" / "INSTRUCTORS.md").read_text()
    for number, took in TIMES["cpu"]["labs"].items():
        name = LABS[number].name
        in_readme = re.search(rf"^\| \[{number} {name}\].*\| \d+ \+ ([\d.]+) \|$", readme, re.M)
        in_page = re.search(rf"^\| {number} {name} \| \d+ \| ([\d.]+) \|", page, re.M)
        assert agrees(in_readme[1], "min", took) and agrees(in_page[1], "min", took), number
    total = sum(TIMES["cpu"]["labs"].values())
    assert agrees(re.search(r"^\| all \| \d+ \| ([\d.]+) \|", page, re.M)[1], "min", total)
    assert agrees(re.search(r"then takes (\d+) min", readme)[1], "min", total)
    products = TIMES["cpu"]["products"]
    for label, product in {"AWQ": "awq", "LoRA": "lora"}.items():
        assert agrees(re.search(rf"\| {label}: (\d+) s \|", page)[1], "s", products[product])
