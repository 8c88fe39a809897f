"""./lab status: which labs are complete."""

import pytest

from labkit.commands import main, run, status
from labkit.course import LABS
from labkit.profiles import resolve_profile


@pytest.fixture
def states(products):
    """A function that gives the state of all labs, in order."""
    return lambda: [status.state(products, resolve_profile(), number) for number in LABS]


def test_before_and_after_a_run(states, executed, capsys):
    assert states() == ["not run"] * 3
    main(["run"])
    assert states() == ["complete"] * 3
    capsys.readouterr()
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[-3:]] == [
        ["01", "setup", "complete"],
        ["02", "quantize", "complete"],
        ["03", "infer", "complete"],
    ]


def test_a_lab_done_in_jupyterlab_is_complete_once_its_checkpoints_are_passed(states, make_lab):
    make_lab("01")
    assert states() == ["complete", "not run", "not run"]


def test_a_lab_whose_product_is_lost_is_stale_and_those_after_it_stay(states, executed, course):
    main(["run"])
    (course / "awq").unlink()  # as who wants its room
    assert states() == ["complete", "stale", "complete"]


def test_a_failed_lab_is_incomplete(states, executed):
    executed.fails = {"02"}
    main(["run"])
    assert states() == ["complete", "incomplete", "not run"]


def test_a_changed_notebook_is_stale(states, executed, write, course):
    main(["run"])
    write("03", '2 + 2\n# and one checkpoint more\n# lab.checkpoint("3.9")')
    assert states() == ["complete", "complete", "stale"]
    assert (course / run.executed("03")).exists()
