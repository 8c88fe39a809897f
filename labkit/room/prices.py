"""What an hour costs: a small file, because prices differ by region, contract and month."""

import math
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError, plain
from labkit.profiles import ROOT
from labkit.state import STRICT, parse_state

EXAMPLE = ROOT / "data" / "room_prices.json"


@dataclass(frozen=True)
class Prices:
    """Prices of virtual machines: size -> *currency* per hour, of a *date* and a *source*."""

    __pydantic_config__ = STRICT

    currency: str
    region: str
    date: str
    source: str
    per_hour: dict[str, float]

    def of(self, size: str | None) -> float | None:
        """The price of an hour of one machine; None where the file does not know *size*."""
        known = {name.lower(): price for name, price in self.per_hour.items()}
        return known.get((size or "").lower())

    def __str__(self):
        return f"{self.currency}, {self.region}, {self.date}: {self.source}"


def read_prices(path: Path) -> Prices:
    """The prices in the JSON file *path*; LabError where it has none, or a price below zero."""
    try:
        with open(path, "rb") as file:
            prices = parse_state(file.read(2**20), Prices)
        if not all(0 <= price < math.inf for price in prices.per_hour.values()):
            raise ValueError("a price below zero")
        if plain(f"{prices}") != f"{prices}":
            raise ValueError("a text that cannot be printed")
        return prices
    except (OSError, ValueError, LabError) as error:
        why = " ".join(str(error).split())[:150]
        raise LabError(
            f"{path} is no file of prices ({why}). Write one like {EXAMPLE}: currency, region, "
            "date, source and per_hour."
        ) from None
