"""Drawn inputs: how many, how long each may take, and whole files with some bytes changed.

The run is the same each time; for other examples: LAB_FUZZ=1000 draws as many anew.
"""

import contextlib
import os
import signal

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

DRAWN = int(os.environ.get("LAB_FUZZ", "0"))
DEADLINE_S = 10


def fuzz(examples: int):
    return settings(
        max_examples=DRAWN or examples,
        derandomize=not DRAWN,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@contextlib.contextmanager
def ends():
    """Fails where the block takes longer than the deadline."""

    def late(*_):
        raise TimeoutError(f"still at it after {DEADLINE_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(DEADLINE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@st.composite
def damaged(draw, whole: list[bytes]) -> bytes:
    """One of the *whole* files, cut, with bytes changed, doubled or of another of them."""
    data = draw(st.sampled_from(whole))
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 40))
        put = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from([b"", b'"', b"{", b"]", b",", b"\xff", b"\0", b"null", b"1e999"]),
                st.just(data[at : at + length] * 2),
                st.just(draw(st.sampled_from(whole))[:length]),
            )
        )
        data = data[:at] + put + data[at + length * draw(st.booleans()) :]
    return data
