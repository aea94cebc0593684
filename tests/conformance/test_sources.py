"""What no module may do: import across the borders, draw from a global generator, unpickle, run text as code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {  # of our own packages
    "fedkd": {"fedkd"},
    "strategies": {"fedkd"},
    "clients": {"fedkd"},
    "simulations": {"fedkd", "strategies", "clients", "simulations"},
}
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
FORBIDDEN = {
    "pickle": "crosses no border of trust",
    "random": "streams come from fedkd.seeds",
    "torch.manual_seed": "nothing seeds a global generator",
    "torch.seed": "nothing seeds a global generator",
    "torch.load": "checkpoints are safetensors",
    "eval": "text is never code",
    "exec": "text is never code",
    "np.random.seed": "nothing seeds a global generator",
    "np.random.default_rng": "streams come from fedkd.seeds",
    "np.random.RandomState": "streams come from fedkd.seeds",
}
# FedGen's published partition is what these generators gave it; instances of their own, seeded with its 42.
# The file that --py names is the user's own.
ALLOWED = {"fedkd/data/partition_recipes.py": {"random", "np.random.RandomState"}, "fedkd/extensions.py": {"exec"}}
ALLOWED["fedkd/fingerprint.py"] = {"pickle"}  # writes only, to hash what a session gives
DRAWS = {"rand", "randn", "randint", "randperm", "multinomial", "normal", "bernoulli"}  # of torch: take a generator


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """The syntax tree of each module, by its path."""
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield node.module or ""


def called(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_imports_go_down_only(trees):
    for path, tree in trees.items():
        ours = {name.split(".")[0] for name in imported(tree)} & set(MAY_IMPORT)
        face = {"simulations"} if path == "fedkd/__init__.py" else set()  # it hands `fedkd.run` and the like on, lazily
        assert ours <= MAY_IMPORT[path.split("/")[0]] | face, path


def test_nothing_forbidden_is_used(trees):
    for path, tree in trees.items():
        names = {name for name, _ in called(tree)} | {name.split(".")[0] for name in imported(tree)}
        found = {name: why for name, why in FORBIDDEN.items() if name in names - ALLOWED.get(path, set())}
        assert not found, path


def test_whoever_draws_names_its_generator(trees):
    for path, tree in trees.items():
        for name, call in called(tree):
            if name.startswith("torch.") and name.removeprefix("torch.") in DRAWS:
                assert any(keyword.arg == "generator" for keyword in call.keywords), f"{path}: {ast.unparse(call)}"
