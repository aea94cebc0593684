"""Mutants: one line of the code is broken, and a test must fail. A command that says whether the suite still bites.

    python tests/mutants.py                   # each mutant against the few test files that are about its line
    python tests/mutants.py --only seeds,codec
    python tests/mutants.py --everyday        # each against all that README's test command plays, until a test fails
    python tests/mutants.py --list

Whoever makes the suite smaller runs it before and after. The checkout is copied, and the line is broken in the copy.
Lines are found by their text and tests by the end of their path, so that modules may move. Exit code 0: all mutants
were killed; 1: one survived, or its line or its tests were not found.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fedkd", "strategies", "clients", "simulations")
COPIED = (*PACKAGES, "conf", "tests", "docs", ".ci", "pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
FAILED = 1  # pytest's exit code where tests failed; others mean that they could not be played


@dataclass(frozen=True)
class Mutant:
    """Code with one line broken. `old` stands once in all packages; `tests` are the ends of paths."""

    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = {
    "border": Mutant("if value.dtype != dtype:", "if False:", ("conformance/test_borders.py",)),
    "kinds": Mutant(
        "(kinds := reply.payload.kinds()) != expected.kinds:",
        "not (kinds := reply.payload.kinds()) >= expected.kinds:",
        ("fedkd/border/test_checks.py",),
    ),
    "guard": Mutant(
        "if not what and limit and findings[reply.client].ratio > limit:", "if False:", ("conformance/test_poison.py",)
    ),
    "rounds": Mutant(
        "last_round = before.get(client, ClientState()).last_round",
        "last_round = now.get(client, ClientState()).last_round",
        ("conformance/test_clients.py",),
    ),
    "admission": Mutant("if len(replies) >= quorum:", "if replies:", ("fedkd/test_rounds.py",)),
    "fusion": Mutant(
        "return trust_RKC / trust_RKC.sum(1, keepdim=True)",
        "return trust_RKC / trust_RKC.sum(0, keepdim=True)",
        ("test_fusion.py",),
    ),
    "losses": Mutant("return temperature**2 * kl(", "return temperature * kl(", ("test_losses.py",)),
    "optimisers": Mutant(
        "scale = (most / (norm + 1e-6)).clamp(max=1.0)", "scale = most / (norm + 1e-6)", ("test_local_optimiser.py",)
    ),
    "partition": Mutant(
        "share = rng.dirichlet(np.full(num_clients, alpha)) * (sizes < cap)",
        "share = rng.dirichlet(np.full(num_clients, alpha))",
        ("test_partition_recipes.py",),
    ),
    "checkpoint": Mutant('if manifest.get("config") not in digests:', "if False:", ("test_checkpoint.py",)),
    "ledger": Mutant('file.truncate(file.read().rfind(b"\\n") + 1)', 'file.read().rfind(b"\\n")', ("test_ledger.py",)),
    "evaluation": Mutant(
        "return number % every == 0 or number == rounds", "return number % every == 0", ("test_rounds_evaluation.py",)
    ),
    "seeds": Mutant(
        'Stream(_digest(b"fedkd", (seed, purpose, round, client)))',
        'Stream(_digest(b"fedkd", (seed, purpose, round)))',
        ("test_seeds.py",),
    ),
    "codec": Mutant("if got != expected:", "if False:", ("flower/test_codec.py",)),
    "stats": Mutant("* _sd(finite) / math.sqrt(n)", "* _sd(finite) / n", ("test_stats.py",)),
    "report": Mutant('"high": min(rank + half, worst)', '"high": rank + half', ("report/test_bounds.py",)),
    "export": Mutant("if measured.difference <= measured.allowed:", "if True:", ("export/test_command.py",)),
    "deploy": Mutant("if is_users and clients != len(devices):", "if False:", ("deploy/test_request.py",)),
    "knfu": Mutant("weight * temperature**2 * kl", "weight * kl", ("clients/test_knfu.py",)),
    "fedgen": Mutant("len(labels) / batch.size * alpha *", "alpha *", ("clients/test_fedgen.py",)),
    "fedd2s": Mutant(
        'softened_kl(batch.per_sample["teacher"], v,',
        'softened_kl(batch.per_sample["teacher"], u,',
        ("clients/test_fedd2s.py",),
    ),
    "fedfuse": Mutant(
        "self.config.gamma * losses.cross_entropy(student(batch.x) + prior, batch.y)",
        "self.config.gamma * losses.cross_entropy(student(batch.x), batch.y)",
        ("clients/test_fedfuse.py",),
    ),
    "compose": Mutant(
        "_extend(layers, _of_override(arg, conf), conf)", "layers[-1] += _of_override(arg, conf)", ("test_compose.py",)
    ),
    "below": Mutant(
        "if p[: len(path)] == path or path[: len(p)] == p]:",
        "if path[: len(p)] == p]:",
        ("test_compose.py",),
    ),
    "above": Mutant(
        "if p[: len(path)] == path or path[: len(p)] == p]:",
        "if p[: len(path)] == path]:",
        ("test_compose.py",),
    ),
    # What no test of one method looks at: an old state that is written to, a number drawn from nobody's stream.
    "purity": Mutant(
        "total = {name: value.clone() for name, value in state.total.items()}",
        "total = dict(state.total)",
        ("conformance/test_strategies.py",),
    ),
    "draws": Mutant(
        "torch.multinomial(counts, config.synthetic_batch, replacement=True, generator=generator)",
        "torch.multinomial(counts, config.synthetic_batch, replacement=True)",
        ("conformance/test_sources.py",),
    ),
}


def main() -> int:
    """Break each line in turn; the exit code."""
    asked = arguments()
    if asked.list:
        print("\n".join(f"{name:12} {mutant.old}  ->  {mutant.new}" for name, mutant in MUTANTS.items()))
        return 0
    names = asked.only.split(",") if asked.only else list(MUTANTS)
    with tempfile.TemporaryDirectory() as folder:
        copy(Path(folder))
        left = [name for name in names if not is_killed(name, Path(folder), asked.everyday)]
    print(f"{len(names) - len(left)} of {len(names)} killed" + (f"; not {', '.join(left)}" if left else ""))
    return int(bool(left))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,NAME", help="these mutants")
    parser.add_argument("--everyday", action="store_true", help="play all tests that README's command plays")
    parser.add_argument("--list", action="store_true", help="name them and play nothing")
    return parser.parse_args()


def copy(folder: Path) -> None:
    """What tests need of the checkout."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)


def is_killed(name: str, folder: Path, is_everyday: bool) -> bool:
    """Break one line below `folder`, play tests until one fails, mend it, and say what came of it."""
    mutant = MUTANTS[name]
    try:
        place, tests = line_of(mutant, folder), [file_of(end, folder) for end in mutant.tests]
    except LookupError as error:
        print(f"{name:12} {error}")
        return False
    whole = place.read_text(encoding="utf-8")
    place.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        played = play([] if is_everyday else tests, folder)
    finally:
        place.write_text(whole, encoding="utf-8")
    lines = played.stdout.splitlines()
    failed = [line[len("FAILED ") :].partition(" - ")[0] for line in lines if line.startswith("FAILED ")]
    is_dead = played.returncode == FAILED and bool(failed)
    said = "killed by" if is_dead else "survived" if not played.returncode else "could not be played"
    if is_dead and play(failed[:1], folder).returncode:  # it fails without the mutant too, and so kills nothing
        is_dead, said = False, f"not killed: {failed[0]} fails on whole code"
    print(f"{name:12} {said} {failed[0] if is_dead else ''}", flush=True)
    if not is_dead and played.returncode:
        print(played.stdout[-2000:], played.stderr[-2000:])
    return is_dead


def line_of(mutant: Mutant, folder: Path) -> Path:
    """The one module with the mutant's line. Raises LookupError."""
    modules = [path for package in PACKAGES for path in sorted((folder / package).rglob("*.py"))]
    places = [path for path in modules for _ in range(path.read_text(encoding="utf-8").count(mutant.old))]
    if len(places) != 1:
        raise LookupError(f"stands {len(places)} times, not once: {mutant.old}")
    return places[0]


def file_of(end: str, folder: Path) -> str:
    """The one test file whose path ends so. Raises LookupError."""
    found = [path for path in (folder / "tests").rglob("test_*.py") if f"/{path.as_posix()}".endswith(f"/{end}")]
    if len(found) != 1:
        raise LookupError(f"there are {len(found)} test files {end}, not one")
    return str(found[0].relative_to(folder))


def play(tests: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Until one fails. Nothing compiled is kept: a file mended within a second would look unchanged."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main())
