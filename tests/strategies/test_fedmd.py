"""FedMD's server half: invariants (docs/strategies/fedmd.md, equation 1)."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.fedmd import FedMD as Client
from fedkd import seeds
from fedkd.border.checks import Refused
from fedkd.data.samples import Proxy
from fedkd.errors import ConfigError
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from strategies.fedmd import FedMD

STREAM = seeds.stream(0, "test")
PUBLIC = Proxy("tiny", tiny.samples(12, seed=5), True, 12345)
UNLABELLED = replace(PUBLIC, is_labelled=False, samples=replace(PUBLIC.samples, y=torch.full((12,), -1)))


def strategy(**changes):
    return FedMD(FedMD.Config(**changes))


def start(proxy=PUBLIC, **changes):
    return strategy(**changes).init(tiny.problem(proxy=proxy), STREAM)


def reply(client, logits):
    return tiny.reply(client, payload=Payload(probe_logits=logits))


def said(seed):
    return torch.randn(12, 3, generator=seeds.stream(seed, "said").torch())


def test_the_consensus_is_the_mean_of_logits_and_one_client_hears_itself():
    state, _ = strategy().aggregate(start(), [reply(0, said(0)), reply(1, said(1))], STREAM)
    assert_close(state.consensus, (said(0) + said(1)) / 2)
    alone, findings = strategy().aggregate(start(), [reply(0, said(0))], STREAM)
    assert torch.equal(alone.consensus, said(0))
    assert findings["filter_gain"] == 0
    assert findings["teacher_agreement"] == 1


def test_exchanging_public_images_exchanges_the_rows_and_nothing_else():
    order = torch.randperm(12, generator=STREAM.torch())
    one, _ = strategy().aggregate(start(), [reply(0, said(0)), reply(1, said(1))], STREAM)
    two, _ = strategy().aggregate(start(), [reply(0, said(0)[order]), reply(1, said(1)[order])], STREAM)
    assert torch.equal(one.consensus[order], two.consensus)


def test_first_they_are_asked_and_then_they_are_told():
    state, _ = strategy().aggregate(start(), [reply(0, said(0))], STREAM)
    ask, tell = Cohort((0, 1), 2, 0), Cohort((0, 1), 2, 1)
    assert strategy().plan(state, ask)[0].kinds() == {"numbers"}
    assert strategy().expected_kinds(ask) == {"probe_logits"}
    assert strategy().plan(state, tell)[0].kinds() == {"probe_logits", "numbers"}
    assert strategy().expected_kinds(tell) == frozenset()


def test_the_wrong_number_of_rows_is_refused():
    with pytest.raises(Refused, match="12 rows, expected 5"):
        strategy(public_size=5).inspect(start(), tiny.job(tiny.problem()), reply(0, said(0)))


def test_initial_training_on_unlabelled_images_is_an_error_at_once():
    with pytest.raises(ConfigError, match="needs labels"):
        start(UNLABELLED, public_epochs=1)
    assert start(UNLABELLED, public_epochs=0).consensus.numel() == 0


def test_without_labels_the_ledger_has_no_accuracy_of_the_teacher():
    _, findings = strategy().aggregate(start(UNLABELLED), [reply(0, said(0))], STREAM)
    assert "teacher_agreement" in findings
    assert "teacher_accuracy" not in findings


def play(count=2, spoil=lambda job, result: result, **changes):
    site = tiny.site(Client(), tiny.problem(**{"proxy": PUBLIC, **changes}))
    engine = tiny.FakeEngine(site, spoil=spoil)
    return tiny.play(tiny.experiment(strategy(public_size=6), site), engine, count), engine


def test_rounds_go_there_and_back_twice_and_measure_both_terms():
    played, engine = play()
    assert set(played[-1].row["terms"]) == {"ce", "digest"}
    assert [job.exchange for job in engine.jobs if job.task == "train" and job.round == 1] == [0, 0, 0, 1, 1, 1]
    assert set(played[-1].row["bytes"]["up"]) == {"probe_logits"}


def test_logits_that_are_not_finite_are_refused_and_the_round_goes_on():
    def spoil(job, result):
        if job.task == "train" and job.exchange == 0 and job.client == 1:
            result.payload.probe_logits[0, 0] = float("nan")
        return result

    played, engine = play(1, spoil)
    assert played[0].row["clients"] == {"ok": 2, "failed": 0, "late": 0, "rejected": 1}
    assert {job.client for job in engine.jobs if job.exchange == 1} == {0, 2}


def test_students_may_differ():
    mixture = {"plain": tiny.plain, "normed": tiny.normed}
    played, _ = play(mixture=mixture, assigned=("plain", "normed", "plain"))
    assert played[-1].row["clients"]["ok"] == 3
