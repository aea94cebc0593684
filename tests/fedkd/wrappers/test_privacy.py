import math
import pickle
import sys
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clients.fedproto import FedProto
from fedkd import seeds
from fedkd.client import Client
from fedkd.config import PrivacyConfig, RunConfig
from fedkd.engine import ClientState
from fedkd.errors import ConfigError, EngineError
from fedkd.payload import Payload
from fedkd.wrappers import privacy

EPSILONS = (0.3, 1.0, 3.0)
COUNTS = st.lists(st.integers(0, 10**9), min_size=1, max_size=12)


def stream(client=0):
    return seeds.stream(0, "privacy", client=client)


def law(count, value, epsilon):
    """P(a released count is `value` where there are `count` samples), and 0 stands for all below."""
    q = math.exp(-epsilon)
    return q**count / (1 + q) if value == 0 else (1 - q) / (1 + q) * q ** abs(value - count)


# Noise


def misfit(draw, epsilon, *, count, releases):
    """p of a chi-square test of released counts against the law; 0 and what is rare are one cell each."""
    counts = torch.full((releases,), count, dtype=torch.int64)
    found = privacy.noisy_histogram(counts, epsilon, draw, stream()).tolist()
    last = count
    while releases * law(count, last + 1, epsilon) >= 20:
        last += 1
    first = count
    while first > 1 and releases * law(count, first - 1, epsilon) >= 20:
        first -= 1
    law_of = [law(count, value, epsilon) for value in range(first, last + 1)]
    below = law(count, 0, epsilon) + sum(law(count, value, epsilon) for value in range(1, first))
    cells = [below, *law_of, 1 - below - sum(law_of)]
    seen = [0] * len(cells)
    for value in found:
        seen[min(max(value - first + 1, 0), len(cells) - 1)] += 1
    return stats.chisquare(seen, [releases * cell for cell in cells]).pvalue


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_simulated_noise_follows_the_law(epsilon):
    assert misfit(privacy.simulated, epsilon, count=3, releases=40_000) > 0.01


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_opendps_noise_follows_the_same_law(epsilon):
    pytest.importorskip("opendp", reason="OpenDP is not installed")
    # Its draws cannot be repeated: so small a p that no sound machine ever sees it.
    assert misfit(privacy.secret(), epsilon, count=3, releases=20_000) > 1e-7


def test_the_test_of_the_law_knows_half_the_noise():
    half = lambda counts, epsilon, its: privacy.simulated(counts, 2 * epsilon, its)  # noqa: E731
    assert misfit(half, 1.0, count=3, releases=20_000) < 1e-12


@given(count=st.integers(0, 60), value=st.integers(0, 80), epsilon=st.floats(1e-3, 20))
def test_a_sample_more_or_less_moves_no_probability_by_more_than_epsilon(count, value, epsilon):
    one, other = law(count, value, epsilon), law(count + 1, value, epsilon)
    if min(one, other) > 1e-280:  # below, floats end before the law does
        assert abs(math.log(one / other)) <= epsilon * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 1 / 3, 0.7, 7.1, 1e3])
def test_opendp_itself_says_that_no_more_than_epsilon_is_spent(epsilon, monkeypatch):
    measurements = pytest.importorskip("opendp.measurements", reason="OpenDP is not installed")
    made, make = [], measurements.make_laplace
    monkeypatch.setattr(measurements, "make_laplace", lambda *a, **k: made.append(make(*a, **k)) or made[-1])
    privacy.secret()(torch.tensor([3, 0]), epsilon, stream())
    assert epsilon * (1 - 1e-12) <= made[-1].map(1) <= epsilon


def test_no_released_count_is_negative_and_each_client_has_noise_of_its_own():
    draws = [privacy.noisy_histogram(torch.zeros(500).long(), 0.1, privacy.simulated, stream(k)) for k in (0, 0, 1)]
    assert all(int(drawn.min()) == 0 and drawn.dtype == torch.int64 for drawn in draws)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_missing_opendp_is_an_error_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opendp.measurements", None)
    with pytest.raises(EngineError, match=r"fedkd\[privacy\]"):
        privacy.secret()


# Counts that are sent


@given(counts=COUNTS, total=st.integers(0, 10**9))
def test_scaled_counts_keep_the_total_and_the_shares_to_less_than_one(counts, total):
    found = privacy.scaled(torch.tensor(counts), total)
    assert found.dtype == torch.int64
    assert int(found.sum()) == total
    if any(counts):
        errors = [abs(got * sum(counts) - count * total) for got, count in zip(found.tolist(), counts, strict=True)]
        assert max(errors) < sum(counts)
        assert all(count or not got for got, count in zip(found.tolist(), counts, strict=True))


@given(counts=COUNTS.filter(any))
def test_scaling_to_the_own_total_changes_nothing(counts):
    assert privacy.scaled(torch.tensor(counts), sum(counts)).tolist() == counts


@given(counts=COUNTS, total=st.integers(0, 10**6))
def test_of_two_labels_the_one_with_more_never_gets_less(counts, total):
    found = privacy.scaled(torch.tensor(counts), total).tolist()
    assert all(
        b >= a for (x, a) in zip(counts, found, strict=True) for (y, b) in zip(counts, found, strict=True) if y > x
    )


def test_a_histogram_of_zeros_says_nothing():
    assert privacy.scaled(torch.zeros(3).long(), 8).tolist() == [3, 3, 2]


def test_sizes_are_told_in_steps():
    assert [privacy.in_steps(size, 10) for size in (1, 4, 5, 14, 15, 100)] == [10, 10, 10, 10, 20, 100]
    assert [privacy.in_steps(size, 1) for size in (1, 7)] == [1, 7]


# The wrapper


class Teller(Client):
    """Sends its exact counts twice over, and remembers what it was given to remember."""

    sends = frozenset({"label_counts"})

    def train(self, site, job):
        outcome = site.close(self, job, site.student(job), None, {})
        memory = {"own": job.state.memory.get("own", 0.0) + 1, "saw": " ".join(job.state.memory)}
        counts = site.label_counts(job.client) * (2 if job.round != 9 else 0)
        return replace(outcome, state=replace(outcome.state, memory=memory), payload=Payload(label_counts=counts))

    def predictor(self, job):
        assert privacy.MEMORY not in job.state.memory
        return super().predictor(job)


def wrapped(problem, epsilon=1.0, step=1, draw=privacy.simulated):
    config = RunConfig(privacy=PrivacyConfig(label_epsilon=epsilon, size_step=step), strategy={"name": "fedgen"})
    return tiny.site(privacy.attach(Teller(), config, problem, draw), problem)


def test_all_off_is_the_client_half_itself(problem):
    client = Teller()
    assert privacy.attach(client, RunConfig(), problem, privacy.simulated) is client


def test_what_is_sent_is_the_noisy_histogram_and_spends_once(problem):
    drawn = []

    def draw(counts, epsilon, its):
        drawn.append((counts.tolist(), epsilon))
        return counts + torch.tensor([3, -2, -200])

    site = wrapped(problem, 0.5, draw=draw)
    exact = site.label_counts(0)
    state, sent = ClientState(), []
    for number in (1, 2, 3):
        reply = tiny.fit(site.client, tiny.job(problem, round=number, state=state), site)
        state = reply.state
        sent.append(reply.payload.label_counts.tolist())
    assert drawn == [(exact.tolist(), 0.5)]
    noisy = [int(exact[0]) + 3, int(exact[1]) - 2, 0]
    assert state.memory[privacy.MEMORY]["label_counts"].tolist() == noisy
    assert sent == [privacy.scaled(torch.tensor(noisy), 40).tolist()] * 3
    assert privacy.row(site.client.privacy, {0: state, 1: ClientState()}) == {
        "privacy": {"label_epsilon": 0.5, "delta": 0, "spent": "once per client", "clients": 1}
    }


def test_each_client_draws_from_its_own_stream_of_the_runs_seed(problem):
    keys = []

    def draw(counts, epsilon, its):
        keys.append(its.key)
        return counts

    site = wrapped(problem, draw=draw)
    for client in range(3):
        tiny.fit(site.client, tiny.job(problem, client=client), site)
    assert keys == [stream(client).key for client in range(3)]


def test_what_is_sent_depends_on_the_data_through_the_release_and_the_size_alone(problem):
    same = lambda counts, epsilon, its: torch.tensor([5, 1, 2])  # noqa: E731  # as if noise had made them equal
    one, other = wrapped(problem, draw=same), wrapped(problem, draw=same)
    other = replace(other, train_index={**other.train_index, 0: other.train_index[0].flip(0) * 0})  # one label only
    replies = [tiny.fit(site.client, tiny.job(problem), site) for site in (one, other)]
    tiny.assert_same(*(tiny.canonical(reply.payload) for reply in replies))


def test_the_algorithm_does_not_see_what_is_remembered_beside_it(problem):
    site = wrapped(problem)
    first = tiny.fit(site.client, tiny.job(problem), site)
    second = tiny.fit(site.client, tiny.job(problem, round=2, state=first.state), site)
    memory = dict(second.state.memory)
    assert memory.pop(privacy.MEMORY)["label_epsilon"] == 1.0
    assert memory == {"own": 2.0, "saw": "own saw"}
    tiny.fit(site.client, tiny.job(problem, task="evaluate", state=second.state), site)


def test_nothing_is_spent_where_no_counts_are_sent(problem):
    site = wrapped(problem)
    reply = tiny.fit(site.client, tiny.job(problem, round=9), site)
    assert not reply.payload.label_counts.any()
    assert privacy.MEMORY not in reply.state.memory


def test_size_is_told_in_steps_also_by_the_sum_of_counts(problem):
    site = wrapped(problem, step=8)
    replies = [tiny.fit(site.client, tiny.job(problem, client=k), site) for k in range(3)]  # 20, 12 and 7 samples
    assert [reply.num_examples for reply in replies] == [24, 16, 8]
    assert [int(reply.payload.label_counts.sum()) for reply in replies] == [40, 24, 16]
    alone = wrapped(problem, epsilon=None, step=8)
    reply = tiny.fit(alone.client, tiny.job(problem), alone)
    assert (reply.num_examples, reply.state.memory) == (24, {"own": 1.0, "saw": ""})
    assert torch.equal(reply.payload.label_counts, 2 * site.label_counts(0))


def test_it_goes_to_workers(problem):
    site = wrapped(problem)
    again = pickle.loads(pickle.dumps(site.client))  # noqa: S301
    replies = [tiny.lasting(tiny.fit(client, tiny.job(problem), site)) for client in (site.client, again)]
    tiny.assert_same(*replies)


def test_rows_by_label_are_refused_since_they_show_what_noise_should_hide(problem):
    config = RunConfig(privacy=PrivacyConfig(label_epsilon=1.0), strategy={"name": "fedproto", "client": "fedproto"})
    with pytest.raises(ConfigError, match="'fedproto' sends prototypes by label"):
        privacy.attach(FedProto(), config, problem, privacy.simulated)
    steps = replace(config, privacy=PrivacyConfig(size_step=5))
    assert isinstance(privacy.attach(FedProto(), steps, problem, privacy.simulated), privacy.Private)
