"""`fedkd completion SHELL`: a script by which the shell asks `fedkd __complete LINE` for the words that fit.

An answer is a line per word: the word, a tab, what it means. None means files. Verbs and options are those of the
parser, keys those of the schema, names those of conf, installed packages and run folders. Imports nothing heavy: an
answer takes less than 0.3 s.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedkd import config, strict_yaml
from fedkd.configuration import groups, naming, plugins, reference
from fedkd.configuration.reference import Key
from fedkd.errors import ConfigError
from simulations.run.options import Options, Positional

Verbs = Mapping[str, type[Options]]
Words = Iterable[tuple[str, str]]  # each with its meaning

# readline replaces only what follows the last of COMP_WORDBREAKS, which is $2, but the answers are whole words.
_BASH = """\
_fedkd() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\\n'
    local word=${line##*[[:space:]]}
    COMPREPLY=($("$1" __complete "$line" 2>/dev/null | cut -f1))
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace 2>/dev/null
    COMPREPLY=("${COMPREPLY[@]#"${word%"$2"}"}")
}
complete -o default -F _fedkd fedkd
"""
_ZSH = """\
#compdef fedkd
_fedkd() {
    local answer word
    local -a open closed
    for answer in "${(@f)$("$words[1]" __complete "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}"; do
        word=${answer%%$'\\t'*}
        case $word in
            '') ;;
            *[=.]) open+=("${word//:/\\\\:}:${answer#*$'\\t'}") ;;
            *) closed+=("${word//:/\\\\:}:${answer#*$'\\t'}") ;;
        esac
    done
    if (( ! $#open && ! $#closed )); then
        compset -P '*='
        _files
        return
    fi
    (( ! $#closed )) || _describe -t words word closed
    (( ! $#open )) || _describe -t words word open -S ''
}
compdef _fedkd fedkd
"""
_FISH = """\
function __fedkd_complete
    set -l answers (fedkd __complete (commandline -cp | string collect) 2>/dev/null)
    if set -q answers[1]
        printf '%s\\n' $answers
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c fedkd -f -a '(__fedkd_complete)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

_NODES: Mapping[str, Any] = {
    field.name: field.default_factory
    for field in config.RunConfig.__dataclass_fields__.values()
    if is_dataclass(field.default_factory)
}
_OPEN = ("text", "list of ", "dict[")  # begin types whose values nobody can list: files, perhaps


def script(shell: str) -> str:
    """The script for a shell. Raises ConfigError."""
    if shell not in SCRIPTS:
        mend = f"must be one of: {', '.join(SCRIPTS)}"
        raise ConfigError(f"there is no completion for '{shell}'", where="command line", mend=mend)
    return SCRIPTS[shell]


def answers(line: str, verbs: Verbs) -> Iterator[str]:
    """The words that may stand at the end of `line`, the command line up to the cursor, each with its meaning."""
    *before, current = [*line.split()[1:], *([""] if line[-1:].isspace() else [])] or [""]
    for word, meaning in _words(before, current, verbs):
        if word.startswith(current):
            yield f"{word}\t{meaning}"


def _words(before: list[str], current: str, verbs: Verbs) -> Words:
    if not before:
        return [(name, verb.about()) for name, verb in verbs.items()]
    if before[0] not in verbs:
        return []
    declared = list(verbs[before[0]].declared())
    flags = {flag.word(field): (field, flag) for field, flag in declared if not isinstance(flag, Positional)}
    takes_value = {word for word, (field, flag) in flags.items() if not flag.is_switch(field)}
    if before[-1] in takes_value:
        return _choices(flags[before[-1]][1].metavar)
    if current.startswith("-"):
        return [(word, flag.help) for word, (_, flag) in flags.items()]
    given = [word for last, word in pairwise(before) if last not in takes_value and word[0] != "-"]
    metavars = [flag.metavar or "" for _, flag in declared if isinstance(flag, Positional)]
    if not metavars:
        return []
    metavar = metavars[min(len(given), len(metavars) - 1)]
    if "OVERRIDE" in metavar:
        is_folder = metavar.startswith("DIR") and len(given) < len(metavars)
        return [] if is_folder else _overrides(current, before, has_comparisons=before[0] in ("compare", "bench"))
    if metavar.startswith("RUN"):
        runs = Path(before[before.index("--runs") + 1]) if "--runs" in before else Options.runs
        return [(path.parent.name, "") for path in sorted(runs.glob("*/run.json"))]
    return [(name, "") for name in (*groups.LISTS, "runs")] if metavar == "KIND" else _choices(metavar)


def _choices(metavar: str | None) -> Words:
    """The words of `show|check|diff`."""
    return [(word, "") for word in (metavar or "").split("|")] if "|" in (metavar or "") else []


def _overrides(current: str, before: list[str], *, has_comparisons: bool) -> Words:
    """Keys or, after `=`, values. A value may follow others: `strategy=fedavg,`."""
    named = ("preset", *groups.GROUPS, *(["comparison"] if has_comparisons else []))
    key, equals, value = current.partition("=")
    if equals:
        start = f"{key}={value[: value.rfind(',') + 1]}"
        own = _of_files(key, before)
        options = [*((n, groups.about(key, n)) for n in groups.options(key)), *own]
        values = options if key in named else _values(key, before)
        return [(f"{start}{word}", meaning) for word, meaning in values]
    node, dot, _ = current.partition(".")
    if dot:
        return [(f"{node}.{key.name}=", key.comment) for key in _keys(node, before)]
    plain = [(f"{key.name}=", key.comment) for key in reference.of(config.RunConfig) if key.name not in named]
    nodes = [(f"{name}.", "") for name in ("partition", "strategy", *_NODES)]
    return [*((f"{name}=", "") for name in named), *plain, *nodes]


def _of_files(group: str, before: list[str]) -> Iterator[tuple[str, str]]:
    """The names that the files of --py register, read without executing them."""
    for path in (Path(word) for option, word in pairwise(before) if option == "--py"):
        for node in ast.walk(ast.parse(path.expanduser().read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Attribute(attr="register"), attr=kind),
                    args=[ast.Constant(value=str(name)), *_],
                ) if kind == groups.KINDS.get(group):
                    yield name, f"from {path.name}"


def _values(key: str, before: list[str]) -> Words:
    """The values that the type of a key lists."""
    if key == "strategy.variant":
        return [(variant, "") for variant in _option("strategy", _chosen("strategy", before)).get("variants", ())]
    node, _, name = key.partition(".")
    keys = _keys(node, before) if name else reference.of(config.RunConfig)
    kinds = next((found.type for found in keys if found.name == (name or key)), "text").split(" or ")
    if any(kind.startswith(_OPEN) for kind in kinds):
        return []
    words = [word for kind in kinds for word in ("true | false" if kind == "bool" else kind).split(" | ")]
    return [(word, "") for word in words if word not in ("int", "float")]


def _keys(node: str, before: list[str]) -> list[Key]:
    """The keys below a node; of `strategy` and `partition` those of the option that the line chooses."""
    if node == "strategy":
        chosen = _chosen("strategy", before)
        halves = naming.halves(_option("strategy", chosen) or plugins.settings().get(chosen, {}))
        shared = [key for key in reference.of(config.AlgorithmConfig) if key.name not in ("name", "setting")]
        return [*shared, *(reference.of_halves(*halves) or [])]
    if node == "partition":
        return reference.of_recipe(_chosen("partition", before))
    return list(reference.nested(_NODES[node])) if node in _NODES else []


def _chosen(group: str, before: list[str]) -> str:
    """The option of a group that the line chooses, itself or by a preset; else that of conf/config.yaml."""
    chosen = str(_read(groups.CONF / "config.yaml").get(group, ""))
    for key, _, value in (word.partition("=") for word in before):
        if key == group:
            chosen = value
        elif key == "preset":
            chosen = str(_option("preset", value).get(group, chosen))
    return chosen


def _option(group: str, name: str) -> Mapping[str, Any]:
    return _read(groups.CONF / group / f"{name}.yaml") if name in groups.files(group, groups.CONF) else {}


def _read(path: Path) -> Mapping[str, Any]:
    content = strict_yaml.read(path.read_text(encoding="utf-8"), path.name).plain
    return content if isinstance(content, dict) else {}
