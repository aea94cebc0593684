"""What code ran is recorded, whether or not somebody has committed it."""

import shutil
import subprocess

import pytest

from simulations.run import provenance, run_folder, runs


@pytest.fixture
def checkout(tmp_path):
    for package in ("fedkd", "strategies", "clients", "simulations", "conf"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "one.py").write_text("one = 1\n")
    (tmp_path / "simulations/run").mkdir()
    for name in ("assemble.py", "run/driver.py"):
        (tmp_path / "simulations" / name).write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    return tmp_path


def git(place, *words):
    subprocess.run(["git", "-C", str(place), *words], check=True)


def read(root):
    return provenance.decisive.__wrapped__(root), provenance.everything.__wrapped__(root)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize(
    ("place", "is_dirty"),
    [("strategies/new.py", True), ("conf/new.yaml", True), ("simulations/one.py", True), ("notes.txt", False)],
)
def test_a_file_of_ours_that_nobody_has_committed_makes_the_commit_dirty(checkout, place, is_dirty):
    clean = provenance.commit(checkout)
    assert len(clean) == 40
    (checkout / place).write_text("new = 2\n")
    assert provenance.commit(checkout) == clean + "-dirty" * is_dirty


@pytest.mark.parametrize(
    ("place", "decides", "counts"),
    [
        ("strategies/new.py", True, True),
        ("clients/one.py", True, True),
        ("simulations/run/driver.py", True, True),
        ("simulations/one.py", False, True),
        ("conf/new.yaml", False, True),
        ("notes.txt", False, False),
    ],
)
def test_the_hashes_know_every_file(checkout, place, decides, counts):
    before = read(checkout)
    (checkout / place).write_text("new = 2\n")
    assert [a != b for a, b in zip(before, read(checkout), strict=True)] == [decides, counts]


def test_a_resume_warns_of_other_files_and_not_of_another_commit():
    now = run_folder.environment()
    assert runs._code_changed({**now, "git": "other"}, now) == []
    assert runs._code_changed({**now, "deciding_code": "f" * 64}, now)[0].startswith("code ffffffffffff -> ")
    older = {key: value for key, value in now.items() if "code" not in key} | {"git": "a" * 40}
    assert runs._code_changed(older, {**now, "git": "b" * 40}) == [f"code {'a' * 12} -> {'b' * 12}"]
