"""The package behind an online endpoint of Azure ML, and the same server on this machine."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from labkit.capture import last_lines
from labkit.errors import LabError
from labkit.extras import extra_packages, lock_of, pins
from labkit.profiles import ROOT

SCORING = ROOT / "labkit" / "cluster" / "scoring"
IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04"
DEPLOYMENT = "blue"
START_S = 60  # longest wait for the server


def entities(order, package: Path) -> tuple:
    """(endpoint, deployment) that serves the folder *package*.

    *order* has the endpoint's name, the size of its virtual machine, and the event it is of.
    """
    from azure.ai.ml.entities import (
        CodeConfiguration,
        Environment,
        ManagedOnlineDeployment,
        ManagedOnlineEndpoint,
        Model,
    )

    from labkit.registry.sdk import EVENT_TAG

    tags = {EVENT_TAG: order.event}  # what an event has made is deleted with it
    endpoint = ManagedOnlineEndpoint(name=order.name, auth_mode="key", tags=dict(tags))
    pip = {"pip": [f"{name}=={pin}" for name, pin in pins(lock_of("endpoint")).items()]}
    conda = {"name": "scoring", "dependencies": ["python=3.11", "pip", pip]}
    deployment = ManagedOnlineDeployment(
        name=DEPLOYMENT,
        endpoint_name=order.name,
        model=Model(path=str(package), type="custom_model"),
        code_configuration=CodeConfiguration(code=str(SCORING), scoring_script="score.py"),
        environment=Environment(image=IMAGE, conda_file=conda),
        instance_type=order.size,
        instance_count=1,
        tags=dict(tags),
    )
    return endpoint, deployment


@contextlib.contextmanager
def local_server(package: Path) -> Iterator[str]:
    """Azure's inference server with *package* on this machine alone: its address, for as long as
    the block lasts.

    Raises LabError where its packages are missing, or it does not start.
    """
    packages = extra_packages("endpoint")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # its own start listens on all addresses: here is what that runs. It would take OpenTelemetry
    # of another version from the labs' packages: so without them (-S)
    env = os.environ | {
        "PYTHONPATH": str(packages),
        "AZUREML_MODEL_DIR": str(package),
        "AML_APP_ROOT": str(SCORING),
        "AZUREML_ENTRY_SCRIPT": "score.py",
        "AML_APP_INSIGHTS_ENABLED": "false",
    }
    command = [sys.executable, "-S", "-m", "gunicorn", "--workers", "1", "--timeout", "300"]
    command += ["--bind", f"127.0.0.1:{port}", "azureml_inference_server_http.server.entry:app"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with open(log, "w") as out:
            server = subprocess.Popen(
                command, env=env, cwd=folder, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            _wait(server, port, log)
            yield f"http://127.0.0.1:{port}/score"
        finally:
            server.terminate()
            server.wait()


def direct():
    """A session of requests that goes past any proxy, to this machine."""
    import requests

    session = requests.Session()
    session.trust_env = False
    return session


def _wait(server: subprocess.Popen, port: int, log: Path) -> None:
    import requests

    session = direct()
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if session.get(f"http://127.0.0.1:{port}/", timeout=5).ok:
                return
        time.sleep(0.2)
    raise LabError(
        "Azure's inference server did not start with this package. Run lab 06 again, then "
        f"'./lab endpoint test'. The end of what it said:\n{last_lines(log)}"
    )
