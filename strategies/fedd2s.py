"""FedD2S (reconstruction), server half: trains heads on all clients' taps, and teaches each client with them.

Source: Atapour et al., arXiv 2402.10846, of which only the abstract could be read;
docs/strategies/fedd2s.md, equations 3 to 6. Client half: fedd2s. No parameters are averaged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from fedkd import seeds, state_values
from fedkd.border import checks
from fedkd.distillation import heads, layer_dropping
from fedkd.distillation.heads import HeadDataset
from fedkd.engine import ClientId, Job, Reply
from fedkd.errors import ConfigError
from fedkd.maths import diagnostics, fusion, metrics
from fedkd.payload import Findings, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy
from fedkd.student import Student
from fedkd.training import forward
from fedkd.training.optimisers import Sgd


@dataclass(frozen=True)
class State:
    """Global heads by architecture and tap, and their last logits on each client's own rows."""

    heads: Mapping[str, Weights]
    tables: Mapping[ClientId, Tensor]  # S_k (n, C) logits
    problem: Problem = field(metadata=state_values.CONSTANT)
    # Shapes of the reported taps, by architecture
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]] = field(metadata=state_values.CONSTANT)


class FedD2S(Strategy[State]):
    needs = frozenset({"samples", "numbers", "generator"})
    gives = frozenset({"samples", "numbers", "generator"})
    exchanges = 2
    knowledge = "features, logits and labels of samples"
    works_across_students = True
    serves = "personal"
    paper = "Atapour et al., arXiv 2402.10846 (reconstruction from the abstract)"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        # All defaults are this reconstruction's: the paper's values were not found
        drop_mode: Literal["fixed", "none", "constant", "reverse", "stop"] = "fixed"  # how blocks are dropped
        drop_set: list[int] | None = None  # blocks dropped in turn, 1 = shallow; null: the head down to the second
        drop_period: Annotated[int, Ge(1)] | None = None  # rounds between drops; null: equally many for each depth
        depth: Annotated[int, Ge(0)] | None = None  # constant: blocks that take part; null: all except for the head
        knowledge: Literal["per_sample", "per_class", "smoothing"] = "per_sample"  # what is exchanged
        epsilon: Annotated[float, Gt(0), Lt(1)] = 0.1  # of knowledge=smoothing
        student: Literal["local_head", "global_head"] = "local_head"  # what learns from the federation
        head_arch: Literal["tail", "flat"] = "tail"  # of local and global heads
        head_up: bool = False  # clients report their heads; the global head starts from the mean of these
        exchange: Literal["fused", "two_step"] = "fused"  # train and report at once, or report and then train
        hetero: Literal["group", "adapter"] = "group"  # one head per architecture and tap, or one behind adapters
        tap_pool: Annotated[int, Ge(0)] = 0  # taps are pooled to this many fields per side; 0: not pooled
        temperature: Annotated[float, Gt(0)] = 3.0  # T, both ways
        lambda_s: Annotated[float, Ge(0)] = 1.0  # weight of the clients' logits when a head is trained
        server_epochs: Annotated[int, Ge(1)] = 2  # passes over all reported rows per round
        server_batch: Annotated[int, Ge(1)] = 64
        server_lr: Annotated[float, Gt(0)] = 0.01  # of SGD, whose momentum starts afresh each round
        server_momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
        server_weight_decay: Annotated[float, Ge(0), Le(1)] = 5e-4

    def init(self, problem: Problem, stream: Stream) -> State:
        self._check()
        shapes = {}
        for name in problem.architectures:
            blocks = len(problem.alike(name).shape.blocks)
            layer_dropping.check(self._drops(blocks), blocks, f"student '{name}'" if name else "the student")
            if self.config.depth is not None and self.config.depth > blocks:
                what = f"strategy.depth = {self.config.depth}, but a student has {blocks} blocks"
                raise ConfigError(what, where="strategy.depth", mend=f"use 0 to {blocks}")
            if self.config.head_arch == "tail" and problem.alike(name).shape.draws_itself:
                heads.check_tail(problem.alike(name))
            shapes[name] = heads.shapes(problem.alike(name), self.config.tap_pool)
            if self.config.hetero == "adapter":
                shapes[name] = dict.fromkeys(shapes[name], (heads.ADAPTED,))
        return State({}, {}, problem, shapes)

    def num_exchanges(self, round: int) -> int:
        return 2 if self.config.exchange == "two_step" else 1

    def expected_kinds(self, cohort: Cohort) -> frozenset[str]:
        return self.needs if self.config.head_up else self.needs - {"generator"}

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        made: dict[tuple[int, int, int], Payload] = {}  # equal payloads are one object
        payloads = {}
        for client in cohort:
            depth, table, head = self._depth(state.problem, client, cohort.round), None, None
            if depth and cohort.exchange == self.num_exchanges(cohort.round) - 1:  # the one in which clients learn
                table = state.tables.get(client)
                if self.config.student == "global_head" and depth < len(state.problem.of(client).shape.blocks):
                    head = state.heads.get(self._key(state.problem, client, depth))
            key = (depth, id(table), id(head))
            if key not in made:
                samples = None if table is None else {"logits": table}
                numbers = {"depth": float(depth)} if depth else None
                made[key] = Payload(samples=samples, generator=head, numbers=numbers)
            payloads[client] = made[key]
        return payloads

    def inspect(self, state: State, job: Job, reply: Reply) -> None:
        depth, payload = int(job.payload.number("depth")), reply.payload
        if dict(payload.numbers or {}) != ({"depth": depth} if depth else {}):
            raise checks.Refused("stale", f"numbers are {payload.numbers}, expected depth {depth} and no other")
        if not depth or job.exchange or self.config.knowledge == "smoothing":
            if payload.samples or payload.generator:
                raise checks.Refused("names", "samples came, none were asked for")
            return
        problem, shape = state.problem.of(job.client), _shape(state, job.client, depth)
        self._check_samples(reply, shape, problem.classes)
        if payload.generator:
            head = heads.make(problem, depth, self.config.head_arch, shape)
            checks.check_entries("generator", payload.generator, head.entries)

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        reports = [reply for reply in replies if reply.payload.samples]
        state, findings = self._distil(state, reports, stream) if reports else (state, {})
        if replies[0].exchange + 1 < self.num_exchanges(replies[0].round):
            return state, findings
        depths = [self._depth(state.problem, reply.client, reply.round) for reply in replies]
        return state, {"depth": sum(depths) / len(depths), **findings}

    def set_by_last_round(self) -> str:
        has_end = self.config.drop_mode not in ("none", "constant") and self.config.drop_period is None
        return "strategy.drop_period=null" if has_end else ""

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return None

    def _drops(self, blocks: int) -> Sequence[int]:
        return layer_dropping.default_set(blocks) if self.config.drop_set is None else self.config.drop_set

    def _depth(self, problem: Problem, client: ClientId, round: int) -> int:
        config, blocks = self.config, len(problem.of(client).shape.blocks)
        if config.drop_mode == "constant":
            return min(blocks, blocks - 1 if config.depth is None else config.depth)
        size = max(len(self._drops(len(problem.alike(name).shape.blocks))) for name in problem.architectures)
        schedule = self._drops(blocks), size, config.drop_period
        return layer_dropping.depth(config.drop_mode, round, problem.rounds, blocks, *schedule)

    def _key(self, problem: Problem, client: ClientId, depth: int) -> str:
        """A head's name: clients of one architecture share a head per tap; behind adapters, all clients share one."""
        if self.config.hetero == "adapter":
            return "adapter"
        architecture, tap = problem.architecture(client), heads.tap(problem.of(client).shape, depth)
        return f"{architecture}:{tap}" if architecture else tap

    def _distil(self, state: State, reports: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        """Train one head per group; each head then gives logits on its clients' rows."""
        groups: dict[str, list[Reply]] = {}
        for reply in reports:
            groups.setdefault(self._key(state.problem, reply.client, _reported_depth(reply)), []).append(reply)
        numbers: list[Mapping[str, float]] = []
        taught: dict[str, Weights] = {}
        tables: dict[ClientId, Tensor] = {}
        for key, members in sorted(groups.items()):
            head, data = self._start(state, key, members), _dataset(members)
            numbers.append(self._teach(head, data, stream.child("lesson", key)))
            logits = forward.logits(head, data.taps)
            if all(state_values.is_finite(entry) for entry in (logits, *head.weights.values())):
                taught[key] = head.weights
                sizes = [len(_samples(reply)["labels"]) for reply in members]
                parts = (part.clone() for part in logits.split(sizes))
                tables |= dict(zip((reply.client for reply in members), parts, strict=True))
        counts = {
            "restored": len(groups) - len(taught),
            "alone": sum(len(members) == 1 for members in groups.values()),
            "rows": sum(len(_samples(reply)["labels"]) for reply in reports),
        }
        after = replace(state, heads={**state.heads, **taught}, tables={**state.tables, **tables})
        return after, {**metrics.mean_by_name(numbers), **_judge(tables, reports), **counts}

    def _start(self, state: State, key: str, members: Sequence[Reply]) -> Student:
        """The head at the start of the round: the mean of the clients' heads, the existing head, or a new one."""
        client, depth = members[0].client, _reported_depth(members[0])
        problem, shape = state.problem.of(client), _shape(state, client, depth)
        stream = seeds.stream(problem.seed, "global head").child(key)
        head = heads.build(problem, depth, self.config.head_arch, shape, stream).load(state.heads.get(key, {}))
        sent = [replace(r, payload=Payload(weights=r.payload.generator)) for r in members if r.payload.generator]
        sizes = torch.tensor([reply.num_examples for reply in sent])
        return head.load(fusion.fuse_weights(sent, sizes)) if sent else head

    def _teach(self, head: Student, data: HeadDataset, stream: Stream) -> Mapping[str, float]:
        config = self.config
        sgd = Sgd(list(head.parameters()), config.server_lr, config.server_momentum, config.server_weight_decay)
        settings = config.server_epochs, config.server_batch, config.temperature, config.lambda_s
        means = heads.teach(head, data, sgd, stream, *settings)
        return {f"head_{name}": value for name, value in means.items() if torch.isfinite(torch.tensor(value))}

    def _check_samples(self, reply: Reply, shape: tuple[int, ...], classes: int) -> None:
        """Raises border.Refused for rows other than the expected ones."""
        samples, by_class = _samples(reply), self.config.knowledge == "per_class"
        rows, label_type = len(samples.get("labels", ())), torch.uint8 if classes <= 256 else torch.int64
        with torch.device("meta"):
            wanted = {"taps": torch.empty(rows, *shape), "logits": torch.empty(rows, classes)}
            wanted["labels"] = torch.empty(rows, dtype=label_type)
            if by_class:
                wanted["counts"] = torch.empty(rows, dtype=torch.int64)
        checks.check_entries("samples", samples, wanted)
        if not rows or int(samples["labels"].max()) >= classes or int(samples["labels"].min()) < 0:
            raise checks.Refused("range", f"samples: 'labels' is empty, or outside 0 to {classes - 1}")
        counted = int(samples["counts"].sum()) if by_class else rows
        if by_class and (int(samples["counts"].min()) < 1 or bool((samples["labels"].long().diff() <= 0).any())):
            raise checks.Refused("range", "samples: 'counts' below 1, or 'labels' not in rising order")
        if counted != reply.num_examples:
            raise checks.Refused("shape", f"samples: of {counted} samples, expected {reply.num_examples}")

    def _check(self) -> None:
        """Checks keys against each other. Raises ConfigError."""
        config = self.config
        if config.tap_pool and config.head_arch == "tail":
            raise ConfigError(
                "strategy.tap_pool changes the size of taps, which the blocks of a tail cannot take",
                where="strategy.tap_pool",
                mend="use strategy.head_arch=flat, or strategy.tap_pool=0",
            )
        if config.hetero == "adapter" and (config.head_arch, config.student) != ("flat", "local_head"):
            raise ConfigError(
                "strategy.hetero = adapter needs a flat head, which learns at its client: the head is "
                f"'{config.head_arch}', and '{config.student}' learns",
                where="strategy.hetero",
                mend="use strategy.variant=adapter, or strategy.head_arch=flat and strategy.student=local_head",
            )


def _shape(state: State, client: ClientId, depth: int) -> tuple[int, ...]:
    """Shape of one sample's tap, as the client reports it."""
    return state.shapes[state.problem.architecture(client)][heads.tap(state.problem.of(client).shape, depth)]


def _reported_depth(reply: Reply) -> int:
    return int(reply.payload.number("depth"))


def _samples(reply: Reply) -> Weights:
    return reply.payload.samples or {}


def _dataset(reports: Sequence[Reply]) -> HeadDataset:
    """All reported rows; a row's weight is its number of samples, scaled to a mean of 1."""
    rows = {name: torch.cat([_samples(r)[name] for r in reports]) for name in ("taps", "logits", "labels")}
    counts = [_samples(r).get("counts", torch.ones(len(_samples(r)["labels"]))).float() for r in reports]
    weight = torch.cat(counts)
    return HeadDataset(rows["taps"], rows["logits"], rows["labels"].long(), weight * (len(weight) / weight.sum()))


def _judge(tables: Mapping[ClientId, Tensor], reports: Sequence[Reply]) -> Findings:
    """Compares a head's logits with the clients' own logits on their own rows; means over clients."""
    measures = []
    for reply in reports:
        if reply.client in tables:
            own, y = _samples(reply)["logits"], _samples(reply)["labels"].long()
            measured = diagnostics.of_fused(own.softmax(1)[None], tables[reply.client].softmax(1)[None], y)
            measures.append({name: value for name, value in measured.items() if isinstance(value, float)})
    largest = {"own_max": max(float(_samples(reply)["logits"].abs().max()) for reply in reports)}
    if tables:
        largest["teacher_max"] = max(float(logits.abs().max()) for logits in tables.values())
    return {**metrics.mean_by_name(measures), **largest}
