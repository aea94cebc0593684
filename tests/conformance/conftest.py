"""Every test here runs for every algorithm, and a failure says which rule was broken and how to mend it."""

from collections.abc import Generator

import algorithms
import pytest
from algorithms import Trail
from conformance import failures

SEEN = pytest.StashKey[set[str]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With -vv pytest's own report. Rounds that cannot be run fail every test of their algorithm: told once."""
    report = yield
    if report.failed and item.originalname in failures.rules() and item.config.get_verbosity() < 1:
        assert call.excinfo is not None
        test = failures.ROUNDS_RUN if report.when == "setup" else item.originalname
        message = failures.told(test, getattr(item, "callspec", None), call.excinfo.value)
        seen = item.config.stash.setdefault(SEEN, set())
        report.longrepr = "the same error as above" if report.when == "setup" and message in seen else message
        seen.add(message)
    return report


@pytest.fixture(scope="package", params=algorithms.words(), ids=" ".join)
def algorithm(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Its words on a command line."""
    return request.param


@pytest.fixture(scope="package")
def trail(algorithm: tuple[str, ...]) -> Trail:
    """Three rounds of it on scikit-learn's digits."""
    return algorithms.trail(algorithm)


@pytest.fixture(scope="package", params=algorithms.names(), ids=" ".join)
def named(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Each file of conf/strategy once, for what variants have no part in."""
    return request.param
