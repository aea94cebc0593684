"""What the driver says of a run: with which BatchNorm statistics students are evaluated."""

import pytest
import tiny

from clients.fedensemble import FedEnsemble as FedEnsembleClient
from clients.supervised import Supervised
from fedkd import rounds
from fedkd.wrappers.per_architecture import Grouped
from simulations.run.driver import statistics_policy
from strategies.fedavg import FedAvg
from strategies.fedbn import FedBN
from strategies.fedensemble import FedEnsemble
from strategies.fedrep import FedRep
from strategies.local import Local

HEAD = FedAvg.Config(share="head")


def policies(strategy, make=tiny.normed, client=None, **changes):
    """Before the first round and after it: a resume must say what the run said."""
    site = tiny.site(client or Supervised(), tiny.problem(make, **changes))
    experiment = tiny.experiment(strategy, site)
    (played,) = tiny.play(experiment, tiny.FakeEngine(site))
    return {statistics_policy(experiment, state) for state in (rounds.begin(experiment), played.state)}


@pytest.mark.parametrize("statistics", ["average", "local"])
@pytest.mark.parametrize(
    ("strategy", "client"), [(FedAvg(), None), (FedRep(), None), (FedEnsemble(), FedEnsembleClient())]
)
def test_statistics_that_are_served_are_as_the_policy_says(strategy, client, statistics):
    assert policies(strategy, client=client, statistics=statistics) == {statistics}


@pytest.mark.parametrize("statistics", ["average", "local"])
@pytest.mark.parametrize("strategy", [FedBN(), Local(), FedAvg(HEAD)])
def test_statistics_that_nobody_serves_are_each_clients_own(strategy, statistics):
    assert policies(strategy, statistics=statistics) == {"local"}


@pytest.mark.parametrize("strategy", [FedAvg(), FedBN(), Local()])
def test_without_batch_norm_there_are_none(strategy):
    assert policies(strategy, tiny.plain) == {"none"}


@pytest.mark.parametrize(("strategy", "expected"), [(FedAvg(), "average"), (FedBN(), "local")])
def test_of_a_mixture_those_count_that_have_statistics(strategy, expected):
    mixture = {"plain": tiny.plain, "normed": tiny.normed}
    changes = {"mixture": mixture, "assigned": ("plain", "normed", "plain")}
    assert policies(Grouped(strategy), **changes) == {expected}
    assert policies(Grouped(strategy), make=tiny.plain, **changes) == {expected}
