"""Privacy of what a client reveals besides knowledge: noise on label counts, sizes in steps (docs/privacy.md).

`attach` wraps a client half: the algorithm trains and reports as usual, and the wrapper replaces its counts.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedkd import seeds
from fedkd.client import Client
from fedkd.config import PrivacyConfig, RunConfig
from fedkd.configuration import naming
from fedkd.engine import ClientId, ClientState, Job
from fedkd.errors import ConfigError, EngineError
from fedkd.models.predictors import Predictor
from fedkd.participation import Outcome, Site
from fedkd.payload import Payload
from fedkd.problem import Problem
from fedkd.seeds import Stream

Draw = Callable[[Tensor, float, Stream], Tensor]  # counts (C,) int64, epsilon, the client's stream -> with noise

MEMORY = "privacy"  # the release's entry in a client's memory: {"label_epsilon": spent, "label_counts": noisy}
SILENT = frozenset({"weights", "reference", "generator", "label_counts", "probe_logits", "numbers"})


def attach(client: Client, config: RunConfig, problem: Problem, draw: Draw) -> Client:
    """The client half with the configured privacy; itself if all is off. Attach parts first.

    `draw` is `simulated`, or `secret()` on a device. Raises ConfigError if the algorithm sends rows by label, which
    reveal what noise on counts hides.
    """
    chosen = config.privacy
    if chosen == PrivacyConfig():
        return client
    if chosen.label_epsilon is not None:
        _check(client, config.strategy)
    return Private(client, chosen, problem.seed, draw)


def noisy_histogram(counts_C: Tensor, epsilon: float, draw: Draw, stream: Stream) -> Tensor:
    """Counts (C,) int64 with discrete Laplace noise, P(k) proportional to exp(-epsilon |k|), none below 0.

    epsilon-differentially private if neighbours differ by one sample, which changes one count by one.
    """
    return draw(counts_C, epsilon, stream).clamp(min=0)


def simulated(counts_C: Tensor, epsilon: float, stream: Stream) -> Tensor:
    """The noise of a simulation, the same in every run of a seed. It protects nothing: the seed reveals it."""
    drawn_2C = stream.numpy().geometric(-math.expm1(-epsilon), size=(2, len(counts_C)))
    # The difference of two geometric numbers is discrete Laplace.
    return counts_C + torch.from_numpy(drawn_2C[0] - drawn_2C[1])


def secret() -> Draw:
    """A real device's noise, from OpenDP: it must not come from the run's seed. Raises EngineError without OpenDP."""
    try:
        import opendp.measurements  # noqa: F401  # here, so that a device fails before it trains
    except ImportError as error:
        raise EngineError(
            f"privacy.label_epsilon takes its noise from OpenDP, which is not installed ({error})",
            where="privacy.label_epsilon",
            mend="pip install 'fedkd[privacy]', or pip install opendp; privacy.label_epsilon=null sends exact counts",
        ) from error
    return _secret


def _secret(counts_C: Tensor, epsilon: float, stream: Stream) -> Tensor:
    from opendp import domains, measurements, metrics, mod

    mod.enable_features("contrib")
    space = domains.vector_domain(domains.atom_domain(T="i64")), metrics.l1_distance(T="i64")
    measure = measurements.make_laplace(*space, scale=(scale := 1 / epsilon))
    while measure.map(1) > epsilon:  # the quotient was rounded: OpenDP's own bound decides
        scale = math.nextafter(scale, math.inf)
        measure = measurements.make_laplace(*space, scale=scale)
    return torch.tensor(measure(counts_C.tolist()), dtype=torch.int64)


def scaled(histogram_C: Tensor, total: int) -> Tensor:
    """Whole numbers (C,) with sum `total` by largest remainders, ties to lower labels; zeros give equal numbers."""
    parts = histogram_C.tolist() if bool(histogram_C.any()) else [1] * len(histogram_C)
    quotas = [divmod(part * total, sum(parts)) for part in parts]
    missing = total - sum(whole for whole, _ in quotas)
    first = sorted(range(len(parts)), key=lambda label: (-quotas[label][1], label))[:missing]
    return torch.tensor([whole + (label in first) for label, (whole, _) in enumerate(quotas)], dtype=torch.int64)


def in_steps(size: int, step: int) -> int:
    """The nearest multiple of `step`, at least one step; halves go up."""
    return max(step, (size + step // 2) // step * step)


def row(config: PrivacyConfig, clients: Mapping[ClientId, ClientState]) -> dict[str, Any]:
    """The ledger's entry for a round, with the number of clients that have spent epsilon; empty for exact counts."""
    if config.label_epsilon is None:
        return {}
    spent = sum(MEMORY in state.memory for state in clients.values())
    account = {"label_epsilon": config.label_epsilon, "delta": 0, "spent": "once per client", "clients": spent}
    return {"privacy": account}


class Private(Client):
    """Replaces label counts and data size by private values before upload. The wrapped half never sees the release."""

    def __init__(self, inner: Client, privacy: PrivacyConfig, seed: int, draw: Draw) -> None:
        super().__init__(inner.config)
        self.inner, self.privacy, self.seed, self.draw_noise = inner, privacy, seed, draw
        self.personal_predictor = inner.personal_predictor

    def train(self, site: Site, job: Job) -> Outcome:
        outcome = self.inner.train(site, _without(job))
        release, payload = self._cover(site, job, outcome.payload)
        state = outcome.state
        if release is not None:
            state = replace(state, memory={**state.memory, MEMORY: release})
        size = in_steps(len(site.train_index[job.client]), self.privacy.size_step)
        return replace(outcome, payload=payload, state=state, num_examples=size)

    def predictor(self, job: Job) -> Predictor:
        return self.inner.predictor(_without(job))

    def _cover(self, site: Site, job: Job, payload: Payload) -> tuple[Mapping[str, Any] | None, Payload]:
        """The client's release so far, and the payload with counts that depend on the release alone."""
        release, epsilon, counts_C = job.state.memory.get(MEMORY), self.privacy.label_epsilon, payload.label_counts
        if epsilon is None or counts_C is None or not bool(counts_C.any()):
            return release, payload
        if release is None:
            stream = seeds.stream(self.seed, "privacy", client=job.client)
            noisy_C = noisy_histogram(site.label_counts(job.client), epsilon, self.draw_noise, stream)
            release = {"label_epsilon": epsilon, "label_counts": noisy_C}
        # The algorithm's total, which depends on the size, so it is rounded to steps too.
        total = in_steps(int(counts_C.sum()), self.privacy.size_step)
        return release, replace(payload, label_counts=scaled(release["label_counts"], total))


def _check(client: Client, strategy: Mapping[str, Any]) -> None:
    if telling := client.sends - SILENT - client.not_by_label:
        kinds = " and ".join(kind.replace("_", " ") for kind in sorted(telling))
        raise ConfigError(
            f"strategy '{naming.of(strategy)}' sends {kinds} by label, which show exactly what labels a client has: "
            "noise on its label counts would hide nothing",
            where="privacy.label_epsilon",
            mend="choose a strategy without such rows (docs/privacy.md lists them), or privacy.label_epsilon=null",
        )


def _without(job: Job) -> Job:
    """The job without the release in the client's memory."""
    memory = {key: value for key, value in job.state.memory.items() if key != MEMORY}
    return replace(job, state=replace(job.state, memory=memory))
