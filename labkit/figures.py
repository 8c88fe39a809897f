"""A measured figure with its uncertainty, as one value."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from labkit.errors import LabError
from labkit.profiles import SEED


@dataclass(frozen=True)
class Estimate:
    """A figure: its *mean*, the *low* and *high* end of its interval, and its *unit*.

    Without ends it is exact, as a size is. What the interval is, says the function that made it:
    95 % for losses and shares, the quartiles for speeds. Raises LabError where a number is not
    finite.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    unit: str = ""

    def __post_init__(self):
        for end in ("low", "high"):
            if getattr(self, end) is None:
                object.__setattr__(self, end, self.mean)
        if not all(map(math.isfinite, (self.mean, self.low, self.high))):
            raise LabError(
                f"a figure ({self.mean} {self.unit}) is not a finite number: most often "
                "training went wrong, with a learning rate that is too high. Undo changes to "
                "the profile, and run the lab again."
            )

    @property
    def exact(self) -> bool:
        return self.low == self.mean == self.high

    def times(self, factor: float, unit: str) -> "Estimate":
        """The same figure in another *unit*, which is *factor* times as small."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Estimate(self.mean * factor, low, high, unit)

    def as_dict(self) -> dict:
        """{"mean", "low", "high", "unit"}, for JSON."""
        return asdict(self)

    def __str__(self):
        ends = "" if self.exact else f" ({number(self.low)} to {number(self.high)})"
        return f"{number(self.mean)}{ends} {self.unit}".rstrip()


def bootstrap(
    values: Sequence[float],
    *,
    unit: str,
    weights: Sequence[float] | None = None,
    draws: int = 2000,
) -> Estimate:
    """The (weighted) mean of *values* with its 95 % interval, by the percentile bootstrap.

    Source: Efron 1979. For the difference of two models, pass the differences, pair by pair.
    """
    import numpy as np

    values = np.asarray(values, float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    chosen = np.random.default_rng(SEED).integers(len(values), size=(draws, len(values)))
    means = (values * weights)[chosen].sum(1) / weights[chosen].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(np.average(values, weights=weights)), float(low), float(high), unit)


def number(value: float) -> str:
    """*value* with the three digits that count, for a label: 1,234, 12.3, 0.0123."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"
