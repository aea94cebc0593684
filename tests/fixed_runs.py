"""A fixed list of small runs, to show that a change moves no result: "bytes equal".

    git worktree add ../before HEAD~1 && python tests/fixed_runs.py --against ../before
    python tests/fixed_runs.py --against ../before --only fedgen,scaffold
    python tests/fixed_runs.py --list

Every strategy with its variants, every student, and what changes the path of a payload: two rounds each on the digits.
Both checkouts run the list in the same sitting, through their own command line alone, so that the code may be moved
freely in between. Compared are the tensors of the last checkpoint (server and clients, byte for byte) and every value
of the ledger that both checkouts write. Keys that one of them alone writes are named: a rename is not a change of
results, and the reader of the list sees whether it was meant. Exit code 0: all equal; 1: something differs.
"""

import argparse
import hashlib
import json
import os
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BASE = (
    "data=digits partition=dirichlet partition.alpha=0.5 clients=5 clients_per_round=4 rounds=2 seed=1 engine=inline "
    "train.batch=8 train.steps=3 train.lr=0.05 evaluate.probe=8"
)
PUBLIC = "proxy=held-out proxy.size=20"
GENERATED = "strategy.images=60 strategy.generator_steps=5 strategy.least_variation=0"
REGULARISED = "strategy.generator_steps=5 strategy.regularised_steps=5"

STRATEGIES = {
    "centralised": "",
    "ditto": "",
    "dsfl": PUBLIC,
    "fedavg": "",
    "fedbn": "",
    "fedd2s": "",
    "feddf": f"{PUBLIC} strategy.distil_steps=5",
    "feddistill": "",
    "feddistill-plus": "",
    "feddyn": "",
    "fedensemble": "",
    "fedfuse": GENERATED,
    "fedgen": REGULARISED,
    "fedgkd": "",
    "fedmd": PUBLIC,
    "fedntd": "",
    "fedproto": "",
    "fedprox": "",
    "fedrep": "",
    "flower-fedadam": "",
    "flower-fedavg": "",
    "flower-fedavgm": "",
    "flower-krum": "",
    "flower-trimmed": "",
    "fml": "",
    "knfu": PUBLIC,
    "knfu-generated": "strategy.generator_steps=5",
    "knfu-table": "",
    "local": "",
    "moon": "",
    "scaffold": "",
}
VARIANTS = {
    "dsfl": ("sa",),
    "fedd2s": ("per_class", "head_up", "head_down", "adapter"),
    "feddistill": ("code", "paper"),
    "feddistill-plus": ("code",),
    "fedfuse": ("confident", "uniform"),
    "fedgen": ("code", "paper"),
    "fedproto": ("reference",),
    "fedrep": ("code", "fedper"),
    "knfu": ("local", "fedmd-uniform", "oracle"),
    "scaffold": ("gradient",),
}
HEAD_ONLY = ("fedavg", "feddistill-plus", "fedgen")
STUDENTS = (
    "fedd2s-cnn",
    "fedgen-cnn",
    "knfu-cnn",
    "knfu-cnn-bn",
    "lenet5",
    "mcmahan-cnn",
    "mlp",
    "resnet8",
    "resnet20",
)
MIXED = "students={fedgen-cnn: 0.5, mlp: 0.5}"
OTHERS = {
    "fedavg, Adam": "strategy=fedavg train.optimiser=adam train.lr=0.001",
    "fedavg, momentum and decay": "strategy=fedavg train.momentum=0.9 train.weight_decay=0.001 train.lr_decay=0.9",
    "fedavg, clipped": "strategy=fedavg train.clip=0.5",
    "fedavg, own statistics": "strategy=fedavg students.statistics=local",
    "fedavg, parts": "strategy=fedavg parts=[mixup,layers]",
    "fedfuse, public images": f"strategy=fedfuse {PUBLIC} {GENERATED}",
    "fedfuse, mixed students": f"strategy=fedfuse {PUBLIC} {GENERATED} '{MIXED}'",
    "fedmd, mixed students": f"strategy=fedmd {PUBLIC} '{MIXED}'",
    "local, mixed students": f"strategy=local '{MIXED}'",
    "fedgen, two workers": f"strategy=fedgen {REGULARISED} engine=ray engine.workers=2",
}


def runs() -> dict[str, list[str]]:
    """The words of each run, by its name."""
    found = {name: f"strategy={name} {more}" for name, more in STRATEGIES.items()}
    for name, variants in VARIANTS.items():
        for variant in variants:
            found[f"{name}/{variant}"] = f"{found[name]} strategy.variant={variant}"
    found |= {f"{name}, head only": f"{found[name]} strategy.share=head" for name in HEAD_ONLY}
    found |= {f"fedavg, {student}": f"strategy=fedavg students={student}" for student in STUDENTS}
    found |= OTHERS
    return {name: [*shlex.split(BASE), *shlex.split(words)] for name, words in found.items()}


def play(chosen: Sequence[str], folder: Path) -> None:
    """Run those of the list in this process, each into its own folder; one that fails leaves what it printed."""
    for number, name in enumerate(chosen):
        sys.argv = ["fedkd", "run", *runs()[name], "--out", str(folder / str(number)), "--quiet"]
        try:
            runpy.run_module("simulations.cli", run_name="__main__")  # a module in older checkouts, a package now
        except SystemExit as end:
            (folder / f"{number}.code").write_text(str(end.code))


def played(checkout: Path, chosen: Sequence[str], folder: Path) -> list[Path | None]:
    """The folders of the runs, run by the code of a checkout; None for a run that failed."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--play", str(folder), *chosen]
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, cwd=checkout, env=environment, stdout=log, stderr=log, check=True)
    codes = [(folder / f"{number}.code").read_text() for number in range(len(chosen))]
    return [folder / str(number) if code == "0" else None for number, code in enumerate(codes)]


def tensors(run: Path) -> dict[str, str]:
    """The digest of each tensor of the last checkpoint, by file and name."""
    from safetensors import safe_open

    last = max((run / "checkpoints").glob("round-*"))
    found = {}
    for file in sorted(last.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  it is no mapping
                value = opened.get_tensor(name)
                head = f"{value.dtype} {tuple(value.shape)} ".encode()
                found[f"{file.stem}: {name}"] = hashlib.sha256(head + value.contiguous().numpy().tobytes()).hexdigest()
    return found


def values(run: Path) -> dict[str, Any]:
    """Every value of the ledger, by file, row and key."""
    found: dict[str, Any] = {}
    for name in ("metrics.jsonl", "clients.jsonl"):
        for number, line in enumerate((run / name).read_text().splitlines()):
            found |= {f"{name}:{number + 1} {key}": value for key, value in flat(json.loads(line))}
    return found


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def differences(before: Path | None, after: Path | None) -> tuple[list[str], list[str]]:
    """What differs, and which keys of the ledger stand on one side alone."""
    if before is None or after is None:
        return [f"it fails {'before' if before is None else 'after'} the change: see it with --list"], []
    old, new = tensors(before), tensors(after)
    found = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    rows, others = values(before), values(after)
    found += [f"{key} {rows[key]} -> {others[key]}" for key in rows if key in others and rows[key] != others[key]]
    alone = {key.partition(" ")[2] for key in rows.keys() ^ others.keys()}
    return found, sorted(alone)


def main() -> int:
    """Play the list in both checkouts and print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="the code before the change")
    parser.add_argument("--only", default="", metavar="A,B", help="runs whose name begins so")
    parser.add_argument("--list", action="store_true", help="print the list and run nothing")
    parser.add_argument("--play", nargs="+", metavar="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.play:
        play(asked.play[1:], Path(asked.play[0]))
        return 0
    only = tuple(asked.only.split(","))
    chosen = [name for name in runs() if name.startswith(only)]
    if asked.list or asked.against is None:
        print("\n".join(f"{name}: fedkd run {' '.join(runs()[name])}" for name in chosen))
        return 0
    with tempfile.TemporaryDirectory(prefix="fixed-") as scratch:
        before = played(asked.against.resolve(), chosen, Path(scratch, "before"))
        after = played(ROOT, chosen, Path(scratch, "after"))
        return report(chosen, before, after)


def report(chosen: Sequence[str], before: Sequence[Path | None], after: Sequence[Path | None]) -> int:
    """Print what was found; gives the exit code."""
    moved, renamed = 0, set()
    for name, old, new in zip(chosen, before, after, strict=True):
        found, alone = differences(old, new)
        renamed.update(alone)
        moved += bool(found)
        state = f"DIFFERS in {len(found)}" if found else "equal"
        print(f"{name:32} {state}" + "".join(f"\n    {line[:150]}" for line in found[:4]))
    if renamed:
        print(f"written by one side alone: {', '.join(sorted(renamed))}")
    print(f"{len(chosen) - moved} of {len(chosen)} runs equal")
    return int(bool(moved))


if __name__ == "__main__":
    sys.exit(main())
