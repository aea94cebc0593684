"""report.html in a real browser, from disk, without network."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install -e '.[test]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium with its driver here: apt-get install chromium chromium-driver"
)
FLAGS = (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "disable-dev-shm-usage",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, written: Path) -> Any:
    """The report, drawn, at the width of a laptop."""
    resize(browser, 1440)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)  # of the page before
    browser.get((written / "report.html").as_uri())
    drawn(browser)
    return browser


def resize(browser: Any, width: int) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def drawn(browser: Any) -> None:
    """Wait until all charts are."""
    end = time.monotonic() + 30
    while browser.execute_script("return document.documentElement.dataset.drawn") != "yes":
        assert time.monotonic() < end, browser.get_log("browser")
        time.sleep(0.05)


def test_no_error_on_the_console_and_no_request(page: Any) -> None:
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []


def test_every_chart_is_drawn(page: Any) -> None:
    counts = page.execute_script(
        "return [...document.querySelectorAll('[data-chart]')]"
        ".map(place => [place.dataset.chart, place.querySelectorAll('svg').length])"
    )
    assert len(counts) > 10
    assert all(count == 1 for _, count in counts), counts


def test_hostile_names_are_shown_and_not_run(page: Any) -> None:
    assert page.find_element("tag name", "h1").text == "<script>alert(1)</script>"
    assert page.title.startswith("<script>alert(1)</script>")
    assert "<script>" in page.execute_script("return document.querySelector('[data-chart=curves] svg').textContent")


def test_axis_of_curves_can_be_switched_by_keyboard(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    def words() -> str:
        return str(page.execute_script("return document.querySelector('[data-chart=curves] svg').textContent"))

    assert "rounds" in words()
    page.find_element("css selector", "input[name=axis-curves][value=rounds]").send_keys(Keys.ARROW_RIGHT)
    drawn(page)
    assert "megabytes" in words()
    page.find_element("css selector", "input[name=axis-curves][value=seconds]").click()
    drawn(page)
    assert "seconds" in words()


def test_dark_follows_the_system_and_the_switch(page: Any) -> None:
    def background() -> str:
        return str(page.execute_script("return getComputedStyle(document.body).backgroundColor"))

    light = background()
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    drawn(page)
    assert background() != light
    page.find_element("css selector", "#theme input[value=light]").click()
    assert background() == light
    page.find_element("css selector", "#theme input[value=dark]").click()
    drawn(page)
    assert background() != light
    assert page.execute_script("return document.querySelector('[data-chart=curves]').dataset.look") == "dark"
    page.execute_script("localStorage.clear()")


@pytest.mark.parametrize("width", [390, 1440, 1920])
def test_page_is_as_wide_as_the_screen(page: Any, width: int) -> None:
    resize(page, width)
    time.sleep(0.4)  # the page waits for the end of a resize
    drawn(page)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    wide = page.execute_script(
        "return [...document.querySelectorAll('[data-chart]')]"
        ".filter(p => p.scrollWidth > p.clientWidth + 1).map(p => p.dataset.chart)"
    )
    assert wide == []


@pytest.mark.parametrize(("width", "columns"), [(390, 1), (1199, 1), (1200, 2), (1920, 2)])
def test_page_has_two_columns_from_1200_pixels(page: Any, width: int, columns: int) -> None:
    resize(page, width)
    lefts = page.execute_script(
        "return [...document.querySelectorAll('#setting .grid > *')].map(e => e.getBoundingClientRect().left)"
    )
    assert len({round(left) for left in lefts}) == columns


def test_charts_fill_a_wide_screen(page: Any) -> None:
    resize(page, 1920)
    time.sleep(0.4)
    drawn(page)
    shares = page.execute_script(
        "return [...document.querySelectorAll('[data-chart]')].filter(p => p.dataset.chart !== 'matrices')"
        ".map(p => [p.dataset.chart, p.querySelector('svg').getBoundingClientRect().width / p.clientWidth])"
    )
    assert [name for name, share in shares if share < 0.8] == []
    figures = page.execute_script(
        "return Math.max(...[...document.querySelectorAll('figure')].map(f => f.getBoundingClientRect().right))"
    )
    assert figures > 1850


def test_lines_of_text_stay_readable_on_a_wide_screen(page: Any) -> None:
    resize(page, 1920)
    widest = page.execute_script(
        "return Math.max(...[...document.querySelectorAll('p:not(.soft), li, figcaption')]"
        ".map(e => e.getBoundingClientRect().width / parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert widest < 60  # em: about 110 letters


def test_text_is_large_enough_to_read(page: Any) -> None:
    resize(page, 390)
    time.sleep(0.4)
    drawn(page)
    least = page.execute_script(
        "return Math.min(...[...document.querySelectorAll('svg text, td, p')]"
        ".map(text => parseFloat(getComputedStyle(text).fontSize)))"
    )
    assert least >= 11


def test_everything_can_be_reached_by_tab(page: Any) -> None:
    found = page.execute_script(
        "return [...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0 && e.getAttribute('aria-label'))"
    )
    assert found
