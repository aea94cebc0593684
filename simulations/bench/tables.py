"""The tables of `fedkd bench`."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

BUSY = 0.5  # load per core above which figures are doubtful


def show(results: Mapping[str, Any]) -> None:
    """Print everything that `bench.measure` gives."""
    console = Console(highlight=False)
    console.print(*_head(results), sep="\n", soft_wrap=True)
    for table in _tables(results):
        console.print()
        console.print(table)
    console.print()
    console.print(*_tail(results), sep="\n", soft_wrap=True)


def show_costs(results: Mapping[str, Any]) -> None:
    """Print everything that `bench.measure_several` gives."""
    console = Console(highlight=False)
    console.print(*_machine(results["machine"]), *_notes(results), sep="\n", soft_wrap=True)
    for setting, shape in results["settings"].items():
        rows = [row for row in results["costs"] if row["setting"] == setting]
        console.print()
        console.print(f"{setting}{': ' if setting else ''}{_shape(shape)}", soft_wrap=True)
        console.print(_costs(rows, results["baseline"]))
    console.print()
    above = [row["method"] for row in results["costs"] if row["ratio"] > results["limit"]]
    mark = "miss" if above else "ok  "
    text = f"{mark}  clients of a method / of {results['baseline']}: at most {results['limit']:g}"
    console.print(text + (f"; above it: {', '.join(dict.fromkeys(above))}" if above else ""), soft_wrap=True)
    for name, why in results["missing"].items():
        console.print(f"warn  {name} was not measured: {why}", soft_wrap=True)


def _costs(rows: Sequence[Mapping[str, Any]], baseline: str) -> Table:
    table = _table("a round", "clients", f"x {baseline}", "middle half", "server")
    for row in rows:
        middle_half = f"{row['low']:.2f} to {row['high']:.2f}"
        table.add_row(row["method"], _ms(row["clients"]), f"{row['ratio']:.2f}", middle_half, _ms(row["server"]))
    return table


def _head(results: Mapping[str, Any]) -> list[str]:
    chosen = results["configuration"]
    return _machine(results["machine"], f"{chosen['strategy']} on {_shape(chosen)}") + _notes(results)


def _notes(results: Mapping[str, Any]) -> list[str]:
    return [f"note  {text}" for text in results["notes"]]


def _machine(machine: Mapping[str, Any], *lines: str) -> list[str]:
    load = "" if machine["load"] is None else f", load {machine['load']:.1f}"
    head = [f"{machine['processor']}, {machine['cores']} cores{load}, Python {machine['python']}", *lines]
    if machine["load"] and machine["load"] > BUSY * machine["cores"]:
        head.append("warn  this machine is busy: trust ratios more than times, and the speed-up of Ray not at all")
    return head


def _shape(chosen: Mapping[str, Any]) -> str:
    return (
        f"{chosen['data']}, {chosen['students']}: {chosen['per_round']} of {chosen['clients']} clients per round, "
        f"{chosen['steps'] or 'all'} steps of {chosen['batch']}"
    )


def _tables(results: Mapping[str, Any]) -> list[Table]:
    tables = [_loop(results["loop"]), _starting(results)]
    if results["ray"]:
        tables.append(_ray(results["ray"]))
    if results["memory"]:
        tables.append(_memory(results["memory"]))
    return tables


def _loop(loop: Mapping[str, Any]) -> Table:
    total = loop["phases"]["total"]["inline"]
    method = loop["method"] if loop["is_same"] else f"{loop['method']}, a stand-in"
    table = _table(f"a round, medians of {loop['rounds']}", f"bare loop ({method})", "inline", "ratio", "share")
    for phase, values in loop["phases"].items():
        share = "" if phase in ("total", "cpu") else f"{values['inline'] / total:.0%}"
        ratio = "" if phase == "rest" else f"{values['ratio']:.2f}"
        table.add_row(phase, _ms(values["bare"]), _ms(values["inline"]), ratio, share)
    table.add_row("checkpoint", "", _ms(loop["commit"]), "", "not in a round")
    return table


def _starting(results: Mapping[str, Any]) -> Table:
    table = _table("starting", "seconds")
    for name, seconds in results["starting"].items():
        table.add_row(name, f"{seconds:.2f}")
    table.add_row("first round, inline", f"{results['loop']['first_round']:.2f}")
    for row in results["ray"]:
        table.add_row(f"ray x {row['workers']}", f"{row['start']:.2f}")
    return table


def _ray(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("ray, a round", "inline", "ray", "speed-up", "idle client", "results")
    for row in rows:
        results = "equal" if row["is_equal"] else "DIFFER"
        speedup, message = f"{row['speedup']:.2f}", f"{1000 * row['message']:.2f} ms"
        table.add_row(f"x {row['workers']}", _ms(row["inline"]), _ms(row["ray"]), speedup, message, results)
    return table


def _memory(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("MB resident (private)", "trained", "their state", "driver", "workers")
    for row in rows:
        workers = "   ".join(map(_megabytes, row["workers"]))
        state = f"{row['state_bytes'] / 1e6:.2f}"
        table.add_row(f"{row['clients']} clients", str(row["trained"]), state, _megabytes(row["driver"]), workers)
    return table


def _tail(results: Mapping[str, Any]) -> list[str]:
    lines = [f"idle client inline {1000 * results['message']:.2f} ms (border, drift and mean included)"]
    for goal in results["goals"]:
        lines.append(
            f"{'ok  ' if goal['is_met'] else 'miss'}  {goal['what']}: {goal['value']:.3g} (goal {goal['limit']:g})"
        )
    return lines + [f"warn  {part} was not measured: {why}" for part, why in results["missing"].items()]


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _megabytes(process: Mapping[str, int]) -> str:
    private = f" ({process['private'] / 1e6:.0f})" if "private" in process else ""
    return f"{process['resident'] / 1e6:.0f}{private}"
