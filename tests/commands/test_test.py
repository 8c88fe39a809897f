"""./lab test: what pytest is given."""

from types import SimpleNamespace

import pytest
from quick import NOT_QUICK
from side_by_side import FIRST, READ_PRODUCTS, RUN_LABS, TAKE_PRODUCTS

from labkit.commands import test as command
from labkit.errors import LabError
from labkit.profiles import ROOT


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        ([], ["-m", "not slow", "-n", "2"]),
        (["--all"], ["-n", "2"]),
        (["--quick"], ["-m", "not slow", "--quick", "-n", "2"]),
        (["-k", "split"], ["-m", "not slow", "-k", "split"]),
        (["--all", "tests/test_play.py"], ["tests/test_play.py"]),
        (["--quick", "-x"], ["-m", "not slow", "--quick", "-x"]),
    ],
    ids=" ".join,
)
def test_two_workers_unless_pytest_is_given_arguments(monkeypatch, given, passed_on):
    monkeypatch.setattr(
        command.subprocess, "run", lambda words, **_: SimpleNamespace(returncode=words)
    )
    asked = []
    monkeypatch.setattr(command.setup, "EXTRAS", ["app"])
    monkeypatch.setattr(command.setup, "install_extra", asked.append)
    monkeypatch.setattr(command, "extra_packages", missing)
    assert command.main(given)[3:] == passed_on
    assert asked == ["app"] * (given in ([], ["--all"]))


def missing(name):
    raise LabError(f"{name} is not installed")


def test_a_run_without_what_an_extra_needs_says_so(monkeypatch, capsys):
    monkeypatch.setattr(command.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    monkeypatch.setattr(command.setup, "EXTRAS", ["app"])
    monkeypatch.setattr(command.setup, "install_extra", missing)
    monkeypatch.setattr(command, "extra_packages", missing)
    assert command.main([]) == 0
    assert "what needs it is skipped: app (app is not installed)" in capsys.readouterr().out


def test_every_name_in_the_lists_is_a_test():
    there = {path.name for path in (ROOT / "tests").rglob("*")}
    assert {*NOT_QUICK, *FIRST, *TAKE_PRODUCTS, *READ_PRODUCTS, *RUN_LABS} <= there
