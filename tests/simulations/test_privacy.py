"""Privacy in whole runs: which strategies may have it, what it changes, and that a stop changes nothing."""

import json

import algorithms
import pytest
import tiny

from fedkd import rounds
from fedkd.configuration import compose
from fedkd.errors import ConfigError
from fedkd.record import checkpoint
from fedkd.wrappers import privacy
from simulations import assemble

ON = "privacy.label_epsilon=0.5"
TELLING = {"fedd2s", "feddistill", "feddistill-plus", "fedproto", "knfu-table"}  # docs/privacy.md lists them
COUNTING = {"fedfuse", "fedgen", "knfu", "knfu-generated"}  # likewise


def start(strategy: str, *words: str):
    return assemble.assemble(algorithms.configure((f"strategy={strategy}",), *words))


def play(strategy: str, *words: str):
    return algorithms.trail((f"strategy={strategy}",), *words).rounds


@pytest.mark.parametrize("strategy", compose.options("strategy"))
def test_each_strategy_sends_noisy_counts_or_none_or_is_refused(strategy):
    if strategy in TELLING:
        with pytest.raises(ConfigError, match="noise on its label counts would hide nothing"):
            start(strategy, ON)
        return
    words = ("strategy.epd=reported",) if strategy == "knfu" else ()
    trail = algorithms.trail((f"strategy={strategy}",), ON, "rounds=2", *words)
    replies = [reply for exchange in trail.exchanges for reply in exchange.replies]
    told = [reply for reply in replies if reply.payload.label_counts is not None]
    assert bool(told) == (strategy in COUNTING)
    clients = trail.rounds[-1].state.clients
    for reply in told:
        release = clients[reply.client].memory[privacy.MEMORY]["label_counts"]
        counts = reply.payload.label_counts
        assert counts.tolist() == privacy.scaled(release, int(counts.sum())).tolist()
    spent = [played.row["privacy"]["clients"] for played in trail.rounds]
    assert spent[-1] == len({reply.client for reply in told})
    assert spent == sorted(spent)


def test_switched_off_it_leaves_no_trace_in_the_ledger_or_the_states():
    played = play("fedgen", "privacy.label_epsilon=null", "privacy.size_step=1")
    tiny.assert_same(algorithms.what_counts(played), algorithms.what_counts(play("fedgen")))
    assert all("privacy" not in p.row for p in played)
    assert not any(privacy.MEMORY in its.memory for p in played for its in p.state.clients.values())


def test_where_no_counts_are_sent_only_the_ledgers_line_is_new():
    on, off = play("fedavg", ON), play("fedavg")
    for one, other in zip(on, off, strict=True):
        line = {"label_epsilon": 0.5, "delta": 0, "spent": "once per client", "clients": 0}
        assert json.dumps(one.row) == json.dumps({**other.row, "privacy": line})
        tiny.assert_same(tiny.canonical(one.state), tiny.canonical(other.state))


def test_it_changes_what_fedgens_server_trusts():
    on, off = play("fedgen", ON), play("fedgen")
    assert on[0].row["terms"] == off[0].row["terms"]  # the first round's training hears of nothing
    assert on[0].row["server"] != off[0].row["server"]


def test_a_stop_after_each_round_changes_nothing(tmp_path):
    assembly = start("fedgen", ON, "clients_per_round=2")
    experiment, engine = assembly.experiment, tiny.FakeEngine(assembly.site)
    whole = algorithms.play(experiment, engine)
    state, found = rounds.begin(experiment), []
    for _ in whole:
        found.append(rounds.run_round(experiment, engine, state))
        checkpoint.commit(tmp_path, found[-1].state, {}, "digest")
        loaded = checkpoint.load(tmp_path, experiment, "digest", warn=pytest.fail)
        assert loaded is not None
        state = loaded.state
    tiny.assert_same(algorithms.what_counts(found), algorithms.what_counts(whole))
    assert {len(its.memory[privacy.MEMORY]["label_counts"]) for its in state.clients.values()} == {10}


def test_it_goes_together_with_parts():
    played = play("fedgen", ON, "parts=[teacher, ema]", "part.teacher.teacher=own")
    memories = [its.memory for its in played[-1].state.clients.values()]
    assert all(set(memory) == {"parts", privacy.MEMORY} for memory in memories)
    plain = play("fedgen", "parts=[teacher, ema]", "part.teacher.teacher=own")
    assert played[0].row["terms"] == plain[0].row["terms"]


def test_steps_reach_the_ledgers_sizes():
    sizes = [row["examples"] for row in play("fedavg", "privacy.size_step=50")[0].clients if "examples" in row]
    assert sizes
    assert all(size % 50 == 0 for size in sizes)


def test_the_digest_knows_of_privacy_only_where_it_is_on():
    plain = compose.resolve([]).digest()
    assert compose.resolve(["privacy.label_epsilon=null", "privacy.size_step=1"]).digest() == plain
    assert len({compose.resolve([word]).digest() for word in ("seed=0", ON, "privacy.size_step=2")} | {plain}) == 3


def test_a_configuration_from_before_has_the_digest_it_had(tmp_path):
    resolved = compose.resolve(["strategy=fedavg"])
    lines = resolved.to_yaml().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(("privacy:", "  label_epsilon:", "  size_step:"))]
    assert len(lines) - len(kept) == 3
    (tmp_path / "config.yaml").write_text("".join(kept), encoding="utf-8")
    assert compose.from_yaml_file(tmp_path / "config.yaml").digest() == resolved.digest()


def test_an_epsilon_of_nothing_is_a_mistake():
    with pytest.raises(ConfigError, match=r"privacy.label_epsilon = 0(.|\n)*must be at least 1e-06"):
        compose.resolve(["privacy.label_epsilon=0"])


def test_two_workers_give_the_bytes_of_one_process(two_workers):
    assembly = start("fedgen", ON)
    two_workers.serve(assembly.site)
    spread = algorithms.play(assembly.experiment, two_workers)
    alone = algorithms.play(assembly.experiment, tiny.FakeEngine(assembly.site))
    tiny.assert_same(algorithms.what_counts(spread), algorithms.what_counts(alone))
