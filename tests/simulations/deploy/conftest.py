"""Fixtures of devices inside this process."""

import grids
import pytest

from simulations.deploy import roster


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process of a ServerApp has; nobody is waited for."""
    grids.set_identity(monkeypatch)
    monkeypatch.setattr(roster, "POLL", 0.001)
    monkeypatch.setattr(roster, "GRACE", 0.01)
