"""Checks plain values against the schema classes: all mistakes at once, each with its source and a way to mend it."""

import dataclasses
import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from fedkd import extensions, strict_yaml
from fedkd.config import METRICS, AlgorithmConfig, RunConfig
from fedkd.configuration import foreign_words, plugins, reference
from fedkd.errors import ConfigError, Mistake

Path = tuple[str, ...]
Checked = tuple[Any, list[Mistake]]  # the checked value with all defaults filled in, or None; and what is wrong

_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)
_MESSAGES = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text; if it is, quote it",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping of keys",
    "list_type": "must be a list, like '[a, b]'",
    "mixture_type": "must be a mapping or a list, like '{{mlp: 0.5, lenet5: 0.5}}' or '[mlp, lenet5]'",
    "dataclass_type": "must be a mapping of keys",
}


@dataclass(frozen=True)
class Draft:
    """An unchecked configuration: nested plain values, and the source of each."""

    values: Mapping[str, Any]
    sources: Mapping[Path, str] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)  # group -> the chosen option of conf

    def source(self, path: Path) -> str:
        """The source of `path`, else of the first value below it, else of the value that contains it."""
        below = (source for at, source in self.sources.items() if at[: len(path)] == path)
        around = (source for at, source in self.sources.items() if path[: len(at)] == at)
        return self.sources.get(path) or next(below, "") or next(around, "")

    def show(self, path: Path) -> str:
        """`rounds = 0`."""
        value: Any = self.values
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else value
        return f"{'.'.join(path)} = {strict_yaml.write(value)}"

    def mistake(self, path: Path, mend: str) -> Mistake:
        return Mistake(self.show(path), self.source(path), mend)

    def name(self, group: str) -> str:
        """The `name` of a group's node, or empty text."""
        node = self.values.get(group)
        name = node.get("name") if isinstance(node, Mapping) else None
        return name if isinstance(name, str) else ""


def check_run(draft: Draft) -> Checked:
    """Checks all except for the values of the algorithm's halves, without torch. Returns a RunConfig."""
    core, mistakes = check(RunConfig, draft, ())
    recipe, more = _check_partition(draft)
    mistakes += more + _check_data_name(draft) + _check_algorithm_names(draft)
    mistakes = mistakes or _crossed(core, draft)
    return None if mistakes else dataclasses.replace(core, partition={"name": "", **plain(recipe)}), mistakes


def unknown_options(draft: Draft, known: Mapping[str, tuple[str, ...]]) -> Iterator[Mistake]:
    """Mistakes for values that name unknown students or public sets; `known` are the options of both groups."""
    students: Mapping[str, Any] = draft.values.get("students", {})
    named: list[tuple[Path, Any]] = [
        (("students", "name"), students.get("name")),
        (("proxy", "name"), draft.name("proxy")),
    ]
    mix = students.get("mix")
    named += [(("students", "mix"), name) for name in (mix if isinstance(mix, dict | list) else ())]
    for path, name in named:
        if isinstance(name, str) and name.startswith(extensions.LIBRARIES):
            continue  # only the library can say
        if known[path[0]] and name and isinstance(name, str) and name not in known[path[0]]:
            what = f"students.mix names {strict_yaml.write(name)}" if path[1] == "mix" else draft.show(path)
            yield Mistake(what, draft.source(path), one_of(name, known[path[0]]))


def check_strategy(draft: Draft) -> Checked:
    """Checks the node `strategy` against the Configs of its two halves, which it imports. Returns the complete node."""
    node: Mapping[str, Any] = draft.values["strategy"]
    shared, mistakes = check(AlgorithmConfig, draft, ("strategy",), only=_names(AlgorithmConfig))
    if mistakes:
        return None, mistakes
    classes: tuple[type[Any], ...] = (AlgorithmConfig, *halves(shared.name, shared.client))
    known = list(dict.fromkeys(name for cls in classes for name in _names(cls)))
    mistakes = [unknown_key(("strategy", key), draft, known) for key in node if key not in known]
    complete: dict[str, Any] = {}
    for cls in classes:
        value, more = check(cls, draft, ("strategy",), only=_names(cls))
        mistakes += more
        complete |= plain(value) if value is not None else {}
    mistakes = list(dict.fromkeys(mistakes))  # once for a key of both halves
    return (None if mistakes else complete), mistakes


def check(cls: type[Any], draft: Draft, prefix: Path, only: list[str] | None = None) -> Checked:
    """Checks the node at `prefix`, or its keys `only`, against a dataclass and its nested dataclasses."""
    node: Any = draft.values
    for part in prefix:
        node = node[part]
    known, strangers = _sift(cls, _part(node, only) if only is not None else node, prefix)
    mistakes = [unknown_key(path, draft) for path in strangers]
    try:
        adapter = _adapter(cls)
        value = adapter.validate_json(json.dumps(known), strict=True)
        # Validated again: defaults are not yet checked, and `alpha: float = 10` must become 10.0, as it reads back.
        return (None if mistakes else adapter.validate_json(adapter.dump_json(value), strict=True)), mistakes
    except ValidationError as error:
        return None, mistakes + [_translate(e, draft, prefix) for e in _of_branch(error.errors())]


def plain(value: Any) -> dict[str, Any]:
    """A schema instance as dictionaries and lists."""
    made: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(value)))
    return made


def nearest(word: Any, known: Iterable[str]) -> str | None:
    """The known word that `word` may mean, as a typing error or as another platform's name."""
    known = list(known)
    if isinstance(word, str) and (ours := foreign_words.option(word)) in known:
        return ours
    return next(iter(difflib.get_close_matches(word, known, n=1)), None) if isinstance(word, str) else None


def one_of(word: Any, known: Iterable[str]) -> str:
    """How to mend an unknown choice."""
    known = list(known)
    close = nearest(word, known)
    return (f"did you mean '{close}'?   " if close else "") + f"must be one of: {', '.join(known) or '(there is none)'}"


def unknown_key(path: Path, draft: Draft, allowed: list[str] | None = None) -> Mistake:
    """The mistake for an unknown key: names the likely key and the allowed ones."""
    if (hint := foreign_words.hint(path[-1])) and len(path) == 1:
        return Mistake(f"unknown key '{path[0]}'", draft.source(path), f"{hint}   fedkd config schema")
    meant, node = _meant(path, draft, allowed)
    names = allowed if allowed is not None and node == path[:-1] else _keys(node, draft)
    group = node[0] if node and node[0] in ("strategy", "partition") else ""
    hint = f"did you mean {meant}?   " if meant else f"{hint}   " if hint else ""
    names = [name for name in names if name != "setting"]  # only in written files: strategy=NAME chooses it
    here = f"allowed here: {', '.join(names)}   " if names else ""
    choice = f" {group}={draft.choices.get(group) or draft.name(group)}" if group else ""
    return Mistake(f"unknown key '{'.'.join(path)}'", draft.source(path), f"{hint}{here}fedkd config schema{choice}")


def _meant(path: Path, draft: Draft, allowed: list[str] | None) -> tuple[str, Path]:
    """The likely meaning of `path`, quoted, and the deepest node up to which it is valid."""
    node: Path = ()
    for depth, part in enumerate(path):
        names = allowed if allowed is not None and node == path[:-1] else _keys(node, draft)
        close = part if part in names else nearest(part, names)
        if close is None:
            return " or ".join(_elsewhere(part, draft)) if len(path) == 1 else "", node
        if depth == len(path) - 1:
            return f"'{'.'.join((*node, close))}'", node
        node += (close,)
    return "", node


def places(path: Path, draft: Draft) -> list[str]:
    """The places of a key: as written, or below each node that has a key of that name."""
    if all(part in _keys(path[:depth], draft) for depth, part in enumerate(path)):
        return [".".join(path)]
    return [place.strip("'") for place in _elsewhere(path[0], draft)] if len(path) == 1 else []


def _elsewhere(key: str, draft: Draft) -> Iterator[str]:
    """The places of a key that was written without its node."""
    for node in _keys((), draft):
        if key in _keys((node,), draft):
            yield f"'{node}.{key}'"


def _keys(path: Path, draft: Draft) -> list[str]:
    """The keys below `path` that are known without importing torch."""
    if not path:
        return _names(RunConfig)
    if path == ("strategy",):
        return _names(AlgorithmConfig) + (_static_names(draft) or [])
    if path == ("partition",):
        recipe = _recipes().get(draft.name("partition"))
        return _names(recipe) if recipe else ["name"]
    cls: Any = RunConfig
    for part in path:
        cls = _nested(cls).get(part)
    return _names(cls) if cls else []


def _sift(cls: type[Any], node: Mapping[str, Any], prefix: Path) -> tuple[dict[str, Any], list[Path]]:
    """The keys in the schema, and the paths of the others."""
    known: dict[str, Any] = {}
    strangers: list[Path] = []
    nested = _nested(cls)  # type: ignore[arg-type]
    for key, value in node.items():
        path, below = (*prefix, key), nested.get(key)
        if key not in _names(cls):
            strangers += _leaves(value, path)
        elif below and isinstance(value, Mapping):
            known[key], more = _sift(below, value, path)
            strangers += more
        else:
            known[key] = value
    return known, strangers


def _leaves(value: Any, path: Path) -> list[Path]:
    if not isinstance(value, Mapping) or not value:
        return [path]
    return [leaf for key, below in value.items() for leaf in _leaves(below, (*path, key))]


def _of_branch(errors: Iterable[Any]) -> Iterator[Any]:
    """For union types, keep the errors of the branch that the user wrote, at the path that the user sees."""
    for error in errors:
        loc = error["loc"]
        tag = next((part for part in loc if str(part).startswith(("dict[", "list[", "literal["))), None)
        if tag is not None and tag.startswith("literal["):
            if not isinstance(error["input"], list):
                yield {**error, "loc": loc[:-1]}
        elif tag is None:
            yield error
        elif loc[-1] != tag:
            yield {**error, "loc": tuple(part for part in loc if part != tag)}
        elif tag.startswith("dict[") and not isinstance(error["input"], dict | list):
            yield {**error, "loc": loc[:-1], "type": "mixture_type"}


def _translate(error: Any, draft: Draft, prefix: Path) -> Mistake:
    """Turn an error of pydantic into a Mistake."""
    path = prefix + tuple(str(part) for part in error["loc"])
    key, kind, context = ".".join(path), error["type"], error.get("ctx", {})
    if kind == "missing":
        return Mistake(f"{key} is missing", draft.source(prefix), "give it a value")
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", context["expected"])
        mend = one_of(error["input"], options) if options else f"must be {context['expected']}"
    else:
        limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in context.items()}
        mend = _MESSAGES[kind].format(**limits) if kind in _MESSAGES else error["msg"]
    return Mistake(f"{key} = {strict_yaml.write(error['input'])}", draft.source(path), mend)


def _check_partition(draft: Draft) -> Checked:
    recipe = _recipes().get(draft.name("partition"))
    if recipe is None:
        return None, [draft.mistake(("partition", "name"), one_of(draft.name("partition"), _recipes()))]
    return check(recipe, draft, ("partition",))


def _check_data_name(draft: Draft) -> list[Mistake]:
    from fedkd.data import sources

    name = draft.name("data") or RunConfig().data.name
    return [] if name in sources.names() else [draft.mistake(("data", "name"), one_of(name, sources.names()))]


def _check_algorithm_names(draft: Draft) -> list[Mistake]:
    """Checks that both halves exist, and their keys, as far as their source shows it without an import."""
    node = draft.values["strategy"]
    mistakes = []
    places: tuple[tuple[str, plugins.Half], ...] = (("name", "strategies"), ("client", "clients"))
    for key, half in places:
        name = node.get(key, "supervised" if key == "client" else "")
        if not isinstance(name, str) or (name not in plugins.modules(half) and name not in plugins.names(half)):
            mistakes.append(draft.mistake(("strategy", key), one_of(name, plugins.names(half))))
    static = None if mistakes else _static_names(draft)
    if static is None:
        return mistakes
    known = _names(AlgorithmConfig) + static
    return [unknown_key(("strategy", key), draft) for key in node if key not in known]


def _crossed(config: RunConfig, draft: Draft) -> list[Mistake]:
    """Mistakes between several values."""
    cohort = config.clients_per_round or config.clients
    mistakes = list(_public_set(config, draft))
    if cohort > config.clients:
        mistakes.append(draft.mistake(("clients_per_round",), f"must be at most clients = {config.clients}"))
    elif config.quorum > cohort:
        mistakes.append(draft.mistake(("quorum",), f"must be at most the {cohort} clients of a round"))
    if config.evaluate.clients > config.clients:
        mistakes.append(draft.mistake(("evaluate", "clients"), f"must be at most clients = {config.clients}"))
    if config.train.warmup >= config.rounds:
        mistakes.append(draft.mistake(("train", "warmup"), f"must be below rounds = {config.rounds}"))
    known = (*METRICS, *extensions.names("metric"))
    for name in config.evaluate.metrics:
        if name not in known:
            what = f"evaluate.metrics names {strict_yaml.write(name)}"
            mistakes.append(Mistake(what, draft.source(("evaluate", "metrics")), one_of(name, known)))
    if config.train.nesterov and not config.train.momentum:
        mistakes.append(draft.mistake(("train", "nesterov"), "needs momentum: add train.momentum=0.9"))
    mix = config.students.mix
    if isinstance(mix, list) and len(mix) != config.clients:
        mend = f"must be one student per client, {config.clients} in all, or shares: '{{mlp: 0.5, lenet5: 0.5}}'"
        mistakes.append(draft.mistake(("students", "mix"), mend))
    from fedkd.data import image_spec  # late: needs numpy, which --help does not

    return mistakes + [draft.mistake(("data", key), mend) for key, mend in image_spec.problems(config.data)]


def _public_set(config: RunConfig, draft: Draft) -> Iterator[Mistake]:
    """The mistake of a strategy in our own package that needs public images, if the configuration names none."""
    name = config.strategy["name"]
    if config.proxy.name == "none" and reference.traits(name).get("proxy") == "yes":
        what = f"strategy '{name}' needs a public set of samples, and proxy is none"
        mend = "add proxy=held-out, proxy=unused or another source: fedkd list proxies"
        yield Mistake(what, "proxy", mend, add="proxy=held-out")


def _static_names(draft: Draft) -> list[str] | None:
    """The keys of both halves, read from their source; None if they need an import."""
    node = draft.values.get("strategy", {})
    keys = reference.of_halves(str(node.get("name")), str(node.get("client", "supervised")))
    return None if keys is None else [key.name for key in keys]


def halves(strategy: str, client: str) -> tuple[type[Any], type[Any]]:
    """The Config classes of both halves, which it imports.

    Raises ConfigError if a class is no schema, or if both declare a shared key differently.
    """
    classes = (plugins.strategy(strategy).Config, plugins.client(client).Config)
    for cls in classes:
        _check_schema(cls)
    declared: dict[str, Any] = {}
    for name, declaration in (pair for cls in (AlgorithmConfig, *classes) for pair in _declared(cls)):
        if declared.setdefault(name, declaration) != declaration:
            what = f"strategy {strategy} and client {client} both have the key '{name}' and declare it differently"
            raise ConfigError(what, mend="give it the same type, range and default in both Config classes")
    return classes


def _check_schema(cls: type[Any]) -> None:
    """Raises ConfigError for a Config class that an algorithm's author must mend."""
    owners = [owner for owner in reversed(cls.__mro__) if owner is not object]
    for owner in owners:
        if "__dataclass_fields__" not in vars(owner) and (owner is cls or inspect.get_annotations(owner)):
            what = f"{owner.__qualname__} is no dataclass, so its keys would be lost"
            raise ConfigError(what, where=owner.__module__, mend="put @dataclass(frozen=True, kw_only=True) above it")
    try:
        get_type_hints(cls)  # pydantic only defers an unknown name
        _adapter(cls)  # type: ignore[arg-type]
    except (NameError, PydanticUserError):
        for owner in owners:
            for key in inspect.get_annotations(owner):
                _check_annotation(owner, key)
        raise


def _check_annotation(owner: type[Any], key: str) -> None:
    """Raises ConfigError if the type of a key has no meaning."""
    probe = type(owner.__name__, (), {"__annotations__": {key: inspect.get_annotations(owner)[key]}})
    probe.__module__ = owner.__module__
    try:
        TypeAdapter(get_type_hints(probe, include_extras=True)[key])
    except (NameError, PydanticUserError) as error:
        what = f"{owner.__qualname__} declares the key '{key}' with a type that cannot be checked: {error}"
        mend = "import the names of that type in its module; a key is a number, text, bool, list, mapping or Literal"
        raise ConfigError(what.splitlines()[0], where=owner.__module__, mend=mend) from error


def _declared(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    """The keys of a dataclass, each with its type, range and default."""
    hints = get_type_hints(cls, include_extras=True)
    yield from ((f.name, (hints[f.name], f.default, f.default_factory)) for f in dataclasses.fields(cls))


def _recipes() -> Mapping[str, type[Any]]:
    from fedkd.data import partition  # late: NumPy takes a third of an error's time

    return partition.known()


def _part(node: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key in keys}


def _names(cls: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


@cache
def _nested(cls: Any) -> dict[str, type[Any]]:
    """The fields of a dataclass whose types are dataclasses."""
    hints = get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
    return {name: kind for name, kind in hints.items() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}
