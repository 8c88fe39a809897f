"""The plans of docs/INSTRUCTORS.md: of today's times, and within their minutes."""

import runpy

import pytest

from labkit.course import EXTRAS, LABS
from labkit.profiles import ROOT

PLANS = runpy.run_path(str(ROOT / "docs" / "plans.py"))


def test_the_page_has_todays_plans():
    assert PLANS["BEGIN"] + PLANS["text"]() + PLANS["END"] in PLANS["PAGE"].read_text()


@pytest.mark.parametrize("plan", PLANS["PLANS"])
def test_a_plan_fits_its_minutes(plan):
    """Also on a machine without bfloat16; a tenth is left for questions."""
    assert PLANS["length"](plan) <= 0.95 * plan
    assert PLANS["length"](plan, PLANS["SLOWER"]) <= plan


@pytest.mark.parametrize("plan", PLANS["PLANS"])
def test_a_plan_has_all_labs_in_order(plan):
    labs = [row.lab for row in PLANS["PLANS"][plan]]
    assert labs == sorted(labs) and labs[: len(LABS)] == list(LABS)
    assert set(labs) <= LABS.keys() | EXTRAS.keys()
