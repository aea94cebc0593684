"""Runs as a comparison sees them, made up: what the tests of verdict, words and report judge."""

from pathlib import Path

from simulations.analysis import metric
from simulations.analysis.result import Question
from simulations.analysis.run_record import RunRecord


def member(method="fedavg", seed=0, accuracy=(0.5, 0.6), setting="", clients=(0.5, 0.7), **changes):
    """A finished run whose global accuracy is `accuracy` by round, and whose clients end at `clients`."""
    rounds = range(1, len(accuracy) + 1)
    info = {"strategy": method, "partition_sha256": f"split {seed}", "initial_sha256": {"mlp": f"first {seed}"}}
    mean, worst = sum(clients) / len(clients), min(clients)
    rows = [
        {
            "round": number,
            "cohort": [0, 1],
            "accuracy": {"global": value, "clients": {"mean": mean, "worst_decile": worst}},
            "bytes": {"up": {"weights": 1_000_000}, "down": {"weights": 2_000_000, "numbers": 500_000}},
            "drift": {"weights": 2.0 - value},
        }
        for number, value in zip(rounds, accuracy, strict=True)
    ]
    timings = [{"round": number, "total": 2.0, "clients": 1.5} for number in rounds]
    last = [{"round": rounds[-1], "client": k, "accuracy": value} for k, value in enumerate(clients)]
    default = {"state": "done", "info": info, "rows": rows, "timings": timings, "clients": last}
    return RunRecord(setting, method, seed, Path(f"{method}-{seed}"), **(default | changes))


def question(methods=("fedavg", "fedgen"), seeds=8, settings=("",), primary="global last", **changes):
    default = {"baseline": methods[0], "columns": {"worst": metric.parse("clients.worst_decile last")}}
    named = {"name": "made up", "settings": settings, "methods": methods, "seeds": tuple(range(seeds))}
    return Question(**named, metric=metric.parse(primary), **(default | changes))


def paired(differences, method="fedgen", setting="", base=0.5):
    """Runs of two methods, a seed each difference."""
    ours = [member(method, k, (0.1, base + 0.01 * k + d), setting) for k, d in enumerate(differences)]
    theirs = [member("fedavg", k, (0.1, base + 0.01 * k), setting) for k in range(len(differences))]
    return [*ours, *theirs]
