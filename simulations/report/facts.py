"""The facts of a run: a line for each of a reviewer's first questions. Omits facts that older folders lack.

A line is a function of a run and names the keys that it covers, so that no decisive key is omitted.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from fedkd.config import RunConfig
from simulations.analysis.run_record import RunRecord
from simulations.report import number_text
from simulations.run import console_text

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One fact of a run: its name, the keys of the configuration that it covers, and its text. Empty text: unknown."""

    name: str
    keys: tuple[str, ...]
    text: Callable[[RunRecord], str]
    by_seed: bool = False  # it differs between seeds: the text is that of the first seed


def images(run: RunRecord) -> str:
    """`mnist: 60,000 training and 10,000 test images of 1 x 28 x 28 in 10 classes, scaled symmetric`."""
    config, task = run.config, run.info.get("task") or {}
    if not config.get("data.name"):
        return ""
    shape = task.get("shape") or _shape(config)
    classes = task.get("classes") or len(run.partition.get("classes") or next(iter(_labels(run)), ()))
    counts = f"{task['train']:,} training and {task['test']:,} test images" if task.get("train") else "images"
    size = f" of {' x '.join(map(str, shape))}" if shape else ""
    return f"{config['data.name']}: {counts}{size}" + (f" in {classes} classes" if classes else "")


def partition(run: RunRecord) -> str:
    """`dirichlet: alpha 0.1, min_samples 10, test matched`."""
    values = {key.partition(".")[2]: value for key, value in run.config.items() if key.startswith("partition.")}
    values = values or dict(run.partition.get("recipe") or {})
    text = ", ".join(f"{key} {plain(value)}" for key, value in values.items() if key != "name" and value is not None)
    return f"{values.get('name', '')}{': ' if text else ''}{text}"


def samples(run: RunRecord) -> str:
    """The numbers of images and classes per client."""
    sizes = run.partition.get("train") or [sum(row) for row in _labels(run)]
    if not sizes:
        return ""
    text = f"{sum(sizes):,} to train, {min(sizes):,} to {max(sizes):,} per client, median {statistics.median(sizes):,g}"
    if tests := run.partition.get("test"):
        text += f"; {sum(tests):,} to test"
    if labels := _labels(run):
        mean = statistics.fmean(sum(count > 0 for count in row) for row in labels)
        text += f"; {mean:.1f} classes per client"
    return text


def clients(run: RunRecord) -> str:
    """`100, 10 drawn per round; at least 2 must reply`."""
    number, cohort, quorum = (run.config.get(key) for key in ("clients", "clients_per_round", "quorum"))
    if number is None:
        return ""
    text = f"{number}, all in each round" if cohort in (None, number) else f"{number}, {cohort} drawn per round"
    return text + (f"; at least {quorum} must reply" if quorum not in (None, 1) else "")


def student(run: RunRecord) -> str:
    """`fedgen-cnn, 20,628 parameters`; for a mixture each architecture with its number of clients."""
    config, sizes = run.config, (run.info.get("task") or {}).get("parameters") or {}
    counts = Counter(run.info.get("students") or ())
    names = list(counts) or [str(config.get("students.name", ""))]
    several = len(names) > 1
    parts = []
    for name in filter(None, names):
        size = f", {sizes[name]:,} parameters" if name in sizes else ""
        parts.append(f"{name} ({number_text.count(counts[name], 'client')}{size})" if several else f"{name}{size}")
    init = "" if config.get("students.common_init", True) else "; each client starts from its own weights"
    return "; ".join(parts) + init


def normalisation(run: RunRecord) -> str:
    """`BatchNorm in the normalisation layers; its statistics are averaged`."""
    norm, kept = run.config.get("students.norm"), run.config.get("students.statistics")
    if norm is None:
        return ""
    if norm == "group":
        return "GroupNorm"
    statistics_text = "each client keeps its own statistics" if kept == "local" else "its statistics are averaged"
    return f"BatchNorm in the normalisation layers; {statistics_text}"


_SPELT = {"sgd": "SGD", "adamw": "AdamW", "nadam": "NAdam", "radam": "RAdam", "rmsprop": "RMSprop"}


def optimiser(run: RunRecord) -> str:
    """`SGD, momentum 0.9, weight decay 0.0001, gradients clipped at 1`."""
    config = run.config
    name = config.get("train.optimiser")
    if name is None:
        return ""
    parts = [_SPELT.get(name, str(name).capitalize())]
    if name == "sgd":
        kind = "Nesterov momentum" if config.get("train.nesterov") else "momentum"
        parts.append(f"{kind} {plain(config.get('train.momentum', 0))}")
    if name == "rmsprop" and config.get("train.momentum"):
        parts.append(f"momentum {plain(config['train.momentum'])}")
    if name != "sgd" and config.get("train.moments") == "keep":
        parts.append("moments stay with the client")
    parts.append(f"weight decay {plain(config.get('train.weight_decay', 0))}")
    clip = config.get("train.clip")
    return ", ".join([*parts, f"gradients clipped at {plain(clip)}" if clip is not None else "no clipping"])


def rate(run: RunRecord) -> str:
    """`0.01, constant` or `0.01, times 0.99 per round after 5 rounds of warm-up`."""
    lr, decay = run.config.get("train.lr"), run.config.get("train.lr_decay", 1)
    if lr is None:
        return ""
    clock = " as of the client's own last round" if run.config.get("train.lr_clock") == "participation" else ""
    kind, warmup = run.config.get("train.schedule", "exponential"), run.config.get("train.warmup", 0)
    period = number_text.count(run.config.get("train.lr_step", 10), "round") if kind == "step" else "round"
    law = f"times {plain(decay)} per {period}" if kind in ("exponential", "step") and decay != 1 else "constant"
    law = "cosine to 0 after the last round" if kind == "cosine" else law
    start = f" after {number_text.count(warmup, 'round')} of warm-up" if warmup else ""
    return f"{plain(lr)}, {law}{start}{'' if law == 'constant' and not warmup else clock}"


def work(run: RunRecord) -> str:
    """`20 steps of 32 images` or `2 epochs in batches of 32`."""
    config = run.config
    if (batch := config.get("train.batch")) is None:
        return ""
    if (steps := config.get("train.steps")) is not None:
        return f"{number_text.count(steps, 'step')} of {batch} images"
    return f"{number_text.count(config.get('train.epochs', 1), 'epoch')} in batches of {batch}"


def rounds(run: RunRecord) -> str:
    return str(run.config.get("rounds", run.info.get("num_rounds", "")))


def parent(run: RunRecord) -> str:
    """`pilot at round 20`, for a fork."""
    return console_text.lineage(run.info.get("parent"))


def public(run: RunRecord) -> str:
    """The public set, in addition to the clients' data."""
    proxy = run.info.get("proxy")
    if not proxy:
        return "none" if "proxy" in run.info or "proxy.name" in run.config else ""
    return f"{proxy['name']}: {proxy['size']:,} images, {'with' if proxy.get('labelled') else 'without'} labels"


def evaluation(run: RunRecord) -> str:
    """The data and the frequency of evaluations."""
    config = run.config
    if (on := config.get("evaluate.on")) is None:
        return ""
    if on == "validation":
        data = f"{100 * config.get('evaluate.validation', 0):g} % of each client's training data, held out"
    else:
        data = "test data"
    own, pooled = (config.get(key, 1) for key in ("evaluate.every", "evaluate.pooled_every"))
    if own == pooled:
        return f"{data}: each client's own part and all parts together, {_often(own)}"
    return f"{data}: each client's own part {_often(own)}, all parts together {_often(pooled)}"


def privacy(run: RunRecord) -> str:
    """Empty unless clients report noisy or rounded numbers."""
    epsilon, step = run.config.get("privacy.label_epsilon"), run.config.get("privacy.size_step", 1)
    parts = [] if epsilon is None else [f"label counts with epsilon {plain(epsilon)}"]
    return ", ".join(parts + ([f"sizes in steps of {step}"] if step != 1 else []))


def parts(run: RunRecord) -> str:
    """Terms added to the loss, each with its values."""
    names = run.config.get("parts") or []
    texts = []
    for name in names if isinstance(names, list) else []:
        head = f"part.{name}."
        values = (f"{key.removeprefix(head)} {plain(v)}" for key, v in run.config.items() if key.startswith(head))
        texts.append(f"{name} ({', '.join(values)})")
    return "; ".join(texts)


def others(run: RunRecord) -> str:
    """Changed values that no other line covers."""
    from fedkd.configuration.resolved import MACHINE_FACTS

    default, texts = defaults(), []
    covered = {key for line in LINES for key in line.keys} | MACHINE_FACTS | {"seed"}
    for key, value in run.config.items():
        is_covered = key in covered or key.startswith(("strategy.", "partition.", "part.", "students.mix."))
        if is_covered or value == default.get(key):
            continue
        texts.append(f"{key} = {plain(value)}" + (f" (default {plain(default[key])})" if key in default else ""))
    return ", ".join(texts)


def engine(run: RunRecord) -> str:
    chosen = run.info.get("engine") or {}
    return str(chosen.get("chosen", "") if isinstance(chosen, dict) else chosen).removeprefix("engine: ")


def code(run: RunRecord) -> str:
    """Version, commit and hash of the code."""
    info = run.info
    version = (info.get("versions") or {}).get("fedkd")
    parts = [f"fedkd {version}"] if version else []
    parts += [f"commit {info['git']}"] if info.get("git") else ["not a checkout"] if parts else []
    parts += [f"files SHA-256 {info['code']}"] if isinstance(info.get("code"), str) else []
    return ", ".join(parts)


def versions(run: RunRecord) -> str:
    packages = run.info.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version and name != "fedkd")


def machine(run: RunRecord) -> str:
    info = run.info
    if not info.get("machine"):
        return ""
    arithmetic = ", ".join(f"{key} {value}" for key, value in (info.get("arithmetic") or {}).items() if key != "torch")
    place = f"{info.get('host', '?')}: {info['machine']}, {number_text.count(info.get('cores') or 0, 'core')}"
    return f"{place}{'; ' if arithmetic else ''}{arithmetic}"


LINES = (
    Line("data set", ("data.name",), images),
    Line("partition", (), partition),
    Line("images of the clients", (), samples, by_seed=True),
    Line("clients", ("clients", "clients_per_round", "quorum"), clients),
    Line("student", ("students.name", "students.mix", "students.common_init"), student),
    Line("normalisation", ("students.norm", "students.statistics"), normalisation),
    Line(
        "optimiser",
        ("train.optimiser", "train.momentum", "train.nesterov", "train.moments", "train.weight_decay", "train.clip"),
        optimiser,
    ),
    Line(
        "learning rate",
        ("train.lr", "train.schedule", "train.warmup", "train.lr_decay", "train.lr_step", "train.lr_clock"),
        rate,
    ),
    Line("local work per round", ("train.batch", "train.steps", "train.epochs"), work),
    Line("rounds", ("rounds",), rounds),
    Line("fork of", (), parent),
    Line("public set", ("proxy.name", "proxy.size"), public),
    Line(
        "evaluated on",
        ("evaluate.on", "evaluate.validation", "evaluate.every", "evaluate.pooled_every"),
        evaluation,
    ),
    Line("privacy", ("privacy.label_epsilon", "privacy.size_step"), privacy),
    Line("parts of the loss", ("parts",), parts),
    Line("other values", (), others),
)
PROVENANCE = (
    Line("engine", (), engine),
    Line("code", (), code),
    Line("versions", (), versions),
    Line("machine", (), machine),
)


def plain(value: Any) -> str:
    """A value as text: `0.1`, `none`, `[a, b]`."""
    from fedkd import strict_yaml

    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else strict_yaml.write(value)


@cache
def defaults() -> dict[str, Any]:
    """The defaults of all keys except those of strategies and recipes."""
    from fedkd.configuration.resolved import flat

    return flat(asdict(RunConfig()))


def _labels(run: RunRecord) -> Sequence[Sequence[int]]:
    return run.partition.get("labels") or ()


def _shape(config: Config) -> Sequence[int]:
    """The data set's shape, for older folders without it."""
    from fedkd.data import sources

    if own := config.get("data.shape"):
        return tuple(own)
    source = sources.SOURCES.get(str(config.get("data.name")))
    return source.shape if source else ()


def _often(every: int) -> str:
    return "every round" if every == 1 else f"every {every} rounds"
