import json
import shutil
import subprocess
import sys

import pytest

import fedkd
from fedkd.configuration import groups
from fedkd.errors import ConfigError
from simulations.cli import completion, main


def words(line):
    return [answer.partition("\t")[0] for answer in completion.answers(line, main.VERBS)]


def test_the_first_word_is_a_verb():
    assert words("fedkd ") == list(main.VERBS)
    assert words("fedkd comp") == ["compare", "completion"]


@pytest.mark.parametrize("verb", main.VERBS)
def test_options_are_those_of_the_parser(verb):
    parser = main._parser(verb, main.VERBS[verb])
    known = {word for action in parser._actions for word in action.option_strings} - {"-h", "--help"}
    assert set(words(f"fedkd {verb} -")) == known


@pytest.mark.parametrize("group", groups.GROUPS)
def test_a_group_has_its_options(group):
    assert words(f"fedkd run {group}=") == [f"{group}={name}" for name in groups.options(group)]


def test_keys_come_below_their_node():
    assert {"strategy=", "preset=", "rounds=", "train.", "strategy."} <= set(words("fedkd run "))
    assert "comparison=" in words("fedkd compare ")
    assert "comparison=" not in words("fedkd run ")
    assert words("fedkd run rounds=3 train.opt") == ["train.optimiser="]
    assert "part.teacher.tau=" in words("fedkd run part.teacher.")


def test_keys_of_strategy_and_partition_are_those_of_the_chosen_one():
    assert "strategy.mu=" in words("fedkd run strategy=fedprox strategy.")
    assert "strategy.mu=" not in words("fedkd run strategy=fedavg strategy.")
    assert words("fedkd run partition=shards partition.sh") == ["partition.shards_per_client="]
    assert words("fedkd run preset=fedgen-mnist strategy.variant=") == [
        f"strategy.variant={name}" for name in ("reference", "code", "paper")
    ]


def test_values_are_those_of_the_type():
    assert words("fedkd run train.moments=") == ["train.moments=reset", "train.moments=keep"]
    assert words("fedkd run data.download=t") == ["data.download=true"]
    assert words("fedkd run train.clip=") == ["train.clip=null"]
    assert (
        words("fedkd run train.lr=")
        == words("fedkd run parts=")
        == words("fedkd run no.such=")
        == words("fedkd run data.root=")
        == []
    )


def test_a_list_of_values_goes_on():
    assert words("fedkd compare strategy=fedavg,fedprox,kn")[0] == "strategy=fedavg,fedprox,knfu"


def test_other_arguments_are_runs_kinds_and_actions(tmp_path):
    (tmp_path / "pilot").mkdir()
    (tmp_path / "pilot" / "run.json").write_text("{}")
    assert words(f"fedkd show --runs {tmp_path} ") == ["pilot"]
    assert words("fedkd list str") == ["strategies"]
    assert words("fedkd config sh") == ["show"]
    assert words("fedkd export pilot --format p") == ["pt2"]
    assert words("fedkd deploy run ") == []  # a folder: files
    assert "rounds=" in words("fedkd deploy run fl ")
    assert words("fedkd doctor ") == words("fedkd nonsense ") == words("fedkd run --out ") == []


def test_answers_need_nothing_heavy():
    lines = ["fedkd run strategy=", "fedkd run partition=shards partition.", "fedkd run strategy.", "fedkd run train."]
    code = "import sys; from simulations.cli import main; [main.main(['__complete', line]) for line in sys.argv[1:]]; "
    code += "assert not {'torch', 'numpy', 'pydantic', 'omegaconf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, *lines], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_asks_and_puts_in_what_follows_the_equals_sign(tmp_path):
    play = """
eval "$(fedkd completion bash)"
complete -p fedkd
ask() { COMP_LINE=$1 COMP_POINT=${#1}; _fedkd fedkd "$2"; printf '%s\\n' "${COMPREPLY[@]}" .; }
ask 'fedkd run strategy=fedpro' fedpro
ask 'fedkd run train.opt' train.opt
ask 'fedkd run no=' ''
"""
    program = f'fedkd() {{ "{sys.executable}" -m simulations.cli "$@"; }}\n'
    done = subprocess.run(["bash", "--norc", "-c", program + play], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "complete -o default -F _fedkd fedkd",
        *("fedproto", "fedprox", "."),
        *("train.optimiser=", "."),
        ".",
    ]


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_each_shell_reads_its_script(shell, capsys):
    assert main.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert text == completion.script(shell)
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=text, text=True, check=True)
    asks = {
        "bash": ('"$1" __complete "$line"', "complete -o default -F _fedkd fedkd"),
        "zsh": ('"$words[1]" __complete "', "compdef _fedkd fedkd"),
        "fish": ("fedkd __complete (commandline -cp", "complete -c fedkd -f -a '(__fedkd_complete)'"),
    }
    assert all(part in text for part in asks[shell])


def test_json_holds_the_script(capsys):
    assert main.main(["completion", "fish", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"script": completion.script("fish")}


def test_an_unknown_shell_is_an_error():
    with pytest.raises(ConfigError, match="no completion for 'csh'"):
        completion.script("csh")


def test_names_of_a_file_are_read_without_executing_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import fedkd\n@fedkd.register.student('my-net')\ndef f(shape, classes): ...\nraise SystemExit\n")
    assert words(f"fedkd run --py {path} students=my") == ["students=my-net"]
    assert words(f"fedkd run --py {path} data=my") == []


def test_installed_and_registered_names_are_offered():
    from fedkd import extensions

    with extensions.kept():
        fedkd.register.student("my-net")(lambda shape, classes: None)
        assert words("fedkd run students=my") == ["students=my-net"]
