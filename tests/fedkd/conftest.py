"""Fixtures of the tests of rounds."""

import pytest
import tiny

from fedkd.experiment import Experiment
from fedkd.training.site import LocalSite
from strategies.fedavg import FedAvg


@pytest.fixture
def experiment(site: LocalSite) -> Experiment:
    """FedAvg on the tiny site."""
    return tiny.experiment(FedAvg(), site)


@pytest.fixture
def engine(site: LocalSite) -> tiny.FakeEngine:
    return tiny.FakeEngine(site)
