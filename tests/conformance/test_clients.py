"""What every client half must keep: it draws from its own stream, changes nothing it was given, weight 0 is absence."""

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import algorithms
import annotated_types
import numpy as np
import pytest
import tiny
import torch
from algorithms import Trail

from fedkd import reference, training
from fedkd.client import Batch, Client
from fedkd.engine import ClientState, Job, Reply
from fedkd.errors import ConfigError
from fedkd.optimisers import Descent
from simulations import assemble


def last_jobs(trail: Trail) -> list[Job]:
    """Of each exchange of the third round, when all knowledge flows and clients have states, the last client's job."""
    third = {job.exchange: job for job in trail.jobs if job.round == 3}
    return [third[exchange] for exchange in sorted(third)]


def run(trail: Trail, client: Client, job: Job) -> Reply:
    return tiny.fit(client, job, trail.assembly.site)


def test_a_participation_changes_neither_payload_nor_state_nor_data(trail: Trail):
    site = trail.assembly.site
    for job in [job for job in trail.jobs if job.round == 3]:
        before = tiny.canonical([job, site.train, site.test, site.train_index])
        run(trail, site.client, job)
        tiny.assert_same(tiny.canonical([job, site.train, site.test, site.train_index]), before)


def test_the_same_job_gives_the_same_bytes_whoever_trained_in_between(trail: Trail):
    other, client = trail.jobs[0], trail.assembly.site.client
    for job in last_jobs(trail):
        first = tiny.lasting(run(trail, client, job))
        run(trail, client, other)
        tiny.assert_same(tiny.lasting(run(trail, client, job)), first)


def test_a_fresh_client_gives_the_same_bytes(trail: Trail, algorithm):
    fresh = algorithms.halves(algorithm)[1]
    for job in last_jobs(trail):
        old = run(trail, trail.assembly.site.client, job)
        tiny.assert_same(tiny.lasting(run(trail, fresh, job)), tiny.lasting(old))


def test_clients_that_share_a_student_are_judged_by_the_payload_alone(trail: Trail):
    """Else clients that share a student could not be judged in one pass."""
    site, job = trail.assembly.site, replace(trail.jobs[-1], task="evaluate")
    if site.client.own_logits:
        return
    stranger = replace(job, client=job.client + 1, state=ClientState())
    student, x = site.student(job).eval(), site.test.x[:5].float()
    assert torch.equal(site.client.logits(student, x, job), site.client.logits(student, x, stranger))


def test_it_holds_its_configuration_and_nothing_else(trail: Trail, algorithm):
    client = trail.assembly.site.client
    assert set(vars(client)) == {"config"}
    assert client.config == algorithms.halves(algorithm)[1].config
    with pytest.raises(dataclasses.FrozenInstanceError):
        client.config.anything = 1


def test_no_global_generator_is_read_or_moved(trail: Trail):
    client = trail.assembly.site.client
    for job in last_jobs(trail):
        expected = tiny.lasting(run(trail, client, job))
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

    def __call__(self, descent: Descent, batches: Iterable[Batch], terms: Terms) -> dict[str, float]:
        named: dict[str, None] = {}
        left: list[tuple[str, torch.Tensor]] = []

        def those_with_a_loss() -> Iterator[Batch]:
            for batch in batches:
                if self.is_twice:
                    check_purity(descent, batch, terms)
                found = list(terms(batch))
                named.update(dict.fromkeys(name for name, _ in found))
                left[:] = [(name, value) for name, value in found if name not in self.struck]
                if left:
                    yield batch

        numbers = self.descend(descent, those_with_a_loss(), lambda batch: iter(left))
        self.phases.append(list(named))
        return numbers


def check_purity(descent: Descent, batch: Batch, terms: Terms) -> None:
    before = tiny.canonical([descent.parameters, batch])
    one, other = (dict(terms(batch)) for _ in range(2))
    tiny.assert_same(tiny.canonical([descent.parameters, batch]), before)
    tiny.assert_same(tiny.canonical(one), tiny.canonical(other))
    assert all(value.shape == () and torch.isfinite(value) for value in one.values())


@pytest.fixture
def descending(monkeypatch: pytest.MonkeyPatch) -> Descending:
    found = Descending(training.descend)
    monkeypatch.setattr(training, "descend", found)
    return found


def test_terms_draw_nothing_and_leave_everything_as_it_was(trail: Trail, descending: Descending):
    """So the same terms serve the eager loop and a batched cohort. BatchNorm's statistics may move."""
    descending.is_twice = True
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


@pytest.fixture(scope="package")
def still(trail: Trail) -> Trail:
    """The trail without BatchNorm's statistics, which a term moves before it can be struck out; if that can be."""
    try:
        return algorithms.trail(trail.words, "students.norm=group")
    except ConfigError:
        return trail


def loose(client: Client) -> dict[str, float]:
    """The numbers of a client's configuration that may be 0, with a value at which they count."""
    found = {}
    hints = _annotations(type(client.config))
    for key in dataclasses.fields(client.config):
        lowest = [m.ge for m in getattr(hints[key.name], "__metadata__", ()) if isinstance(m, annotated_types.Ge)]
        value = getattr(client.config, key.name)
        if lowest == [0] and isinstance(value, int | float):
            found[key.name] = value or (1 if isinstance(value, int) else 0.5)
    return found


def _annotations(cls: type) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(cls, include_extras=True)


def replies(trail: Trail, client: Client) -> list[Reply]:
    return [run(trail, client, job) for job in last_jobs(trail)]


def phases(trail: Trail, client: Client, descending: Descending) -> list[list[str]]:
    """The names of its terms in each phase of the third round."""
    descending.phases.clear()
    replies(trail, client)
    return list(descending.phases)


def named(phases: list[list[str]]) -> set[str]:
    return {name for phase in phases for name in phase}


def switches(trail: Trail, descending: Descending) -> dict[str, set[str]]:
    """Key of the configuration -> terms that vanish when it is 0."""
    client = full(trail)
    all_terms = named(phases(trail, client, descending))
    found = {key: all_terms - named(phases(trail, off(client, key), descending)) for key in loose(client)}
    return {key: terms for key, terms in found.items() if terms}


def full(trail: Trail) -> Client:
    """The client with every weight switched on."""
    client = trail.assembly.site.client
    return type(client)(replace(client.config, **loose(client)))


def off(client: Client, key: str) -> Client:
    return type(client)(replace(client.config, **{key: 0}))


def test_every_term_but_the_first_of_a_phase_can_be_switched_off(still: Trail, descending: Descending):
    its = phases(still, full(still), descending)
    firsts = {phase[0] for phase in its if phase}
    assert named(its) - firsts <= set().union(*switches(still, descending).values())


def test_a_weight_of_zero_gives_the_bytes_of_a_client_without_the_term(still: Trail, descending: Descending):
    client = full(still)
    on = [tiny.lasting(reply) for reply in replies(still, client)]
    for key, names in switches(still, descending).items():
        switched = [tiny.lasting(reply) for reply in replies(still, off(client, key))]
        descending.struck = frozenset(names)
        tiny.assert_same(switched, [tiny.lasting(reply) for reply in replies(still, client)])
        descending.struck = frozenset()
        assert switched != on


def test_keys_that_say_that_zero_is_off_are_switches(still: Trail, descending: Descending):
    client = type(still.assembly.site.client)
    said = {key.name for key in reference.of(client.Config) if "0 = off" in key.comment}
    assert said <= set(switches(still, descending))


# Small clients


def test_clients_with_fewer_samples_than_a_batch_train_and_one_without_any_fails(trail: Trail):
    if trail.strategy.pools_data:
        pytest.skip("one client holds all samples")
    sizes, site = [1, 2, 0, 7, 1], trail.assembly.site
    small = replace(site, train_index={k: site.train_index[k][:size] for k, size in enumerate(sizes)})
    played = algorithms.play(trail.experiment, tiny.FakeEngine(small))
    asked = [row for p in played for row in p.clients if row["state"] != "idle"]
    assert {row["client"] for row in asked} == {0, 1, 2, 3, 4}
    assert all(row["examples"] == sizes[row["client"]] for row in asked if row["state"] == "ok")
    assert {(row["client"], row["cause"]) for row in asked if row["state"] != "ok"} == {(2, "no_data")}


def test_a_cohort_of_one_is_enough(algorithm):
    assembly = assemble.assemble(algorithms.configure(algorithm, "clients_per_round=1"))
    played = algorithms.play(assembly.experiment, tiny.FakeEngine(assembly.site))
    assert [p.row["clients"]["ok"] for p in played] == [1, 1, 1]
