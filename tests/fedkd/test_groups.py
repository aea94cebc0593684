"""Groups: a federation for each architecture, each as if the others were not there."""

import pytest
import tiny

from clients.supervised import Supervised
from fedkd import seeds
from fedkd.groups import Grouped
from fedkd.strategy import Cohort
from strategies.fedavg import FedAvg
from strategies.fedgen import FedGen

MIXTURE = {"plain": tiny.plain, "normed": tiny.normed}
SIZES = (9, 8, 7, 6)


@pytest.fixture
def problem():
    return tiny.problem(mixture=MIXTURE, assigned=("plain", "normed", "plain", "normed"), clients=4)


@pytest.fixture
def site(problem):
    return tiny.site(Supervised(), problem, SIZES)


def play(strategy, site, count=2):
    return tiny.play(tiny.experiment(strategy, site), tiny.FakeEngine(site), count)


def test_each_group_ends_as_a_federation_of_its_own(site, problem):
    """The clients of the other group are there, but have no word: a run without them gives the same bytes."""
    found = play(Grouped(FedAvg()), site)[-1].state.server
    for name, members in (("plain", (0, 2)), ("normed", (1, 3))):
        inner, alike = FedAvg(), problem.alike(name)
        state = inner.init(alike, seeds.stream(0, "server").child(name))
        clients = {}
        for round in (1, 2):
            payloads = inner.plan(state, Cohort(members, round))
            jobs = [tiny.job(alike, client=k, round=round, payload=payloads[k], **clients.get(k, {})) for k in members]
            replies = [tiny.fit(site.client, job, site) for job in jobs]
            clients = {reply.client: {"state": reply.state} for reply in replies}
            state, _ = inner.aggregate(state, replies, seeds.stream(0, "aggregate", round=round))
        tiny.assert_same(tiny.canonical(found.groups[name]), tiny.canonical(state))


def test_groups_start_from_their_own_students(problem):
    state = Grouped(FedAvg()).init(problem, seeds.stream(0, "server"))
    assert list(state.groups) == ["normed", "plain"]
    tiny.assert_same_weights(state.groups["normed"].weights, problem.initial(1).weights)


def test_each_client_is_served_its_groups_student_and_nobody_a_global_one(site):
    strategy = Grouped(FedAvg())
    played = play(strategy, site)[-1]
    state = played.state.server
    assert strategy.served(state, None) is None
    assert strategy.served(state, 0).weights is strategy.served(state, 2).weights
    assert list(strategy.served(state, 1).weights) == list(site.problem.initial(1).weights)
    assert "global" not in played.row["accuracy"]


def test_a_cohort_within_one_group_leaves_the_other_as_it_was(problem):
    strategy = Grouped(FedAvg())
    state = strategy.init(problem, seeds.stream(0, "server"))
    payloads = strategy.plan(state, Cohort((0, 2), 1))
    assert set(payloads) == {0, 2}
    site = tiny.site(Supervised(), problem, SIZES)
    replies = [tiny.fit(site.client, tiny.job(problem, client=k, payload=payloads[k]), site) for k in (0, 2)]
    after, _ = strategy.aggregate(state, replies, seeds.stream(0, "aggregate"))
    assert after.groups["normed"] is state.groups["normed"]
    assert after.groups["plain"] is not state.groups["plain"]


def test_findings_are_means_over_groups_of_what_are_numbers(problem, site):
    class Telling(FedAvg):
        def aggregate(self, state, replies, stream):
            return state, {"clients": len(replies), "who": [reply.client for reply in replies]}

    strategy = Grouped(Telling())
    state = strategy.init(problem, seeds.stream(0, "server"))
    replies = [tiny.reply(client) for client in (0, 1, 2)]
    assert strategy.aggregate(state, replies, seeds.stream(0, "aggregate"))[1] == {"clients": 1.5}


def test_it_asks_for_what_its_inner_strategy_asks_for(problem):
    inner = FedGen()
    strategy = Grouped(inner)
    assert (strategy.needs, strategy.gives, strategy.exchanges) == (inner.needs, inner.gives, inner.exchanges)
    assert strategy.trips(1) == inner.trips(1)
    assert strategy.asks(Cohort((0,), 1)) == inner.asks(Cohort((0,), 1))
    assert (strategy.serves, strategy.works_across_students) == ("personal", True)


def test_a_reply_is_inspected_by_its_group(problem, site):
    seen = []

    class Looking(FedAvg):
        def inspect(self, state, job, reply):
            seen.append((job.client, next(iter(state.weights))))

    play(Grouped(Looking()), site, 1)
    first = {k: next(iter(problem.initial(k).weights)) for k in range(4)}
    assert seen == list(first.items())


def test_each_group_draws_from_a_stream_of_its_own(problem):
    drawn = []

    class Drawing(FedAvg):
        def aggregate(self, state, replies, stream):
            drawn.append(float(stream.numpy().random()))
            return state, {}

    strategy = Grouped(Drawing())
    state = strategy.init(problem, seeds.stream(0, "server"))
    for clients in ((0, 1), (1, 2), (2,)):
        strategy.aggregate(state, [tiny.reply(client) for client in clients], seeds.stream(0, "aggregate"))
    normed, plain = drawn[:2]
    assert normed != plain
    assert drawn == [normed, plain, normed, plain, plain]
