import json
from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch

from clients.fedgen import FedGen as FedGenClient
from clients.fedprox import FedProx
from clients.supervised import Supervised
from fedkd import rounds
from fedkd.configuration import compose
from fedkd.errors import ConfigError, EngineError
from fedkd.models import students
from simulations.assemble import Assembly
from simulations.bench import command, costs, measures, memory, tables
from simulations.bench.bare_loop import BareLoop
from simulations.engines.inline import Inline
from simulations.run.options import Options
from strategies.fedavg import FedAvg
from strategies.fedgen import FedGen

WHOLE = replace(tiny.TRAIN, batch=64)  # each step takes all a client has: no order can matter
WORDS = ["strategy=fedavg", "partition=iid", "students=mlp", "clients=4", "train.steps=2", "train.batch=8"]
LEAST = command.Effort(rounds=1, ray_rounds=1, exchanges=1, starts=0, memory_rounds=1, clients=(), workers=())


def assembly(client, strategy, make=tiny.plain, statistics="average", **changes):
    problem = tiny.problem(make, train=WHOLE, rounds=20, statistics=statistics)
    site = tiny.site(client, problem)
    return Assembly(tiny.experiment(strategy, site, **changes), site, None, None)


def play_both(made, count=3):
    """The global weights after some rounds: of the bare loop, and of ours."""
    bare, engine, state = BareLoop(made), Inline(made.site), rounds.begin(made.experiment)
    for number in range(1, count + 1):
        bare.run_round(number, rounds.draw_cohort(made.experiment.config, number))
        state = rounds.run_round(made.experiment, engine, state).state
    return bare, state


@pytest.mark.parametrize(
    ("client", "make", "statistics"),
    [
        (Supervised(), tiny.plain, "average"),
        (Supervised(), tiny.normed, "local"),
        (FedProx(FedProx.Config(mu=2.0, decay=0.5)), tiny.plain, "average"),
    ],
)
def test_the_bare_loop_computes_what_a_run_computes(client, make, statistics):
    bare, state = play_both(assembly(client, FedAvg(), make, statistics, clients_per_round=2))
    for name, entry in state.server.weights.items():
        torch.testing.assert_close(bare.weights[name], entry, rtol=1e-4, atol=1e-5)


def test_the_bare_loop_lays_weights_out_as_torch_does():
    made = assembly(Supervised(), FedAvg(), partial(students.make, "resnet8", (1, tiny.SIDE, tiny.SIDE), tiny.CLASSES))
    assert made.site.problem.initial().layout == torch.channels_last
    bare = BareLoop(made)
    bare.run_round(1, (0, 1))
    convolutions = [entry for entry in bare.model.parameters() if entry.dim() == 4 and min(entry.shape[:2]) > 1]
    assert convolutions
    assert all(entry.is_contiguous() for entry in convolutions)


def test_the_bare_loop_evaluates_what_a_run_evaluates():
    made = assembly(Supervised(), FedAvg(), tiny.normed, "local")
    bare, state = play_both(made)
    bare.run_round(4, (0, 1, 2))
    played = rounds.run_round(made.experiment, Inline(made.site), state)
    assert bare.accuracy == pytest.approx(played.row["accuracy"]["global"], abs=0.04)
    for row in played.clients:
        assert bare.own_accuracy[row["client"]] == pytest.approx(row["accuracy"], abs=0.04)


def test_without_its_weights_the_bare_fedgen_is_fedavg():
    off = FedGenClient(FedGenClient.Config(alpha=0, beta=0))
    bare, _ = play_both(assembly(off, FedGen()))
    average, _ = play_both(assembly(Supervised(), FedAvg()))
    for name, entry in average.weights.items():
        torch.testing.assert_close(bare.weights[name], entry, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("off", [{"alpha": 0}, {"beta": 0}])
def test_each_term_of_the_bare_fedgen_counts(off):
    with_one = FedGenClient(FedGenClient.Config(**off))
    bare, _ = play_both(assembly(with_one, FedGen()))
    average, _ = play_both(assembly(Supervised(), FedAvg()))
    assert not torch.allclose(bare.weights["head.weight"], average.weights["head.weight"], atol=1e-3)


def test_an_algorithm_that_is_not_written_out_is_compared_with_fedavg_and_named_so():
    class Other(Supervised):
        pass

    bare = BareLoop(assembly(Other(), FedAvg()))
    assert (bare.method, bare.is_same) == ("fedavg", False)
    assert BareLoop(assembly(Supervised(), FedAvg())).is_same
    for other in ({"optimiser": "adam"}, {"augment": "flip"}):
        assert not BareLoop(assembly(Supervised(), FedAvg(), train=replace(WHOLE, **other))).is_same


def test_phases_and_rest_sum_to_a_round():
    found = measures.against_bare(assembly(Supervised(), FedAvg()), 1)
    for who in ("bare", "inline"):
        parts = [found["phases"][phase][who] for phase in ("clients", "server", "evaluation", "rest")]
        assert sum(parts) == pytest.approx(found["phases"]["total"][who])


def test_clients_that_fail_are_not_taken_for_fast_ones():
    class Broken(Supervised):
        def train(self, site, job):
            if job.client == 1:
                raise ValueError("no more disk")
            return super().train(site, job)

    with pytest.raises(EngineError, match="client 1 failed: ValueError: no more disk"):
        measures.against_bare(assembly(Broken(), FedAvg()), 1)


def test_the_idle_student_has_ten_thousand_parameters_and_its_clients_change_nothing():
    experiment, site = measures.idle_experiment()
    assert sum(p.numel() for p in measures.idle_student().parameters()) == 10_000
    before = rounds.begin(experiment)
    played = rounds.run_round(experiment, Inline(site), before)
    assert not played.failures
    tiny.assert_same_weights(played.state.server.weights, before.server.weights)


def test_memory_is_that_of_a_crowd_that_the_partition_could_not_make():
    plan = memory.MemoryTask([*WORDS, "partition=dirichlet"], clients=300, per_round=5, rounds=2, workers=0)
    found = memory.measure(plan)
    assert found["clients"] == 300
    assert 5 <= found["trained"] <= 10
    assert found["driver"]["resident"] > 10e6
    assert found["workers"] == []


def test_kept_entries_are_counted_as_client_state():
    plan = memory.MemoryTask([*WORDS, "strategy.share=head"], clients=5, per_round=5, rounds=1, workers=0)
    entries = 64 * 200 + 200 + 200 * 200 + 200  # of the mlp before its head
    assert memory.measure(plan)["state_bytes"] == 5 * 4 * entries


def test_a_slip_in_the_words_is_told_before_anything_is_measured():
    with pytest.raises(ConfigError):
        command.main(Options(), ["rounds=0"])


def test_json_is_one_object_with_everything(capsys):
    assert command.main(Options(json=True), WORDS, LEAST) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["loop"]["method"] == "fedavg"
    assert [goal["what"] for goal in found["goals"]] == ["inline / bare loop, per round", "idle client inline, s"]
    assert "in turns" in err


def test_the_tables_name_every_part(capsys):
    assert command.main(Options(quiet=True), WORDS, LEAST) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for word in ("bare loop (fedavg)", "evaluation", "checkpoint", "first round", "idle client inline"):
        assert word in out


def test_a_goal_is_missed_on_its_own_side():
    ray = [{"workers": 2, "speedup": 1.5, "message": 5e-4}]
    loop = {"is_same": True, "phases": {"total": {"ratio": 1.2}}}
    met = [goal["is_met"] for goal in command.goals({"loop": loop, "ray": ray, "message": 2e-4})]
    assert met == [False, False, True, True]


def test_ray_and_memory_have_their_tables(capsys):
    found = {
        "machine": {"processor": "P", "cores": 2, "load": 4.0, "python": "3"},
        "notes": ["without images"],
        "configuration": dict.fromkeys(("strategy", "data", "students", "per_round", "clients", "steps", "batch"), 1),
        "starting": {},
        "loop": {
            "method": "fedavg",
            "is_same": False,
            "rounds": 1,
            "commit": 0.0,
            "first_round": 0.0,
            "phases": PHASES,
        },
        "message": 0.0,
        "ray": [
            {"workers": 2, "start": 3.0, "inline": 2.0, "ray": 1.0, "speedup": 2.0, "message": 0.0, "is_equal": False}
        ],
        "memory": [{"clients": 7, "trained": 5, "state_bytes": 1e6, "driver": {"resident": 9e6}, "workers": [BOTH]}],
        "goals": [],
        "missing": {"memory": "too little of it"},
    }
    tables.show(found)
    out = capsys.readouterr().out
    for word in (
        "DIFFER",
        "2.00",
        "7 clients",
        "3 (1)",
        "too little of it",
        "busy",
        "stand-in",
        "note  without images",
    ):
        assert word in out


SEVERAL = ["strategy=fedavg,ditto", *WORDS[1:]]
TURNS = command.Effort(turns=2)


def test_several_methods_are_played_in_turns_beside_the_baseline(capsys):
    assert command.main(Options(json=True), SEVERAL, TURNS) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["baseline"], found["rounds"], found["missing"]) == ("fedavg", 2, {})
    assert [row["method"] for row in found["costs"]] == ["fedavg", "ditto"]
    for row in found["costs"]:
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert min(row["clients"], row["server"]) > 0
    assert "ditto: 2 rounds of this method and of fedavg, in turns" in err


def test_a_method_that_makes_its_own_images_for_want_of_a_public_set_is_said_to(capsys, monkeypatch):
    monkeypatch.setattr(
        costs,
        "measure",
        lambda asked, count, say: {"baseline": "fedavg", "costs": [], "limit": 1.3, "missing": {}},
    )
    words = ["data=digits", "strategy=fedavg,fedfuse"]
    assert command.main(Options(quiet=True), words, TURNS) == 0
    assert "note  fedfuse has no public set of samples, so its server generates them" in capsys.readouterr().out
    assert command.main(Options(quiet=True), [*words, "proxy=held-out"], TURNS) == 0
    assert "note" not in capsys.readouterr().out


def test_each_setting_has_its_table_and_its_own_baseline(capsys):
    words = [*SEVERAL[:-2], "train.steps=1,3", "train.batch=8"]
    assert command.main(Options(quiet=True), words, TURNS) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [out.count(word) for word in ("1 steps of 8", "3 steps of 8", "x fedavg")] == [1, 1, 2]


def test_both_of_a_pair_play_the_same_cohorts_and_warm_up_is_left_out(monkeypatch):
    seen = []

    def play(experiment, engine, state):
        seen.append((experiment, rounds.draw_cohort(experiment.config, state.round + 1)))
        return rounds.run_round(experiment, engine, state)

    monkeypatch.setattr(measures, "_run_round", play)
    one = assembly(Supervised(), FedAvg(), clients_per_round=2)
    two = assembly(FedProx(), FedAvg(), clients_per_round=2)
    assert len(measures.in_turns(one, two, 3)) == 3
    assert [each for each, _ in seen] == [one.experiment, two.experiment] * (3 + measures.WARMUP)
    assert [cohort for _, cohort in seen[::2]] == [cohort for _, cohort in seen[1::2]]


def test_a_method_that_cannot_be_measured_is_named_with_its_reason_and_the_others_are(capsys, monkeypatch):
    in_turns = measures.in_turns

    def fail_for_ditto(baseline, other, count):
        if other.experiment.config.strategy["name"] == "ditto":
            raise EngineError("client 1 failed: ValueError: no more disk")
        return in_turns(baseline, other, count)

    monkeypatch.setattr(measures, "in_turns", fail_for_ditto)
    assert command.main(Options(quiet=True), SEVERAL, TURNS) == 0
    out, _ = capsys.readouterr()
    assert "warn  ditto was not measured: client 1 failed: ValueError: no more disk" in out
    assert "fedavg   " in out


def test_methods_above_the_goal_are_named(capsys):
    row = {"setting": "", "clients": 1.0, "server": 0.0, "low": 1.0, "high": 1.0}
    found = {
        "machine": {"processor": "P", "cores": 2, "load": None, "python": "3"},
        "settings": {"": dict.fromkeys(("data", "students", "per_round", "clients", "steps", "batch"), 1)},
        "baseline": "fedavg",
        "limit": 1.3,
        "missing": {},
        "notes": [],
    }
    for ratio, line in ((1.3, "ok    clients"), (1.31, "miss  clients")):
        tables.show_costs(found | {"costs": [row | {"method": "m", "ratio": ratio}]})
        out = capsys.readouterr().out
        assert line in out
        assert ("above it: m" in out) == (ratio > 1.3)


@pytest.mark.parametrize(
    ("words", "is_several"),
    [
        (["comparison=costs"], True),
        (["strategy=fedavg,fedgen"], True),
        (["strategy=fedavg", "students={mlp: 0.5, lenet5: 0.5}", "run.yaml"], False),
        (["rounds=2", "rounds=3"], False),
    ],
)
def test_a_list_or_a_comparison_asks_for_several(words, is_several):
    assert costs.has_several(words) == is_several


def test_a_slip_among_several_is_told_before_anything_is_measured():
    with pytest.raises(ConfigError, match="fedvag"):
        command.main(Options(), ["strategy=fedavg,fedvag"])


PHASES = {phase: {"bare": 1.0, "inline": 1.0, "ratio": 1.0} for phase in (*measures.PHASES, "cpu")}
BOTH = {"resident": 3e6, "private": 1e6}


def test_two_workers_give_the_rows_of_inline(two_workers, monkeypatch):
    class Borrowed:
        """The pool of all tests: it stays up."""

        def __init__(self, site, workers):
            self.serve(site)

        def __getattr__(self, name):
            return getattr(two_workers, name)

        def start(self):
            two_workers.start()
            return self

        def close(self):
            pass

    monkeypatch.setattr(measures, "RayPool", Borrowed)
    made = measures.assembled(compose.resolve(WORDS).config, 1)
    found = measures.on_ray(made, 1, 2, 1)
    assert found["is_equal"]
    assert found["workers"] == 2
    assert min(found["start"], found["ray"], found["message"], found["speedup"]) > 0
