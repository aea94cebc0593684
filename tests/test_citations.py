"""Citations: every page that code, configuration or documents name is there, and so is every equation cited of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("fedkd", "strategies", "clients", "simulations", "conf", "tests", "docs")
PAGE = re.compile(r"(?:\.\./)*\w[\w./-]*\.md\b")
CITED = re.compile(r"([\w./-]+\.md), equations? (\d+(?:(?: to |, | and )\d+)*)")
EQUATION = re.compile(r"\$\$(.*?)\$\$", re.DOTALL)
LINK = re.compile(r"\]\(((?:[\w./-]+\.md)?)(?:#([\w-]+))?\)")
SOURCE = re.compile(r"\b(?:fedkd|strategies|clients|simulations|tests|conf)/[\w./-]+\.(?:py|yaml)\b")
OWN = frozenset({"x", "NAME", "fednova", "test_fednova", "pfedme"})  # file names that stand for the reader's own
WRITTEN = frozenset({"report.md", "fl/README.md"})  # by `compare` and by `deploy init`, into their folders
ELSEWHERE = re.compile(r"https?://\S+")


def sources() -> list[Path]:
    """All files whose text may name a page, but for this one."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "_build" not in path.parts]
    found += [*ROOT.glob("*.md"), ROOT / "pyproject.toml"]
    return sorted(p for p in found if p.suffix in {".py", ".yaml", ".toml", ".md"} and p != Path(__file__))


def pages() -> list[Path]:
    return sorted(path for path in sources() if path.suffix == ".md")


def resolve(name: str, path: Path) -> Path | None:
    """The page that a file means: from the root of the repository or, as in links, from the folder of the document."""
    folders = [ROOT, path.parent if path.suffix == ".md" else ROOT / "docs"]
    return next((found for folder in folders if (found := folder / name).is_file()), None)


def unknown_pages(text: str, path: Path) -> list[str]:
    """Pages that the text of a file names and nobody can open."""
    names = PAGE.findall(ELSEWHERE.sub("", text))
    return [name for name in names if name not in WRITTEN and resolve(name, path) is None]


def unknown_equations(text: str, path: Path) -> list[str]:
    """Equations that the text of a file cites and whose page does not have them. A citation may go over lines."""
    flat = re.sub(r"\s*\n\s*(?:#\s*)?", " ", text)
    return [
        f"{name}, equation {number}"
        for name, numbers in CITED.findall(flat)
        for number in cited(numbers)
        if (page := resolve(name, path)) is None or number not in equations(page.read_text(encoding="utf-8"))
    ]


def cited(numbers: str) -> Iterator[int]:
    """`1 to 3` and `1, 2 and 4` as numbers."""
    for part in re.split(r", | and ", numbers):
        first, _, last = part.partition(" to ")
        yield from range(int(first), int(last or first) + 1)


def equations(text: str) -> list[int]:
    """Numbers of a page's equations, in order."""
    return [int(number) for body in EQUATION.findall(text) for number in re.findall(r"\\tag\{(\d+)\}", body)]


def anchors(text: str) -> set[str]:
    """A page's headings as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("text", "pages", "numbers"),
    [
        ("(docs/strategies/fedgen.md, equation 3)", 0, 0),
        ("docs/strategies/fedgen.md, equations 1 to\n    # 3 and 8; README.md", 0, 0),
        ("https://example.org/x.md", 0, 0),
        ("fedgen.md 1.5", 1, 0),
        ("specs/fedgen.md", 1, 0),
        ("docs/strategies/fedgen.md, equations 8 and 99", 0, 1),
        ("docs/privacy.md, equation 1", 0, 1),
    ],
)
def test_pages_and_equations_that_are_not_there_are_found(text, pages, numbers):
    path = ROOT / "fedkd" / "losses.py"
    assert len(unknown_pages(text, path)) == pages
    assert len(unknown_equations(text, path)) == numbers


def test_every_page_that_is_named_can_be_opened():
    assert not {f"{p.relative_to(ROOT)}: {n}" for p in sources() for n in unknown_pages(p.read_text("utf-8"), p)}


def test_every_equation_that_is_cited_is_on_its_page():
    texts = {path: path.read_text(encoding="utf-8") for path in sources()}
    assert sum(len(CITED.findall(text)) for text in texts.values()) > 50
    assert not {f"{p.relative_to(ROOT)}: {n}" for p, text in texts.items() for n in unknown_equations(text, p)}


def test_every_source_file_that_a_page_names_is_there():
    named = {(path, name) for path in pages() for name in SOURCE.findall(path.read_text(encoding="utf-8"))}
    assert len(named) > 50
    assert not {
        f"{path.relative_to(ROOT)}: {name}"
        for path, name in named
        if Path(name).stem not in OWN and not (ROOT / name).is_file()
    }


def test_every_link_between_pages_leads_to_a_page_and_a_heading():
    wrong = set()
    for path in pages():
        for name, anchor in LINK.findall(path.read_text(encoding="utf-8")):
            page = path.parent / name if name else path
            if not page.is_file() or (anchor and anchor not in anchors(page.read_text(encoding="utf-8"))):
                wrong.add(f"{path.relative_to(ROOT)}: {name}#{anchor}")
    assert not wrong


@pytest.mark.parametrize("page", sorted((ROOT / "docs/strategies").glob("*.md")), ids=lambda page: page.stem)
def test_the_equations_of_a_page_are_numbered_in_order_and_in_latex_that_github_shows(page):
    """GitHub reads a backslash before anything but a letter as an escape of Markdown, and drops it."""
    bodies = EQUATION.findall(page.read_text(encoding="utf-8"))
    assert equations(page.read_text(encoding="utf-8")) == list(range(1, len(bodies) + 1))
    assert not [body for body in bodies if re.search(r"\\[^A-Za-z]", body)]
