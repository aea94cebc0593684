"""Decorators that make a user's own code known by name, in a file for `--py` or in a session (docs/own-code.md).

    import fedkd

    @fedkd.register.student("my-net")
    def my_net(shape, classes):
        return nn.Sequential(nn.Linear(shape[0], 64), nn.ReLU(), nn.Linear(64, classes))

A strategy or client that is the only one in its file needs no decorator: its name is the file's.
"""

from collections.abc import Callable
from typing import TypeVar

from fedkd import extensions

T = TypeVar("T")


def student(name: str, *, head: str | None = None) -> Callable[[T], T]:
    """A function or class that makes a torch module from (shape of one sample, number of classes).

    The module maps a batch (B, *shape) to logits (B, classes). `head`: the dotted name of the last nn.Linear, which
    maps the latent z (B, d) to the logits; by default the last one in order of definition. Raises ConfigError.
    """
    return lambda make: extensions.register("student", name, make, head=head)


def data(name: str) -> Callable[[T], T]:
    """A function that makes a `fedkd.Data` from the data root, a Path or None. Raises ConfigError."""
    return lambda make: extensions.register("data", name, make)


def partition(name: str) -> Callable[[T], T]:
    """A subclass of fedkd.data.partition_recipes.Recipe; its fields become keys of `partition`. Raises ConfigError."""
    return lambda recipe: extensions.register("partition", name, recipe)


def metric(name: str, *, lower: bool = False) -> Callable[[T], T]:
    """A function (logits (N, C), labels (N,)) -> float. `lower`: smaller values are better. Raises ConfigError."""
    return lambda function: extensions.register("metric", name, function, lower=lower)


def strategy(name: str, *, client: str | None = None) -> Callable[[T], T]:
    """The server half of a method, a subclass of Strategy, and the name of its client half.

    By default that is the client of the same name, else `supervised`. Raises ConfigError.
    """
    return lambda half: extensions.register("strategy", name, half, client=client)


def client(name: str) -> Callable[[T], T]:
    """A client half: a subclass of Client. Raises ConfigError."""
    return lambda half: extensions.register("client", name, half)
