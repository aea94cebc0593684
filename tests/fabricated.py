"""Fabricated runs with rows like real ones, in memory or on disk; no fixtures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.record import ledger
from simulations.analysis import metric
from simulations.analysis.analyse import analyse
from simulations.analysis.result import Question, Verdict
from simulations.analysis.run_record import RunRecord
from simulations.run import run_folder

CLASSES = 5
Row = dict[str, Any]


def member(
    method: str = "fedavg",
    seed: int = 0,
    setting: str = "",
    *,
    rounds: int = 12,
    clients: int = 6,
    level: float = 0.7,
    folder: Path = Path("runs/none"),
    words: Mapping[str, Any] | None = None,
) -> RunRecord:
    """A run that is done. `level` is about where its accuracy ends; `words` are further values of its configuration."""
    draws = np.random.default_rng([seed, rounds, len(method)])
    rows = [_round(t, rounds, clients, level, method, draws) for t in range(1, rounds + 1)]
    timings = [
        {"round": t, "at": 1.7e9 + t, "clients": 1.5, "server": 0.2, "evaluation": 0.1, "total": 1.9}
        for t in range(1, rounds + 1)
    ]
    counts = draws.integers(0, 40, (clients, CLASSES)).tolist()
    return RunRecord(
        setting,
        method,
        seed,
        folder,
        state="done",
        info=_info(method, seed, rounds, clients),
        partition={
            "schema": 1,
            "recipe": {"name": "dirichlet", "alpha": 0.1},
            "train": [sum(row) for row in counts],
            "labels": counts,
        },
        config=_config(method, seed, rounds, clients, words or {}),
        rows=rows,
        timings=timings,
        clients=[row for t in range(1, rounds + 1) for row in _replies(t, clients, level, draws)],
    )


def members(
    settings: Sequence[str] = ("alpha 0.1", "alpha 1"),
    methods: Sequence[str] = ("fedavg", "fedgen", "local"),
    seeds: Sequence[int] = range(4),
    **more: Any,
) -> list[RunRecord]:
    """A grid; later methods are better."""
    return [
        member(method, seed, setting, level=0.6 + 0.04 * methods.index(method), **more)
        for setting in settings
        for method in methods
        for seed in seeds
    ]


def question(found: Sequence[RunRecord], **changes: Any) -> Question:
    """What a comparison of these asks."""
    asked = Question(
        name="skew",
        settings=tuple(dict.fromkeys(each.setting for each in found)),
        methods=tuple(dict.fromkeys(each.method for each in found)),
        seeds=tuple(sorted({each.seed for each in found})),
        metric=metric.parse("clients.mean last"),
        baseline=found[0].method,
        columns={"worst tenth": metric.parse("clients.worst_decile last")},
        target=0.5,
        command="fedkd compare strategy=fedavg,fedgen,local seed=0..3 --name skew",
    )
    return replace(asked, **changes)


def verdict(found: Sequence[RunRecord] | None = None, **changes: Any) -> Verdict:
    """A verdict on these runs, or on a small grid."""
    found = members() if found is None else found
    return analyse(question(found, **changes), found)


def write(found: RunRecord, folder: Path, **info: Any) -> Path:
    """The run folder of a member."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({**found.info, "state": found.state, **info}), encoding="utf-8")
    (folder / "partition.json").write_text(json.dumps(found.partition), encoding="utf-8")
    (folder / "config.yaml").write_text(json.dumps(_nested(found.config)), encoding="utf-8")
    for name, rows in (("metrics", found.rows), ("clients", found.clients), ("timings", found.timings)):
        (folder / f"{name}.jsonl").write_bytes(b"".join(map(ledger.encode, rows)))
    return folder


def _round(t: int, rounds: int, clients: int, level: float, method: str, draws: np.random.Generator) -> Row:
    mean = level * (1 - 0.8 ** (8 * t / rounds)) + draws.normal(0, 0.01)
    own = {"mean": mean, "std": 0.1, "worst_decile": mean - 0.1, "pooled": mean}
    weights = np.round(draws.dirichlet(np.ones(clients), clients), 4).tolist()
    server = {
        "teacher_agreement": 0.5 + t / (4 * rounds),
        "constant": 1.0,
        "coverage": [0.1 * c for c in range(CLASSES)],
    }
    return {
        "round": t,
        "cohort": list(range(clients)),
        "clients": {"ok": clients - 1, "failed": 1, "late": 0, "rejected": 0},
        "accuracy": {"clients": own, "global": mean},
        "terms": {"ce": 2.0 / t},
        "server": {**server, "weights": weights} if method == "knfu" else server,
        "drift": {"weights": 1.0 / t, "function": 0.5},
        "local_accuracy": {"in": 0.9, "out": 0.2 + 0.1 * t / rounds},
        "bytes": {"down": {"weights": 80_000} if method != "local" else {}, "up": {"weights": 70_000, "numbers": 40}},
    }


def _replies(t: int, clients: int, level: float, draws: np.random.Generator) -> list[Row]:
    values = np.round(np.clip(level + draws.normal(0, 0.1, clients), 0, 1), 4).tolist()
    rows = [
        {"round": t, "client": client, "state": "ok", "bytes_down": 80_000, "bytes_up": 70_040, "accuracy": value}
        for client, value in enumerate(values)
    ]
    if t == 2:
        rows[0] = {"round": t, "client": 0, "state": "failed", "cause": "raised", "reason": "OutOfMemoryError"}
    return rows


def _info(method: str, seed: int, rounds: int, clients: int) -> Row:
    return {
        **run_folder.SCHEMAS,
        "created": "2026-11-27T20:00:00+00:00",
        "strategy": method,
        "variant": None,
        "data": "digits",
        "seed": seed,
        "num_clients": clients,
        "num_rounds": rounds,
        "versions": {"fedkd": "0.1.0", "python": "3.11.7", "torch": "2.14.1"},
        "git": "3873157921a9961d349c460514e16c7712780c84",
        "host": "vm",
        "machine": "Linux x86_64",
        "cores": 2,
        "partition_sha256": f"sha-{seed}",
        "initial_sha256": {"cnn": "same"},
        "batches_sha256": "same",
        "arithmetic": {"threads": 1, "cpu": "AVX2"},
    }


def _config(method: str, seed: int, rounds: int, clients: int, words: Mapping[str, Any]) -> dict[str, Any]:
    base = {
        "seed": seed,
        "rounds": rounds,
        "clients": clients,
        "data.name": "digits",
        "data.root": f"/data/{seed}",
        "partition.name": "dirichlet",
        "partition.alpha": 0.1,
        "train.lr": 0.01,
        "strategy.name": method,
        "strategy.client": method,
        "strategy.variant": None,
        **({"strategy.mu": 0.1} if method == "fedprox" else {}),
    }
    return {**base, **words}


def _nested(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        group, _, last = key.rpartition(".")
        (found.setdefault(group, {}) if group else found)[last] = value
    return found
