"""Olive's shared cache in a container of Azure's blobs, stored by Azurite: what extra 12 says."""

import json
from pathlib import Path

import pytest
from azure_rig import ACCOUNT
from forked import run_forked

from labkit.machine import TELEMETRY_OFF

pytestmark = pytest.mark.slow  # two machines that build a model

RUN = """
import json, sys
import olive
olive.run(json.loads(sys.argv[1]))
"""


@pytest.fixture
def machine(rig, tiny, tmp_path):
    """Runs a workflow as a machine of its own: with a local cache that is empty at first."""

    def run(name, *passes, shared):
        folder = tmp_path / name
        folder.mkdir()
        accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
        workflow = {
            "input_model": {"type": "HfModel", "model_path": str(tiny)},
            "systems": {"here": {"type": "LocalSystem", "accelerators": [accelerator]}},
            "host": "here",
            "target": "here",
            "passes": {one["type"]: one for one in passes},
            "output_dir": str(folder / "out"),
            "workflow_id": "shared",
            **shared(folder / "cache", rig.containers["blobstore"]),
        }
        env = rig.process_env(rig.cli_env) | TELEMETRY_OFF
        status, printed, error = run_forked(RUN, folder, json.dumps(workflow), env=env)
        assert status == 0, printed + error
        return folder / "out", printed + error

    return run


def by_name(cache: Path, container: str) -> dict:
    return {
        "cache_config": {
            "cache_dir": str(cache),
            "account_name": ACCOUNT,
            "container_name": container,
        }
    }


def by_address(cache: Path, container: str) -> dict:
    return {"cache_dir": [str(cache), f"https://{ACCOUNT}.blob.core.windows.net/{container}"]}


ROUND = {"type": "Rtn", "bits": 4, "group_size": 16}
BUILD = {"type": "ModelBuilder", "precision": "int4"}


def contents(folder: Path) -> dict[str, bytes]:
    """The model's files; what Olive notes beside them has paths and times."""
    notes = ("footprint.json", "output_footprint.json", "model_config.json", "run_history.txt")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in notes]
    return {path.name: path.read_bytes() for path in files}


def test_a_second_machine_builds_nothing(machine, rig):
    first, said = machine("first", ROUND, BUILD, shared=by_name)
    assert "is uploaded to shared cache" in said and contents(first)
    second, said = machine("second", ROUND, BUILD, shared=by_name)
    assert said.count("Loaded model from cache") == 2 and "Uploading" not in said
    assert contents(second) == contents(first)
    # where it was put: the path that it has on the machine that made it, whatever that is
    made_at = str(first.parent / "cache")
    assert f"to {made_at}" in said


def test_a_checkpoint_of_the_cache_is_lost_where_the_hub_is_not_reached(machine, rig):
    first, _ = machine("first", ROUND, shared=by_name)
    second, said = machine("second", ROUND, shared=by_name)
    assert contents(first) and not contents(second)
    assert rig.refused == ["huggingface.co"]
    assert "ProxyError" in said


def test_an_address_alone_shares_nothing(machine, rig):
    machine("first", ROUND, shared=by_address)
    assert not list(rig.container.list_blobs()) and not rig.requests
