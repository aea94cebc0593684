"""Detached values of a reply: of exactly our types, without a graph, and safe from later changes.

A reply of another process has such values already. A plugin in this process may return tensors that require gradients,
mappings that change later, or numbers of other types. Tensors that are detached, contiguous and alone in their memory
are not copied: copying them all would add a tenth to a round.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedkd.engine import ClientState, Reply
from fedkd.payload import KINDS, Payload


def reply(given: Reply) -> Reply:
    """The reply with detached values. A value of a foreign type stays, and the checks refuse it."""
    payload, state = given.payload, given.state
    return replace(
        given,
        payload=Payload(**{kind: value(entry) for kind in KINDS if (entry := getattr(payload, kind)) is not None}),
        state=replace(state, kept=value(state.kept), memory=value(state.memory), optimiser=value(state.optimiser))
        if type(state) is ClientState
        else state,
        numbers=value(given.numbers),
        probe=value(given.probe),
        by_label=value(given.by_label),
        judged=value(given.judged),
        logits=value(given.logits),
        seconds=value(given.seconds),
    )


def value(given: Any) -> Any:
    """Detached tensors, numbers, text, lists and mappings, at any depth."""
    if isinstance(given, Tensor):
        return tensor(given)
    if isinstance(given, Mapping):
        return {value(key): value(part) for key, part in given.items()}
    if type(given) is list or type(given) is tuple:
        return type(given)(value(part) for part in given)
    for kind in (str, float):  # numpy's float64 is a float, too
        if isinstance(given, kind):
            return kind(given)
    if isinstance(given, int) and not isinstance(given, bool):
        return int(given)
    return given


def tensor(given: Tensor) -> Tensor:
    """The tensor, detached, contiguous, of torch's own class, and no view of a larger one."""
    plain = given if type(given) is Tensor else Tensor.as_subclass(given, Tensor)
    plain = (plain.detach() if plain.requires_grad else plain).contiguous()
    size = plain.numel() * plain.element_size()
    if plain.is_inference() or plain.untyped_storage().nbytes() != size:
        return torch.empty_like(plain).copy_(plain)
    return plain
