"""Parts at a client: whatever the client half, they add their terms and change nothing else."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close

from clients.fedgen import FedGen as FedGenClient
from clients.fedprox import FedProx
from clients.supervised import Supervised
from fedkd.client import Client
from fedkd.config import PartsConfig, RunConfig
from fedkd.engine import ClientState
from fedkd.errors import ConfigError
from fedkd.participation import Batch
from fedkd.parts import attach, part
from fedkd.payload import Payload
from fedkd.problem import Problem
from fedkd.training import optimisers
from strategies.fedavg import FedAvg
from strategies.fedgen import FedGen

ALL = ("teacher", "mixup", "layers", "graph", "ema", "anchor")
TERMS = {"teacher", "mixup_ce", "mixup_kl", "layers", "graph", "ema", "anchor"}


class Silent(FedAvg):
    """Sends no weights."""

    gives = frozenset({"probe_logits"})


def with_parts(
    *names: str, client: Client | None = None, problem: Problem | None = None, strategy: Any = None, **keys: Any
) -> Client:
    """A client with parts; keys are written `teacher__tau=1`."""
    changes: dict[str, dict[str, Any]] = {}
    for key, value in keys.items():
        name, _, field = key.partition("__")
        changes.setdefault(name, {})[field] = value
    base = PartsConfig()
    chosen = replace(base, **{name: replace(getattr(base, name), **values) for name, values in changes.items()})
    config = RunConfig(parts=list(names), part=chosen, strategy={"name": "fedavg"})
    return attach.attach(client or Supervised(), config, problem or tiny.problem(tiny.normed), strategy or FedAvg())


@pytest.fixture
def problem() -> Problem:
    return tiny.problem(tiny.normed)


@pytest.fixture
def site(problem):
    return tiny.site(Supervised(), problem)


@pytest.fixture
def job(problem):
    return tiny.job(problem)


def test_all_terms_appear_under_their_names(site, job):
    found = tiny.fit(with_parts(*ALL, mixup__fraction=0.5), job, site)
    assert set(found.numbers) == {"ce", *TERMS}


def test_the_order_in_which_parts_are_named_does_not_matter(site, job):
    one, other = with_parts(*ALL), with_parts(*reversed(ALL))
    tiny.assert_same(tiny.lasting(tiny.fit(one, job, site)), tiny.lasting(tiny.fit(other, job, site)))


def test_no_parts_and_parts_that_are_off_leave_the_client_as_it_is():
    client = Supervised()
    assert with_parts(client=client) is client
    off = {f"{name}__weight": 0.0 for name in ALL}
    assert with_parts(*ALL, client=client, **off) is client
    assert with_parts("mixup", client=client, mixup__fraction=0.0) is client
    assert with_parts("layers", client=client, layers__mapping="none") is client


@pytest.mark.parametrize("name", ALL)
def test_a_weight_of_zero_gives_the_bytes_of_a_client_without_the_part(name, site, job):
    rest = [other for other in ALL if other != name]
    off = with_parts(*ALL, **{f"{name}__weight": 0.0})
    tiny.assert_same(tiny.lasting(tiny.fit(off, job, site)), tiny.lasting(tiny.fit(with_parts(*rest), job, site)))


@pytest.mark.parametrize("name", ALL)
def test_a_part_that_is_on_changes_what_is_learnt(name, site, job):
    later = replace(job, state=tiny.fit(with_parts(*ALL), job, site).state)
    with pytest.raises(AssertionError, match="entries differ"):
        tiny.assert_same_weights(tiny.fit(with_parts(name), later, site), tiny.fit(Supervised(), later, site))


def test_the_same_job_gives_the_same_bytes_and_the_job_is_as_it_was(site, job):
    client = with_parts(*ALL, teacher__teacher="own", layers__teacher="ema")
    later = replace(job, round=2, state=tiny.fit(client, job, site).state)
    before = tiny.canonical(later)
    first = tiny.lasting(tiny.fit(client, later, site))
    tiny.fit(client, job, site)
    tiny.assert_same(tiny.lasting(tiny.fit(client, later, site)), first)
    tiny.assert_same(tiny.canonical(later), before)


def test_a_client_with_parts_survives_a_worker(site, job):
    client = with_parts(*ALL)
    again = pickle.loads(pickle.dumps(client))  # noqa: S301  # as Ray does
    assert type(again) is type(client)
    tiny.assert_same(tiny.lasting(tiny.fit(again, job, site)), tiny.lasting(tiny.fit(client, job, site)))


def test_it_is_still_a_client_of_its_kind():
    client = with_parts("anchor", client=FedProx())
    assert isinstance(client, FedProx)
    assert (client.config, client.sends) == (FedProx().config, FedProx.sends)


# What the client half does is not disturbed


class Curious(Client):
    """Notes what it is told, trains in two phases, draws, remembers and consults."""

    seen: ClassVar[list[Any]] = []

    def init(self, problem, stream):
        return {"count": 0}

    def precompute(self, site, job, x, y, position):
        return {"mine": y}

    def draw(self, job, y, step, generator):
        return {"noise": torch.rand(2, generator=generator)}

    def terms(self, student, batch: Batch, job) -> Iterator[tuple[str, torch.Tensor]]:
        self.seen.append(
            (set(batch.drawn), set(batch.per_sample), dict(job.state.memory), batch.drawn["noise"].tolist())
        )
        yield "ce", nn.functional.cross_entropy(student(batch.x), batch.y)

    def next_memory(self, trained, job):
        return {"count": trained.memory["count"] + 1}

    def predictor(self, job):
        self.seen.append(dict(job.state.memory))
        return super().predictor(job)


def test_a_client_half_finds_only_what_it_put_there(site, job):
    client = with_parts(*ALL, client=Curious(), teacher__teacher="own", mixup__fraction=1.0)
    Curious.seen.clear()
    state = tiny.fit(client, job, site).state
    assert state.memory["count"] == 1
    assert set(state.memory["parts"]) == {"own", "ema"}
    again = tiny.fit(client, replace(job, state=state), site).state
    assert again.memory["count"] == 2
    client.predictor(replace(job, state=state))
    assert [entry[:2] for entry in Curious.seen[:-1]] == [({"noise"}, {"mine"})] * 6
    assert [entry[2] for entry in Curious.seen[3:-1]] == [{"count": 1}] * 3
    assert Curious.seen[-1] == {"count": 1}


def test_what_a_client_half_draws_does_not_depend_on_parts(site, job):
    Curious.seen.clear()
    tiny.fit(Curious(), job, site)
    tiny.fit(with_parts(*ALL, client=Curious(), mixup__fraction=1.0), job, site)
    drawn = [entry[3] for entry in Curious.seen]
    assert drawn[:3] == drawn[3:]


class Phased(Supervised):
    """Trains in a phase of its own that consults nobody."""

    def train(self, site, job):
        student, drawn = site.student(job).train(), site.draw(job)
        optimiser = site.optimiser(job, student.learnable)
        batches = site.batches(self, job, drawn)
        numbers = optimisers.minimise(optimiser, batches, lambda batch: self.terms(student, batch, job))
        return site.close(self, job, student, drawn, numbers, optimiser)


def test_a_client_half_with_phases_of_its_own_has_parts_too(site, job):
    chosen = ("teacher", "layers", "graph", "mixup")
    one, other = (tiny.fit(with_parts(*chosen, client=client), job, site) for client in (Phased(), Supervised()))
    assert one.numbers.keys() == other.numbers.keys()
    for name in one.numbers:
        assert one.numbers[name] == pytest.approx(other.numbers[name], rel=1e-3)  # sums of other sizes


class Lonely(Supervised):
    """Runs blocks one by one, on other images and without gradient before it runs the batch."""

    def terms(self, student, batch, job):
        with torch.no_grad():
            student(batch.x)
        student.classify(torch.zeros(1, tiny.LATENT))
        z = student.features(batch.x)
        student(batch.x + 1)
        yield "ce", nn.functional.cross_entropy(student.classify(z), batch.y)


def test_outputs_are_those_of_the_batch_whatever_else_the_student_is_given(job):
    problem = tiny.problem()
    site, job = tiny.site(Supervised(), problem), tiny.job(problem)
    chosen = {"problem": problem, "layers__taps": ["hidden"]}
    names = ("teacher", "layers", "ema")
    one, other = (tiny.fit(with_parts(*names, client=c, **chosen), job, site) for c in (Lonely(), Supervised()))
    tiny.assert_same_weights(one, other)


def test_a_client_half_without_terms_has_nothing_that_parts_could_join():
    with pytest.raises(ConfigError, match="parts cannot join"):
        with_parts("teacher", client=Client())


class Taken(Supervised):
    def terms(self, student, batch, job):
        yield "teacher", nn.functional.cross_entropy(student(batch.x), batch.y)


def test_a_name_that_the_client_half_uses_already_is_told_apart(site, job):
    assert set(tiny.fit(with_parts("teacher", client=Taken()), job, site).numbers) == {"teacher", "teacher_part"}


def test_the_students_statistics_move_once_a_step(site, job):
    """Teacher, layers and mixup move what is learnt, but not how often BatchNorm looks."""
    one = tiny.site(Supervised(), tiny.problem(tiny.normed, train=replace(tiny.TRAIN, steps=1)))
    found = tiny.fit(with_parts(*ALL, mixup__fraction=1.0), job, one).payload.weights
    plain = tiny.fit(Supervised(), job, one).payload.weights
    for name in ("conv.1.running_mean", "conv.1.running_var"):
        assert torch.equal(found[name], plain[name])


def test_the_student_is_run_if_the_client_half_does_not(problem):
    student, x = problem.initial(), torch.rand(2, 1, tiny.SIDE, tiny.SIDE)
    with part.recording(student, x) as outputs:
        pass
    assert list(part.complete(outputs, student, x)) == ["conv", "latent", "head"]
    assert not student.conv._forward_hooks


# Frozen teachers


def test_the_received_student_teaches_from_the_first_round(site, job):
    assert "teacher" in tiny.fit(with_parts("teacher"), job, site).numbers


def test_the_own_student_teaches_from_the_second_participation(site, job):
    client = with_parts("teacher", teacher__teacher="own")
    first = tiny.fit(client, job, site)
    assert set(first.numbers) == {"ce"}
    assert "teacher" in tiny.fit(client, replace(job, round=3, state=first.state), site).numbers
    tiny.assert_same_weights(first.state.memory["parts"]["own"], first.payload.weights)


def test_without_weights_the_received_student_cannot_teach_and_the_own_can():
    for name in ("teacher", "layers", "mixup", "graph", "anchor"):
        with pytest.raises(ConfigError, match="sends none"):
            with_parts(name, strategy=Silent())
    with_parts("ema", strategy=Silent())
    with_parts("mixup", strategy=Silent(), mixup__alpha=0.0)
    for name in ("teacher", "layers", "mixup", "graph"):
        with_parts(name, strategy=Silent(), **{f"{name}__teacher": "own"})


def test_a_client_that_receives_nothing_learns_from_its_own_past(problem, site):
    job = tiny.job(problem, payload=Payload())
    client = with_parts(*ALL[:-1], strategy=Silent(), **{f"{name}__teacher": "own" for name in ALL[:4]})
    first = tiny.fit(client, job, site)
    assert {"ce", "ema"} <= set(first.numbers)
    second = tiny.fit(client, replace(job, round=2, state=first.state), site)
    assert {"teacher", "layers", "graph", "ema"} <= set(second.numbers)


def test_the_average_begins_at_the_received_student_and_moves_with_each_step(site, job):
    def after(decay: float, state: ClientState | None = None) -> Any:
        its = replace(job, state=state or ClientState())
        return tiny.fit(with_parts("ema", ema__decay=decay), its, site)

    kept, none = after(1.0), after(0.0)
    tiny.assert_same_weights(dict(kept.state.memory["parts"]["ema"]), dict(job.payload.weights))
    tiny.assert_same_weights(dict(none.state.memory["parts"]["ema"]), dict(none.payload.weights))
    half = after(0.5)
    for name, value in half.state.memory["parts"]["ema"].items():
        share = 0.5**tiny.TRAIN.steps
        assert_close(value, share * job.payload.weights[name] + (1 - share) * half.payload.weights[name])
    tiny.assert_same_weights(dict(after(1.0, kept.state).state.memory["parts"]["ema"]), dict(job.payload.weights))


def test_a_teacher_is_as_it_was_after_training(site, job):
    client = with_parts("teacher", "layers", teacher__teacher="ema", layers__teacher="ema", ema__decay=1.0)
    first = tiny.fit(client, job, site)
    second = tiny.fit(client, replace(job, state=first.state), site)
    tiny.assert_same_weights(dict(second.state.memory["parts"]["ema"]), dict(job.payload.weights))


def test_the_anchor_is_the_term_of_fedprox(site, job):
    one = tiny.fit(with_parts("anchor", anchor__weight=0.7), job, site)
    other = tiny.fit(FedProx(FedProx.Config(mu=0.7)), job, site)
    tiny.assert_same_weights(one, other)
    assert one.numbers["anchor"] == other.numbers["proximal"]


def test_parts_go_with_any_client_half(problem, site):
    client = with_parts(*ALL, client=FedGenClient(), strategy=FedGen())
    site = replace(site, client=client)
    played = tiny.play(tiny.experiment(FedGen(FedGen.Config(generator_steps=2)), site), tiny.FakeEngine(site), 2)
    assert {"ce", "latent", *TERMS} <= set(played[1].row["terms"])
    assert played[1].row["clients"]["ok"] == 3


def test_students_of_different_architectures_have_their_own_taps():
    mixture = {"plain": tiny.plain, "normed": tiny.normed}
    problem = tiny.problem(mixture=mixture, assigned=("plain", "normed", "plain"))
    site = tiny.site(Supervised(), problem)
    client = with_parts("layers", "teacher", problem=problem)
    for number in range(2):
        weights = problem.initial(number).weights
        found = tiny.fit(client, tiny.job(problem, client=number, payload=Payload(weights=weights)), site)
        assert {"layers", "teacher"} <= set(found.numbers)
    with pytest.raises(ConfigError, match="no feature map"):
        with_parts("graph", problem=problem)


def test_terms_outside_of_a_participation_say_what_is_missing(site, job, problem):
    batch = Batch(*site.train.take(torch.arange(4)), 0, 4)
    with pytest.raises(RuntimeError, match="within a participation"):
        list(with_parts("teacher").terms(problem.initial(), batch, job))
