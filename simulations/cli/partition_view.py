"""The output of `fedkd partition`: a table for the terminal, a picture, a JSON object."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fedkd.data.partition import Partition
from fedkd.errors import ConfigError, FolderError

_ROWS = 40  # clients listed; the end of a longer table scrolls away


def as_json(partition: Partition, train_labels: np.ndarray) -> dict[str, Any]:
    """Counts as plain ints: `train` and `test` images per client, `labels` training samples per client and class."""
    return {
        "train": [len(index) for index in partition.train],
        "test": [len(index) for index in partition.test],
        "labels": partition.label_counts(train_labels).tolist(),
    }


def table(
    partition: Partition, train_labels: np.ndarray, label_names: Sequence[str], *, width: int | None = None
) -> str:
    """Clients x classes as text without colour, at most `width` columns wide (default: the terminal's).

    If the classes do not fit, the table lists the most frequent ones per client.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    counts = partition.label_counts(train_labels)
    heads = _heads(label_names)
    widths = (max(len(head), len(str(total))) + 2 for head, total in zip(heads, counts.sum(0), strict=True))
    fits = 28 + sum(widths) <= width
    grid = _grid(partition, counts, heads) if fits else _grid_of_most_frequent(partition, counts, label_names, width)
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(grid)
    for line in _notes(partition, train_labels, label_names if fits and heads != list(label_names) else ()):
        console.print(line, highlight=False, markup=False, soft_wrap=line.startswith("sha256"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def picture(partition: Partition, train_labels: np.ndarray, label_names: Sequence[str], path: Path) -> None:
    """Write a picture in the format of `path`'s suffix: sizes above; below, the share of each class in each client's
    training samples, white for none.

    Errors: FolderError if `path` cannot be written, ConfigError if its suffix is of no known format.
    """
    from matplotlib.figure import Figure

    _check_suffix(path)
    counts = partition.label_counts(train_labels)
    num_clients, num_classes = counts.shape
    wide, high = min(3.4 + 0.3 * max(num_clients, 8), 16), min(2.4 + 0.27 * num_classes, 13)
    figure = Figure(figsize=(wide, high), layout="constrained")
    sizes, cells = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, high - 1.2])
    _draw_sizes(sizes, counts.sum(1))
    _draw_shares(figure, cells, counts, label_names)
    figure.suptitle(_title(partition), fontsize=10)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        mend = "choose a folder that is writable"
        raise FolderError(f"cannot write the picture: {error.strerror}", where=str(path), mend=mend) from error


def _check_suffix(path: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in {"", *formats}:  # without a suffix the picture is a PNG
        mend = f"must be one of: {', '.join(formats)}"
        raise ConfigError(f"no picture can be written as '{path.suffix}'", where="--picture", mend=mend)


def _heads(label_names: Sequence[str]) -> list[str]:
    """Column heads: the class names if short, else their numbers."""
    is_short = max(map(len, label_names)) <= 4
    return list(label_names) if is_short else [str(label) for label in range(len(label_names))]


def _empty_grid() -> Table:
    grid = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    for head in ("client", "train", "test", "labels"):
        grid.add_column(head, justify="right")
    return grid


def _grid(partition: Partition, counts: np.ndarray, heads: list[str]) -> Table:
    grid = _empty_grid()
    for head in heads:
        grid.add_column(head, justify="right")
    for client, row in enumerate(counts[:_ROWS]):
        grid.add_row(*_first_cells(partition, client, row), *(str(count) if count else "·" for count in row))
    labels = str((counts.sum(0) > 0).sum())
    grid.add_row("all", str(counts.sum()), str(sum(map(len, partition.test))), labels, *map(str, counts.sum(0)))
    return grid


def _grid_of_most_frequent(partition: Partition, counts: np.ndarray, label_names: Sequence[str], width: int) -> Table:
    grid = _empty_grid()
    grid.add_column("most frequent", no_wrap=True, overflow="ellipsis", max_width=max(width - 30, 12))
    for client, row in enumerate(counts[:_ROWS]):
        order = [label for label in np.argsort(-row, kind="stable")[:5] if row[label]]
        frequent = "  ".join(f"{label_names[label]} {row[label]}" for label in order)
        grid.add_row(*_first_cells(partition, client, row), frequent)
    labels = str((counts.sum(0) > 0).sum())
    grid.add_row("all", str(counts.sum()), str(sum(map(len, partition.test))), labels, "")
    return grid


def _first_cells(partition: Partition, client: int, row: np.ndarray) -> tuple[str, ...]:
    return str(client), str(row.sum()), str(len(partition.test[client])), str((row > 0).sum())


def _notes(partition: Partition, train_labels: np.ndarray, legend: Sequence[str]) -> list[str]:
    hidden = len(partition) - _ROWS
    facts = partition.facts(train_labels)
    sizes = facts["sizes"]
    return [
        *([f"... and {hidden} more clients: see the picture, or --json"] if hidden > 0 else []),
        *(["classes: " + ", ".join(f"{label} {name}" for label, name in enumerate(legend))] if legend else []),
        *([untested] if (untested := partition.untested) else []),
        f"training samples per client {sizes['min']} to {sizes['max']}, median {sizes['median']:g}",
        f"on average: labels per client {facts['labels_per_client']:.2f},  "
        f"total variation from all clients' labels {facts['total_variation']:.3f}",
        f"sha256 {facts['sha256']}",
    ]


def _title(partition: Partition) -> str:
    recipe = [f"{key} {value}" for key, value in partition.recipe.items() if key != "name" and value is not None]
    return f"{partition.recipe['name']}, {len(partition)} clients\n{', '.join(recipe)}"


def _draw_sizes(axes: Any, sizes: np.ndarray) -> None:
    axes.bar(np.arange(len(sizes)), sizes, color="#8c8c8c", width=0.7)
    axes.set_ylabel("images")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0, labelbottom=False)


def _draw_shares(figure: Any, axes: Any, counts: np.ndarray, label_names: Sequence[str]) -> None:
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    num_clients, num_classes = counts.shape
    # One hue, light to dark: works for all kinds of colour vision and in print. The square root shows rare labels.
    shares = np.ma.masked_equal(100 * counts / counts.sum(1, keepdims=True), 0).T
    clients, classes = np.arange(num_clients), np.arange(num_classes)
    top = float(shares.max())
    norm = PowerNorm(0.5, -0.04 * top, top)
    cells = axes.pcolormesh(clients, classes, shares, cmap="Blues", norm=norm, edgecolors="white", linewidth=0.5)
    ticks = [top * part for part in (0, 0.1, 0.25, 0.5, 1)]
    bar = figure.colorbar(cells, ax=axes, aspect=30, pad=0.01, ticks=ticks, format=lambda value, _: f"{value:.3g}%")
    bar.set_label("of the client's images")
    bar.ax.set_ylim(0, top)
    axes.set(xlim=(-0.5, num_clients - 0.5), ylim=(num_classes - 0.5, -0.5), xlabel="client", ylabel="class")
    axes.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    every = -(-num_classes // 40)
    axes.set_yticks(classes[::every], label_names[::every], fontsize=8)
