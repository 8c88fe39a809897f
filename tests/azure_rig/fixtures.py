"""What tests ask for; tests/conftest.py imports it."""

import os

import pytest

from .install import RigUnavailable
from .lifecycle import Rig


@pytest.fixture(scope="session")
def rig_session():
    """The rig of a whole test run; a test asks for `rig`."""
    try:
        with Rig() as started:
            yield started
    except RigUnavailable as reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no Azure rig: {reason}")


@pytest.fixture
def rig(rig_session):
    """The rig, as new. Clients in the test's own process need `rig.apply(monkeypatch)` first."""
    rig_session.reset()
    return rig_session
