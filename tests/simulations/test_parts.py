"""Parts in whole runs: with algorithms of every kind, in one process and in several, and not at all."""

import algorithms
import pytest
import tiny

from clients.supervised import Supervised
from fedkd.errors import ConfigError
from fedkd.parts import attach
from fedkd.record import checkpoint
from simulations import assemble

OWN = ("parts=[teacher, layers, ema]", "part.teacher.teacher=own", "part.layers.teacher=ema", "rounds=2")
ALL = ("parts=[teacher, mixup, layers, graph, ema, anchor]", "part.mixup.fraction=0.5", "rounds=2")


def play(*words: str, strategy: str = "fedavg"):
    assembly = assemble.assemble(algorithms.configure((f"strategy={strategy}",), *words))
    return algorithms.play(assembly.experiment, tiny.FakeEngine(assembly.site))


def test_without_parts_the_client_is_the_one_that_the_strategy_names():
    for words in ((), ("parts=[]",), ("parts=[teacher]", "part.teacher.weight=0")):
        client = assemble.assemble(algorithms.configure(("strategy=fedavg",), *words)).site.client
        assert type(client) is Supervised


def test_a_part_of_weight_zero_leaves_the_bytes_of_a_run():
    off = play("parts=[teacher, mixup, ema]", *(f"part.{name}.weight=0" for name in ("teacher", "mixup", "ema")))
    tiny.assert_same(algorithms.what_counts(off), algorithms.what_counts(play("parts=[]")))


@pytest.mark.parametrize("strategy", ["fedgen", "fedrep", "ditto", "moon", "scaffold"])
def test_all_parts_join_a_strategy_that_sends_weights(strategy):
    played = play(*ALL, strategy=strategy)
    assert all(p.row["clients"]["ok"] == 4 for p in played)
    assert {"ce", "teacher", "mixup_ce", "mixup_kl", "layers", "graph", "ema", "anchor"} <= set(played[1].row["terms"])


def test_a_strategy_that_sends_no_weights_has_own_teachers_only():
    played = play(*OWN, strategy="local")
    assert set(played[0].row["terms"]) == {"ce", "ema", "layers"}
    assert set(played[1].row["terms"]) == {"ce", "ema", "layers", "teacher"}
    with pytest.raises(ConfigError, match="'local' sends none"):
        play("parts=[teacher]", strategy="local")


def test_the_terms_of_a_client_half_are_those_it_has_without_parts_in_the_first_step():
    more, plain = (play("train.steps=1", "rounds=1", words)[0] for words in ("parts=[anchor]", "parts=[]"))
    assert more.row["terms"]["ce"] == plain.row["terms"]["ce"]
    assert more.row["terms"]["anchor"] == 0


def test_what_parts_remember_survives_a_commit_and_flowers_messages(tmp_path):
    assembly = assemble.assemble(algorithms.configure(("strategy=fedavg",), *OWN))
    state = algorithms.play(assembly.experiment, tiny.FakeEngine(assembly.site))[-1].state
    assert set(next(iter(state.clients.values())).memory["parts"]) == {"own", "ema"}
    checkpoint.commit(tmp_path, state, {}, "digest")
    found = checkpoint.load(tmp_path, assembly.experiment, "digest", warn=print)
    tiny.assert_same(tiny.canonical(found.state), tiny.canonical(state))
    flower_codec = pytest.importorskip("simulations.flower.codec", reason="Flower is not installed")
    from flwr.app import RecordDict

    for its in state.clients.values():
        message = RecordDict(flower_codec.encode_state(its))
        tiny.assert_same(tiny.canonical(flower_codec.decode_state(message)), tiny.canonical(its))


@pytest.mark.parametrize("words", [ALL, OWN], ids=["all", "own"])
def test_two_workers_give_the_bytes_of_one_process(words, two_workers):
    assembly = assemble.assemble(algorithms.configure(("strategy=fedgen",), *words))
    assert isinstance(assembly.site.client, attach.WithParts)
    two_workers.serve(assembly.site)
    spread = algorithms.play(assembly.experiment, two_workers)
    alone = algorithms.play(assembly.experiment, tiny.FakeEngine(assembly.site))
    tiny.assert_same(algorithms.what_counts(spread), algorithms.what_counts(alone))
