"""Standing: who is refused again and again is left out, the same after a resume; honest runs know nothing of it."""

from dataclasses import replace

import pytest
import tiny
import torch

from fedkd import rounds
from fedkd.config import BorderConfig
from fedkd.engine import failed
from fedkd.payload import Payload
from fedkd.record import checkpoint
from fedkd.standing import Absence, Standing, newly
from strategies.fedavg import FedAvg


def lying(client, *numbers):
    """A client that sends 1e9 in some rounds."""

    def spoil(job, result):
        if (job.task, job.client) != ("train", client) or job.round not in numbers:
            return result
        weights = {name: torch.full_like(value, 1e9) for name, value in result.payload.weights.items()}
        return replace(result, payload=Payload(weights=weights))

    return spoil


def play(site, spoil, count, **border):
    experiment = tiny.experiment(FedAvg(), site, border=BorderConfig(**border))
    return tiny.play(experiment, tiny.FakeEngine(site, spoil=spoil), count=count)


def cohorts(played):
    return [one.row["cohort"] for one in played]


def test_after_three_refusals_in_a_row_a_client_is_left_out_for_good(site):
    played = play(site, lying(1, 1, 2, 3, 4, 5), 5)
    assert cohorts(played) == [[0, 1, 2]] * 3 + [[0, 2]] * 2
    assert [one.row.get("left_out") for one in played] == [None, None, None, [1], [1]]
    assert list(newly(played[1].state.standing, played[2].state.standing)) == [(1, Absence(4, None))]


def test_a_client_may_be_left_out_for_some_rounds_and_then_has_as_many_refusals_again(site):
    played = play(site, lying(1, *range(9)), 7, quarantine_after=2, quarantine_rounds=1)
    assert [1 in cohort for cohort in cohorts(played)] == [True, True, False, True, True, False, True]


def test_an_honest_reply_in_between_starts_the_count_again(site):
    played = play(site, lying(1, 1, 2, 4, 5), 6)
    assert all(1 in cohort for cohort in cohorts(played))
    assert played[-1].state.standing == Standing()


def test_other_failures_are_not_held_against_a_client(site):
    played = play(site, lambda job, result: failed(job, "gone", "lost") if job.client == 1 else result, 5)
    assert played[-1].state.standing == Standing()


def test_zero_leaves_nobody_out(site):
    assert all(1 in cohort for cohort in cohorts(play(site, lying(1, *range(9)), 5, quarantine_after=0)))


def test_enough_clients_stay_to_meet_the_quorum():
    failures = [replace(failed(tiny.job(tiny.problem()), "x", "range"), client=client) for client in range(3)]
    after = Standing().after(1, failures, (), BorderConfig(quarantine_after=1), clients=3, quorum=2)
    assert after.absent(2) == {0}


def test_an_honest_run_has_an_empty_standing_and_no_word_of_it_in_its_rows_or_checkpoint(experiment, engine, tmp_path):
    played = tiny.play(experiment, engine, count=2)[-1]
    assert played.state.standing == Standing()
    assert "left_out" not in played.row
    place = checkpoint.commit(tmp_path, played.state, {}, "digest")
    assert b"standing" not in (place / "state.json").read_bytes()


def test_a_standing_survives_a_checkpoint_and_the_rounds_after_it_are_the_same(site, tmp_path):
    experiment = tiny.experiment(FedAvg(), site, border=BorderConfig(quarantine_rounds=2))
    spoil = lying(1, *range(9))
    whole = tiny.play(experiment, tiny.FakeEngine(site, spoil=spoil), count=7)
    for cut in (2, 4):
        checkpoint.commit(tmp_path / str(cut), whole[cut - 1].state, {}, "digest")
        loaded = checkpoint.load(tmp_path / str(cut), experiment, "digest", warn=pytest.fail)
        assert loaded is not None
        assert loaded.state.standing == whole[cut - 1].state.standing
        state, again = loaded.state, []
        for _ in range(cut, 7):
            again.append(rounds.run_round(experiment, tiny.FakeEngine(site, spoil=spoil), state))
            state = again[-1].state
        assert [tiny.as_bytes(one) for one in again] == [tiny.as_bytes(one) for one in whole[cut:]]


def test_a_cohort_is_drawn_from_those_who_are_there_and_keeps_its_size():
    config = replace(tiny.experiment(FedAvg(), tiny.site(None, tiny.problem())).config, clients=20, clients_per_round=5)
    drawn = [rounds.draw_cohort(config, number, frozenset({3, 4})) for number in range(1, 30)]
    assert all(len(cohort) == 5 and not {3, 4} & {*cohort} for cohort in drawn)
    assert set().union(*drawn) == set(range(20)) - {3, 4}
    assert rounds.draw_cohort(config, 1, frozenset(range(18))) == (18, 19)
