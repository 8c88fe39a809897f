"""What other programs read of the repository: the editor, the dev container, the citation."""

import json
import tomllib

import pytest
import yaml

from labkit.commands import COMMANDS
from labkit.profiles import ROOT


def load(name: str) -> dict:
    return json.loads((ROOT / name).read_text())


def commands() -> list[str]:
    container = load(".devcontainer/devcontainer.json")["postCreateCommand"]
    return [container, *(task["command"] for task in load(".vscode/tasks.json")["tasks"])]


@pytest.mark.parametrize("command", commands())
def test_they_call_commands_that_exist(command):
    program, name, *_ = command.split()
    assert program == "./lab" and name in COMMANDS


def test_the_container_and_the_editor_recommend_the_same():
    container = load(".devcontainer/devcontainer.json")
    assert (
        container["customizations"]["vscode"]["extensions"]
        == (load(".vscode/extensions.json")["recommendations"])
    )


def test_the_container_has_a_python_that_the_labs_run_on():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    image = load(".devcontainer/devcontainer.json")["image"]
    version = image.split(":")[1].split("-")[0]
    assert version == "3.11" and wanted.startswith(">=3.11")


def test_the_editor_waits_for_the_environment_and_asks_nothing_about_a_task():
    container = load(".devcontainer/devcontainer.json")
    assert container["waitFor"] == "postCreateCommand"
    for task in load(".vscode/tasks.json")["tasks"]:
        assert task["problemMatcher"] == [], task["label"]


def test_the_citation_names_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert f"### {project['version']}\n" in (ROOT / "docs" / "RELEASES.md").read_text()
