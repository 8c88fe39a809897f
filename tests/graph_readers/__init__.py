"""Readers of ONNX graphs that node runs: Netron and onnxruntime-web, fetched at first use."""

import json
import subprocess
from pathlib import Path

from azure_rig.install import npm_install, pip_install

HOME = Path(__file__).resolve().parent
NETRON = "netron==9.3.3"  # of its wheel, only what runs in a browser is used


def as_netron_shows_it(model: Path) -> dict:
    """{"format", "inputs": names, "nodes": count} of the graph, as Netron reads it."""
    folder = HOME / "netron"
    if not (folder / f"{NETRON.replace('==', '-')}.dist-info").is_dir():
        pip_install(NETRON, folder)
        (folder / "package.json").write_text('{"type": "module"}')
    return _run("netron.mjs", folder / "netron", model)


def run_on_the_web(model: Path) -> dict:
    """{"inputs": names, "logits": numbers} of the graph on token 1, from onnxruntime-web."""
    return _run("web.mjs", model)


def _run(script: str, *arguments: Path) -> dict:
    command = [npm_install(HOME), HOME / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
