"""What pages show and nobody writes: tables from the code, and the site's contents from the lists of links.

The pages stay plain Markdown, for readers of the repository. A comment marks where something is filled in:
`<!-- generated: methods -->`, `<!-- module: fedkd.maths.losses -->` or `<!-- include: ../SECURITY.md -->`.
"""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sphinx.application import Sphinx

from fedkd.configuration import compose
from simulations.cli import config_view, listing, main

_MARKER = re.compile(r"^<!-- (generated|module|include): (\S+) -->$", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\(([\w/-]+)\.md\)")
# Pages in the folder of the repository.
_ROOT = re.compile(r"\]\((?:\.\./)*(README|SECURITY|CONTRIBUTING|CHANGELOG)\.md")
_PAGES = {"README": "overview"}  # the others are called as they are
_PAGE = re.compile(r"docs/([\w/-]+\.md)")  # in a comment of the code
_INDEXES = ("index", "decisions/index", "strategies/index")


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn a page of the repository into a page of the site."""
    text = _MARKER.sub(lambda found: _filled(app, *found.groups()), source[0])
    text = _ROOT.sub(lambda found: f"]({'../' * docname.count('/')}{_PAGES.get(found[1], found[1].lower())}.md", text)
    source[0] = text + "".join(_contents(text, is_named=docname == "index")) if docname in _INDEXES else text


def _filled(app: Sphinx, what: str, name: str) -> str:
    if what == "module":
        return f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```"
    if what == "include":
        return (Path(app.srcdir) / name).read_text(encoding="utf-8").replace("](docs/", "](")
    return "\n".join(_GENERATED[name](Path(app.srcdir)))


def _contents(text: str, is_named: bool) -> Iterator[str]:
    """The links below each heading, as the site's own contents; `is_named`: under the words of the link."""
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        heading, _, body = section.partition("\n")
        if pages := {page: title for title, page in _LINK.findall(body)}:
            caption = f":caption: {heading}\n" if section != text else ""
            lines = "\n".join(f"{title} <{page}>" if is_named else page for page, title in pages.items())
            yield f"\n\n```{{toctree}}\n:hidden:\n{caption}\n{lines}\n```\n"


def _table(*rows: tuple[str, ...]) -> Iterator[str]:
    head, *body = rows
    yield _row(head)
    yield _row(("---",) * len(head))
    yield from map(_row, body)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _methods(docs: Path) -> Iterator[str]:
    """A line a method: what its server half says of itself, with its page."""
    rows = []
    for row in listing.of_strategies():
        title = row["about"].partition(": ")[0]
        across = "yes" if row["across_architectures"] else "no"
        page = _page(docs, row["name"])
        name = f"[{title}]({page})" if page else title
        traits = (row["knowledge"], row["public_set"], across, row["serves"], row["paper"])
        rows.append((f"{name} `{row['name']}`", *traits))
    yield from _table(("method", "exchanges", "public images", "differing students", "serves", "paper"), *rows)


def _page(docs: Path, name: str) -> str:
    """The page of a setting of conf/strategy: its own, or that of its server half."""
    half = str(compose.node("strategy", name)["name"])
    pages = [f"{page}.md" for page in (name, half, name.partition("-")[0])]
    return next((page for page in pages if (docs / "strategies" / page).is_file()), "")


def _keys(*words: str, only: Callable[[str], bool] = bool) -> Iterator[str]:
    """The schema under these words, a line a key."""
    rows = [
        (
            f"`{key['name']}`",
            f"{key['type']} {key['range']}".strip(),
            f"`{key['default']}`",
            _PAGE.sub(r"[\1](../\1)", key["comment"]),
        )
        for key in config_view.schema_of(words).value["keys"]
        if only(key["name"])
    ]
    return _table(("key", "type and range", "default", "meaning"), *rows)


def _configuration(docs: Path) -> Iterator[str]:
    """All keys but those of strategies: a table for each node, of partitions one for each recipe."""
    names = [key["name"] for key in config_view.schema_of(()).value["keys"]]
    yield "## Plain keys\n"
    yield from _keys(only=lambda name: "." not in name)
    for node in dict.fromkeys(name.partition(".")[0] for name in names if "." in name):
        if node == "partition":
            for recipe in compose.options(node):
                yield f"\n## `partition={recipe}`\n"
                yield from _keys(f"partition={recipe}")
        elif node != "strategy":
            yield f"\n## `{node}`\n"
            yield from _keys(only=lambda name, node=node: name.startswith(f"{node}."))


def _strategies(docs: Path) -> Iterator[str]:
    """The keys of each setting of conf/strategy, both halves together."""
    for row in listing.of_strategies():
        page = _page(docs, row["name"])
        yield f"\n## `strategy={row['name']}`\n\n{row['about']}. {f'[Page](../strategies/{page})' if page else ''}\n"
        yield from _keys(f"strategy={row['name']}")


def _commands(docs: Path) -> Iterator[str]:
    """What `fedkd VERB --help` prints."""
    os.environ["COLUMNS"] = "100"
    for verb in main.VERBS:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            main.main([verb, "--help"])
        yield f"\n## `fedkd {verb}`\n\n```text\n{printed.getvalue().rstrip()}\n```"


_GENERATED = {"methods": _methods, "configuration": _configuration, "strategies": _strategies, "commands": _commands}


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
