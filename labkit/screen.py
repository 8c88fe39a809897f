"""What it is shown on: a reader's own screen, or a projector (./lab present sets LAB_PRESENT)."""

import os

PIXELS = 100  # of an inch of a figure, on a reader's screen
# On a projector 13 points, the smallest text of a figure, are to be 18 on a slide of 960 points:
# 18 / 960 of the width for 13 / 72 of an inch.
SHARE = 10.4  # percent of the window's width, an inch


def presenting() -> bool:
    """Whether the labs are shown to a room."""
    return os.environ.get("LAB_PRESENT") == "1"


def dots() -> int:
    """Dots an inch of a figure: on a projector it is shown larger, and must stay sharp."""
    return 2 * PIXELS if presenting() else PIXELS


def css_width(inches: float) -> str:
    """How wide *inches* of a figure are shown, for a style sheet."""
    return f"{SHARE * inches:.1f}vw" if presenting() else f"{PIXELS * inches:.0f}px"
