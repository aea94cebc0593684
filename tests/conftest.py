"""Shared fixtures: the tiny problem and its parts. Builders are in tiny.py."""

import gc
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from hypothesis import settings

from clients.supervised import Supervised
from fedkd.engine import Job
from fedkd.problem import Problem
from fedkd.training.site import LocalSite
from simulations.engines.ray_pool import RayPool

# The same examples in every run, and few: the suite is for every commit. No deadline: a busy machine is no failure.
settings.register_profile("fedkd", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("fedkd")


POOLED = re.compile(r"/test_ray_pool\.py::|::test_two_workers_")  # all that use the fixture two_workers, and no others


def pytest_configure(config: pytest.Config) -> None:
    """Workers of pytest-xdist take modules in our order, not those with most tests first."""
    config.option.loadscopereorder = False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadscope` by module, but tests of one algorithm, or of the shared pool, by that: each is played once."""
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid) or super()._split_scope(nodeid)

    return ByWhatIsShared(config, log)


def scope(nodeid: str) -> str:
    """What a test shares with others: the pool, or an algorithm's rounds (tests/conformance); empty: its module."""
    if POOLED.search(nodeid):
        return "pool"
    found = "/conformance/" in nodeid and re.search(r"\[(strategy=[\w-]+)", nodeid)
    return f"conformance {found[1]}" if found else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deployments first: they take minutes, most of them waiting, and begun last all would wait for them.

    Then those that share a pool, one after another: Ray at rest costs time, too.
    """
    items.sort(key=lambda item: (item.get_closest_marker("deployment") is None, not _is_pooled(item)))
    for item in items:
        assert _is_pooled(item) == (scope(item.nodeid) == "pool"), f"{item.nodeid}: its name tells what it shares"


def pytest_collection_finish() -> None:
    """The million objects of imports and tests stay: a collector that visits them costs a sixth of the suite's time."""
    gc.collect()
    gc.freeze()


def _is_pooled(item: pytest.Item | None) -> bool:
    return "two_workers" in getattr(item, "fixturenames", ())


_pools: list[RayPool] = []  # none, or the one that is shared


@pytest.fixture
def two_workers() -> RayPool:
    """A pool of two workers, which takes seconds to start, for all tests that serve it a site of their own."""
    if not _pools:
        _pools.append(RayPool(tiny.site(Supervised(), tiny.problem()), workers=2).start())
    return _pools[0]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """The pool ends with the last test that shares it: a process has one Ray, and others start their own."""
    if _pools and not _is_pooled(nextitem):
        _pools.pop().close()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """As in workers: the last bits of sums differ between one thread and two."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_disk() -> Iterator[None]:
    """No test cuts the power, and a busy disk lets whoever waits for it wait for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def problem() -> Problem:
    return tiny.problem()


@pytest.fixture
def site(problem: Problem) -> LocalSite:
    """Three clients with 20, 12 and 7 samples under supervised training."""
    return tiny.site(Supervised(), problem)


@pytest.fixture
def job(problem: Problem) -> Job:
    return tiny.job(problem)
