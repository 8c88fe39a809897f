"""A figure with its interval."""

import math

import pytest

from labkit.errors import LabError
from labkit.figures import Estimate, bootstrap, number


def test_a_figure_without_ends_is_exact():
    exact = Estimate(3.5, unit="MB")
    assert exact.exact and (exact.low, exact.high) == (3.5, 3.5) and str(exact) == "3.50 MB"
    assert not Estimate(3.5, 3.0, 4.0).exact and not Estimate(3.5, high=4.0).exact
    assert str(Estimate(3.5, 3.0, 4.0, "nats")) == "3.50 (3.00 to 4.00) nats"
    assert str(Estimate(2.0)) == "2.00"


def test_it_comes_back_from_json():
    figure = Estimate(1.0, 0.5, 2.0, "s")
    assert Estimate(**figure.as_dict()) == figure


@pytest.mark.parametrize("factor", [100, -100])
def test_another_unit_keeps_the_ends_in_order(factor):
    found = Estimate(0.5, 0.25, 1.0, "").times(factor, "%")
    ends = sorted((0.25 * factor, 1.0 * factor))
    assert (found.mean, [found.low, found.high], found.unit) == (0.5 * factor, ends, "%")


@pytest.mark.parametrize("wrong", [(math.nan,), (math.inf,), (1.0, math.nan, 2.0)])
def test_what_is_not_finite_is_refused(wrong):
    with pytest.raises(LabError, match="not a finite number"):
        Estimate(*wrong)


def test_the_bootstrap_interval_is_that_of_the_mean():
    found = bootstrap([0.0, 1.0] * 200, unit="share")
    assert found.mean == 0.5 and found.unit == "share"
    # 1.96 standard errors of 0.025
    assert found.low == pytest.approx(0.45, abs=0.01)
    assert found.high == pytest.approx(0.55, abs=0.01)
    assert bootstrap([2.0, 2.0], unit="").exact
    assert bootstrap([0.0, 1.0] * 200, unit="share") == found, "the draws are the same each time"


def test_weights_count_as_so_many_values():
    weighted = bootstrap([0.0, 1.0], weights=[1, 3], unit="")
    assert weighted.mean == 0.75 and (weighted.low, weighted.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00"), (0.01234, "0.0123"), (1.5, "1.50"), (12.34, "12.3"), (-12.34, "-12.3")]
    + [(123.4, "123"), (1234.5, "1,234"), (1e-5, "0.0000100")],
)
def test_a_number_is_shown_with_three_digits(value, text):
    assert number(value) == text
