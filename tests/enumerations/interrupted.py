"""A run that ends at any of its writes, by kill -9 or a full disk, and is resumed has the bytes of an undisturbed one.

    python tests/enumerations/interrupted.py kill                  all points: about 5 minutes of CPU time
    python tests/enumerations/interrupted.py full --limit 60       60 points, evenly
    python tests/enumerations/interrupted.py kill --rounds 2 --only 17,18

For each point a run starts in a process of its own, which dies there, or whose disk is full from there on. Then comes
the command that a user would give: `fedkd resume` or, where nothing was begun, `fedkd run` again. What must hold:

- killed: the process is gone with signal 9, the next command ends with 0, ledger and last checkpoint are equal
- full: exit code 5 with "the disk is full" (0 where only what may be lost was lost: a log line), never a traceback;
  once there is space again, the same

Prints a line for each point that fails, and a summary; exit code 1 if any did. Nothing is random.
"""

import argparse
import json
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

from enumerations import points
from enumerations.points import Points

ACTS: dict[str, Callable[[Points, Callable[[], Any]], None]] = {"kill": points.kill, "full": points.fill}


@dataclass(frozen=True)
class Whole:
    """A run that nobody disturbed. Everything happens below `folder`."""

    folder: Path
    words: Sequence[str]  # of its command
    results: dict[str, bytes]
    met: Sequence[str]  # its points


def play(folder: Path, rounds: int) -> Whole:
    """Raises RuntimeError if it fails."""
    points.warm()
    words, log = ["run", *points.WORDS, f"rounds={rounds}", "--quiet"], folder / "whole.log"
    if points.command([*words, "--out", str(folder / "whole")], log, folder / "whole"):
        raise RuntimeError(log.read_text())
    met = json.loads(log.with_suffix(".points").read_text())
    return Whole(folder, words, points.results(folder / "whole"), met)


def one(whole: Whole, act: str, at: int) -> str:
    """Plays one point; what is wrong after it, or empty text."""
    place, log = whole.folder / "run" / "it", whole.folder / "it.log"
    shutil.rmtree(place.parent, ignore_errors=True)
    place.parent.mkdir()
    again = [*whole.words, "--out", str(place)]
    code = points.command(again, log, place, at, ACTS[act])
    said = log.read_text()
    if code != -9 if act == "kill" else not _is_told(code, said):
        return f"it ended with {code}: {said[-400:]}"
    code = points.command(["resume", str(place), "--quiet"], log)
    if code == 5 and not (place / "run.json").exists():
        code = points.command(again, log)
    if code:
        return f"the command after it ended with {code}: {log.read_text()[-400:]}"
    found = points.results(place)
    return ", ".join(f"{name} differs" for name, data in whole.results.items() if found[name] != data)


def _is_told(code: int, said: str) -> bool:
    return code == 0 or (code == 5 and "the disk is full" in said and "Traceback" not in said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("act", choices=ACTS)
    parser.add_argument("--limit", type=int, help="so many points, evenly")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="these points")
    given = parser.parse_args()
    start, found = time.monotonic(), Counter[bool]()
    with tempfile.TemporaryDirectory() as folder:
        whole = play(Path(folder).resolve(), given.rounds)
        only = [int(part) for part in given.only.split(",") if part]
        for at in only or points.chosen(len(whole.met), given.limit):
            wrong = one(whole, given.act, at)
            found[bool(wrong)] += 1
            if wrong:
                print(f"{at}, {whole.met[at - 1]}: {wrong}", flush=True)
    seconds = time.monotonic() - start
    print(f"{given.act}: {found.total()} of {len(whole.met)} points, {found[True]} wrong, {seconds:.0f} s")
    return 1 if found[True] else 0


if __name__ == "__main__":
    sys.exit(main())
