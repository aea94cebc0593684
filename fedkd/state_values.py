"""Values of a state as tensors and plain JSON, and back: dataclasses, tensors, numbers, text, lists, dictionaries.

The plain part names no type. `restore` takes dataclass types from a template (a state that our code makes) and, if the
template has no value yet, from the annotations of the enclosing dataclass. A value that follows from the configuration
alone (a Problem) is not stored: the template has it, and the field is `field(metadata=state_values.CONSTANT)`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

CONSTANT = {"is_stored": False}  # metadata of a field that is equal in all states of a run

_hints = cache(get_type_hints)
_SCALARS: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int, float), float: (float, int), str: (str,)}


class Misfit(Exception):
    """Stored values that do not fit our code."""


@dataclass
class _Tensors:
    """Tensors by name; a tensor that occurs twice is stored once."""

    by_name: dict[str, Tensor] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)  # by identity; `kept` prevents the reuse of an identity
    kept: list[Tensor] = field(default_factory=list)

    def add(self, tensor: Tensor, path: str) -> str:
        known = self.names.get(id(tensor))
        if known is not None:
            return known
        name = path if path not in self.by_name else f"{path}#{len(self.by_name)}"
        self.names[id(tensor)] = name
        self.kept.append(tensor)
        self.by_name[name] = tensor.detach() if tensor.requires_grad else tensor
        return name


def flatten(value: Any) -> tuple[dict[str, Tensor], Any]:
    """Tensors by name, not copied, and all else as JSON. Raises TypeError for types that a state may not hold."""
    tensors = _Tensors()
    plain = _plain(value, "", tensors)
    return tensors.by_name, plain


def _plain(value: Any, path: str, tensors: _Tensors) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, Tensor):
        return {"tensor": tensors.add(value, path)}
    if is_dataclass(value) and not isinstance(value, type):
        parts = ((name, getattr(value, name)) for name in _stored(value))
        return {"fields": {name: _plain(part, _join(path, name), tensors) for name, part in parts}}
    if isinstance(value, Mapping):
        return {"map": [[_key(k, path), _plain(part, _join(path, k), tensors)] for k, part in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_plain(part, _join(path, i), tensors) for i, part in enumerate(value)]}
    raise TypeError(f"a state cannot hold a {type(value).__name__} (at '{path}')")


def _key(key: Any, path: str) -> str | int:
    if isinstance(key, str | int):
        return key
    raise TypeError(f"keys in a state are text or integers, not {type(key).__name__} (at '{path}')")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN. A finite sum proves it in one pass, without a copy."""
    if not tensor.is_floating_point():
        return True
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def restore(template: Any, plain: Any, tensors: Mapping[str, Tensor], *, hint: Any = None) -> Any:
    """The value whose `flatten` gave `plain` and `tensors`, with the dataclass types of `template`, else of `hint`.

    Raises Misfit if fields, named tensors, shapes or dtypes differ from those of the template.
    """
    return _value(template, hint, plain, tensors, "")


def _value(template: Any, hint: Any, plain: Any, tensors: Mapping[str, Tensor], path: str) -> Any:
    if not isinstance(plain, dict):
        return _scalar(template, plain, path)
    ((kind, content),) = plain.items()
    if kind == "tensor":
        return _tensor(template, tensors[content], path)
    if kind == "float":
        return float(content)
    if kind == "fields":
        return _dataclass(template, hint, content, tensors, path)
    if kind == "map":
        known = template if isinstance(template, Mapping) else {}
        pairs = [(key, _value(known.get(key), hint, part, tensors, _join(path, key))) for key, part in content]
        _check_names(known, [key for key, _ in pairs], path)
        return dict(pairs)
    if kind in {"list", "tuple"}:
        known_parts = template if isinstance(template, list | tuple) and len(template) == len(content) else ()
        padded = [*known_parts, *[None] * (len(content) - len(known_parts))]
        parts = [
            _value(t, hint, part, tensors, _join(path, i))
            for i, (t, part) in enumerate(zip(padded, content, strict=True))
        ]
        return parts if kind == "list" else tuple(parts)
    raise Misfit(f"'{path}' is a '{kind}', which is unknown")


def _scalar(template: Any, plain: Any, path: str) -> Any:
    """A number if the template has a number, text if it has text; None is allowed in both cases."""
    if isinstance(plain, list):
        raise Misfit(f"'{path}' is a bare list, which we never write")
    wanted = type(template)
    if plain is None or wanted not in _SCALARS or type(plain) in _SCALARS[wanted]:
        return plain
    raise Misfit(f"'{path}' is a {type(plain).__name__}, expected a {wanted.__name__}")


def _dataclass(template: Any, hint: Any, content: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str) -> Any:
    known = is_dataclass(template) and not isinstance(template, type)
    candidates = _dataclasses(hint) | ({type(template)} if known else set())
    matching = [c for c in candidates if _stored(c) == list(content)]
    if len(matching) != 1:
        expected = " or ".join(sorted(f"{c.__name__}({', '.join(_stored(c))})" for c in candidates))
        raise Misfit(f"'{path}' has fields {', '.join(content)}; expected {expected or 'no dataclass'}")
    hints = _hints(matching[0])
    parts = {
        name: _value(getattr(template, name, None), hints.get(name), part, tensors, _join(path, name))
        for name, part in content.items()
    }
    for name in {f.name for f in fields(matching[0])} - set(parts):
        if type(template) is not matching[0]:
            raise Misfit(f"'{path}' has no '{name}', which is not stored, and the template neither")
        parts[name] = getattr(template, name)
    made: Any = object.__new__(matching[0])  # restored exactly: neither defaults nor __post_init__ run
    for name, part in parts.items():
        object.__setattr__(made, name, part)
    return made


def _stored(value: Any) -> list[str]:
    """Names of the fields of a dataclass, or of an instance, that are stored."""
    return [f.name for f in fields(value) if f.metadata.get("is_stored", True)]


def _dataclasses(hint: Any) -> set[type]:
    """The dataclasses that an annotation such as `Mapping[int, Heads | None]` names."""
    if isinstance(hint, type) and is_dataclass(hint):
        return {hint}
    return {kind for part in get_args(hint) for kind in _dataclasses(part)}


def _tensor(template: Any, tensor: Tensor, path: str) -> Tensor:
    # Empty tensors are placeholders for values of any shape that the first rounds bring.
    if isinstance(template, Tensor) and template.numel():
        got, wanted = (tuple(tensor.shape), tensor.dtype), (tuple(template.shape), template.dtype)
        if got != wanted:
            raise Misfit(f"'{path}' has shape {got[0]} and dtype {got[1]}, expected {wanted[0]} and {wanted[1]}")
    return tensor


def _check_names(template: Mapping[Any, Any], names: list[Any], path: str) -> None:
    """Entries of a student or generator keep their names; other dictionaries may grow."""
    is_weights = bool(template) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in template.items())
    if is_weights and set(names) != set(template):
        raise Misfit(f"'{path}' has entries {', '.join(map(str, names))}; expected {', '.join(template)}")


def _join(path: str, name: Any) -> str:
    return f"{path}/{name}" if path else str(name)
