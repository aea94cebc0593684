"""report.html: what stands in it, that it stands alone, and that nothing in it can break out of its text."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import fabricated
import pytest

from simulations.report import clients, files, page, vega

HOSTILE = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def html(written: Path) -> str:
    return (written / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(html: str) -> Reader:
    return Reader(html)


def test_page_loads_nothing_from_elsewhere(read: Reader) -> None:
    links = [value for _, attributes in read.tags for name in ("src", "href") if (value := attributes.get(name))]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in read.tags}


def test_page_forbids_the_browser_to_load_anything(html: str) -> None:
    assert "default-src 'none'" in html


def test_page_stays_below_six_megabytes(html: str) -> None:
    assert len(html.encode()) < 6e6


def test_names_from_outside_are_text(read: Reader) -> None:
    assert sum(tag == "script" for tag, _ in read.tags) == 3  # charts, Vega, the page's own
    assert HOSTILE in "".join(read.text)


def test_charts_survive_as_json(html: str) -> None:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', html, re.DOTALL)
    assert found
    specs = json.loads(found.group(1))
    assert {"differences", "ranks", "curves", "pareto", "clients", "gain", "partition", "matrices"} <= set(
        specs["charts"]
    )
    assert "<" not in found.group(1)


def test_every_section_has_a_heading_and_every_chart_a_text(read: Reader) -> None:
    ids = {attributes.get("id") for _, attributes in read.tags}
    labelled = [attributes["aria-labelledby"] for tag, attributes in read.tags if tag in ("section", "figure")]
    assert len(labelled) > 10
    assert set(labelled) <= ids
    pictures = [attributes for _, attributes in read.tags if attributes.get("role") == "img"]
    assert pictures
    assert all(len(attributes.get("aria-label") or "") > 40 for attributes in pictures)


@pytest.mark.parametrize(
    "text",
    [
        "Limits of the conclusions",
        "Published figures",
        "58.10 ± 0.32",
        "out of memory",
        "OutOfMemoryError",
        "fedkd compare strategy=fedavg,fedgen,local seed=0..3 --name skew",
        "torch 2.14.1",
        "Gain or loss by joining, per client",
    ],
)
def test_page_says(read: Reader, text: str) -> None:
    assert text in " ".join(read.text)


def test_axis_of_curves_is_a_choice_of_three(read: Reader) -> None:
    radios = [a for tag, a in read.tags if tag == "input" and a.get("name") == "axis-curves"]
    assert [a["value"] for a in radios] == ["rounds", "megabytes", "seconds"]


def test_fifty_runs_of_200_rounds_and_100_clients_are_small_and_quick() -> None:
    vega.script()  # is kept from then on
    settings, methods = ("alpha 0.1", "alpha 1"), ("fedavg", "fedgen", "fedprox", "knfu", "local")
    found = fabricated.members(settings, methods, range(5), rounds=200, clients=20)
    big = [
        fabricated.replace(
            each, clients=[{**r, "client": r["client"] + k} for k in range(0, 100, 20) for r in each.clients[-20:]]
        )
        for each in found
    ]
    verdict = fabricated.verdict(big)
    start = time.process_time()
    html = page.render(verdict, files.drawn(verdict))
    assert time.process_time() - start < 3
    assert len(html) < 6e6


def test_page_without_a_single_finished_run_says_so() -> None:
    found = [fabricated.replace(each, state="failed", reason="no memory", rows=()) for each in fabricated.members()]
    verdict = fabricated.verdict(found)
    assert "no memory" in page.render(verdict, files.drawn(verdict))


def test_one_run_is_a_portrait_without_statistics() -> None:
    verdict = fabricated.verdict([fabricated.member("knfu")])
    names = [chart.name for chart in files.drawn(verdict)]
    assert "curves" in names
    assert "matrices" in names
    assert not {"differences", "ranks", "gain"} & set(names)
    assert "p (Holm)" not in page.render(verdict, files.drawn(verdict))


def test_gain_over_local_is_paired_under_one_partition() -> None:
    alike = fabricated.verdict(fabricated.members(settings=("",), methods=("local", "knfu")))
    assert len(clients.gains(alike).spec["data"]["values"]) == 4 * 6  # type: ignore[union-attr]
    found = [
        fabricated.replace(each, info={**each.info, "partition_sha256": each.method})
        for each in fabricated.members(settings=("",), methods=("local", "knfu"))
    ]
    assert clients.gains(fabricated.verdict(found)) is None
