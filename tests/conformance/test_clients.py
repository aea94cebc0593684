"""What every client half must keep: it draws from its own stream, changes nothing it was given, weight 0 is absence."""

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import algorithms
import annotated_types
import numpy as np
import pytest
import tiny
import torch
from algorithms import Trail

from fedkd import reference
from fedkd.client import Batch, Client
from fedkd.engine import Job, Reply
from simulations import assemble


def last_job(trail: Trail) -> Job:
    """One of the third round, when all knowledge flows and clients have states."""
    return trail.jobs[-1]


def run(trail: Trail, client: Client, job: Job) -> Reply:
    return tiny.fit(client, job, trail.assembly.site)


def test_a_participation_changes_neither_payload_nor_state_nor_data(trail: Trail):
    site = trail.assembly.site
    for job in trail.jobs[-4:]:
        before = tiny.canonical([job, site.train, site.test, site.train_index])
        run(trail, site.client, job)
        tiny.assert_same(tiny.canonical([job, site.train, site.test, site.train_index]), before)


def test_the_same_job_gives_the_same_bytes_whoever_trained_in_between(trail: Trail):
    job, other = trail.jobs[-1], trail.jobs[-2]
    client = trail.assembly.site.client
    first = tiny.lasting(run(trail, client, job))
    run(trail, client, other)
    tiny.assert_same(tiny.lasting(run(trail, client, job)), first)


def test_a_fresh_client_gives_the_same_bytes(trail: Trail, algorithm):
    job, fresh = last_job(trail), algorithms.halves(algorithm)[1]
    tiny.assert_same(tiny.lasting(run(trail, fresh, job)), tiny.lasting(run(trail, trail.assembly.site.client, job)))


def test_it_holds_its_configuration_and_nothing_else(trail: Trail, algorithm):
    client = trail.assembly.site.client
    assert set(vars(client)) == {"config"}
    assert client.config == algorithms.halves(algorithm)[1].config
    with pytest.raises(dataclasses.FrozenInstanceError):
        client.config.anything = 1


def test_no_global_generator_is_read_or_moved(trail: Trail):
    client, job = trail.assembly.site.client, last_job(trail)
    expected = tiny.lasting(run(trail, client, job))
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with torch.random.fork_rng():
        torch.rand(1)
        tiny.assert_same(tiny.lasting(run(trail, client, job)), expected)
    run(trail, client, job)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]


def first_batch(trail: Trail, job: Job) -> Batch:
    """Real images and what the client draws beside them."""
    site = trail.assembly.site
    x, y = site.train.take(site.train_index[job.client][:8])
    drawn = site.client.draw(job, y, 0, torch.Generator().manual_seed(1))
    return Batch(x, y, 0, site.problem.train.batch, drawn)


def test_terms_draw_nothing_and_leave_everything_as_it_was(trail: Trail):
    """So the same terms serve the eager loop and a batched cohort. BatchNorm's statistics may move: eval mode here."""
    job, site = last_job(trail), trail.assembly.site
    student, batch = site.student(job).eval(), first_batch(trail, job)
    before = tiny.canonical([dict(student.weights), batch, job])
    one, other = (dict(site.client.terms(student, batch, job)) for _ in range(2))
    tiny.assert_same(tiny.canonical([dict(student.weights), batch, job]), before)
    tiny.assert_same(tiny.canonical(one), tiny.canonical(other))
    assert all(value.shape == () and torch.isfinite(value) for value in one.values())


def test_a_replys_state_begins_where_the_client_stopped_and_holds_what_it_may(trail: Trail):
    for state in trail.states[-1].clients.values():
        assert state.last_round in {1, 2, 3}
        assert tiny.canonical(state)


# Weight 0 is absence


def loose(client: Client) -> dict[str, float]:
    """The numbers of a client's configuration that may be 0, with a value at which they count."""
    found = {}
    hints = _annotations(type(client.config))
    for field in dataclasses.fields(client.config):
        lowest = [m.ge for m in getattr(hints[field.name], "__metadata__", ()) if isinstance(m, annotated_types.Ge)]
        value = getattr(client.config, field.name)
        if lowest == [0] and isinstance(value, int | float):
            found[field.name] = value or 0.5
    return found


def _annotations(cls: type) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(cls, include_extras=True)


def without(client: Client, names: set[str]) -> Client:
    """The same client, from whose loss some terms are struck out."""

    class Struck(type(client)):  # type: ignore[misc]
        def terms(self, student: Any, batch: Batch, job: Job) -> Iterator[tuple[str, torch.Tensor]]:
            yield from ((name, value) for name, value in super().terms(student, batch, job) if name not in names)

    return Struck(client.config)


def switches(trail: Trail) -> dict[str, set[str]]:
    """Key of the configuration -> terms that vanish when it is 0."""
    client = full(trail)
    all_terms = set(run(trail, client, last_job(trail)).numbers)
    off = {key: type(client)(replace(client.config, **{key: 0})) for key in loose(client)}
    left = {key: set(run(trail, switched, last_job(trail)).numbers) for key, switched in off.items()}
    return {key: all_terms - terms for key, terms in left.items() if all_terms - terms}


def full(trail: Trail) -> Client:
    """The client with every weight switched on."""
    client = trail.assembly.site.client
    return type(client)(replace(client.config, **loose(client)))


def test_every_term_but_the_first_can_be_switched_off(trail: Trail):
    terms = list(run(trail, full(trail), last_job(trail)).numbers)
    assert set().union(*switches(trail).values()) == set(terms[1:])


def test_a_weight_of_zero_gives_the_bytes_of_a_client_without_the_term(trail: Trail):
    client, job = full(trail), last_job(trail)
    for key, names in switches(trail).items():
        off = run(trail, type(client)(replace(client.config, **{key: 0})), job)
        tiny.assert_same(tiny.lasting(off), tiny.lasting(run(trail, without(client, names), job)))
        with pytest.raises(AssertionError):
            tiny.assert_same_weights(off, run(trail, client, job))


def test_keys_that_say_that_zero_is_off_are_switches(trail: Trail):
    client = type(trail.assembly.site.client)
    said = {key.name for key in reference.of(client.Config) if "0 = off" in key.comment}
    assert said <= set(switches(trail))


# Small clients


def test_clients_with_fewer_samples_than_a_batch_train_and_one_without_any_fails(trail: Trail):
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
