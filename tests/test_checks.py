"""Checkpoints stop a lab, exercises do not."""

import pytest

from labkit import checks
from labkit.errors import LabError


def test_a_checkpoint_prints_its_claims_and_stops_at_the_first_that_is_false(capsys):
    claims = {"small_enough": True, "loss_improved": False, "not_reached": True}
    with pytest.raises(LabError, match="^checkpoint 3.3 failed: loss improved: no.*the advice$"):
        checks.checkpoint("3.3", claims, judged=True, advice="the advice")
    assert capsys.readouterr().out == "checkpoint 3.3: small enough: yes\n"


def test_a_checkpoint_that_is_not_judged_says_so(capsys):
    checks.checkpoint("3.3", {"loss_improved": False}, judged=False, advice="")
    assert capsys.readouterr().out == "checkpoint 3.3: loss improved: not judged\n"


def test_an_exercise_says_claim_by_claim_whether_it_is_solved(capsys):
    checks.exercise("2.1", {"is_small": True, "is_right": False})
    out = capsys.readouterr().out
    assert out.startswith("exercise 2.1: not yet: change the line marked TODO\n")
    assert "is small: yes\n" in out and "is right: no\n" in out
    checks.exercise("2.1", {"is_small": True, "is_right": True})
    assert capsys.readouterr().out.startswith("exercise 2.1: solved\n")
