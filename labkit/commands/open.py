"""./lab open: JupyterLab on the notebooks."""

import argparse
import os
import socket
import sys
from pathlib import Path

from labkit.errors import LabError
from labkit.profiles import ROOT


def main(arguments: list[str]) -> int:
    """Becomes JupyterLab, which prints its own address with the token."""
    parser = argparse.ArgumentParser(
        prog="./lab open", description="Opens the notebooks in JupyterLab."
    )
    parser.add_argument("--port", type=int, default=8888, help="first port to try (8888)")
    port = free_port(parser.parse_args(arguments).port)
    print(
        f"JupyterLab starts on port {port}: open the address that it prints below. Ctrl-C ends "
        "it.",
        flush=True,
    )
    notebooks = ROOT / "notebooks"
    os.chdir(notebooks)
    os.execv(sys.executable, command(notebooks, port))


def command(notebooks: Path, port: int) -> list[str]:
    """The command that serves the folder *notebooks* on *port* of this machine."""
    arguments = [
        "--no-browser",
        "--log-level=WARN",
        f"--port={port}",
        f"--ServerApp.root_dir={notebooks}",
        f"--LabApp.app_settings_dir={Path(__file__).parent / 'jupyterlab'}",  # asks nobody about news, and fetches none
    ]
    if os.geteuid() == 0:
        # in a container there is often no other user, and Jupyter refuses root unless told
        arguments.append("--allow-root")
    return [sys.executable, "-m", "jupyterlab", *arguments]


def free_port(first: int) -> int:
    """The first port of this machine from *first* on that nobody listens to."""
    for port in range(first, min(first + 50, 65536)):
        with socket.socket() as probe:
            # as the server does: a port that was left a moment ago is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise LabError(
        f"the ports from {first} on are all in use. Name another: './lab open --port 9000'."
    )
