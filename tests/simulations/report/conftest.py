"""One report of a small grid, shared: its figures take seconds."""

from pathlib import Path

import fabricated
import pytest

from simulations import report

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which every name that comes from outside is hostile."""
    methods = ("fedavg", f"knfu & {HOSTILE}", "knfu", "local")
    found = fabricated.members(settings=("alpha 0.1", f"{HOSTILE} \"quoted' \\ 100%_#"), methods=methods)
    found.append(fabricated.replace(found[-1], seed=9, state="failed", reason=f"{HOSTILE} out of memory", rows=()))
    folder = tmp_path_factory.mktemp("report")
    published = {"alpha 0.1": {"fedavg": "58.10 ± 0.32"}}
    report.write(fabricated.verdict(found, name=HOSTILE, about=HOSTILE, published=published), folder)
    return folder
