"""FML, client half: deep mutual learning between the client's private student and the received meme.

Source: Shen et al. 2020 (arXiv 2006.16765); docs/strategies/fml.md, equations 1 and 2. Server half: fml.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.off import Off
from fedkd.participation import Batch, Outcome, Site
from fedkd.payload import Payload
from fedkd.student import Student


class FML(Client):
    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        ce: Annotated[float, Ge(0)] = 0.5  # paper: alpha. Weight of the private student's cross entropy; 0 = off
        kl: Annotated[float, Ge(0), Off("local training")] = 0.5  # paper: 1 - alpha. Weight of its KL to the meme
        meme_ce: Annotated[float, Ge(0)] = 0.5  # paper: beta. Weight of the meme's cross entropy; 0 = off
        meme_kl: Annotated[float, Ge(0)] = 0.5  # paper: 1 - beta. Weight of its KL to the private student; 0 = off

    def train(self, site: Site, job: Job) -> Outcome:
        alone = replace(job, payload=Payload())  # the private student takes no received entry
        private, meme = site.student(alone).train(), site.beside(job.payload.weights or {}).train()
        # One optimiser for both: peers are detached, so each student's gradient comes from its own loss alone.
        # `train.clip` bounds both gradients together.
        learnable = _named("private", private) | _named("meme", meme)
        outcome = site.fit(self, alone, private, learnable=learnable, terms=lambda b: self.mutual(private, meme, b))
        entries = meme.weights
        return replace(outcome, payload=Payload(weights={name: entries[name] for name in job.payload.weights or {}}))

    def mutual(self, private: Student, meme: Student, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Both losses: cross entropy with the labels, and KL to the other student's probabilities without gradient."""
        config = self.config
        logits, meme_logits = private(batch.x), meme(batch.x)
        if config.ce:
            yield "ce", config.ce * losses.cross_entropy(logits, batch.y)
        if config.kl:
            yield "kl", config.kl * losses.kl(meme_logits.detach().softmax(1), logits)
        if config.meme_ce:
            yield "meme_ce", config.meme_ce * losses.cross_entropy(meme_logits, batch.y)
        if config.meme_kl:
            yield "meme_kl", config.meme_kl * losses.kl(logits.detach().softmax(1), meme_logits)


def _named(whose: str, student: Student) -> dict[str, Tensor]:
    """The student's parameters, each name prefixed by `whose`."""
    return {f"{whose}.{name}": parameter for name, parameter in student.learnable.items()}
