"""Student: the trained classifier, as ordered named blocks from shallow to deep."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedkd.payload import Weights
from fedkd.seeds import Stream


class Student(nn.Sequential):
    """Blocks in order; the last is called `head` and maps the latent z (B, d) to logits (B, C).

    Entries of its weights are named `block.path.to.parameter`, so `head.` prefixes the head's. `layout` is the memory
    layout of its convolutions' entries in use, which affects speed and last bits. Entries that leave it are contiguous.
    """

    def __init__(
        self, blocks: OrderedDict[str, nn.Module], layout: torch.memory_format = torch.contiguous_format
    ) -> None:
        if not blocks or list(blocks)[-1] != "head":
            raise ValueError(f"the last block of a student must be called 'head', got {list(blocks)}")
        if not isinstance(blocks["head"], nn.Linear):
            raise TypeError(f"the head of a student must be one nn.Linear, got {type(blocks['head']).__name__}")
        super().__init__(blocks)
        self.layout = layout
        self._extractor = tuple(block for name, block in blocks.items() if name != "head")

    _still: Sequence[nn.Module] = ()  # normalisation that keeps its statistics
    frozen: frozenset[str] = frozenset()  # names of what is never trained: no entries, they do not travel
    head_name = "head"  # the head's name in `module`

    @property
    def module(self) -> nn.Module:
        """The module whose state_dict has the names under which files keep its entries."""
        return self

    def freeze(self, names: frozenset[str]) -> None:
        """Never train these parameters. Normalisation without any trained parameter keeps its statistics too."""
        parameters = {name: parameter for name, parameter in self.learnable.items() if name in names}
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        still = [
            module
            for module in self.modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
            and not any(parameter.requires_grad for parameter in module.parameters())
        ]
        buffers = {id(buffer) for module in still for buffer in module.buffers()}
        self.frozen = self.frozen | names | {name for name, buffer in self.statistics.items() if id(buffer) in buffers}
        self._still = still
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._still:
            module.eval()
        return self

    @property
    def draws_itself(self) -> bool:
        """Whether its constructor draws its initial entries from the global generator, as torch's own layers do."""
        return False

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The blocks by name, from shallow to deep; the last is `head`."""
        return dict(self.named_children())

    def features(self, x: Tensor) -> Tensor:
        """All blocks except for the last: samples (B, ...) -> z (B, d)."""
        for block in self._extractor:
            x = block(x)
        return x

    def classify(self, z: Tensor) -> Tensor:
        """The head: z (B, d) -> logits (B, C)."""
        return self._modules["head"](z)  # type: ignore[misc]

    def taps(self, x: Tensor, names: Iterable[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the outputs of the named blocks; None: of all."""
        blocks, outputs = self.blocks, dict[str, Tensor]()
        wanted = set(blocks if names is None else names)
        if unknown := wanted - set(blocks):
            raise KeyError(f"no block {sorted(unknown)}; blocks are {list(blocks)}")
        for name, block in blocks.items():
            x = block(x)
            if name in wanted:
                outputs[name] = x
        return x, outputs

    def watch(self, x: Tensor, outputs: dict[str, Tensor]) -> list[RemovableHandle]:
        """Hooks that note the outputs of all blocks in the first pass of `x` with gradient; remove them afterwards."""
        following = [x]  # a block belongs to that pass if its input is the output of the block before

        def note(name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
            if inputs[0] is following[0] and name not in outputs and torch.is_grad_enabled():
                outputs[name] = following[0] = output

        def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
            return lambda _, inputs, output: note(name, inputs, output)

        return [block.register_forward_hook(hook(name)) for name, block in self.blocks.items()]

    @property
    def latent_width(self) -> int:
        """d, the width of z."""
        return cast(nn.Linear, self._modules["head"]).in_features

    @property
    def num_classes(self) -> int:
        """C, the number of logits."""
        return cast(nn.Linear, self._modules["head"]).out_features

    @property
    def learnable(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if name not in self.frozen}

    @property
    def statistics(self) -> dict[str, Tensor]:
        """Float buffers (BatchNorm's running means and variances); empty under GroupNorm."""
        buffers = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        return {name: buffer for name, buffer in buffers.items() if name not in self.frozen}

    @property
    def entries(self) -> dict[str, Tensor]:
        """Every learnable entry, then every statistic, each in order of definition: the student's own tensors."""
        return {**self.learnable, **self.statistics}

    @property
    def weights(self) -> Weights:
        """A detached copy of every entry."""
        return copied(self.entries)

    def load(self, *layers: Weights) -> "Student":
        """Copy entries in; later layers win. The border has checked names and shapes."""
        entries = self.entries
        with torch.no_grad():
            for layer in layers:
                for name, value in layer.items():
                    entries[name].copy_(value)
        return self


def copied(entries: Weights) -> Weights:
    """Detached, contiguous copies."""
    return {name: entry.detach().clone(memory_format=torch.contiguous_format) for name, entry in entries.items()}


def build(make: Callable[[], Student], stream: Stream) -> Student:
    """Make a student whose initial weights come from `stream` alone, without a global generator.

    Distributions are torch's defaults: convolutions and linear layers Kaiming-uniform with a = sqrt(5), their biases
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)), norms 1 and 0, embeddings N(0, 1), a GRU U(-1/sqrt(d), 1/sqrt(d)). A student
    that draws itself does so by its own code, from the global generator seeded by `stream`.
    """
    with torch.device("meta"):
        student = make()
    if student.draws_itself:
        with stream.as_global():
            return make()
    generator = stream.torch()
    materialise(student)
    for module in student.modules():
        initialise(module, generator)
    lay_out(student)
    return student


def lay_out(student: Student) -> None:
    """Give its convolutions the fastest memory layout for its architecture; last bits depend on it."""
    for parameter in student.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=student.layout)


def materialise(student: Student) -> None:
    """Give all entries memory, not values. `Module.to_empty` imports sympy: half a second in every process."""
    for module in student.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(torch.empty(parameter.shape), parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Give one layer its initial entries from `generator`; containers have none of their own."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
        if module.bias is not None:
            bound = 1 / math.sqrt(module.weight[0].numel())
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, generator=generator)
    elif isinstance(module, nn.GRU):
        for parameter in module.parameters():
            nn.init.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5, generator=generator)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
        module.reset_parameters()  # constants: draws nothing
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.num_batches_tracked = None  # momentum is fixed, so no counter is needed, and none is averaged
    elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        raise TypeError(f"no initial distribution for a {type(module).__name__}; add it to student.initialise")
