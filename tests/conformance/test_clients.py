"""What every client half must keep: it draws from its own stream, changes nothing it was given, weight 0 is absence."""

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import algorithms
import annotated_types
import numpy as np
import pytest
import tiny
import torch
from algorithms import Trail

from fedkd.client import Client
from fedkd.configuration import reference
from fedkd.engine import ClientState, Job, Reply
from fedkd.errors import ConfigError
from fedkd.participation import Batch
from fedkd.training import optimisers
from fedkd.training.optimisers import LocalOptimiser
from simulations import assemble


def last_jobs(trail: Trail) -> list[Job]:
    """Of each exchange of the third round, when all knowledge flows and clients have states, the last client's job."""
    third = {job.exchange: job for job in trail.jobs if job.round == 3}
    return [third[exchange] for exchange in sorted(third)]


def run(trail: Trail, client: Client, job: Job) -> Reply:
    return tiny.fit(client, job, trail.assembly.site)


@pytest.fixture(scope="package")
def lasting(trail: Trail) -> list[Any]:
    """Its replies to the last jobs, given alone."""
    return [tiny.lasting(run(trail, trail.assembly.site.client, job)) for job in last_jobs(trail)]


def test_a_participation_changes_neither_payload_nor_state_nor_data(trail: Trail):
    site = trail.assembly.site
    for job in last_jobs(trail):
        before = tiny.canonical([job, site.train, site.test, site.train_index])
        run(trail, site.client, job)
        tiny.assert_same(tiny.canonical([job, site.train, site.test, site.train_index]), before)


def test_the_same_job_gives_the_same_bytes_whoever_trained_in_between(trail: Trail, lasting):
    other, client = trail.jobs[0], trail.assembly.site.client
    for job, first in zip(last_jobs(trail), lasting, strict=True):
        run(trail, client, other)
        tiny.assert_same(tiny.lasting(run(trail, client, job)), first)


def test_a_fresh_client_gives_the_same_bytes(trail: Trail, algorithm, lasting):
    fresh = algorithms.halves(algorithm)[1]
    for job, old in zip(last_jobs(trail), lasting, strict=True):
        tiny.assert_same(tiny.lasting(run(trail, fresh, job)), old)


def test_clients_that_share_a_student_are_judged_by_the_payload_alone(trail: Trail):
    """Else clients that share a student could not be judged in one pass."""
    site, job = trail.assembly.site, replace(trail.jobs[-1], task="evaluate")
    if site.client.personal_predictor:
        return
    stranger = replace(job, client=job.client + 1, state=ClientState())
    student = site.student(job).eval()
    ((own, _),), ((other, _),) = (site.predict(site.client, student, j, torch.arange(5)) for j in (job, stranger))
    assert torch.equal(own, other)


def test_it_holds_its_configuration_and_nothing_else(trail: Trail, algorithm):
    client = trail.assembly.site.client
    assert set(vars(client)) == {"config"}
    assert client.config == algorithms.halves(algorithm)[1].config
    with pytest.raises(dataclasses.FrozenInstanceError):
        client.config.anything = 1


def test_no_global_generator_is_read_or_moved(trail: Trail, lasting):
    client = trail.assembly.site.client
    for job, expected in zip(last_jobs(trail), lasting, strict=True):
        states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        with torch.random.fork_rng():
            torch.rand(1)
            tiny.assert_same(tiny.lasting(run(trail, client, job)), expected)
        run(trail, client, job)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]


Terms = Callable[[Batch], Iterable[tuple[str, torch.Tensor]]]


@dataclass
class Descending:
    """Stands before `training.descend`: notes the terms of each phase of training, and strikes some of them out."""

    descend: Callable[..., dict[str, float]]
    struck: frozenset[str] = frozenset()
    is_twice: bool = False  # whether terms are taken twice, and compared
    phases: list[list[str]] = field(default_factory=list)  # the names of the terms of each

    def __call__(self, optimiser: LocalOptimiser, batches: Iterable[Batch], terms: Terms) -> dict[str, float]:
        named: dict[str, None] = {}
        left: list[tuple[str, torch.Tensor]] = []

        def those_with_a_loss() -> Iterator[Batch]:
            for batch in batches:
                if self.is_twice:
                    check_purity(optimiser, batch, terms)
                found = list(terms(batch))
                named.update(dict.fromkeys(name for name, _ in found))
                left[:] = [(name, value) for name, value in found if name not in self.struck]
                if left:
                    yield batch

        numbers = self.descend(optimiser, those_with_a_loss(), lambda batch: iter(left))
        self.phases.append(list(named))
        return numbers


def check_purity(optimiser: LocalOptimiser, batch: Batch, terms: Terms) -> None:
    before = tiny.canonical([optimiser.parameters, batch])
    one, other = (dict(terms(batch)) for _ in range(2))
    tiny.assert_same(tiny.canonical([optimiser.parameters, batch]), before)
    tiny.assert_same(tiny.canonical(one), tiny.canonical(other))
    assert all(value.shape == () and torch.isfinite(value) for value in one.values())


def test_terms_draw_nothing_and_leave_everything_as_it_was(trail: Trail, monkeypatch):
    """So the same terms serve the eager loop and a batched cohort. BatchNorm's statistics may move."""
    monkeypatch.setattr(optimisers, "minimise", Descending(optimisers.minimise, is_twice=True))
    for job in last_jobs(trail):
        before = tiny.canonical(job)
        run(trail, trail.assembly.site.client, job)
        tiny.assert_same(tiny.canonical(job), before)


def test_a_replys_state_begins_where_the_client_stopped_and_holds_what_it_may(trail: Trail):
    for state in trail.states[-1].clients.values():
        assert state.last_round in {1, 2, 3}
        assert tiny.canonical(state)


def test_all_exchanges_of_a_round_have_the_clock_of_before_it(trail: Trail):
    """So that under train.lr_clock=participation they all have one learning rate."""
    before: dict[int, int] = {}
    for number in (1, 2, 3):
        jobs = [job for job in trail.jobs if job.round == number]
        assert all(job.state.last_round == before.get(job.client, 0) for job in jobs)
        before |= {job.client: number for job in jobs}


def test_probe_images_are_shown_to_students_that_have_been_trained_and_to_no_others(trail: Trail):
    for exchange in trail.exchanges:
        assert all(reply.numbers or reply.probe is None for reply in exchange.replies)


# Weight 0 is absence


@dataclass(frozen=True)
class Switches:
    """A client with every weight switched on, and with one of them 0: what it replies, in canonical form."""

    trail: Trail
    client: Client
    phases: list[list[str]]  # names of its terms in each phase of the third round
    on: list[Any]
    off: dict[str, list[Any]]  # key of the configuration -> replies
    terms: dict[str, set[str]]  # key -> terms that vanish when it is 0; only keys that have some


@pytest.fixture(scope="package")
def switches(trail: Trail, algorithm: tuple[str, ...]) -> Switches:
    """Without BatchNorm's statistics, which a term moves before it can be struck out; if that can be."""
    first = (algorithm[0],)
    if algorithm not in algorithms.names() and its_client(algorithm) == its_client(first):
        pytest.skip("a variant with the client half of another")
    with suppress(ConfigError):
        trail = algorithms.trail(algorithm, "students.norm=group", "evaluate.every=3", "evaluate.pooled_every=3")
    client = full(trail)
    on, phases = watched(trail, client)
    off, terms = {}, {}
    for key in loose(trail):
        off[key], left = watched(trail, without(client, key))
        terms[key] = named_in(phases) - named_in(left)
    return Switches(trail, client, phases, on, off, {key: names for key, names in terms.items() if names})


def its_client(algorithm: tuple[str, ...]) -> tuple[type, Any]:
    client = algorithms.halves(algorithm)[1]
    return type(client), client.config


def loose(trail: Trail) -> dict[str, float]:
    """The numbers of the client half alone that may be 0, with a value at which they count."""
    found = {}
    client, shared = trail.assembly.site.client, vars(trail.strategy.config)
    hints = _annotations(type(client.config))
    for key in (key for key in dataclasses.fields(client.config) if key.name not in shared):
        lowest = [m.ge for m in getattr(hints[key.name], "__metadata__", ()) if isinstance(m, annotated_types.Ge)]
        value = getattr(client.config, key.name)
        if lowest == [0] and isinstance(value, int | float):
            found[key.name] = value or (1 if isinstance(value, int) else 0.5)
    return found


def _annotations(cls: type) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(cls, include_extras=True)


def watched(trail: Trail, client: Client, struck: frozenset[str] = frozenset()) -> tuple[list[Any], list[list[str]]]:
    """Replies to the jobs of the third round, with some terms struck out, and the names of the terms in each phase."""
    descending = Descending(optimisers.minimise, struck)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimisers, "minimise", descending)
        return [tiny.lasting(run(trail, client, job)) for job in last_jobs(trail)], descending.phases


def named_in(phases: list[list[str]]) -> set[str]:
    return {name for phase in phases for name in phase}


def full(trail: Trail) -> Client:
    """The client with every weight switched on."""
    client = trail.assembly.site.client
    return type(client)(replace(client.config, **loose(trail)))


def without(client: Client, key: str) -> Client:
    return type(client)(replace(client.config, **{key: 0}))


def test_every_term_but_the_first_of_a_phase_can_be_switched_off(switches: Switches):
    firsts = {phase[0] for phase in switches.phases if phase}
    assert named_in(switches.phases) - firsts <= set().union(*switches.terms.values())


def test_a_weight_of_zero_gives_the_bytes_of_a_client_without_the_term(switches: Switches):
    for key, names in switches.terms.items():
        struck, _ = watched(switches.trail, switches.client, frozenset(names))
        tiny.assert_same(switches.off[key], struck)
        assert switches.off[key] != switches.on


def test_keys_that_say_that_zero_is_off_are_switches(switches: Switches):
    said = {key.name for key in reference.of(type(switches.client).Config) if "0 = off" in key.comment}
    assert said <= set(switches.terms)


# Small clients


def test_clients_with_fewer_samples_than_a_batch_train_and_one_without_any_fails(trail: Trail):
    if trail.strategy.pools_data:
        pytest.skip("one client holds all samples")
    sizes, site = [1, 2, 0, 7, 1], trail.assembly.site
    small = replace(site, train_index={k: site.train_index[k][:size] for k, size in enumerate(sizes)})
    played = tiny.play(trail.experiment, tiny.FakeEngine(small), 2)
    asked = [row for p in played for row in p.clients if row["state"] != "idle"]
    assert {row["client"] for row in asked} == {0, 1, 2, 3, 4}
    assert all(row["examples"] == sizes[row["client"]] for row in asked if row["state"] == "ok")
    assert {(row["client"], row["cause"]) for row in asked if row["state"] != "ok"} == {(2, "no_data")}


def test_a_cohort_of_one_is_enough(named):
    assembly = assemble.assemble(algorithms.configure(named, "clients_per_round=1"))
    played = algorithms.play(assembly.experiment, tiny.FakeEngine(assembly.site))
    assert [p.row["clients"]["ok"] for p in played] == [1, 1, 1]
