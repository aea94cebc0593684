"""The summary of a run: what `--json` prints and `summary.json` keeps. Fractions, bytes and seconds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedkd.ledger import Row


def of_rows(rows: Sequence[Row], timings: Sequence[Row]) -> dict[str, Any]:
    """Accuracy, bytes and seconds of the rounds in the ledger.

    `accuracy` is the global student's on the pooled test set or, if the algorithm has none, the mean over clients of
    each one's own student on its own test split; `accuracy_of` says which: `global` or `clients.mean`. `clients.pooled`
    counts all clients' samples together: FedGen's round accuracy. `common` (own students, common test images; mean over
    clients) and `forgetting` (of the last round) are there if the ledger has them.
    """
    accuracy = {row["round"]: row["accuracy"] for row in rows}
    shared = {number: found["global"] for number, found in accuracy.items() if "global" in found}
    own = {number: found["clients"] for number, found in accuracy.items() if "clients" in found}
    pooled = {number: found["pooled"] for number, found in own.items()}
    personal = {number: found["mean"] for number, found in own.items()}
    common = {number: found["common"]["mean"] for number, found in accuracy.items() if "common" in found}
    forgetting = next((row["forgetting"] for row in reversed(rows) if row.get("forgetting")), None)
    replies: Counter[str] = sum((Counter(row["clients"]) for row in rows), Counter())
    return {
        "rounds": rows[-1]["round"] if rows else 0,
        "accuracy": _curve(shared or personal),
        "accuracy_of": "global" if shared else "clients.mean",
        "clients": {**own[max(own)], "pooled": _curve(pooled)} if own else {},
        **({"common": _curve(common)} if common else {}),
        **({"forgetting": forgetting} if forgetting else {}),
        "bytes": {way: sum(sum(row["bytes"][way].values()) for row in rows) for way in ("up", "down")},
        "replies": {state: replies[state] for state in ("ok", "late", "failed", "rejected")},
        "seconds": {
            name: sum(row.get(name, 0.0) for row in timings) for name in ("total", "clients", "server", "evaluation")
        },
    }


def _curve(by_round: Mapping[int, float]) -> dict[str, float]:
    if not by_round:
        return {}
    from fedkd import metrics  # imports torch: not needed to list runs

    return metrics.summarise(by_round)
