"""No damage to a checkpoint ends a resume with a traceback, or makes a run continue from anything except a whole state.

    python tests/enumerations/damaged.py                     1,300 damages: half a minute of CPU time
    python tests/enumerations/damaged.py --limit 200 --seed 7

A run of three rounds leaves three checkpoints. One or more copies of these are damaged: bits flipped, files cut,
emptied, lengthened, exchanged with those of other rounds, removed, replaced by folders; manifests and states changed
and their hashes renewed, as anybody could who may write there. What must hold: `checkpoint.load` gives the state of an
undamaged round, whole to the last bit, with a warning for each that was skipped; or CheckpointError (exit code 6). A
file with renewed hashes that makes sense is believed (a hash is not a signature): its values are those in the file.
The draws come from `--seed`; a damage that fails is printed with its number, `--only` runs it again.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import safetensors.torch
import torch
from enumerations import points

from fedkd import rounds
from fedkd.configuration import compose
from fedkd.errors import CheckpointError
from fedkd.experiment import Experiment
from fedkd.record import checkpoint
from simulations import assemble
from simulations.engines import inline

MANIFEST = "manifest.json"
ODD: tuple[Any, ...] = (None, True, -1, 0, 3.5, 10**30, "", "x" * 10_000, [], {}, [[]], {"map": 1}, {"tensor": "gone"})
DEEP = b"[" * 100_000


@dataclass(frozen=True)
class Original:
    """Three whole checkpoints and what is in them."""

    folder: Path
    experiment: Experiment
    digest: str
    files: dict[int, dict[str, bytes]]  # by round: what a commit of the state there writes


def play(folder: Path) -> Original:
    """Three rounds, each committed."""
    resolved = compose.resolve([*points.WORDS, "rounds=3"])
    assembly = assemble.assemble(resolved.config)
    engine, state = inline.Inline(assembly.site), rounds.begin(assembly.experiment)
    for number in (1, 2, 3):
        state = rounds.run_round(assembly.experiment, engine, state).state
        checkpoint.commit(folder / "checkpoints", state, {"metrics.jsonl": 100 * number}, resolved.digest())
    found = {number: contents(folder / "checkpoints" / f"round-{number:04d}") for number in (1, 2, 3)}
    return Original(folder / "checkpoints", assembly.experiment, resolved.digest(), found)


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def one(original: Original, seed: int, number: int) -> tuple[str, str]:
    """Makes one damage; what was done, and what is wrong with the outcome, or empty text."""
    draw = random.Random(f"{seed} {number}")
    with tempfile.TemporaryDirectory(dir=original.folder.parent) as copy:
        folder = Path(copy) / "checkpoints"
        shutil.copytree(original.folder, folder)
        how = [draw.choice(HOW)(folder / f"round-{which:04d}", draw) for which in _which(draw)]
        return "; ".join(how), judge(original, folder)


def judge(original: Original, folder: Path) -> str:
    """What is wrong with a load of damaged checkpoints."""
    before = {number: contents_or_none(folder / f"round-{number:04d}") for number in (1, 2, 3)}
    warnings: list[str] = []
    try:
        found = checkpoint.load(folder, original.experiment, original.digest, warnings.append)
    except CheckpointError as error:
        is_there = any(before[number] == original.files[number] for number in before)
        return f"none is taken, though one is whole: {error}" if is_there and "none is whole" in error.what else ""
    except Exception as error:  # noqa: BLE001  # what this looks for
        return f"{type(error).__name__}: {error}"
    if found is None:
        return "" if not any(before.values()) else "nothing was found"
    number = found.state.round
    again = Path(folder.parent) / "again"
    checkpoint.commit(again, found.state, found.lengths, original.digest)
    taken = {name: data for name, data in contents(again / f"round-{number:04d}").items() if name != MANIFEST}
    stored = {name: data for name, data in (before.get(number) or {}).items() if name != MANIFEST}
    if taken != stored and not _is_same(taken, stored):
        return f"round {number} is not what its files hold"
    return ""


def _is_same(taken: dict[str, bytes], stored: dict[str, bytes]) -> bool:
    """Whether two commits hold the same, even if one of them was written and signed by somebody else."""
    ours, theirs = json.loads(taken["state.json"]), json.loads(stored["state.json"])
    if any(ours[key] != theirs.get(key) for key in ours if key != "packing"):
        return False
    tensors, given = (safetensors.torch.load(each["server.safetensors"]) for each in (taken, stored))
    if any(not torch.equal(tensor, given[name]) for name, tensor in tensors.items()):
        return False
    return ours["packing"] != theirs["packing"] or taken["clients.safetensors"] == stored["clients.safetensors"]


def contents_or_none(place: Path) -> dict[str, bytes] | None:
    try:
        return contents(place)
    except OSError:
        return None


def _which(draw: random.Random) -> Sequence[int]:
    """Mostly the newest; at times two or all."""
    return draw.choice(((3,), (3,), (3,), (2, 3), (1, 2, 3)))


# --- damages --------------------------------------------------------------------------------------------------------


def _file(place: Path, draw: random.Random) -> Path:
    return place / draw.choice((*checkpoint.FILES, MANIFEST, MANIFEST))


def flip(place: Path, draw: random.Random) -> str:
    path = _file(place, draw)
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    data[at] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return f"a bit of {place.name}/{path.name} at {at}"


def cut(place: Path, draw: random.Random) -> str:
    path = _file(place, draw)
    data = path.read_bytes()
    at = draw.choice((0, 1, len(data) - 1, draw.randrange(len(data))))
    path.write_bytes(data[:at])
    return f"{place.name}/{path.name} cut at {at}"


def lengthen(place: Path, draw: random.Random) -> str:
    path = _file(place, draw)
    path.write_bytes(path.read_bytes() + draw.choice((b"\0", b"\n", b"x" * 100_000)))
    return f"{place.name}/{path.name} lengthened"


def remove(place: Path, draw: random.Random) -> str:
    path = _file(place, draw)
    path.unlink()
    if draw.random() < 0.3:
        path.mkdir()
    return f"{place.name}/{path.name} removed, {'a folder there' if path.exists() else 'nothing there'}"


def exchange(place: Path, draw: random.Random) -> str:
    path, other = _file(place, draw), place.parent / f"round-000{draw.randrange(1, 4)}"
    with_ = other / path.name if (other / path.name).is_file() else path
    path.write_bytes(with_.read_bytes())
    return f"{place.name}/{path.name} is that of {other.name}"


def rename(place: Path, draw: random.Random) -> str:
    other = place.with_name(f"round-{draw.choice((4, 50, 10**9))}".replace("round-4", "round-0004"))
    if not other.exists():
        shutil.copytree(place, other)
    return f"{place.name} copied to {other.name}"


def nonsense(place: Path, draw: random.Random) -> str:
    """Other bytes, signed anew."""
    name = draw.choice(checkpoint.FILES)
    data = draw.choice((b"", b"{}", b"null", DEEP, b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}", draw.randbytes(200)))
    sign(place, {name: data})
    return f"{place.name}/{name} replaced by {data[:20]!r}, signed"


def state(place: Path, draw: random.Random) -> str:
    """A value somewhere in state.json is another, signed anew."""
    plain = json.loads((place / "state.json").read_bytes())
    path = spoil(plain, draw)
    sign(place, {"state.json": json.dumps(plain, separators=(",", ":")).encode()})
    return f"{place.name}/state.json: {path}, signed"


def manifest(place: Path, draw: random.Random) -> str:
    """A value somewhere in the manifest is another; the manifest signs itself anew."""
    plain = json.loads((place / MANIFEST).read_bytes())
    del plain["sha256"]
    path = spoil(plain, draw)
    write(place, plain)
    return f"{place.name}/{MANIFEST}: {path}, signed"


HOW: tuple[Callable[[Path, random.Random], str], ...] = (
    flip,
    flip,
    cut,
    lengthen,
    remove,
    exchange,
    rename,
    nonsense,
    state,
    state,
    manifest,
)


def spoil(plain: Any, draw: random.Random) -> str:
    """Change one value somewhere within nested dictionaries and lists."""
    path: list[Any] = []
    while True:
        keys = list(plain) if isinstance(plain, dict) else range(len(plain))
        key = draw.choice(list(keys))
        path.append(key)
        inside = isinstance(plain[key], dict | list) and plain[key]
        if inside and draw.random() < 0.7:
            plain = plain[key]
            continue
        if isinstance(plain, dict) and draw.random() < 0.2:
            del plain[key]
            return f"{path} removed"
        plain[key] = draw.choice(ODD)
        return f"{path} = {str(plain[key])[:20]}"


def sign(place: Path, files: dict[str, bytes]) -> None:
    """Write files, with their hashes in the manifest, if there is one that can be read."""
    for name, data in files.items():
        path = place / name
        if path.is_dir():
            path.rmdir()
        path.write_bytes(data)
    try:
        plain = json.loads((place / MANIFEST).read_bytes())
        plain["files"] |= {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        plain.pop("sha256", None)
    except (OSError, ValueError, KeyError, TypeError):
        return
    write(place, plain)


def write(place: Path, plain: Any) -> None:
    text = json.dumps(plain, separators=(",", ":")).encode()
    own = hashlib.sha256(text).hexdigest()
    (place / MANIFEST).write_text(json.dumps({**plain, "sha256": own}, separators=(",", ":")), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=1300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="these numbers")
    given = parser.parse_args()
    start, found = time.monotonic(), Counter[bool]()
    with tempfile.TemporaryDirectory() as folder:
        original = play(Path(folder))
        numbers = [int(part) for part in given.only.split(",") if part] or range(given.limit)
        for number in numbers:
            how, wrong = one(original, given.seed, number)
            found[bool(wrong)] += 1
            if wrong:
                print(f"{number}: {how}: {wrong}", flush=True)
    print(f"damaged: {found.total()} damages, {found[True]} wrong, {time.monotonic() - start:.0f} s")
    return 1 if found[True] else 0


if __name__ == "__main__":
    sys.exit(main())
