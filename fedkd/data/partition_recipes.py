"""How training samples are divided among clients: eight recipes, each a schema and a pure function over the labels.

A recipe draws only from the given generator. NumPy's legacy RandomState is accepted too, because published partitions
use it. See docs/partitions.md.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeVar

import numpy as np
from annotated_types import Ge, Gt, Le

from fedkd.config import Schema
from fedkd.errors import ConfigError

Rng = np.random.Generator | np.random.RandomState
Shares = list[np.ndarray]  # per client: indices into the labels
Drawn = TypeVar("Drawn")

TRIES = 1000  # draws of a random partition before it counts as impossible


@dataclass(frozen=True, kw_only=True)
class Recipe(Schema, ABC):
    """Base of all recipes."""

    samples: Annotated[int, Ge(1)] | None = None  # training samples used, a random subset; null: all
    test: Literal["matched", "classes"] = "matched"  # test split: training proportions, or equal parts of own classes

    by_user: ClassVar[bool] = False  # whether `partition` gets the users of the samples in place of their labels

    def generator(self, rng: Rng) -> Rng:
        """The generator of this recipe: the run's, unless its definition fixes another."""
        return rng

    @abstractmethod
    def partition(self, labels: np.ndarray, num_clients: int, num_classes: int, rng: Rng) -> Shares:
        """Disjoint indices into `labels` (n,) for each client. Errors: ConfigError if that is impossible."""


@dataclass(frozen=True, kw_only=True)
class Iid(Recipe):
    """A random permutation in near-equal chunks."""

    name: Literal["iid"] = "iid"

    def partition(self, labels: np.ndarray, num_clients: int, num_classes: int, rng: Rng) -> Shares:
        return np.array_split(rng.permutation(len(labels)), num_clients)


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Recipe):
    """Label skew of NIID-Bench (Li et al. 2022): a Dirichlet draw cuts each class; full clients get no more."""

    name: Literal["dirichlet"] = "dirichlet"
    alpha: Annotated[float, Gt(0)] = 0.5  # paper: beta; small is skewed
    min_samples: Annotated[int, Ge(1)] = 10  # redrawn until each client has this many

    def partition(self, labels: np.ndarray, num_clients: int, num_classes: int, rng: Rng) -> Shares:
        _require(len(labels), num_clients, self.min_samples, "min_samples")
        shares = dirichlet(labels, num_clients, num_classes, self.alpha, self.min_samples, rng)
        for share in shares:
            rng.shuffle(share)
        return shares


@dataclass(frozen=True, kw_only=True)
class FedGenDirichlet(Recipe):
    """FedGen's split (Zhu et al. 2021, its code): caps clients and classes, draws from legacy generators."""

    name: Literal["fedgen-dirichlet"] = "fedgen-dirichlet"
    alpha: Annotated[float, Gt(0)] = 0.1
    ratio: Annotated[float, Gt(0), Le(1)] = 0.5  # at most this share of each class and of the training set is used
    min_size: Annotated[int, Ge(1)] = 10  # redrawn until each client has this many; EMNIST's: 10 per class, 260
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 42  # not the run's: one partition for all seeds
    test: Literal["matched", "classes"] = "classes"

    def generator(self, rng: Rng) -> Rng:
        return np.random.RandomState(self.seed)

    def partition(self, labels: np.ndarray, num_clients: int, num_classes: int, rng: Rng) -> Shares:
        order = list(range(num_classes))
        random.Random(self.seed).shuffle(order)
        cap = self.ratio * len(labels) / num_clients
        used = self._used(labels, num_classes, cap)
        _require(int(used.sum()), num_clients, self.min_size, "min_size")
        return fedgen_dirichlet(labels, num_clients, order, used, cap, self.alpha, self.min_size, rng)

    def _used(self, labels: np.ndarray, num_classes: int, cap: float) -> np.ndarray:
        """Images used per class (C,): as in the authors' code, the cap for clients bounds classes too."""
        have = np.bincount(labels, minlength=num_classes)
        return have if self.ratio == 1 else np.minimum(cap, (self.ratio * have).astype(int)).astype(int)


@dataclass(frozen=True, kw_only=True)
class ClientDirichlet(Recipe):
    """Plain Dirichlet skew (Hsu et al. 2019): draws a label distribution for each client; all have equal size."""

    name: Literal["client-dirichlet"] = "client-dirichlet"
    alpha: Annotated[float, Gt(0)] = 0.5  # small is skewed; not the same skew as dirichlet's at the same alpha
    per_client: Annotated[int, Ge(1)] | None = None  # training samples of each client; null: an equal share of all
    test: Literal["matched", "classes", "law"] = "law"  # type: ignore[assignment]  # law: own distribution, shared images
    tests: Annotated[int, Ge(1)] = 400  # test images of each client under `law`

    def partition(self, labels: np.ndarray, num_clients: int, num_classes: int, rng: Rng) -> Shares:
        size = len(labels) // num_clients if self.per_client is None else self.per_client
        _require(len(labels), num_clients, max(1, size), "per_client")
        stock = [rng.permutation(np.flatnonzero(labels == label)) for label in range(num_classes)]
        used, shares = np.zeros(num_classes, int), []
        have = np.array([len(images) for images in stock])
        for _ in range(num_clients):
            give = _without_replacement(rng.dirichlet(np.full(num_classes, self.alpha)), have - used, size, rng)
            chosen = [images[start : start + n] for images, start, n in zip(stock, used, give, strict=True) if n]
            shares.append(rng.permutation(np.concatenate(chosen)))
            used += give
        return shares


@dataclass(frozen=True, kw_only=True)
class Shards(Recipe):
    """Sorted by label, cut into equal shards, each client gets a few (McMahan et al. 2017)."""

    name: Literal["shards"] = "shards"
    shards_per_client: Annotated[int, Ge(1)] = 2  # a client sees at most about one class more than this

    def partition(self, labels: np.ndarray, num_clients: int, num_classes: int, rng: Rng) -> Shares:
        _require(len(labels), num_clients, self.shards_per_client, "shards_per_client")
        num_shards = num_clients * self.shards_per_client
        shards = np.array_split(np.argsort(labels, kind="stable"), num_shards)
        hands = rng.permutation(num_shards).reshape(num_clients, self.shards_per_client)
        return [np.concatenate([shards[shard] for shard in hand]) for hand in hands]


@dataclass(frozen=True, kw_only=True)
class Classes(Recipe):
    """Each client holds k classes; each class is divided evenly among its holders (NIID-Bench, #label k)."""

    name: Literal["classes"] = "classes"
    classes_per_client: Annotated[int, Ge(1)] = 2

    def partition(self, labels: np.ndarray, num_clients: int, num_classes: int, rng: Rng) -> Shares:
        self._check(num_clients, num_classes)
        holds = self._covering(num_clients, num_classes, rng)
        have, holders = np.bincount(labels, minlength=num_classes), holds.sum(0)
        if (have < holders).any():
            short = int(np.argmax(have < holders))
            what = f"class {short} has {have[short]} training samples for {holders[short]} clients"
            raise ConfigError(what, where="partition", mend="use fewer clients, or raise partition.samples")
        shares: list[Shares] = [[] for _ in range(num_clients)]
        for label in range(num_classes):
            index = np.flatnonzero(labels == label)
            rng.shuffle(index)
            for client, part in zip(
                np.flatnonzero(holds[:, label]), np.array_split(index, holders[label]), strict=True
            ):
                shares[client].append(part)
        return [np.concatenate(parts) for parts in shares]

    def _check(self, num_clients: int, num_classes: int) -> None:
        k = self.classes_per_client
        if k > num_classes:
            what = f"partition.classes_per_client = {k} but there are {num_classes} classes"
            raise ConfigError(what, where="partition", mend=f"use {num_classes} or fewer")
        if num_clients * k < num_classes:
            what = f"{num_clients} clients x {k} classes cannot hold all {num_classes} classes"
            raise ConfigError(what, where="partition", mend="raise clients or partition.classes_per_client")

    def _covering(self, num_clients: int, num_classes: int, rng: Rng) -> np.ndarray:
        """Which client holds which class, (clients, classes) bool; redrawn until every class has a holder."""
        for _ in range(TRIES):
            holds = np.zeros((num_clients, num_classes), bool)
            for client in range(num_clients):
                first = client % num_classes
                others = np.delete(np.arange(num_classes), first)
                holds[client, first] = True
                holds[client, rng.permutation(others)[: self.classes_per_client - 1]] = True
            if holds.any(0).all():
                return holds
        what = f"in {TRIES} draws, some class always had no client"
        raise ConfigError(what, where="partition", mend="raise clients or partition.classes_per_client")


@dataclass(frozen=True, kw_only=True)
class Quantity(Recipe):
    """Quantity skew of NIID-Bench: sizes from one Dirichlet draw, labels as in the whole."""

    name: Literal["quantity"] = "quantity"
    beta: Annotated[float, Gt(0)] = 0.5  # small is skewed
    min_samples: Annotated[int, Ge(1)] = 10  # redrawn until each client has this many

    def partition(self, labels: np.ndarray, num_clients: int, num_classes: int, rng: Rng) -> Shares:
        _require(len(labels), num_clients, self.min_samples, "min_samples")
        index = rng.permutation(len(labels))

        def draw() -> tuple[np.ndarray, float]:
            share = rng.dirichlet(np.full(num_clients, self.beta))
            share /= share.sum()
            return share, float((share * len(index)).min())  # before rounding, as in the reference

        return np.split(index, _cuts(_retry(draw, self.min_samples, "beta"), len(index)))


@dataclass(frozen=True, kw_only=True)
class Users(Recipe):
    """One client per user of the data, drawn at random; the data name the user of each sample."""

    name: Literal["users"] = "users"
    by_user: ClassVar[bool] = True
    min_samples: Annotated[int, Ge(1)] = 1  # users with fewer samples are left out

    def partition(self, labels: np.ndarray, num_clients: int, num_classes: int, rng: Rng) -> Shares:
        users, counts = np.unique(labels, return_counts=True)
        users = users[counts >= self.min_samples]
        if len(users) < num_clients:
            what = f"clients = {num_clients}, but {len(users)} users have at least {self.min_samples} samples"
            raise ConfigError(what, where="partition", mend=f"use clients={len(users)} or fewer")
        return [np.flatnonzero(labels == user) for user in np.sort(rng.permutation(users)[:num_clients])]


RECIPES: dict[str, type[Recipe]] = {
    "iid": Iid,
    "dirichlet": Dirichlet,
    "client-dirichlet": ClientDirichlet,
    "fedgen-dirichlet": FedGenDirichlet,
    "shards": Shards,
    "classes": Classes,
    "quantity": Quantity,
    "users": Users,
}


def dirichlet(labels: np.ndarray, num_clients: int, num_classes: int, alpha: float, least: int, rng: Rng) -> Shares:
    """NIID-Bench's label skew before its final shuffle, redrawn until each client has `least` images."""
    have = np.bincount(labels, minlength=num_classes)
    order = list(range(num_classes))
    return fedgen_dirichlet(labels, num_clients, order, have, len(labels) / num_clients, alpha, least, rng)


def fedgen_dirichlet(
    labels: np.ndarray,
    num_clients: int,
    order: list[int],
    used: np.ndarray,
    cap: float,
    alpha: float,
    least: int,
    rng: Rng,
) -> Shares:
    """FedGen's label skew: the first `used[l]` images of each class l in `order`, at most about `cap` per client."""
    stored = {label: index for label in order if len(index := np.flatnonzero(labels == label))}

    def draw() -> tuple[list[tuple[np.ndarray, np.ndarray]], float]:
        pieces, sizes = [], np.zeros(num_clients)
        for label, index in stored.items():
            index = index.copy()
            rng.shuffle(index)
            index = index[: used[label]]
            share = rng.dirichlet(np.full(num_clients, alpha)) * (sizes < cap)
            if not share.sum() > 0:  # a tiny alpha gave everything to full clients: nothing to divide by
                return [], 0
            cuts = _cuts(share / share.sum(), len(index))
            sizes += np.diff(cuts, prepend=0, append=len(index))
            pieces.append((index, cuts))
        return pieces, float(sizes.min())

    pieces = _retry(draw, least, "alpha")
    by_class = [np.split(index, cuts) for index, cuts in pieces]
    return [np.concatenate(parts) for parts in zip(*by_class, strict=True)]


def _without_replacement(distribution: np.ndarray, left: np.ndarray, size: int, rng: Rng) -> np.ndarray:
    """How many images (C,) of each class a client gets: drawn from `distribution`, restricted to classes that are left.

    If only classes of probability 0 are left, these are equally likely.
    """
    give = np.zeros(len(distribution), int)
    while (missing := size - give.sum()) > 0:
        possible = distribution * (give < left)
        if not possible.sum() > 0:
            possible = (give < left).astype(float)
        give = np.minimum(give + rng.multinomial(missing, possible / possible.sum()), left)
    return give


def _cuts(share: np.ndarray, num_samples: int) -> np.ndarray:
    return (np.cumsum(share) * num_samples).astype(int)[:-1]


def _require(num_samples: int, num_clients: int, least: int, key: str) -> None:
    if num_clients * least > num_samples:
        what = (
            f"{num_clients} clients x at least {least} samples need {num_clients * least} training samples, "
            f"there are {num_samples}"
        )
        raise ConfigError(what, where=f"partition.{key}", mend=f"lower clients or partition.{key}")


def _retry(draw: Callable[[], tuple[Drawn, float]], least: int, key: str) -> Drawn:
    """Redraw until the smallest client has `least` samples; `draw` returns (value, smallest size)."""
    best = 0.0
    for _ in range(TRIES):
        drawn, smallest = draw()
        if smallest >= least:
            return drawn
        best = max(best, smallest)
    images = f"{least} training sample{'s' * (least > 1)}"
    what = f"none of {TRIES} draws gave each client {images}; the best left one client with {int(best)}"
    raise ConfigError(what, where="partition", mend=f"raise partition.{key}, or lower clients or their least size")
