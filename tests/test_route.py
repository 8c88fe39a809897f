"""docs/route.sh, whole, on the products of this test run: from 16 bits to an answer."""

import os
import subprocess

import pytest

from labkit.profiles import ROOT


@pytest.mark.slow  # AWQ, a training and a build, without the notebooks
def test_the_route_as_commands_ends_in_an_answer(notebook_runs):
    env = os.environ | {"LAB_RUNS": str(notebook_runs.parent)}
    done = subprocess.run(
        ["bash", "docs/route.sh"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = notebook_runs / "shell"
    assert (made / "onnx" / "adapter_weights.onnx_adapter").is_file()
    assert len(done.stdout.splitlines()[-1].split()) > 3, done.stdout[-500:]
