"""From a client half's `logits` to the rule that an exported student carries."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from clients.fedensemble import FedEnsemble
from clients.fedfuse import FedFuse
from clients.fedproto import FedProto
from fedkd import judging
from fedkd.client import Client
from fedkd.engine import Job
from fedkd.errors import ConfigError
from fedkd.parts.attach import WithParts
from fedkd.student import Student

Made = tuple[list[Student], judging.Rule]


def make(client: Client, student: Student, job: Job) -> Made:
    """The students and the rule that give what `client.logits(student, x, job)` gives, in memory of their own.

    Raises ConfigError for a client half with a `logits` that is not known here: its student alone would say other
    things than the run judged.
    """
    while isinstance(inner := getattr(client, "inner", None), Client):
        client = inner  # a cover over another half, which judges
    owner = next(cls for cls in type(client).__mro__ if "logits" in vars(cls) and cls is not WithParts)
    if owner not in _MADE:
        raise ConfigError(
            f"client half '{owner.__name__}' judges by more than its student's logits, and export does not know how",
            where="strategy.client",
            mend="make its `logits` a rule of fedkd/judging.py and name it in simulations/export/rules.py",
        )
    members, rule = _MADE[owner](client, deepcopy(student), job)
    for member in members:
        member.requires_grad_(False).eval()
    return members, rule.eval()


def _one(client: Client, student: Student, job: Job) -> Made:
    return [student], judging.One()


def _fedfuse(client: Client, student: Student, job: Job) -> Made:
    prior_C = job.state.memory.get("log_prior") if job.task == "evaluate" else None
    return [student], judging.One() if prior_C is None else judging.WithPrior(prior_C.clone())


def _fedproto(client: Client, student: Student, job: Job) -> Made:
    prototypes, counts = job.payload.prototypes, job.payload.label_counts
    if client.config.inference == "head" or prototypes is None or counts is None:
        return [student], judging.One()
    return [student], judging.Prototypes(prototypes.clone(), counts != 0)


def _fedensemble(client: Client, student: Student, job: Job) -> Made:
    """A member a student; entries that it lacks are the served student's."""
    if job.payload.samples is None:
        return [student], judging.One()
    rows: Mapping[str, Tensor] = job.payload.samples
    copies = rows["copies"]
    members = [
        deepcopy(student).load({name: entry[number] for name, entry in rows.items() if name != "copies"})
        for number in range(len(copies))
    ]
    return members, judging.Ensemble(copies.to(torch.float32) / copies.sum(), client.config.combine)


_MADE: dict[Any, Callable[[Any, Student, Job], Made]] = {
    Client: _one,
    FedFuse: _fedfuse,
    FedProto: _fedproto,
    FedEnsemble: _fedensemble,
}
