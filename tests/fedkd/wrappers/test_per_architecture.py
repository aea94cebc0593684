"""Groups: a federation for each architecture, each as if the others were not there."""

from dataclasses import replace

import pytest
import tiny
from torch.testing import assert_close

from clients.feddyn import FedDyn as FedDynClient
from clients.fedensemble import FedEnsemble as FedEnsembleClient
from clients.scaffold import Scaffold as ScaffoldClient
from clients.supervised import Supervised
from fedkd import seeds
from fedkd.strategy import Cohort
from fedkd.wrappers.per_architecture import Grouped
from strategies.fedavg import FedAvg
from strategies.feddyn import FedDyn
from strategies.fedensemble import FedEnsemble
from strategies.fedgen import FedGen
from strategies.scaffold import Scaffold

MIXTURE = {"plain": tiny.plain, "normed": tiny.normed}
MEMBERS = {"plain": (0, 2), "normed": (1, 3)}
SIZES = (9, 8, 7, 6)


def mixed(**changes):
    return tiny.problem(mixture=MIXTURE, assigned=("plain", "normed", "plain", "normed"), clients=4, **changes)


@pytest.fixture
def problem():
    return mixed()


@pytest.fixture
def site(problem):
    return tiny.site(Supervised(), problem, SIZES)


def play(strategy, site, count=2):
    return tiny.play(tiny.experiment(strategy, site), tiny.FakeEngine(site), count)


@pytest.mark.parametrize("statistics", ["average", "local"])
@pytest.mark.parametrize(
    ("strategy", "client"),
    [(FedAvg, Supervised), (Scaffold, ScaffoldClient), (FedDyn, FedDynClient), (FedEnsemble, FedEnsembleClient)],
)
def test_each_group_ends_as_a_federation_of_its_own(strategy, client, statistics):
    """The clients of the other group are there, but have no word: a run of its clients alone gives the same bytes."""
    site = tiny.site(client(), mixed(statistics=statistics), SIZES)
    found = play(Grouped(strategy()), site)[-1].state.server
    for name, members in MEMBERS.items():
        inner, alone = strategy(), tiny.problem(MIXTURE[name], clients=2, statistics=statistics)
        state = inner.init(alone, seeds.stream(0, "server").child(name))
        clients = {}
        for round in (1, 2):
            payloads = inner.plan(state, Cohort((0, 1), round))
            jobs = [
                tiny.job(alone, client=k, round=round, payload=payloads[number], **clients.get(k, {}))
                for number, k in enumerate(members)
            ]
            replies = [tiny.fit(site.client, job, site) for job in jobs]
            clients = {reply.client: {"state": reply.state} for reply in replies}
            numbered = [replace(reply, client=number) for number, reply in enumerate(replies)]
            state, _ = inner.aggregate(state, numbered, seeds.stream(0, "aggregate", round=round))
        tiny.assert_same(tiny.canonical(found.groups[name]), tiny.canonical(state))


def test_scaffolds_control_is_the_mean_over_the_groups_own_clients(problem):
    strategy, site = Grouped(Scaffold()), tiny.site(ScaffoldClient(), problem, SIZES)
    played = play(strategy, site)[-1]
    payloads = strategy.plan(played.state.server, Cohort((0, 1, 2, 3), 3))
    for members in MEMBERS.values():
        own = [played.state.clients[client].memory["control"] for client in members]
        for client in members:
            mean = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
            assert_close(dict(payloads[client].reference), mean, rtol=1e-4, atol=1e-6)


def test_an_ensemble_counts_the_students_of_its_group_alone(problem):
    strategy, site = Grouped(FedEnsemble()), tiny.site(FedEnsembleClient(), problem, SIZES)
    state = tiny.play(tiny.experiment(strategy, site, clients_per_round=3), tiny.FakeEngine(site))[-1].state.server
    assert [int(strategy.evaluation_payload(state, client).samples["copies"].sum()) for client in range(4)] == [
        2,
        2,
        2,
        2,
    ]


def test_clients_are_numbered_within_their_group(problem):
    seen = []

    class Noting(FedAvg):
        def plan(self, state, cohort):
            seen.append(("plan", cohort.clients, cohort.round, cohort.exchange))
            return super().plan(state, cohort)

        def aggregate(self, state, replies, stream):
            seen.append(("aggregate", [reply.client for reply in replies]))
            return state, {}

        def evaluation_payload(self, state, client):
            seen.append(("evaluation_payload", client))
            return super().evaluation_payload(state, client)

    strategy = Grouped(Noting())
    state = strategy.init(problem, seeds.stream(0, "server"))
    assert set(strategy.plan(state, Cohort((0, 2, 3), 5, 1))) == {0, 2, 3}
    strategy.aggregate(state, [tiny.reply(client) for client in (0, 2, 3)], seeds.stream(0, "aggregate"))
    strategy.evaluation_payload(state, 3)
    assert seen == [
        ("plan", (1,), 5, 1),
        ("plan", (0, 1), 5, 1),
        ("aggregate", [1]),
        ("aggregate", [0, 1]),
        ("evaluation_payload", 1),
    ]


def test_groups_start_from_their_own_students(problem):
    state = Grouped(FedAvg()).init(problem, seeds.stream(0, "server"))
    assert list(state.groups) == ["normed", "plain"]
    tiny.assert_same_weights(state.groups["normed"].weights, problem.initial(1).weights)


def test_each_client_is_served_its_groups_student_and_nobody_a_global_one(site):
    strategy = Grouped(FedAvg())
    played = play(strategy, site)[-1]
    state = played.state.server
    assert strategy.evaluation_payload(state, None) is None
    assert strategy.evaluation_payload(state, 0).weights is strategy.evaluation_payload(state, 2).weights
    assert list(strategy.evaluation_payload(state, 1).weights) == list(site.problem.initial(1).weights)
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
    assert strategy.num_exchanges(1) == inner.num_exchanges(1)
    assert strategy.expected_kinds(Cohort((0,), 1)) == inner.expected_kinds(Cohort((0,), 1))
    assert (strategy.serves, strategy.works_across_students) == ("personal", True)


def test_a_reply_is_inspected_by_its_group(problem, site):
    seen = []

    class Looking(FedAvg):
        def inspect(self, state, job, reply):
            seen.append((job.client, reply.client, next(iter(state.weights))))

    play(Grouped(Looking()), site, 1)
    first = [next(iter(problem.initial(k).weights)) for k in range(4)]
    assert seen == list(zip((0, 0, 1, 1), (0, 0, 1, 1), first, strict=True))


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
