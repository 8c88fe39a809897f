"""In the emulated Azure, on products of this test run: lab 06; lab 01 with a catalog's model."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from labkit.course import notebook_path
from labkit.profiles import ROOT


@pytest.fixture
def inside(rig, notebook_runs):
    """The environment of a client in the rig that works on this test run's products."""
    env = rig.process_env() | {"PYTHONPATH": str(ROOT), "LAB_RUNS": str(notebook_runs.parent)}
    env.pop("LAB_REHEARSE")
    return env


def test_lab_06_uploads_and_gets_it_back_and_tells_no_secret(rig, inside, notebook_runs, tmp_path):
    path = shutil.copy(notebook_path("06"), tmp_path)
    # without conftest.py, which forbids uploads
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--noconftest",
        "--nbmake",
        "--overwrite",
        "--nbmake-timeout=600",
        "-q",
        path,
    ]
    done = subprocess.run(command, cwd=tmp_path, env=inside, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + rig.summary()
    cells = nbformat.read(path, as_version=4).cells
    said = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    for part in (
        rig.client_id,
        f"workspace {rig.workspace} (",
        "MB registered",
        "https://ml.azure.com/model/ft-for-travel:1/details",
    ):
        assert part in said
    # those of 6.2 on the answer are judged after a whole training only
    assert len(re.findall(r"^checkpoint .*: yes$", said, re.MULTILINE)) == 7
    properties = rig.models["ft-for-travel"]["1"]["properties"]
    assert {
        "base_model",
        "licence_of_base_model",
        "training_data_sha256",
        "git_commit",
    } <= properties["properties"].keys()
    stored = {blob.name.split("/", 3)[3]: blob.size for blob in rig.container.list_blobs()}
    assert stored == {p.name: p.stat().st_size for p in (notebook_runs / "package").iterdir()}
    assert not rig.refused
    texts = [p for p in notebook_runs.rglob("*") if p.is_file() and p.stat().st_size < 20e6]
    texts += [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(texts) > 50 and len(rig.secrets) >= 4
    told = [str(p) for p in texts for secret in rig.secrets if secret.encode() in p.read_bytes()]
    assert not told and not [
        secret for secret in rig.secrets if secret in done.stdout + done.stderr
    ]


def test_lab_01_fetches_a_real_model_from_the_catalog(rig, inside, notebook_runs, tmp_path):
    """This test run's model, under the name that a colleague would type: the weights arrive."""
    rig.publish(notebook_runs / "base", "SmolLM2-135M-Instruct", "4")
    code = (
        "import sys; from pathlib import Path; import labkit\n"
        "from labkit.profiles import resolve_profile\n"
        "labkit.fetch_model(Path(sys.argv[1]), resolve_profile())"
    )
    address = "azureml://registries/azureml/models/SmolLM2-135M-Instruct/versions/4"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "base")],
        env=inside | {"LAB_MODEL": address},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    from safetensors.torch import load_file

    got, want = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "base", notebook_runs / "base")
    )
    assert got.keys() == want.keys() and all((got[name] == want[name]).all() for name in want)
    assert os.listdir(tmp_path) == ["base"] and not rig.refused


def test_any_command_runs_inside_the_rig(notebook_runs):
    code = "import os; from azure.identity import DefaultAzureCredential as D\n"
    code += "print(os.environ['AZURE_ML_WORKSPACE'])\n"
    code += "print(D().get_token('https://management.azure.com/.default').token.count('.'))"
    command = [sys.executable, str(ROOT / "tests" / "azure_rig"), sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"\S+\n2\n", done.stdout) and "oauth2" in done.stderr
