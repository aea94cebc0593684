"""The summary of a run: what `--json` prints and `summary.json` keeps. Fractions, bytes and seconds."""

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedkd.record.ledger import Row


def of_rows(rows: Sequence[Row], timings: Sequence[Row]) -> dict[str, Any]:
    """Accuracy, bytes and seconds of the rounds in the ledger.

    `accuracy` is the global student's on the pooled test set or, if the algorithm has none, the mean over clients of
    their own students, each on its own test split; `accuracy_of` says which: `global` or `clients.mean`.
    `clients.pooled` counts all clients' samples together: FedGen's round accuracy. Some keys need rows that have them:
    `trained` (like `clients`, for those that have taken part, and their `count`), `common` (own students, common test
    images; mean over clients), `local_accuracy` (of the last round that measured it) and `forgetting` (FedNTD's F).
    """
    accuracy = {row["round"]: row["accuracy"] for row in rows}
    shared = {number: measured["global"] for number, measured in accuracy.items() if "global" in measured}
    own = {number: measured["clients"] for number, measured in accuracy.items() if "clients" in measured}
    pooled = {number: clients["pooled"] for number, clients in own.items()}
    personal = {number: clients["mean"] for number, clients in own.items()}
    common = {number: measured["common"]["mean"] for number, measured in accuracy.items() if "common" in measured}
    trained = next((measured["trained"] for measured in reversed(accuracy.values()) if "trained" in measured), None)
    local = next((row["local_accuracy"] for row in reversed(rows) if row.get("local_accuracy")), None)
    forgotten = forgetting(rows)
    replies: Counter[str] = sum((Counter(row["clients"]) for row in rows), Counter())
    return {
        "rounds": rows[-1]["round"] if rows else 0,
        "accuracy": _curve(shared or personal),
        "accuracy_of": "global" if shared else "clients.mean",
        "clients": {**own[max(own)], "pooled": _curve(pooled)} if own else {},
        **({"trained": trained} if trained else {}),
        **({"common": _curve(common)} if common else {}),
        **({"local_accuracy": local} if local else {}),
        **({"forgetting": forgotten[max(forgotten)]} if forgotten else {}),
        "bytes": {way: sum(sum(row["bytes"][way].values()) for row in rows) for way in ("up", "down")},
        "replies": {state: replies[state] for state in ("ok", "late", "failed", "rejected")},
        "seconds": {
            name: sum(row.get(name, 0.0) for row in timings) for name in ("total", "clients", "server", "evaluation")
        },
    }


def forgetting(rows: Sequence[Row]) -> dict[int, float]:
    """FedNTD's F up to each round that measured accuracy by class, starting with the second such round.

    F is the mean over classes of max_{t < R} A_t - A_R, where A is the accuracy of a class (Lee et al., NeurIPS 2022).
    It is below 0 if classes are, on average, better than ever before. Classes without an image are left out.
    """
    by_round: dict[int, float] = {}
    best: list[float] = []
    for row in rows:
        if values := [value for value in row["accuracy"].get("by_class", ()) if value is not None]:
            if best:
                by_round[row["round"]] = math.fsum(map(operator.sub, best, values)) / len(values)
            best = list(map(max, best or values, values))
    return by_round


def _curve(by_round: Mapping[int, float]) -> dict[str, float]:
    if not by_round:
        return {}
    from fedkd.maths import metrics  # imports torch: not needed to list runs

    return metrics.summarise(by_round)
