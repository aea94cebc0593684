"""Composes a configuration from groups, presets, files and the command line: later wins, each value has its source.

All of these share one grammar, a list of entries `key: value`:
- `strategy: fedgen` makes conf/strategy/fedgen.yaml the new base of that group; a mapping with a `name` is a base too
- `preset: fedgen-mnist` inserts the entries of conf/preset/fedgen-mnist.yaml in its place
- any other key, dotted or nested, sets a value
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedkd import errors, plain_text, strict_yaml
from fedkd.config import RunConfig, StudentsConfig
from fedkd.configuration import hinting, naming, validate
from fedkd.configuration.groups import CONF, GROUPS, KINDS, files, is_foreign, options, origin, users
from fedkd.configuration.resolved import DEFAULT, Resolved
from fedkd.errors import ConfigError, Mistake
from fedkd.strict_yaml import Value

COMMAND_LINE = "command line"

_STUDENT_KEYS = {field.name for field in fields(StudentsConfig)}
_VARIANT = ("strategy", "variant")
_SETTING = ("strategy", "setting")
_MOST_PRESETS = 20  # nested; more is a circle


@dataclass(frozen=True)
class Entry:
    """One `key: value` as written."""

    path: validate.Path
    value: Any  # plain; a mapping without a name is split into entries
    source: str

    @property
    def is_choice(self) -> bool:
        """Whether it gives a group a new base."""
        return len(self.path) == 1 and self.path[0] in GROUPS


Layer = list[Entry]  # the entries of one place, applied in this order: groups, the variant, values


@dataclass
class _Tree:
    """The configuration under construction; a leaf is (value, source)."""

    conf: Path
    leaves: dict[validate.Path, tuple[Any, str]] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    base: dict[validate.Path, tuple[Any, str]] = field(default_factory=dict)  # the strategy's leaves without a variant
    variants: dict[str, Layer] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)  # groups whose chosen option does not exist

    def value(self, path: validate.Path) -> Any:
        return self.leaves.get(path, (None, ""))[0]

    def set(self, entry: Entry) -> None:
        path = entry.path
        for other in [p for p in self.leaves if p[: len(path)] == path or path[: len(p)] == p]:
            del self.leaves[other]
        self.leaves[path] = (entry.value, entry.source)


@dataclass(frozen=True)
class Composed:
    """The configuration of some overrides, checked as far as possible without torch; `resolve` checks the rest."""

    draft: validate.Draft
    config: Any  # a RunConfig whose strategy is unchecked, or None
    mistakes: Sequence[Mistake]
    conf: Path

    def resolve(self, announce: Callable[[], None] = lambda: None) -> Resolved:
        """The configuration. `announce` is called before torch is imported. Raises ConfigError with all mistakes."""
        draft, choices = self.draft, self.draft.choices
        if self.mistakes and not _has_own_strategy_values(draft, self.mistakes):
            _raise(self.mistakes)
        announce()
        strategy, more = validate.check_strategy(draft)
        _raise([*self.mistakes, *more])
        sources = {".".join(path): source for path, source in draft.sources.items()}
        name = strategy["setting"] = setting_of(
            strategy, choices.get("strategy") or strategy["setting"] or "", conf=self.conf
        )
        is_known = name in options("strategy", conf=self.conf)
        sources["strategy.setting"] = f"conf/strategy/{name}.yaml" if is_known else "its halves"
        return Resolved.of(replace(self.config, strategy=strategy), sources, choices)


def resolve(args: Sequence[str], *, conf: Path | None = None, announce: Callable[[], None] = lambda: None) -> Resolved:
    """The configuration of a command line's overrides, on top of conf/config.yaml.

    Errors: ConfigError with all mistakes at once. Mistakes in the strategy's own keys may need torch and come last:
    `announce` is called before that import, which takes seconds.
    """
    return _checked(_compose(args, conf or CONF)).resolve(announce)


def draft(args: Sequence[str], *, conf: Path | None = None) -> validate.Draft:
    """`resolve` without checks: groups are chosen, values as written. Raises ConfigError if composing fails."""
    tree = _compose(args, conf or CONF)
    _raise(tree.mistakes)
    return _draft(tree)


def check(args: Sequence[str], *, conf: Path | None = None) -> Composed:
    """`resolve` without torch. Raises ConfigError with all mistakes that need no torch."""
    composed = _checked(_compose(args, conf or CONF))
    _raise(composed.mistakes)
    return composed


def from_yaml_file(path: Path, *, conf: Path | None = None) -> Resolved:
    """The configuration that a run has written: complete, so conf/config.yaml does not apply."""
    conf = conf or CONF
    return _checked(_grow(_of_file(path, str(path), conf), _Tree(conf))).resolve()


def from_yaml(text: str, name: str, *, conf: Path | None = None) -> Resolved:
    """`from_yaml_file` for the text of such a file; errors call it `name`."""
    conf = conf or CONF
    return _checked(_grow(_layers(_parsed(text, name), name, conf), _Tree(conf))).resolve()


def node(group: str, name: str, *, conf: Path | None = None) -> dict[str, Any]:
    """The keys of one option of a group, as in its file, without variants."""
    leaves, _ = _group(conf or CONF, group, name)
    return {leaf.path[-1]: leaf.value for leaf in leaves if len(leaf.path) == 2}


def setting_of(strategy: Mapping[str, Any], chosen: str = "", *, conf: Path | None = None) -> str:
    """The setting's name of a strategy, also if a file or an older run does not record it."""
    return naming.setting_of(strategy, _settings(conf or CONF, options("strategy", conf=conf)), chosen)


def unchanged_setting(strategy: Mapping[str, Any]) -> str:
    """The setting's name of a complete strategy if all values equal the setting's; else empty. Imports torch."""
    name = naming.of(strategy)
    return name if name in options("strategy") and {**strategy, "setting": None} == _complete(name) else ""


@cache
def _complete(setting: str) -> dict[str, Any]:
    """A setting with the defaults of its halves."""
    complete, _ = validate.check_strategy(draft([f"strategy={setting}"]))
    return dict(complete)


@cache
def _halves() -> dict[str, tuple[str, str]]:
    return {name: naming.halves(keys) for name, keys in _settings(CONF, options("strategy")).items()}


@cache
def _settings(conf: Path, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return {name: node("strategy", name, conf=conf) for name in names}


def _compose(args: Sequence[str], conf: Path) -> _Tree:
    tree = _Tree(conf)
    layers = _of_file(conf / "config.yaml", "conf/config.yaml", conf, lines=False)
    return _grow(layers + _of_command_line(args, conf, tree.mistakes), tree)


def _grow(layers: list[Layer], tree: _Tree) -> _Tree:
    for layer in layers:
        _apply(tree, layer)
    return tree


def _draft(tree: _Tree) -> validate.Draft:
    """The written values, except for those of an option that does not exist, which cannot be checked."""
    if unshowable := list(_unshowable(tree)):
        _raise([*unshowable, *tree.mistakes])
    leaves = {path: leaf for path, leaf in tree.leaves.items() if path[0] not in tree.failed or _is_of_conf(leaf[1])}
    return validate.Draft(_nest(leaves), {path: source for path, (_, source) in leaves.items()}, tree.choices)


def _is_of_conf(source: str) -> bool:
    return source.startswith("conf/")


def _unshowable(tree: _Tree) -> Iterator[Mistake]:
    """Names and values with characters that are unsafe for screens, pictures and files."""
    for path, (value, source) in tree.leaves.items():
        mends = (plain_text.problem(text) for part in (*path, value) for text in plain_text.texts(part))
        if mend := next(filter(None, mends), ""):
            what = plain_text.printable(f"{'.'.join(path)} = {strict_yaml.write(value)}", plain_text.LONGEST_NAME)
            yield Mistake(what, source, mend)


def _checked(tree: _Tree) -> Composed:
    """Checks all except for the values of the strategy's own keys against the schema, and collects the mistakes."""
    draft = _draft(tree)
    config, mistakes = validate.check_run(draft)
    if draft.sources.get(_SETTING) == COMMAND_LINE:
        mistakes.append(draft.mistake(_SETTING, f"is chosen by strategy={draft.show(_SETTING).rpartition(' ')[2]}"))
    known = {group: options(group) for group in ("students", "proxy")}  # of our own conf, which matches the code
    return Composed(draft, config, [*tree.mistakes, *mistakes, *validate.unknown_options(draft, known)], tree.conf)


def _has_own_strategy_values(draft: validate.Draft, mistakes: Sequence[Mistake]) -> bool:
    """Whether some values need the strategy's halves for a check, and these can be imported.

    The import takes seconds, so other mistakes alone do not cause it.
    """
    own = {source for path, source in draft.sources.items() if path[0] == "strategy" and not _is_of_conf(source)}
    return bool(own) and not any("strategy" in mistake.what for mistake in mistakes)


def as_override(option: str) -> str:
    """The form of `--rounds`, an option of other platforms, here: `write rounds=VALUE`; empty if it is no key."""
    if not option.startswith("--"):
        return ""
    key, _, value = option.lstrip("-").partition("=")
    places = validate.places(tuple(key.replace("-", "_").split(".")), draft([]))
    return "write " + " or ".join(f"{place}={value or 'VALUE'}" for place in places) if places else ""


def _raise(mistakes: Sequence[Mistake]) -> None:
    mistakes = _of_other_version(mistakes)
    mistakes = [hinting.better(mistake, _halves) for mistake in mistakes]
    if len(mistakes) > 1:  # a table has room for one way to mend each
        mistakes = [replace(mistake, mend=mistake.mend.split("   ")[0]) for mistake in mistakes]
    errors.refuse(mistakes)


def _of_other_version(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """Joins the unknown keys on lines that a run wrote, file by file: the version of that run knew them."""
    unknown: dict[str, list[Mistake]] = {}
    for mistake in mistakes:
        file, _, line = mistake.where.rpartition(":")
        if mistake.what.startswith("unknown key '") and line.isdecimal() and _is_written_by_run(file, int(line)):
            unknown.setdefault(file, []).append(mistake)
    joined = []
    for file, strangers in unknown.items():
        keys = ", ".join(mistake.what.split("'")[1] for mistake in strangers)
        what = f"another version of fedkd wrote this file, with keys that this version does not have: {keys}"
        joined.append(Mistake(what, file, "delete the lines of these keys in a copy, or use that version"))
    known = {mistake for strangers in unknown.values() for mistake in strangers}
    return [*joined, *(mistake for mistake in mistakes if mistake not in known)]


def _is_written_by_run(file: str, line: int) -> bool:
    """Whether a line is `key: value  # source` in a file that `Resolved.to_yaml` wrote."""
    with suppress(OSError, UnicodeDecodeError, IndexError):
        text = Path(file).read_text(encoding="utf-8")
        return f"  # {DEFAULT}\n" in text and "  # " in text.splitlines()[line - 1]
    return False


def _of_command_line(args: Iterable[str], conf: Path, mistakes: list[Mistake]) -> list[Layer]:
    layers: list[Layer] = [[]]
    for arg in args:
        try:
            if "=" not in arg and arg.endswith((".yaml", ".yml")):
                layers += [*_of_file(Path(arg), arg, conf), []]
            else:
                _extend(layers, _of_override(arg, conf), conf)
        except ConfigError as error:
            mistakes += error.mistakes
    return layers


def _of_override(arg: str, conf: Path) -> Iterator[Entry]:
    key, equals, text = arg.partition("=")
    if not equals:
        groups = [group for group in ("preset", *GROUPS) if arg in options(group, conf=conf)]
        hint = " or ".join(f"{group}={arg}" for group in groups)
        mend = f"did you mean {hint}?" if hint else "write rounds=20, strategy=fedgen or my.yaml"
        raise ConfigError(f"'{arg}' is neither key=value nor a YAML file", where=COMMAND_LINE, mend=mend)
    if not text.strip():
        raise ConfigError(f"'{arg}' has no value", where=COMMAND_LINE, mend=f"for none write {key}=null")
    value = strict_yaml.scalar(text, COMMAND_LINE)
    yield from _entries(_path(key, COMMAND_LINE), value, COMMAND_LINE)


def _of_file(path: Path, name: str, conf: Path, *, lines: bool = True, depth: int = 0) -> list[Layer]:
    """The layers of a file: one, or more if it names presets. `lines`: whether sources include line numbers."""
    return _layers(_document(path, name), name, conf, lines=lines, depth=depth)


def _layers(document: dict[str, Value], name: str, conf: Path, *, lines: bool = True, depth: int = 0) -> list[Layer]:
    layers: list[Layer] = [[]]
    for key, value in document.items():
        source = f"{name}:{value.line}" if lines else name
        _extend(layers, _entries(_path(key, source), value, source, name if lines else ""), conf, depth)
    return layers


def _document(path: Path, name: str) -> dict[str, Value]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("there is no such file", where=name) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=name) from error
    return _parsed(text, name)


def _parsed(text: str, name: str) -> dict[str, Value]:
    content = strict_yaml.read(text, name).content
    if not isinstance(content, dict):
        raise ConfigError("the file is no mapping of keys", where=name, mend="write lines like `rounds: 20`")
    return dict(content)


def _entries(path: validate.Path, value: Any, source: str, file: str = "") -> Iterator[Entry]:
    """One entry per plain value. In a group's node with a `name`, the first entry gives the group a new base."""
    content = value.content if isinstance(value, Value) else value
    if path == ("students",):
        mixture, content = _mixture(content)
        if mixture is not None:
            yield Entry((*path, "mix"), _plain(mixture), source)
    if not isinstance(content, dict):
        yield Entry(path, content, source)
        return
    if len(path) == 1 and path[0] in GROUPS and "name" in content:
        yield Entry(path, _plain(content), source)
    for key, below in content.items():
        place = f"{file}:{below.line}" if file and isinstance(below, Value) else source
        yield from _entries(path + _path(key, place), below, place, file)


def _mixture(content: Any) -> tuple[Any, Any]:
    """Splits `students` into its mixture (a list of architectures, their shares, or None) and its other keys."""
    if isinstance(content, list):
        return content, {}
    if not isinstance(content, dict):
        return None, content
    strangers = {key: value for key, value in content.items() if key not in _STUDENT_KEYS}
    known = options("students")
    is_mixture = any(key in known or isinstance(_plain(share), int | float) for key, share in strangers.items())
    if not is_mixture:
        return None, content
    return strangers, {key: value for key, value in content.items() if key in _STUDENT_KEYS}


def _plain(content: Any) -> Any:
    """Content of any type, without lines."""
    if isinstance(content, dict):
        return {key: _plain(below) for key, below in content.items()}
    return content.plain if isinstance(content, Value) else content


def _path(key: str, source: str) -> validate.Path:
    parts = tuple(key.strip().split("."))
    if not all(parts):
        raise ConfigError(f"'{key}' is no key", where=source, mend="write a.b, or a.b=value on the command line")
    return parts


def _extend(layers: list[Layer], entries: Iterable[Entry], conf: Path, depth: int = 0) -> None:
    """Add entries to the last layer; a preset becomes layers of its own."""
    for entry in entries:
        if entry.path == ("preset",):
            layers += [*_of_preset(entry, conf, depth + 1), []]
        else:
            layers[-1].append(entry)


def _of_preset(entry: Entry, conf: Path, depth: int) -> list[Layer]:
    known = options("preset", conf=conf)
    if entry.value not in known:
        what = f"there is no preset {strict_yaml.write(entry.value)}"
        raise ConfigError(what, where=entry.source, mend=validate.one_of(entry.value, known))
    if depth > _MOST_PRESETS:
        raise ConfigError(f"preset {entry.value} leads back to itself", where=entry.source)
    name = f"preset {entry.value}"
    return _of_file(conf / "preset" / f"{entry.value}.yaml", name, conf, lines=False, depth=depth)


def _apply(tree: _Tree, layer: Layer) -> None:
    """Apply groups, then the variant, then values: their order within a layer does not matter."""
    old = tree.value(_VARIANT)
    for entry in layer:
        if entry.is_choice:
            _choose(tree, entry)
    if any(entry.path == ("strategy",) for entry in layer):
        old = None  # the new base has replaced it
    if chosen := [entry for entry in layer if entry.path == _VARIANT]:
        tree.set(chosen[-1])
    if tree.value(_VARIANT) != old:
        _switch(tree, old)
    for entry in layer:
        if not entry.is_choice:
            tree.set(entry)


def _choose(tree: _Tree, entry: Entry) -> None:
    """Give a group a new base: a file of conf or, for a mapping with a name, only the mapping."""
    group, choice = entry.path[0], entry.value
    known = options(group, conf=tree.conf)
    if not isinstance(choice, dict) and choice not in known and not is_foreign(group, choice):
        what = f"{group} = {strict_yaml.write(choice)}"
        tree.mistakes.append(Mistake(what, entry.source, validate.one_of(choice, known)))
        tree.failed.add(group)
        return
    for path in [path for path in tree.leaves if path[0] == group]:
        del tree.leaves[path]
    tree.choices.pop(group, None)
    if isinstance(choice, dict):
        variants = _variants_like(choice, tree.conf) if group == "strategy" else {}
    else:
        tree.choices[group] = choice
        base, variants = _group(tree.conf, group, choice)
        for leaf in base:
            tree.set(leaf)
    if group == "strategy":
        tree.base, tree.variants = dict(tree.leaves), variants


def _switch(tree: _Tree, old: Any) -> None:
    """Undo the old variant's switches and set those of the new one; null has none."""
    new, source = tree.leaves.get(_VARIANT, (None, ""))
    if new is not None and (not isinstance(new, str) or new not in tree.variants):
        what = f"strategy.variant = {strict_yaml.write(new)}"
        tree.mistakes.append(Mistake(what, source, validate.one_of(new, tree.variants)))
        return
    for leaf in tree.variants.get(old, []) if isinstance(old, str) else ():
        if tree.value(leaf.path) == leaf.value:
            del tree.leaves[leaf.path]
            tree.leaves |= {path: value for path, value in tree.base.items() if path == leaf.path}
    for leaf in tree.variants[new] if new else ():
        tree.set(leaf)


def _group(conf: Path, group: str, name: str) -> tuple[Layer, dict[str, Layer]]:
    """The leaves of a group's file, and the switches of each of its variants."""
    if group in KINDS and name not in files(group, conf):
        keys, source = users(group).get(name, {"name": name}), origin(group, name, conf=conf)
        return [Entry((group, key), value, source) for key, value in keys.items()], {}
    file = f"conf/{group}/{name}.yaml"
    document = _document(conf / group / f"{name}.yaml", file)
    variants = document.pop("variants", Value({}, 0)).plain
    if not isinstance(variants, dict) or not all(isinstance(switches, dict) for switches in variants.values()):
        raise ConfigError("variants must be a mapping of mappings", where=file, mend="write `reference: {}` for none")
    leaves = [leaf for key, value in document.items() for leaf in _entries((group, *_path(key, file)), value, file)]
    return leaves, {
        variant: list(_entries((group,), switches, f"variant {variant}")) for variant, switches in variants.items()
    }


def _variants_like(node: Mapping[str, Any], conf: Path) -> dict[str, Layer]:
    """The variants of the file with the same halves as a mapping of a user or a run."""
    wanted = (node["name"], node.get("client", "supervised"))
    for name in options("strategy", conf=conf):
        leaves, variants = _group(conf, "strategy", name)
        keys = {leaf.path[-1]: leaf.value for leaf in leaves}
        if variants and (keys.get("name"), keys.get("client", "supervised")) == wanted:
            return variants
    return {}


def _nest(leaves: Mapping[validate.Path, tuple[Any, str]]) -> dict[str, Any]:
    """Leaves as nested mappings; the two required nodes have their defaults."""
    tree: dict[str, Any] = {}
    for path, (value, _) in leaves.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    nested: Any = OmegaConf.to_container(OmegaConf.create(tree), resolve=False)
    return {"partition": RunConfig().partition, "strategy": RunConfig().strategy} | nested
