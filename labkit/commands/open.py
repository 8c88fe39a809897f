"""./lab open: JupyterLab on the clone, opened at its notebooks."""

import argparse
import os
import re
import sys
from pathlib import Path

from labkit.profiles import ROOT, runs_folder
from labkit.working_copies import WorkingCopies

# JupyterLab tries up to 102 ports further on, and takes 65536 for one
LAST_PORT = 65433
SETTINGS = Path(__file__).parent / "jupyterlab"


def main(arguments: list[str]) -> int:
    """Becomes JupyterLab, which prints its own address with the token."""
    parser = argparse.ArgumentParser(
        prog="./lab open", description="Opens the notebooks in JupyterLab."
    )
    parser.add_argument(
        "--port", type=port_number, default=8888, help="first port to try, 8888 if none is given"
    )
    port = parser.parse_args(arguments).port
    for line in news(ROOT):
        print(line)
    print(
        f"JupyterLab starts on port {port}, or on another one near it if that is in use (if all "
        "are: './lab open --port N'). Open the address that it prints below. Ctrl-C ends it.",
        flush=True,
    )
    os.chdir(ROOT)
    os.execv(sys.executable, command(ROOT, port))


def port_number(text: str) -> int:
    """argparse type: "8888" -> 8888."""
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= LAST_PORT):
        raise argparse.ArgumentTypeError(
            f"'{text[:20]}' is not a port, a number from 1 to {LAST_PORT}"
        )
    return int(text)


def news(root: Path) -> list[str]:
    """What a user of the clone *root* should know before the notebooks are opened.

    Sets working copies aside whose lab has changed since they were made.
    """
    lines = [
        f"{name} has changed since you first saved it, and opens as it is now. Your version is "
        f"kept as {aside.relative_to(root)}."
        for name, aside in WorkingCopies(root).set_aside_outdated().items()
    ]
    if not runs_folder().is_relative_to(root):
        lines.append(
            f"LAB_RUNS is {runs_folder()}, outside of {root}: JupyterLab does not show the report "
            "and the logs that are there. Open them with another program."
        )
    return lines


def command(root: Path, port: int, *, at: str = "/lab/tree/notebooks") -> list[str]:
    """The command that serves the folder *root* on *port*, or on another if that is in use.

    *at* is the page that its address leads to.
    """
    arguments = [
        "--no-browser",
        "--log-level=WARN",
        f"--port={port}",
        f"--ServerApp.root_dir={root}",
        "--ServerApp.answer_yes=True",  # Ctrl-C ends it, without a question
        "--ServerApp.jpserver_extensions=labkit.commands.jupyterlab=True",
        "--ServerApp.contents_manager_class=labkit.commands.jupyterlab.contents.LabContents",
        f"--LabApp.default_url={at}",
        "--LabApp.custom_css=True",
        f"--LabApp.app_settings_dir={SETTINGS}",
    ]
    if os.geteuid() == 0:
        # in a container there is often no other user, and Jupyter refuses root unless told
        arguments.append("--allow-root")
    if pattern := codespace_origins():
        arguments.append(f"--ServerApp.allow_origin_pat={pattern}")
    return [sys.executable, "-m", "jupyterlab", *arguments]


def codespace_origins() -> str:
    """A pattern of the addresses at which a browser sees the ports of this GitHub codespace; ""
    elsewhere.

    JupyterLab is asked as "localhost" there, and refuses a browser that shows another name.
    """
    name = os.environ.get("CODESPACE_NAME")
    domain = os.environ.get("GITHUB_CODESPACES_PORT_FORWARDING_DOMAIN") or "app.github.dev"
    return rf"https://{re.escape(name)}-\d+\.{re.escape(domain)}" if name else ""
