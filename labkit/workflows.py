"""Olive's workflows: files with slots, and what runs once the slots are filled in."""

import json
from pathlib import Path

from labkit.errors import LabError
from labkit.profiles import ROOT


def fill_workflow(name: str, known: dict, provider: str, *, cache: Path) -> dict:
    """notebooks/workflows/NAME.json with each "$slot" replaced by what is *known* of that name.

    Adds the system for the execution *provider* and the folder of Olive's *cache*. Raises LabError
    where a slot has no value.
    """
    path = ROOT / "notebooks" / "workflows" / f"{name}.json"
    workflow = _filled(json.loads(path.read_text(encoding="utf-8")), known, name)
    device = "gpu" if provider.startswith("CUDA") else "cpu"
    accelerator = {"device": device, "execution_providers": [provider]}
    workflow["systems"] = {"local_system": {"type": "LocalSystem", "accelerators": [accelerator]}}
    return workflow | {"target": "local_system", "cache_dir": str(cache)}


def _filled(value, known: dict, name: str):
    """*value* with each text "$slot" in it replaced by what is *known* of that name."""
    if isinstance(value, dict):
        return {key: _filled(inner, known, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, known, name) for inner in value]
    if not (isinstance(value, str) and value.startswith("$")):
        return value
    if value[1:] not in known:
        raise LabError(
            f"the workflow {name} needs a value for {value}: pass it to lab.workflow(...)."
        )
    found = known[value[1:]]
    return (
        str(found)
        if isinstance(found, Path)
        else list(found)
        if isinstance(found, tuple)
        else found
    )
