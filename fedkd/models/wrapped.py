"""Any torch module as a student: found by its last linear layer, without a change of its code."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils.hooks import RemovableHandle

from fedkd.errors import ConfigError
from fedkd.payload import Weights
from fedkd.student import Student

_STUDENTS = "students"
_NORMS = nn.modules.batchnorm._NormBase


class Wrapped(Student):
    """A module of somebody else. Its head is an nn.Linear inside it; z is the head's input.

    Entries have the module's own names, except for the head's, which begin with `head.`. Its other tensors (whole
    numbers, or not saved with the module) are no entries: they are as the constructor left them whenever entries are
    loaded, because one module serves all clients.
    """

    def __init__(self, net: nn.Module, head: str | None = None) -> None:
        """`head`: the head's dotted name; None: the last nn.Linear in order of definition. Raises ConfigError."""
        nn.Module.__init__(self)
        self.net = net
        self.layout = torch.contiguous_format
        self.head_name = _head_name(net, head)
        for module in net.modules():
            if isinstance(module, _NORMS) and module.track_running_stats:
                if module.momentum is None:
                    mend = "give it a momentum, e.g. 0.1"
                    raise ConfigError("the student has a BatchNorm with momentum=None", where=_STUDENTS, mend=mend)
                module.num_batches_tracked = None  # with a fixed momentum nothing reads it
        self._saved = frozenset(net.state_dict())
        constant = {name: buffer for name, buffer in net.named_buffers() if not self._is_statistic(name, buffer)}
        self._constants = {name: buffer.detach().clone() for name, buffer in constant.items()}
        _check_types(self.entries)
        if own := frozenset(name for name, entry in self.learnable.items() if not entry.requires_grad):
            self.freeze(own)  # its own code does not train them
        if not self.learnable:
            raise ConfigError("the student has nothing to train", where=_STUDENTS, mend="call .requires_grad_(True)")

    @property
    def draws_itself(self) -> bool:
        return True

    @property
    def module(self) -> nn.Module:
        return self.net

    @property
    def head(self) -> nn.Linear:
        """The layer that maps z to the logits."""
        return self.net.get_submodule(self.head_name)  # type: ignore[return-value]

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The module's own children in order of definition, without the one that holds the head; then `head`."""
        holder = self.head_name.partition(".")[0]
        children = {name: child for name, child in self.net.named_children() if name not in (holder, "head")}
        return {**children, "head": self.head}

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """The input (B, d) of the head."""
        found: list[Tensor] = []
        with _hooked(self.head.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))):
            self.net(x)
        return found[0]

    def classify(self, z: Tensor) -> Tensor:
        logits: Tensor = self.head(z)
        return logits

    def taps(self, x: Tensor, names: Iterable[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the outputs of the named blocks; None: of all that give one tensor. Raises ConfigError."""
        wanted, outputs = list(self.blocks if names is None else names), dict[str, Tensor]()
        if unknown := set(wanted) - set(self.blocks):
            raise KeyError(f"no block {sorted(unknown)}; blocks are {list(self.blocks)}")
        with _hooked(*self._record(wanted, outputs, lambda: True)):
            logits = self(x)
        if names is not None and (missing := [name for name in wanted if name not in outputs]):
            what = f"block '{missing[0]}' of the student gives no single tensor, or is not called"
            raise ConfigError(what, where=_STUDENTS, mend=f"blocks that do: {', '.join(self.taps(x)[1])}")
        return logits, outputs

    def watch(self, x: Tensor, outputs: dict[str, Tensor]) -> list[RemovableHandle]:
        is_running = [False]

        def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            is_running[0] = inputs[0] is x and not outputs and torch.is_grad_enabled()

        def end(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            is_running[0] = False

        blocks = self._record(self.blocks, outputs, lambda: is_running[0])
        return [self.net.register_forward_pre_hook(begin), *blocks, self.net.register_forward_hook(end)]

    def _record(
        self, names: Iterable[str], outputs: dict[str, Tensor], is_on: Callable[[], bool]
    ) -> list[RemovableHandle]:
        """Hooks that note the first output of each block, while `is_on`."""
        blocks = self.blocks

        def note(name: str, output: Any) -> None:
            if is_on() and isinstance(output, Tensor):
                outputs.setdefault(name, output)

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda _, inputs, output: note(name, output)

        return [blocks[name].register_forward_hook(hook(name)) for name in names]

    @property
    def latent_width(self) -> int:
        return self.head.in_features

    @property
    def num_classes(self) -> int:
        return self.head.out_features

    @property
    def learnable(self) -> dict[str, nn.Parameter]:
        """The trained parameters. A tied one has one entry, by the head's name or its first."""
        head = {id(entry): f"head.{name}" for name, entry in self.head.named_parameters(recurse=False)}
        entries = {head.get(id(entry)) or _named(name): entry for name, entry in self.net.named_parameters()}
        return {name: entry for name, entry in entries.items() if name not in self.frozen}

    @property
    def statistics(self) -> dict[str, Tensor]:
        """Float buffers that are saved with the module."""
        buffers = {_named(name): b for name, b in self.net.named_buffers() if self._is_statistic(name, b)}
        return {name: buffer for name, buffer in buffers.items() if name not in self.frozen}

    def load(self, *layers: Weights) -> Student:
        with torch.no_grad():
            for name, value in self._constants.items():
                self.net.get_buffer(name).copy_(value)
        return super().load(*layers)

    def _is_statistic(self, name: str, buffer: Tensor) -> bool:
        return buffer.is_floating_point() and name in self._saved


def make(net: Any, shape: tuple[int, ...], head: str | None = None, *, dtype: torch.dtype = torch.float32) -> Wrapped:
    """A student of a module for samples of a shape. Raises ConfigError."""
    if not isinstance(net, nn.Module):
        raise ConfigError(f"the student is a {type(net).__name__}, no torch module", where=_STUDENTS)
    if isinstance(net, nn.Linear):  # a linear classifier: z is the sample
        net = nn.Sequential(OrderedDict(head=net))
    if any(isinstance(module, LazyModuleMixin) for module in net.modules()):
        net(torch.zeros(2, *shape, dtype=dtype))  # its layers learn their widths from a first pass
    return Wrapped(net, head)


def _named(name: str) -> str:
    """An entry's name, which must not look like one of the head's."""
    return f"body.{name}" if name.startswith("head.") else name


def check(student: Student, x: Tensor, what: str) -> None:
    """Try a pass of two samples in both modes. Raises ConfigError, which begins with `what`, if it is no classifier."""
    for training in (False, True):
        student.train(training)
        try:
            with torch.no_grad():
                logits, z = student(x), student.features(x)
        except ConfigError:
            raise
        except IndexError as error:
            raise _refused(what, "does not run its head on a batch", "name the last linear layer with head=") from error
        except Exception as error:  # the user's code: anything
            shape = tuple(x.shape[1:])
            text = f"cannot take samples of shape {shape}: {type(error).__name__}: {error}"
            raise _refused(what, text, "make it for that shape, which its first argument gives") from error
        _check_output(what, student, logits, z, len(x))
    student.train()
    logits = student(x)
    try:
        torch.autograd.grad(logits.square().sum(), list(student.learnable.values()), allow_unused=True)
    except RuntimeError as error:
        raise _refused(what, f"gives logits without a gradient: {error}", "do not detach them") from error
    student.eval()
    with torch.no_grad():
        if not torch.allclose(student(x), student(x), equal_nan=True):
            mend = "keep no state outside buffers, and draw only in training"
            raise _refused(what, "gives other logits in a second pass in eval mode", mend)
        if not torch.allclose(student(x), student.classify(student.features(x)), rtol=1e-4, atol=1e-5, equal_nan=True):
            mend = "return the head's output itself: logits, before any softmax"
            raise _refused(what, f"changes what its head '{student.head_name}' gives", mend)


def _check_output(what: str, student: Student, logits: Any, z: Tensor, batch: int) -> None:
    if not isinstance(logits, Tensor):
        mend = "return the logits alone: wrap it in a module that picks them"
        raise _refused(what, f"gives a {type(logits).__name__}", mend)
    if tuple(logits.shape) != (batch, student.num_classes):
        text = f"gives logits of shape {tuple(logits.shape)} for {batch} samples and {student.num_classes} classes"
        raise _refused(what, text, "return (batch, classes); name the last linear layer with head=")
    if z.dim() != 2:
        raise _refused(what, f"gives its head an input of shape {tuple(z.shape)}", "pool or flatten it to (batch, d)")


def _refused(what: str, text: str, mend: str) -> ConfigError:
    return ConfigError(f"{what} {text}", where=_STUDENTS, mend=mend)


def _head_name(net: nn.Module, head: str | None) -> str:
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    if head is not None and head not in linear:
        known = f"its linear layers: {', '.join(linear)}" if linear else "it has no linear layer"
        raise ConfigError(f"the student has no nn.Linear called '{head}'", where=_STUDENTS, mend=known)
    if not linear:
        what = "the student has no nn.Linear, which must give the logits"
        raise ConfigError(what, where=_STUDENTS, mend="end it with one")
    return linear[-1] if head is None else head


def _check_types(entries: Weights) -> None:
    for name, entry in entries.items():
        if entry.dtype != torch.float32:
            what = f"the student's entry '{name}' is {str(entry.dtype).removeprefix('torch.')}"
            raise ConfigError(what, where=_STUDENTS, mend="fedkd trains float32: call .float() on it")


@contextmanager
def _hooked(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
