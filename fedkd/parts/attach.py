"""Parts at a client: a class derived from the client half's, which keeps its phases, its reports and its name.

Only this module combines parts with a client half. `train` works on a copy of the client half that knows the site and
the parts' memory; the client half itself, which serves all clients of a worker, does not change.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fedkd import seeds
from fedkd.client import Client
from fedkd.config import PartsConfig, RunConfig
from fedkd.configuration import naming
from fedkd.engine import Job
from fedkd.errors import ConfigError
from fedkd.models.predictors import Predictor
from fedkd.participation import Batch, Outcome, Site, Trained
from fedkd.parts import guards, part
from fedkd.parts.graph import Graph
from fedkd.parts.layers import Layers
from fedkd.parts.mixup import Mixup
from fedkd.parts.part import PREFIX, Part, Seen
from fedkd.parts.teacher import Teacher
from fedkd.payload import Weights
from fedkd.problem import Problem
from fedkd.strategy import Strategy
from fedkd.student import Student
from fedkd.training import forward

Taps = Mapping[str, Mapping[str, tuple[str, ...]]]  # architecture -> frozen teacher -> compared blocks

MEMORY = "parts"  # the parts' entry in a client's memory: {"own": entries, "ema": entries}


def attach(client: Client, config: RunConfig, problem: Problem, strategy: Strategy[Any]) -> Client:
    """The client half with the configured parts, or itself if none is on. Raises ConfigError if a part does not fit."""
    parts = tuple(made for made in make(config.part, problem.seed) if made.name in config.parts and made.is_on)
    if not parts:
        return client
    if type(client).terms is Client.terms:
        half = config.strategy.get("client")
        raise ConfigError(
            f"client '{half}' trains several students at once with losses of its own, which parts cannot join",
            where="parts",
            mend="leave `parts` out, or choose another strategy",
        )
    for made in parts:
        if made.needs_weights and "weights" not in strategy.gives:
            other = f", or use part.{made.name}.teacher=own or ema" if made.teacher == "broadcast" else ""
            raise ConfigError(
                f"part '{made.name}' needs the weights that clients receive, "
                f"and strategy '{naming.of(config.strategy)}' sends none",
                where="parts",
                mend=f"leave the part out{other}",
            )
        for architecture in problem.architectures:
            made.check(problem.alike(architecture))
    taps = {name: _taps(parts, problem.alike(name)) for name in problem.architectures}
    return _rebuild(type(client), client.config, parts, config.part.ema.decay, taps)


def make(config: PartsConfig, seed: int) -> tuple[Part, ...]:
    """All parts, in the order of the list in docs/parts.md."""
    return (
        Teacher(config.teacher),
        Mixup(config.mixup),
        Layers(config.layers, seed),
        Graph(config.graph),
        guards.Ema(config.ema),
        guards.Anchor(config.anchor),
    )


@dataclass(frozen=True)
class Context:
    """What a copy of the client half knows during one participation."""

    site: Site
    job: Job  # the original one; phases of a client half may change theirs
    memory: Mapping[str, Weights]  # of parts
    loaded: dict[str, Student] = field(default_factory=dict)  # frozen teachers, each loaded once per participation

    def frozen(self, source: str) -> Student | None:
        """A frozen teacher; None if there is none yet."""
        job, memory = self.job, self.memory
        if (source == "broadcast" and job.payload.weights is None) or (source == "own" and "own" not in memory):
            return None
        if source not in self.loaded:
            layers = (memory[source],) if source in memory else (job.state.kept, job.payload.weights or {})
            self.loaded[source] = self.site.frozen(job.client, *layers, role=f"part {source}")
        return self.loaded[source]


class WithParts(Client):
    """A client half with parts. Each client half has its own derived class: see `_class_of`."""

    inner: ClassVar[type[Client]]
    parts: tuple[Part, ...] = ()
    decay: float = 1.0  # of the moving average, per step
    taps: Taps = MappingProxyType({})
    context: Context | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.inner, self.config, self.parts, self.decay, self.taps)

    def train(self, site: Site, job: Job) -> Outcome:
        state = job.state
        copy = _rebuild(self.inner, self.config, self.parts, self.decay, self.taps)
        copy.context = Context(site, job, state.memory.get(MEMORY, {}))
        return super(WithParts, copy).train(site, replace(job, state=replace(state, memory=_without(state.memory))))

    def precompute(self, site: Site, job: Job, x: Tensor, y: Tensor, position: Tensor) -> Mapping[str, Tensor]:
        return {**super().precompute(site, job, x, y, position), **self._precompute(x, y)}

    def draw(self, job: Job, y: Tensor, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        drawn = dict(super().draw(job, y, step, generator))
        for each_part in self.parts:
            # Not from `generator`: the client half's draws must not depend on which parts are on.
            stream = seeds.stream(generator.initial_seed(), f"part {each_part.name}", round=step)
            drawn |= each_part.draw(len(y), stream.numpy())
        return drawn

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        taken = set()
        with part.recording(student, batch.x) as outputs:
            for name, value in super().terms(student, _bare(batch), job):
                taken.add(name)
                yield name, value
        outputs, per_sample = part.complete(outputs, student, batch.x), batch.per_sample
        if not any(name.startswith(PREFIX) for name in per_sample):  # a phase that called no `precompute`
            per_sample = self._precompute(batch.x, batch.y)
        for each_part in self.parts:
            ask = partial(self._ask, each_part.teacher)
            for name, value in each_part.terms(Seen(student, batch, job, outputs, per_sample, ask)):
                yield (f"{name}_part" if name in taken else name), value

    def next_memory(self, trained: Trained, job: Job) -> Mapping[str, Any]:
        memory = super().next_memory(trained, job)
        kept = self._kept(trained)
        return {**memory, MEMORY: kept} if kept else memory

    def predictor(self, job: Job) -> Predictor:
        return super().predictor(replace(job, state=replace(job.state, memory=_without(job.state.memory))))

    # --- frozen teachers -------------------------------------------------------------------------------------------

    @property
    def _sources(self) -> dict[str, list[Part]]:
        """Each frozen teacher in use, with the parts that use it."""
        sources: dict[str, list[Part]] = {}
        for each_part in self.parts:
            if each_part.teacher is not None:
                sources.setdefault(each_part.teacher, []).append(each_part)
        return sources

    def _precompute(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The frozen teachers' outputs on all these images, in one pass each."""
        per_sample: dict[str, Tensor] = {}
        if not self._sources:
            return per_sample
        context = self._context
        taps = self.taps[context.site.problem.architecture(context.job.client)]
        for source, parts in self._sources.items():
            teacher = context.frozen(source)
            if teacher is None:
                continue
            per_sample |= part.answers(source, teacher, x, taps.get(source, ()), forward.EVALUATION_BATCH)
            for each_part in parts:
                per_sample |= each_part.prepare(teacher, per_sample[part.logits_of(source)], y)
        return per_sample

    def _ask(self, source: str | None, x: Tensor) -> Tensor | None:
        teacher = self._context.frozen(source) if source is not None else None
        return forward.logits(teacher, x) if teacher is not None else None

    def _kept(self, trained: Trained) -> dict[str, Weights]:
        """The parts' next memory: the trained student, and the moving average, updated once per participation."""
        kept = dict(self._context.memory)
        if not trained.steps:
            return kept
        if "ema" in self._sources:
            start = self._context.frozen("ema")
            assert start is not None  # it starts as the received student
            kept["ema"] = average(start.weights, trained.student.weights, self.decay**trained.steps)
        if "own" in self._sources:
            kept["own"] = trained.student.weights
        return kept

    @property
    def _context(self) -> Context:
        if self.context is None:
            raise RuntimeError("parts have teachers only within a participation: call train")
        return self.context


def average(old: Weights, new: Weights, decay: float) -> Weights:
    """decay * old + (1 - decay) * new, entry by entry; at decay 1 and 0, exactly one of them."""
    if decay in (0.0, 1.0):
        return dict(old if decay else new)
    return {name: decay * old[name] + (1 - decay) * value for name, value in new.items()}


def _bare(batch: Batch) -> Batch:
    """The batch without the parts' entries: some client halves test whether anything was drawn."""
    drawn, per_sample = (
        {name: value for name, value in values.items() if not name.startswith(PREFIX)}
        for values in (batch.drawn, batch.per_sample)
    )
    return replace(batch, drawn=drawn, per_sample=per_sample)


def _without(memory: Mapping[str, Any]) -> Mapping[str, Any]:
    """The client's memory without the parts' entry."""
    return {key: value for key, value in memory.items() if key != MEMORY}


def _taps(parts: Sequence[Part], problem: Problem) -> dict[str, tuple[str, ...]]:
    taps: dict[str, tuple[str, ...]] = {}
    for each_part in parts:
        if each_part.teacher is not None:
            blocks = (*taps.get(each_part.teacher, ()), *each_part.taps(problem))
            taps[each_part.teacher] = tuple(dict.fromkeys(blocks))
    return taps


def _rebuild(base: type[Client], config: Any, parts: Sequence[Part], decay: float, taps: Taps) -> WithParts:
    made = _class_of(base)(config)  # type: ignore[arg-type]
    made.parts, made.decay, made.taps = tuple(parts), decay, dict(taps)
    return made


@cache
def _class_of(base: Any) -> type[WithParts]:
    members = {"__module__": base.__module__, "inner": base, "personal_predictor": base.personal_predictor}
    return cast(type[WithParts], type(f"{base.__name__}WithParts", (WithParts, base), members))
