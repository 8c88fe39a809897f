"""How long things take here: data/seconds.json, scaled by how fast this machine is."""

import time
from dataclasses import dataclass

from labkit.course import LABS
from labkit.files import read_json
from labkit.machine import machine_name
from labkit.profiles import PROFILES, ROOT, Profile, runs_folder
from labkit.progress import clock
from labkit.state import STRICT, read_state, write_state

SHAPE = (512, 576, 1536)  # tokens, and the two sizes of the default model's largest layers


@dataclass(frozen=True)
class Pace:
    """What *machine* reached in :func:`measure_machine`: GFLOP/s, 10**9 operations a second."""

    __pydantic_config__ = STRICT

    machine: str
    gflops: float


def measure_machine(profile: Profile) -> None:
    """Measures for two seconds how fast this machine multiplies matrices, as it trains.

    Keeps that in the run folder, for :func:`seconds`, and prints how long the labs take here.
    """
    labs = sum(_times(profile)["labs"].values())
    if profile.device == "cuda":
        print(f"the six labs took {clock(labs)} on {_times(profile)['machine']}")
        return
    gflops, known = _gflops(profile.dtype), _times(profile)["gflops"]
    write_state(_path(profile), Pace(machine_name(), gflops))
    print(f"this machine: {gflops:,.0f} GFLOP/s; the times were measured at {known:,.0f}", end="")
    is_default = profile == PROFILES[profile.name]
    print(f": the {len(LABS)} labs take about {clock(labs * known / gflops)}" * is_default)


def seconds(profile: Profile, name: str) -> float | None:
    """About how long *name*, a product or the number of a lab, takes on this machine.

    Before :func:`measure_machine`, and on a GPU, as long as where the times were measured. None
    where they say nothing: of another model, other data, other steps.
    """
    known = _times(profile)
    found = (known.get("products", {}) | known.get("labs", {})).get(name)
    if found is None or profile != PROFILES[profile.name]:
        return None
    pace = read_state(_path(profile), Pace)
    if profile.device == "cuda" or not pace or pace.machine != machine_name():
        return found
    return found * known["gflops"] / max(pace.gflops, 1.0)  # the file may hold anything


def _times(profile: Profile) -> dict:
    return read_json(ROOT / "data" / "seconds.json")[profile.name]


def _path(profile: Profile):
    return runs_folder() / profile.name / "pace.json"


def _gflops(dtype: str, duration: float = 2.0) -> float:
    """The fastest of as many products as fit into *duration* seconds: what else computes just now
    slows the others.
    """
    import torch

    tokens, inputs, outputs = SHAPE
    x, weight = (
        torch.ones(size, inputs, dtype=getattr(torch, dtype)) for size in (tokens, outputs)
    )
    rates, end = [], time.perf_counter() + duration
    while not rates or time.perf_counter() < end:
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        taken = time.perf_counter() - started
        rates.append(2 * tokens * inputs * outputs / taken / 1e9)
    return max(rates)
