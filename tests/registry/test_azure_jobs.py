"""The labs as a pipeline, a night's run and an endpoint, in the emulated Azure: what arrives."""

import json
import re

import azure_rig
import pytest

from labkit.cluster import jobs
from labkit.commands import endpoint, submit
from labkit.course import LABS
from labkit.profiles import ROOT
from labkit.registry.sdk import EVENT_TAG

STEPS = [f"lab_{number}" for number in LABS]


@pytest.fixture
def sent(azure):
    """A function that runs a command and returns (what it printed, what arrived), by kind."""

    def sent(run, arguments, capsys) -> tuple[str, dict]:
        assert run.main(arguments) == 0
        assert not azure.refused
        return capsys.readouterr().out, azure.sent

    return sent


def only(found: dict, kind: str) -> dict:
    """The properties of the one asset of that *kind*."""
    bodies = [body["properties"] for path, body in found.items() if path.startswith(f"{kind}/")]
    assert len(bodies) == 1, list(found)
    return bodies[0]


def blobs(rig, uri: str) -> dict[str, bytes]:
    """Path -> content of the files under the address *uri*."""
    prefix = uri.split(rig.container.container_name + "/")[-1].split("/paths/")[-1].rstrip("/")
    found = [blob.name for blob in rig.container.list_blobs() if prefix in blob.name]
    cut = found[0].index(prefix) + len(prefix) + 1
    return {name[cut:]: rig.container.download_blob(name).readall() for name in found}


def test_a_pipeline_of_six_steps_arrives(azure, small, sent, capsys):
    out, found = sent(submit, ["--gpus", "2"], capsys)
    job = only(found, "jobs")
    assert job["jobType"] == "Pipeline" and list(job["jobs"]) == STEPS
    assert f"/computes/{'labkit'}" in job["settings"]["default_compute"]
    for before, name in zip([None, *STEPS], STEPS, strict=False):
        step = job["jobs"][name]
        bound = (
            {} if before is None else {"before": f"${{{{parent.jobs.{before}.outputs.after}}}}"}
        )
        assert {key: one["value"] for key, one in step.get("inputs", {}).items()} == bound
    last = job["jobs"][STEPS[-1]]["outputs"]["after"]
    assert "parent.outputs.run" in json.dumps(last)
    shared = {name: step.get("distribution") for name, step in job["jobs"].items()}
    assert {name for name, how in shared.items() if how} == {"lab_03"}
    assert shared["lab_03"]["process_count_per_instance"] == 2
    components = [body for path, body in found.items() if path.startswith("components/")]
    assert len(components) == 6
    commands = [one["properties"]["componentSpec"]["command"] for one in components]
    assert [c for c in commands if "labkit.cluster.train" in c] == [
        c for c in commands if "--only 03" in c
    ]
    assert "https://ml.azure.com/runs/" in out
    cluster = found["computes/labkit"]["properties"]["properties"]
    assert cluster["scaleSettings"]["minNodeCount"] == 0
    assert cluster["scaleSettings"]["nodeIdleTimeBeforeScaleDown"] == "PT10M"


def test_the_environment_is_the_lock_and_the_code_is_what_git_tracks(azure, sent, capsys):
    _, found = sent(submit, [], capsys)
    image = blobs(azure, only(found, "environments")["build"]["contextUri"])
    assert image["locks/cpu.txt"] == (ROOT / "locks" / "cpu.txt").read_bytes()
    assert b"lab setup\n" in image["Dockerfile"] and "labkit/commands/setup.py" in image
    code = blobs(azure, only(found, "codes")["codeUri"])
    assert code["notebooks/03_finetune.ipynb"]
    strange = [name for name in code if re.match(r"(runs|tests|\.venv|\.git|.*\.olive)/", name)]
    assert not strange and "notebooks/labkit" not in code
    whole = json.dumps(found) + "".join(map(repr, (code | image).values()))
    assert not [secret for secret in azure.secrets if secret in whole]


def test_the_same_job_again_sends_no_file_again(azure, small, sent, capsys):
    sent(submit, [], capsys)
    before = len(azure.requests)
    sent(submit, [], capsys)
    again = [r for r in azure.requests[before:] if r.host == azure_rig.BLOB and r.sent > 1000]
    assert not again and len([path for path in azure.sent if path.startswith("jobs/")]) == 2


def test_a_night_s_run_is_a_schedule(azure, small, sent, capsys):
    out, found = sent(submit, ["--nightly", "17 3 * * *"], capsys)
    plan = found["schedules/labkit-nightly"]["properties"]
    assert plan["trigger"]["expression"] == "17 3 * * *" and plan["trigger"]["timeZone"] == "UTC"
    job = plan["action"]["jobDefinition"]
    assert job["settings"]["force_rerun"] is True and list(job["jobs"]) == ["nightly"]
    spec = next(one for path, one in found.items() if path.startswith("components/"))
    spec = spec["properties"]["componentSpec"]
    assert spec["command"] == jobs.NIGHT and spec["is_deterministic"] is False
    kept = job["jobs"]["nightly"]["outputs"]["history"]
    assert "labkit/nights" in json.dumps([kept, job["outputs"]])
    assert "ReadWriteMount" in json.dumps([kept, job["outputs"]])
    assert "labkit-nightly" in out


@pytest.fixture
def packaged(package, monkeypatch):
    monkeypatch.setattr(endpoint, "package", lambda: package)
    return package


def test_an_endpoint_is_made_with_the_tag_and_deleted(azure, sent, packaged, capsys):
    out, found = sent(endpoint, ["up", "--event", "spring"], capsys)
    assert found["onlineEndpoints/labkit-travel"]["tags"] == {EVENT_TAG: "spring"}
    assert found["onlineEndpoints/labkit-travel"]["properties"]["authMode"] == "Key"
    assert found["onlineEndpoints/labkit-travel"]["properties"]["traffic"] == {"blue": 100}
    made = found["onlineEndpoints/labkit-travel/deployments/blue"]
    assert made["tags"] == {EVENT_TAG: "spring"} and made["sku"]["capacity"] == 1
    assert made["properties"]["codeConfiguration"]["scoringScript"] == "score.py"
    conda = only(found, "environments")["condaFile"]
    assert "azureml-inference-server-http==" in conda and "onnxruntime-genai==" in conda
    assert list(blobs(azure, only(found, "codes")["codeUri"])) == ["score.py"]
    assert "https://labkit-travel." in out and "by the hour" in out
    out, found = sent(endpoint, ["down"], capsys)
    assert not azure.endpoints and "is deleted" in out
