import importlib
import json
import os
import signal
import subprocess
import sys
import types
from dataclasses import make_dataclass
from pathlib import Path

import pytest

import fedkd
from fedkd.configuration import compose, groups, reference, validate
from fedkd.errors import CheckpointError, ConfigError, DataError, EngineError, FolderError, RunError
from simulations.bench import costs
from simulations.cli import ending, main
from simulations.run.options import Options, Run

ROOT = Path(main.__file__).parents[2]
HEAVY = ("torch", "ray", "flwr", "torchvision", "tensorboard", "scipy", "matplotlib", "sklearn")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def played(monkeypatch):
    """Stands in for the module of runs; says what it was asked."""
    calls = []

    def start(resolved, **rest):
        calls.append((resolved, rest))
        return {"run": "runs/x", "status": "done"}

    def resume(path, **rest):
        calls.append((path, rest))
        return {"run": "runs/x", "status": "done"}

    replace(monkeypatch, "run.runs", start=start, resume=resume, exit_code=lambda found: 0)
    return calls


def replace(monkeypatch, name, **functions):
    """Put another module in the place of simulations.NAME."""
    module = types.ModuleType(f"simulations.{name}")
    vars(module).update(functions)
    room, _, basename = f"simulations.{name}".rpartition(".")
    monkeypatch.setitem(sys.modules, f"simulations.{name}", module)
    monkeypatch.setattr(importlib.import_module(room), basename, module, raising=False)


def fails_with(monkeypatch, error):
    def start(resolved, **rest):
        raise error

    replace(monkeypatch, "run.runs", start=start)


def in_a_process(code, *args):
    """Runs Python in an empty process; gives what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("verb", [None, *main.VERBS])
def test_every_verb_has_help_with_examples(verb, capsys):
    assert main.main(["--help"] if verb is None else [verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert "fedkd" in shown
    if verb:
        for option in ("--runs", "--name", "--out", "--json", "--quiet", "--verbose", "--debug"):
            assert option in shown
        for example in main.VERBS[verb].examples:
            assert example in shown
    else:
        assert all(f"  {name}" in shown for name in main.VERBS)


def test_no_words_at_all_give_help_and_version_its_number(capsys):
    assert main.main([]) == 0
    assert "usage:" in capsys.readouterr().out
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fedkd 0.")
    assert main.main(["--version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": fedkd.__version__}


def test_examples_of_run_and_config_are_valid(capsys):
    for verb in ("run", "partition", "bench"):
        for example in main.VERBS[verb].examples:
            words = [word for word in example.split("#")[0].split()[2:] if "=" in word]
            if costs.has_several(words):
                assert len(costs.check(words).methods) > 1, example
                continue
            assert main.main(["config", "check", *words]) == 0, example
    assert main.main(["config", "schema", "strategy=fedgen"]) == 0


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["nix"]])
def test_help_imports_nothing_heavy(args):
    code = "import sys; from simulations.cli import main as cli; cli.main(sys.argv[1:])\n"
    code += f"print([name for name in {('numpy', 'pydantic', *HEAVY)!r} if name in sys.modules])"
    allowed = "['pydantic']" if args == ["nix"] else "[]"
    assert in_a_process(code, *args).splitlines().count(allowed) == 1


def test_an_error_of_configuration_imports_nothing_heavy():
    words = ["rounds=0", "stratgy.bta=1", "strategy.bta=1", "data=mnst", "rounds=${x}", "missing.yaml", "strategy=nix"]
    code = "import sys; from simulations.cli.main import main; print([main(['run', word]) for word in sys.argv[1:]])\n"
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    lines = in_a_process(code, *words).splitlines()
    assert str([2] * len(words)) in lines
    assert "[]" in lines
    assert sum(line.startswith("error  config: ") for line in lines) == len(words)


def test_words_and_options_may_mix(played, tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("seed: 5\n")
    args = ["run", "my.yaml", "--name", "pilot", "rounds=3", "--runs", "elsewhere", "seed=7", "--json"]
    assert main.main(args) == 0
    resolved, rest = played[0]
    assert (resolved.config.rounds, resolved.config.seed) == (3, 7)
    assert rest["name"] == "pilot"
    assert rest["runs"] == Path("elsewhere")
    assert rest["out"] is None
    words = ("my.yaml", "rounds=3", "seed=7")
    assert rest["options"] == Run(runs=Path("elsewhere"), name="pilot", json=True, overrides=words)
    assert json.loads(capsys.readouterr().out) == {"run": "runs/x", "status": "done"}


def test_without_json_stdout_is_left_to_the_screen(played, capsys):
    assert main.main(["run"]) == 0
    assert capsys.readouterr().out == "starting: loading PyTorch\n"


def test_a_mistake_is_told_before_anything_starts(capsys):
    assert main.main(["run", "rounds=0"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "must be at least 1" in shown.err


def test_short_options_are_words(played):
    assert main.main(["run", "engine=ray", "--debug", "--download"]) == 0
    config = played[0][0].config
    assert config.engine.name == "inline"
    assert config.data.download is True


def test_the_exit_code_is_that_of_the_run(monkeypatch):
    replace(monkeypatch, "run.runs", start=lambda *args, **rest: {"status": "stopped"}, exit_code=lambda found: 130)
    assert main.main(["run"]) == 130


def test_resume_without_a_run_leaves_the_choice(played):
    assert main.main(["resume"]) == 0
    assert played[0][0] is None


def test_resume_finds_a_run_by_the_beginning_of_its_name(played, tmp_path):
    (tmp_path / "runs" / "1124-1830-x").mkdir(parents=True)
    (tmp_path / "runs" / "1124-1830-x" / "run.json").write_text("{}")
    assert main.main(["resume", "1124"]) == 0
    assert played[0][0] == Path("runs/1124-1830-x")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (DataError("x"), 3),
        (EngineError("x"), 3),
        (RunError("x"), 4),
        (FolderError("x"), 5),
        (CheckpointError("x"), 6),
        (KeyboardInterrupt(), 130),
        (ending.Terminated(), 143),
        (ZeroDivisionError("x"), 1),
        (MemoryError(), 3),
    ],
)
def test_each_kind_of_error_has_its_exit_code(monkeypatch, capsys, error, code):
    fails_with(monkeypatch, error)
    assert main.main(["run"]) == code
    shown = capsys.readouterr()
    assert shown.out == "starting: loading PyTorch\n"
    assert "Traceback" not in shown.err
    assert len(shown.err.splitlines()) <= 2


def test_a_bug_says_how_to_report_it(monkeypatch, capsys):
    fails_with(monkeypatch, ZeroDivisionError("division by zero"))
    assert main.main(["run"]) == 1
    shown = capsys.readouterr().err
    assert "error  internal: ZeroDivisionError: division by zero" in shown
    assert "--debug" in shown
    assert "report" in shown


def test_debug_shows_the_traceback(monkeypatch, capsys):
    fails_with(monkeypatch, ConfigError("x"))
    assert main.main(["run", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_errors_have_the_documented_form(capsys):
    assert main.main(["run", "rounds=0"]) == 2
    assert capsys.readouterr().err == "error  config: rounds = 0 (command line)\n       must be at least 1\n"
    assert main.main(["run", "--nix"]) == 2
    assert "unrecognized arguments: --nix (command line)\n       fedkd run --help" in capsys.readouterr().err
    assert main.main(["run", "--rounds", "3"]) == 2
    assert "write rounds=VALUE   fedkd run --help" in capsys.readouterr().err
    assert main.main(["rnu"]) == 2
    assert "did you mean 'run'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (
            DataError("no such file", where="x.npz", mend="look"),
            {"message": "no such file", "where": "x.npz", "code": 3},
        ),
        (KeyboardInterrupt(), {"message": "stopped by Ctrl-C", "code": 130}),
        (ending.Terminated(), {"message": "stopped terminated", "code": 143}),
        (
            ZeroDivisionError("division by zero"),
            {"message": "internal: ZeroDivisionError: division by zero", "code": 1},
        ),
    ],
)
def test_with_json_an_error_is_the_one_object(monkeypatch, capsys, error, found):
    fails_with(monkeypatch, error)
    assert main.main(["run", "--json"]) == found["code"]
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"].items() >= found.items()
    assert found["message"].removeprefix("stopped ") in shown.err


def test_with_json_several_mistakes_are_listed(capsys):
    assert main.main(["run", "rounds=0", "clients=0", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert [mistake["what"] for mistake in error["mistakes"]] == ["rounds = 0", "clients = 0"]
    assert main.main(["run", "--nix", "--json"]) == 2  # nothing could be parsed
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "unrecognized arguments: --nix"


def test_with_json_what_is_not_finite_is_null(capsys):
    Options(json=True).answer({"a": [float("nan"), {"b": float("inf")}], "c": 1.5})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": [None, {"b": None}], "c": 1.5}


def test_a_word_that_is_missing_is_shown_in_the_very_command_to_paste(capsys):
    assert main.main(["run", "strategy=knfu", "--name", "my run"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "       fedkd run strategy=knfu --name 'my run' proxy=held-out"
    assert main.main(["run", "strategy=knfu", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["command"] == "fedkd run strategy=knfu --json proxy=held-out"


def test_an_option_that_other_platforms_have_is_answered_with_our_word(capsys):
    assert main.main(["run", "--num-rounds", "5"]) == 2
    assert "write rounds=N   fedkd run --help" in capsys.readouterr().err


def test_sigterm_ends_like_ctrl_c_with_its_own_code(monkeypatch):
    def start(resolved, **rest):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    replace(monkeypatch, "run.runs", start=start)
    before = signal.getsignal(signal.SIGTERM)
    assert main.main(["run"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert issubclass(ending.Terminated, KeyboardInterrupt)  # so code that saves on Ctrl-C saves now, too


def test_a_pipe_that_closes_is_no_error():
    command = f"{sys.executable} -m simulations.cli config schema | head -n 1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_list_shows_each_option_with_its_first_line(capsys):
    assert main.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(group in shown for group in groups.LISTS)
    assert "FedGen: distils the clients' heads" in shown
    assert "variants: " in shown
    assert main.main(["list", "data", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["data"]
    assert {"name": "digits", "about": rows[[row["name"] for row in rows].index("digits")]["about"]} in rows
    assert main.main(["list", "strategis"]) == 2
    assert "did you mean 'strategies'?" in capsys.readouterr().err


def test_list_runs_shows_name_and_state(tmp_path, capsys):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "run.json").write_text('{"state": "done", "strategy": "fedgen"}')
    assert main.main(["list"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:-1] == ["runs"]
    assert main.main(["list", "runs"]) == 0
    assert capsys.readouterr().out.split()[:3] == ["one", "done", "fedgen"]
    assert main.main(["list", "runs", "--runs", "none"]) == 0
    assert capsys.readouterr().out == "none yet\n"


def test_config_show_gives_text_and_json(capsys):
    assert main.main(["config", "show", "rounds=3"]) == 0
    shown = capsys.readouterr().out
    assert "rounds: 3 " in shown
    assert "# command line" in shown
    assert main.main(["config", "show", "rounds=3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["rounds"] == 3
    assert found["sources"]["rounds"] == "command line"
    assert found["digest"] in shown


def test_config_check_says_ok_or_what_is_wrong(capsys):
    assert main.main(["config", "check", "rounds=3"]) == 0
    assert capsys.readouterr().out.startswith("ok  config  ")
    assert main.main(["config", "check", "rounds=0"]) == 2
    assert main.main(["config", "chek"]) == 2
    assert "did you mean 'check'?" in capsys.readouterr().err


def test_config_diff_compares_folders_files_and_words(tmp_path, capsys):
    from fedkd.configuration import compose

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text(compose.resolve(["rounds=3"]).to_yaml())
    (tmp_path / "b.yaml").write_text("rounds: 4\nengine: ray\n")
    assert main.main(["config", "diff", "a", "b.yaml"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["rounds", "3", "4"],
        ["engine.name", "auto", "ray"],
    ]
    assert main.main(["config", "diff", "a", "b.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"][0] == {"key": "rounds", "left": 3, "right": 4}
    assert found["same_results"] is False
    assert main.main(["config", "diff", "a", "rounds=3"]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main.main(["config", "diff", "a"]) == 2


def test_config_schema_shows_the_nodes_that_are_named(capsys):
    assert main.main(["config", "schema", "strategy=fedprox"]) == 0
    shown = capsys.readouterr().out
    assert "strategy.mu" in shown
    assert "float >= 0" in shown
    assert "pull towards the received weights" in shown
    assert "train.lr" not in shown
    assert main.main(["config", "schema", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["keys"]]
    written = [key for key in compose.resolve([]).values() if not key.startswith(("partition.", "strategy."))]
    assert {*written, "partition.alpha", "strategy.name"} <= set(names)


def test_config_schema_refuses_halves_that_declare_a_key_differently(monkeypatch, capsys):
    monkeypatch.setattr(reference, "of_half", lambda half, name: [reference.Key("pull", "float", "", half, "")])
    fields = [("pull", float, 1.0)], [("pull", float, 2.0)]
    server, client = (make_dataclass("Config", each, frozen=True, kw_only=True) for each in fields)
    monkeypatch.setattr(validate.plugins, "strategy", lambda name: types.SimpleNamespace(Config=server))
    monkeypatch.setattr(validate.plugins, "client", lambda name: types.SimpleNamespace(Config=client))
    assert main.main(["config", "schema", "strategy=fedgen"]) == 2
    assert "strategy fedgen and client fedgen both have the key 'pull'" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["show", "check", "diff"])
def test_a_config_of_another_version_says_so_once(tmp_path, capsys, action):
    place = tmp_path / "old" / "config.yaml"
    place.parent.mkdir()
    text = compose.resolve(["strategy=fedd2s"]).to_yaml()
    gone = "  tap_dtype: half  # default (schema)\n  tap_noise: 0.0  # default (schema)\n"
    place.write_text(text.replace("  client: fedd2s", f"{gone}  client: fedd2s") + "roundz: 3\n")
    assert main.main(["config", action, str(place), *([str(place)] if action == "diff" else ()), "--json"]) == 2
    first, second = json.loads(capsys.readouterr().out)["error"]["mistakes"]
    assert first["what"].endswith("with keys that this version does not have: strategy.tap_dtype, strategy.tap_noise")
    assert first["where"] == str(place)
    assert first["mend"] == "delete the lines of these keys in a copy, or use that version"
    assert second["what"] == "unknown key 'roundz'"  # no run wrote this line


def test_config_schema_refuses_a_node_that_does_not_exist(capsys):
    assert main.main(["config", "schema", "trian=1"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err


def test_partition_shows_the_split_and_trains_nothing(tmp_path, capsys):
    assert main.main(["partition", "clients=4", "partition.min_samples=5"]) == 0
    shown = capsys.readouterr()
    assert "client" in shown.out
    assert (tmp_path / "partition.png").stat().st_size > 1000
    assert "picture partition.png" in shown.err


def test_partition_json_counts_every_image_once(tmp_path, capsys):
    assert main.main(["partition", "clients=4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["train"]) == 1442
    assert [sum(row) for row in found["labels"]] == found["train"]
    assert list(tmp_path.iterdir()) == []


def test_partition_is_that_of_the_run(capsys):
    from fedkd.configuration import compose
    from simulations import assemble

    assert main.main(["partition", "clients=4", "seed=3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    split = assemble.assemble(compose.resolve(["clients=4", "seed=3"]).config).partition
    assert found["train"] == [len(index) for index in split.train]
    assert found["test"] == [len(index) for index in split.test]


@pytest.mark.parametrize("verb", ["doctor", "bench"])
def test_other_verbs_are_passed_on(monkeypatch, verb):
    asked = []
    module = {"doctor": "cli.doctor", "bench": "bench.command"}[verb]
    replace(monkeypatch, module, main=lambda *args: asked.append(args) or 3)
    assert main.main([verb, *(["rounds=2"] if verb == "bench" else []), "--json"]) == 3
    assert asked[0][0].json
    assert list(asked[0][1:]) == ([("rounds=2",), None] if verb == "bench" else [])
