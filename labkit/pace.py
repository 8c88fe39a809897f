"""How long things take here: data/seconds.json, scaled by how fast this machine is."""

import time
from dataclasses import dataclass

from labkit.course import LABS
from labkit.files import read_json
from labkit.machine import machine_name
from labkit.profiles import PROFILES, ROOT, Profile, runs_folder
from labkit.progress import clock
from labkit.state import STRICT, read_state, write_state

SHAPE = (256, 576, 1536, 8)  # tokens of a step, the sizes of the default model's MLP, and the rank


@dataclass(frozen=True)
class Pace:
    """What *machine* reached in :func:`measure_machine`: how often a second it trains a layer."""

    __pydantic_config__ = STRICT

    machine: str
    layers_per_s: float


def measure_machine(profile: Profile) -> None:
    """Measures for two seconds how fast this machine trains a layer with an adapter.

    (A product of matrices alone says little: some processors are ten times as fast at that as at
    all that stands between two products.)

    Keeps that in the run folder, for :func:`seconds`, and prints how long the labs take here.
    """
    labs = sum(_times(profile)["labs"].values())
    if profile.device == "cuda":
        print(f"the six labs took {clock(labs)} on {_times(profile)['machine']}")
        return
    here, known = _layers_per_s(profile.dtype), _times(profile)["layers_per_s"]
    write_state(_path(profile), Pace(machine_name(), here))
    said = f"this machine trains {here:,.0f} layers a second; the times are of {known:,.0f}"
    if profile == PROFILES[profile.name]:
        said += f": the {len(LABS)} labs take about {clock(labs * known / here)}"
    print(said)


def seconds(profile: Profile, name: str) -> float | None:
    """About how long *name*, a product or the number of a lab or extra, takes on this machine.

    Before :func:`measure_machine`, and on a GPU, as long as where the times were measured. None
    where they say nothing: of another model, other data, other steps.
    """
    known = _times(profile)
    kinds = (known.get(kind, {}) for kind in ("products", "labs", "extras"))
    found = next((kind[name] for kind in kinds if name in kind), None)
    if found is None or profile != PROFILES[profile.name]:
        return None
    pace = read_state(_path(profile), Pace)
    if profile.device == "cuda" or not pace or pace.machine != machine_name():
        return found
    # the file may hold anything
    return found * known["layers_per_s"] / max(pace.layers_per_s, 1.0)


def _times(profile: Profile) -> dict:
    return read_json(ROOT / "data" / "seconds.json")[profile.name]


def _path(profile: Profile):
    return runs_folder() / profile.name / "pace.json"


def _layers_per_s(dtype: str, duration: float = 2.0) -> float:
    """The fastest of as many passes through an MLP, there and back, as fit into *duration*
    seconds: what else computes just now slows the others.
    """
    import torch

    def numbers(*shape, dtype=torch.float32, trained=True):
        return torch.ones(shape, dtype=dtype, requires_grad=trained)

    def linear(x, layer):
        frozen, a, b = layer
        added = x.float() @ a.T @ b.T
        return torch.nn.functional.linear(x, frozen) + added.to(x.dtype)

    (tokens, hidden, wide, rank), kind = SHAPE, getattr(torch, dtype)
    x = numbers(tokens, hidden, dtype=kind)
    up, down = (
        (numbers(o, i, dtype=kind, trained=False), numbers(rank, i), numbers(o, rank))
        for i, o in ((hidden, wide), (wide, hidden))
    )
    rates, end = [], time.perf_counter() + duration
    while not rates or time.perf_counter() < end:
        started = time.perf_counter()
        linear(torch.nn.functional.silu(linear(x, up)), down).float().mean().backward()
        rates.append(1 / (time.perf_counter() - started))
    return max(rates)
