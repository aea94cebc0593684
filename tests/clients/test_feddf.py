"""FedDF's client half: what goes up beside the weights."""

from dataclasses import replace

import pytest
import tiny

from clients.feddf import FedDF
from clients.supervised import Supervised


def test_it_trains_as_fedavg_does(site, job):
    mine, its = tiny.fit(FedDF(), job, site), tiny.fit(Supervised(), job, site)
    tiny.assert_same_weights(mine, its)
    assert mine.payload.samples == {}


@pytest.mark.parametrize(("statistics", "count"), [("average", 0), ("local", 2)])
def test_statistics_that_do_not_travel_with_the_weights_are_sent_beside_them(statistics, count):
    problem = tiny.problem(tiny.normed, statistics=statistics)
    found = tiny.fit(FedDF(), tiny.job(problem), tiny.site(Supervised(), problem))
    sent = found.payload.samples
    assert len(sent) == count
    assert all(value.shape[0] == 1 for value in sent.values())
    tiny.assert_same_weights({n: v[0] for n, v in sent.items()}, {n: found.state.kept[n] for n in sent})


def test_what_is_sent_shares_no_memory_with_the_student():
    problem = tiny.problem(tiny.normed, statistics="local")
    site = tiny.site(FedDF(), problem)
    first = site.run(tiny.job(problem))
    before = {name: value.clone() for name, value in first.payload.samples.items()}
    site.run(replace(tiny.job(problem), client=1))
    tiny.assert_same_weights(first.payload.samples, before)
