"""FedD2S (reconstruction), server half: heads on the clients' taps, taught by all and teaching each.

Source: Atapour et al., arXiv 2402.10846, of which only the abstract could be read; algorithm as reconstructed in
fedd2s.md 1.3, 2.1 and 2.3. Client half: fedd2s. No parameters are averaged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from fedkd import border, diagnostics, dropping, heads, metrics, orders, seeds, training, values
from fedkd.dropping import Plateau
from fedkd.engine import ClientId, Job, Reply
from fedkd.errors import ConfigError
from fedkd.heads import Lesson, Teaching
from fedkd.optimisers import Sgd
from fedkd.orders import Order
from fedkd.payload import Findings, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy


@dataclass(frozen=True)
class Upload:
    """What a client reported: taps (n, ...), logits (n, C), labels (n,); of class means also counts (n,)."""

    depth: int
    samples: Weights


@dataclass(frozen=True)
class State:
    """Global heads by architecture and tap, and what they said last about each client's own rows."""

    heads: Mapping[str, Weights]
    tables: Mapping[ClientId, Tensor]  # S_k (n, C) logits
    depths: Mapping[ClientId, int]  # at which they were made
    classes: Weights  # of knowledge=class_soft: logits (P, C) and labels (P,); else empty
    uploads: Mapping[ClientId, Upload]  # of replay: each client's last
    plateau: Plateau
    round: int  # rounds over
    problem: Problem = field(metadata=values.CONSTANT)
    # Of taps as they are reported, by architecture
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]] = field(metadata=values.CONSTANT)


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
        # All values are this reconstruction's: of the paper none could be found (fedd2s.md 3.1)
        drop_mode: Literal["fixed", "plateau", "none", "constant", "reverse", "stop"] = (
            "fixed"  # how blocks are dropped
        )
        drop_set: list[int] | None = None  # blocks dropped in turn, 1 = shallow; null: the head down to the second
        drop_period: Annotated[int, Ge(1)] | None = None  # rounds between drops; null: all depths get as many
        drop_start: Annotated[int, Ge(0)] = 0  # rounds by which the first drop is put off
        drop_per_event: Annotated[int, Ge(1)] = 1  # blocks of the set dropped at once
        drop_patience: Annotated[int, Ge(1)] = 5  # plateau: rounds without progress before a drop
        drop_delta: Annotated[float, Ge(0)] = 0.001  # plateau: what counts as progress, of held-out accuracy
        depth: Annotated[int, Ge(0)] | None = None  # constant: blocks that take part; null: all but the head
        knowledge: Literal["per_sample", "per_class", "class_soft", "smoothing"] = "per_sample"  # what is exchanged
        epsilon: Annotated[float, Gt(0), Lt(1)] = 0.1  # of knowledge=smoothing
        student: Literal["local_head", "through", "global_head"] = "local_head"  # what learns from the federation
        head_arch: Literal["tail", "flat", "gap", "pool4"] = "tail"  # of local and global heads
        head_init: Literal["fresh", "copy"] = "fresh"  # a new head: random, or a copy of what it replaces
        head_up: bool = False  # clients report their heads, from whose mean the global head starts
        exchange: Literal["fused", "two_step"] = "fused"  # train and report at once, or report and then train
        stale: Literal["use", "skip"] = "use"  # logits made at another depth
        replay: bool = False  # absent clients' last reports are taught again
        client_weight: Literal["samples", "uniform"] = "samples"  # in a head's lesson
        hetero: Literal["group", "adapter"] = "group"  # a head an architecture and tap, or one behind adapters
        adapter_width: Annotated[int, Ge(1)] = 128  # of hetero=adapter: values that each tap is brought to
        tap_pool: Annotated[int, Ge(0)] = 0  # taps are averaged to so many fields a side; 0: as they are
        tap_dtype: Literal["f32", "f16"] = "f32"  # in which taps are reported
        tap_noise: Annotated[float, Ge(0)] = 0.0  # on reported taps, in units of their root mean square; 0: none
        max_samples: Annotated[int, Ge(1)] | None = None  # rows a client reports; null: all
        temperature: Annotated[float, Gt(0)] = 3.0  # T, both ways
        lambda_s: Annotated[float, Ge(0)] = 1.0  # weight of the clients' logits in a head's lesson
        server_epochs: Annotated[int, Ge(1)] = 2  # passes over all that was reported, a round
        server_batch: Annotated[int, Ge(1)] = 64
        server_lr: Annotated[float, Gt(0)] = 0.01  # SGD, its momentum afresh each round
        server_momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
        server_weight_decay: Annotated[float, Ge(0), Le(1)] = 5e-4
        server_clip: Annotated[float, Gt(0)] | None = None  # largest norm of a head's gradient

    def init(self, problem: Problem, stream: Stream) -> State:
        self._check()
        shapes = {}
        for name in problem.architectures:
            blocks = len(problem.alike(name).shape)
            dropping.check(self._drops(blocks), blocks, f"student '{name}'" if name else "the student")
            if self.config.depth is not None and self.config.depth > blocks:
                what = f"strategy.depth = {self.config.depth}, but a student has {blocks} blocks"
                raise ConfigError(what, where="strategy.depth", mend=f"say 0 to {blocks}")
            found = heads.shapes(problem.alike(name), self.config.tap_pool)
            adapted = self.config.hetero == "adapter"
            shapes[name] = dict.fromkeys(found, (self.config.adapter_width,)) if adapted else found
        return State({}, {}, {}, {}, {}, Plateau(), 0, problem, shapes)

    def trips(self, round: int) -> int:
        return 2 if self.config.exchange == "two_step" else 1

    def asks(self, cohort: Cohort) -> frozenset[str]:
        return self.needs if self.config.head_up else self.needs - {"generator"}

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        made: dict[tuple[Order, int, int], Payload] = {}  # equal payloads are one object
        payloads = {}
        for client in cohort:
            order = self._order(self._depth(state, client, cohort.round), cohort.exchange)
            table = None if order.is_still or not order.depth else self._teacher(state, client, order.depth)
            head = self._given_head(state, client, order)
            key = (order, id(table), id(head))
            if key not in made:
                samples = {"logits": table} if isinstance(table, Tensor) else table
                made[key] = Payload(samples=samples, generator=head, numbers=order.numbers())
            payloads[client] = made[key]
        return payloads

    def inspect(self, state: State, job: Job, reply: Reply) -> None:
        order, numbers = orders.read(job.payload.numbers), dict(reply.payload.numbers or {})
        held_out = numbers.pop("held_out", None) if order.held_out else None
        if numbers != ({"depth": order.depth} if order.depth else {}):
            raise border.Refused("stale", f"numbers are {numbers}, expected depth {order.depth} and no other")
        if held_out is not None and not 0 <= held_out <= 1:
            raise border.Refused("range", f"held_out = {held_out} is no accuracy")
        if not order.reports:
            if reply.payload.samples or reply.payload.generator:
                raise border.Refused("names", "samples came, none were asked for")
            return
        problem = state.problem.of(job.client)
        key = heads.tap(problem.shape, order.depth)
        shape = state.shapes[state.problem.architecture(job.client)][key]
        orders.check_samples(reply, order, shape, problem.classes)
        if reply.payload.generator:
            head = heads.make(problem, order.depth, self.config.head_arch, shape)
            orders.check_head(reply.payload.generator, head)

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        told = [(reply.client, reply.payload.numbers or {}, reply.payload.samples) for reply in replies]
        uploads = {client: Upload(int(numbers["depth"]), samples) for client, numbers, samples in told if samples}
        state, findings = self._distil(state, uploads, replies, stream) if uploads else (state, {})
        number = replies[0].round
        if self.config.exchange == "two_step" and not replies[0].exchange:
            return state, findings
        depths = [self._depth(state, reply.client, number) for reply in replies]
        findings = {"depth": sum(depths) / len(depths), **findings}
        return replace(state, plateau=self._advance(state, replies), round=number), findings

    def served(self, state: State, client: ClientId | None) -> Payload | None:
        return None

    # --- schedule ---------------------------------------------------------------------------------------------------

    def _drops(self, blocks: int) -> Sequence[int]:
        return dropping.default_set(blocks) if self.config.drop_set is None else self.config.drop_set

    def _size(self, problem: Problem) -> int:
        """q: of the deepest student, where they differ."""
        return max(len(self._drops(len(problem.alike(name).shape))) for name in problem.architectures)

    def _dropped(self, state: State, round: int) -> int:
        config, size = self.config, self._size(state.problem)
        if config.drop_mode == "plateau":
            return state.plateau.dropped
        period = config.drop_period or dropping.default_period(state.problem.rounds, size)
        return dropping.dropped(round - 1, size, period, config.drop_start, config.drop_per_event)

    def _depth(self, state: State, client: ClientId, round: int) -> int:
        blocks = len(state.problem.of(client).shape)
        drops = self._drops(blocks)
        count = dropping.scaled(self._dropped(state, round), self._size(state.problem), len(drops))
        return dropping.depth(self.config.drop_mode, count, blocks, drops, self.config.depth)

    def _advance(self, state: State, replies: Sequence[Reply]) -> Plateau:
        found = [
            r.payload.numbers["held_out"] for r in replies if r.payload.numbers and "held_out" in r.payload.numbers
        ]
        if self.config.drop_mode != "plateau" or not found:
            return state.plateau
        size, accuracy = self._size(state.problem), sum(found) / len(found)
        return dropping.advance(state.plateau, accuracy, size, self.config.drop_patience, self.config.drop_delta)

    # --- what clients are told --------------------------------------------------------------------------------------

    def _order(self, depth: int, exchange: int) -> Order:
        config = self.config
        is_two_step = config.exchange == "two_step"
        always = Order(head_up=int(config.head_up), is_still=int(is_two_step and not exchange))
        if not depth:
            return always
        return replace(
            always,
            depth=depth,
            temperature=config.temperature,
            student=orders.STUDENTS.index(config.student),
            head=heads.KINDS.index(config.head_arch),
            is_copy=int(config.head_init == "copy"),
            pool=config.tap_pool,
            adapter=config.adapter_width if config.hetero == "adapter" else 0,
            is_half=int(config.tap_dtype == "f16"),
            noise=config.tap_noise,
            max_samples=config.max_samples or 0,
            per_class=int(config.knowledge == "per_class"),
            smoothing=config.epsilon if config.knowledge == "smoothing" else 0.0,
            held_out=int(config.drop_mode == "plateau"),
            is_silent=int(is_two_step and exchange == 1),
        )

    def _teacher(self, state: State, client: ClientId, depth: int) -> Tensor | Weights | None:
        if self.config.knowledge == "class_soft":
            return state.classes or None
        if self.config.stale == "skip" and state.depths.get(client) != depth:
            return None
        return state.tables.get(client)

    def _given_head(self, state: State, client: ClientId, order: Order) -> Weights | None:
        blocks = len(state.problem.of(client).shape)
        if self.config.student != "global_head" or order.is_still or not 1 <= order.depth < blocks:
            return None
        return state.heads.get(self._key(state.problem, client, order.depth))

    # --- teaching heads ---------------------------------------------------------------------------------------------

    def _key(self, problem: Problem, client: ClientId, depth: int) -> str:
        """A head's name: clients of one architecture share it at one tap; all share it behind adapters."""
        if self.config.hetero == "adapter":
            return "adapter"
        architecture, tap = problem.architecture(client), heads.tap(problem.of(client).shape, depth)
        return f"{architecture}:{tap}" if architecture else tap

    def _groups(self, problem: Problem, uploads: Mapping[ClientId, Upload]) -> Mapping[str, list[ClientId]]:
        """Who shares a head, each group in order of client."""
        groups: dict[str, list[ClientId]] = {}
        for client, upload in sorted(uploads.items()):
            groups.setdefault(self._key(problem, client, upload.depth), []).append(client)
        return groups

    def _distil(
        self, state: State, fresh: Mapping[ClientId, Upload], replies: Sequence[Reply], stream: Stream
    ) -> tuple[State, Findings]:
        """Teach one head a group; then each says what it thinks of its clients' rows."""
        uploads = {**state.uploads, **fresh} if self.config.replay else fresh
        groups = self._groups(state.problem, uploads)
        current = sorted(self._groups(state.problem, fresh))
        found: list[Mapping[str, float]] = []
        taught: dict[str, Weights] = {}
        tables: dict[ClientId, Tensor] = {}
        for key in current:
            members = groups[key]
            head = self._start(state, key, members[0], uploads[members[0]].depth, replies)
            lesson = self._lesson([uploads[client] for client in members])
            found.append(self._teach(head, lesson, stream.child("lesson", key)))
            said = training.logits(head, lesson.taps)
            if heads.is_finite({**head.weights, "said": said}):
                taught[key] = head.weights
                sizes = [len(uploads[client].samples["labels"]) for client in members]
                tables |= dict(zip(members, (part.clone() for part in said.split(sizes)), strict=True))
        after = replace(
            state,
            heads={**state.heads, **taught},
            tables={**state.tables, **tables},
            depths={**state.depths, **{client: uploads[client].depth for client in tables}},
            classes=_of_classes(tables, uploads) if self.config.knowledge == "class_soft" and tables else state.classes,
            uploads=uploads if self.config.replay else {},
        )
        counts = {
            "restored": len(current) - len(taught),
            "alone": sum(len(groups[key]) == 1 for key in current),
            "rows": sum(len(upload.samples["labels"]) for upload in fresh.values()),
        }
        return after, {**metrics.mean_by_name(found), **_judge(tables, uploads), **counts}

    def _start(self, state: State, key: str, client: ClientId, depth: int, replies: Sequence[Reply]) -> heads.Student:
        """The head as it enters the round: the mean of the clients', the one there is, or a new one."""
        problem, kind = state.problem.of(client), self.config.head_arch
        tap = heads.tap(problem.shape, depth)
        shape = state.shapes[state.problem.architecture(client)][tap]
        head = heads.build(problem, depth, kind, shape, seeds.stream(problem.seed, "global head").child(key))
        if known := state.heads.get(key):
            head.load(known)
        elif self.config.head_init == "copy" and depth + 1 < len(problem.shape):
            head.load(state.heads.get(self._key(state.problem, client, depth + 1), {}))
        sent = [r for r in replies if r.payload.generator and self._key(state.problem, r.client, depth) == key]
        if not sent:
            return head
        return head.load(heads.mean([r.payload.generator or {} for r in sent], [r.num_examples for r in sent]))

    def _lesson(self, uploads: Sequence[Upload]) -> Lesson:
        """All rows, each with the weight of its samples, or of its share in its client's."""
        weights = []
        for upload in uploads:
            counts = upload.samples.get("counts", torch.ones(len(upload.samples["labels"])))
            weights.append(counts / counts.sum() if self.config.client_weight == "uniform" else counts.float())
        rows = {name: torch.cat([u.samples[name] for u in uploads]) for name in ("taps", "logits", "labels")}
        weight = torch.cat(weights)
        weight = weight * (len(weight) / weight.sum())
        return Lesson(rows["taps"].float(), rows["logits"], rows["labels"].long(), weight)

    def _teach(self, head: heads.Student, lesson: Lesson, stream: Stream) -> Mapping[str, float]:
        config = self.config
        sgd = Sgd(list(head.parameters()), config.server_lr, config.server_momentum, config.server_weight_decay)
        lengths = config.server_epochs, config.server_batch
        how = Teaching(*lengths, config.temperature, config.lambda_s, config.server_clip)
        found = heads.teach(head, lesson, sgd, how, stream)
        return {f"head_{name}": value for name, value in found.items() if torch.isfinite(torch.tensor(value))}

    def _check(self) -> None:
        """What no single key can tell. Raises ConfigError."""
        config = self.config
        if config.head_arch != "tail" and config.head_init == "copy":
            raise ConfigError(
                f"strategy.head_init = copy needs a head that is built as what it replaces, not '{config.head_arch}'",
                where="strategy.head_init",
                mend="say strategy.head_arch=tail, or strategy.head_init=fresh",
            )
        if config.tap_pool and config.head_arch == "tail":
            raise ConfigError(
                "strategy.tap_pool changes the size of taps, which the blocks of a tail cannot take",
                where="strategy.tap_pool",
                mend="say strategy.head_arch=flat or gap, or strategy.tap_pool=0",
            )
        if config.hetero == "adapter" and (config.head_arch, config.student) != ("flat", "local_head"):
            raise ConfigError(
                "strategy.hetero = adapter needs a flat head, which learns at its client: the head is "
                f"'{config.head_arch}', and '{config.student}' learns",
                where="strategy.hetero",
                mend="say strategy.variant=adapter, or strategy.head_arch=flat and strategy.student=local_head",
            )


def _of_classes(tables: Mapping[ClientId, Tensor], uploads: Mapping[ClientId, Upload]) -> Weights:
    """Mean logits by true label over all rows: of the labels that occur, ascending."""
    said, y = torch.cat(list(tables.values())), torch.cat([uploads[client].samples["labels"] for client in tables])
    labels = y.unique()
    return {"logits": heads.by_class(said, y, labels), "labels": labels}


def _judge(tables: Mapping[ClientId, Tensor], uploads: Mapping[ClientId, Upload]) -> Findings:
    """How good a head's logits are beside the clients' own, on their own rows; means over clients."""
    found = []
    for client, said in tables.items():
        own, y = uploads[client].samples["logits"], uploads[client].samples["labels"].long()
        each = diagnostics.of_fused(own.softmax(1)[None], said.softmax(1)[None], y)
        found.append({name: value for name, value in each.items() if isinstance(value, float)})
    largest = {"own_max": max((float(u.samples["logits"].abs().max()) for u in uploads.values()), default=0.0)}
    if tables:
        largest["teacher_max"] = max(float(said.abs().max()) for said in tables.values())
    return {**metrics.mean_by_name(found), **largest}
