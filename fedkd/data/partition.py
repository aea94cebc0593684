"""Partition: which sample belongs to which client, with the recipe that made it. Pure functions over labels."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedkd import extensions
from fedkd.data.partition_recipes import RECIPES, ClientDirichlet, Recipe, Rng, Shares
from fedkd.errors import ConfigError

__all__ = ["RECIPES", "Partition", "Recipe", "split"]


@dataclass(frozen=True, eq=False)
class Partition:
    """Int64 indices into the training and the test set, one array per client, and the recipe.

    Clients share no training samples and, except for the test split `law`, no test samples.
    """

    train: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]
    num_classes: int
    recipe: dict[str, Any]

    def __len__(self) -> int:
        return len(self.train)

    @property
    def untested(self) -> str:
        """A sentence about clients without a test image; empty if all have some."""
        count = sum(not len(part) for part in self.test)
        clients = f"{count} of {len(self)} clients have no test image of a class that they hold"
        return f"{clients}: they train, and are left out of the accuracy per client" if count else ""

    def label_counts(self, train_labels: np.ndarray) -> np.ndarray:
        """Training images (clients, classes) of each client and class."""
        return _counts(self.train, train_labels, self.num_classes)

    def digest(self) -> str:
        """SHA-256 (hex) of all index lists, order included: equal for equal partitions on any machine."""
        sha = hashlib.sha256()
        for part in (self.train, self.test):
            sha.update(np.array([len(part), *map(len, part)], "<i8").tobytes())
            sha.update(np.concatenate(part).astype("<i8").tobytes())
        return sha.hexdigest()

    def facts(self, train_labels: np.ndarray) -> dict[str, Any]:
        """Facts of a partition for a report, as plain numbers.

        `total_variation`: mean over clients of half the L1 distance between the client's label distribution and that of
        all clients together; 0 for IID, near 1 if clients share no label.
        """
        counts = self.label_counts(train_labels)
        sizes = counts.sum(1)
        distance = np.abs(counts / sizes[:, None] - counts.sum(0) / counts.sum()).sum(1) / 2
        return {
            "sizes": {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())},
            "labels_per_client": float((counts > 0).sum(1).mean()),
            "total_variation": float(distance.mean()),
            "sha256": self.digest(),
        }


def known() -> dict[str, type[Recipe]]:
    """All recipes by name, users' own too. Raises ConfigError if one of these is no Recipe."""
    added = {name: extensions.find("partition", name) for name in extensions.names("partition")}
    for name, extension in added.items():
        if extension and not (isinstance(extension.value, type) and issubclass(extension.value, Recipe)):
            mend = "derive it from fedkd.data.partition_recipes.Recipe"
            raise ConfigError(f"the partition '{name}' is no Recipe", where=extension.origin, mend=mend)
    return RECIPES | {name: extension.value for name, extension in added.items() if extension}


def split(
    recipe: Recipe,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    num_clients: int,
    num_classes: int,
    rng: Rng,
    left: np.ndarray | None = None,
    users: np.ndarray | None = None,
) -> Partition:
    """Divide training and test samples among clients; each gets at least one to train on.

    A client gets no test sample if there are too few, or none of a class that it holds. `left` are the training
    samples to divide, ascending; None: all. `users` (n,) int64: whose training samples they are. `rng` is
    `seeds.stream(seed, "partition").numpy()`; fedgen-dirichlet uses its own instead.
    Errors: ConfigError if the recipe cannot be followed.
    """
    rng = recipe.generator(rng)
    left = np.arange(len(train_labels)) if left is None else left
    pool = left[_pool(recipe.samples, len(left), rng)]
    if recipe.by_user and users is None:
        mend = "choose data whose samples have users (fedkd.Data(users=...)), or another partition"
        raise ConfigError("these data do not say whose sample is whose", where="partition", mend=mend)
    keys = users if recipe.by_user and users is not None else train_labels
    train = [pool[share] for share in recipe.partition(keys[pool], num_clients, num_classes, rng)]
    if empty := [client for client, share in enumerate(train) if not len(share)]:
        what = f"{len(empty)} of {num_clients} clients have no training sample, first client {empty[0]}"
        raise ConfigError(what, where="partition", mend="use fewer clients, or raise partition.samples")
    counts = _counts(train, train_labels, num_classes)
    test = _TESTS[recipe.test](counts, test_labels, rng, recipe)
    if not any(map(len, test)):
        mend = "use partition.test=matched, fewer clients, or a larger test set"
        raise ConfigError("no client has a test image of a class that it holds", where="partition", mend=mend)
    return Partition(_frozen(train), _frozen(test), num_classes, asdict(recipe))


def _pool(samples: int | None, available: int, rng: Rng) -> np.ndarray:
    if samples is None:
        return np.arange(available)
    if samples > available:
        what = f"partition.samples = {samples} but there are {available} training samples"
        raise ConfigError(what, where="partition", mend="use null for all")
    return np.sort(rng.permutation(available)[:samples])


def _matched(counts: np.ndarray, test_labels: np.ndarray, rng: Rng, recipe: Recipe) -> Shares:
    """Test images of each class, in the proportions of its training samples among the clients."""
    give = _keep_each_supplied(_apportion(counts, np.bincount(test_labels, minlength=counts.shape[1]), rng), counts)
    # Shuffled: the second half of MNIST's test set is harder than the first.
    return _hand_out(give, [rng.permutation(np.flatnonzero(test_labels == label)) for label in range(counts.shape[1])])


def _own_distribution(counts: np.ndarray, test_labels: np.ndarray, rng: Rng, recipe: Recipe) -> Shares:
    """Equally many test images for each client, from its own label distribution; clients may share images."""
    assert isinstance(recipe, ClientDirichlet)
    index = [np.flatnonzero(test_labels == label) for label in range(counts.shape[1])]
    have, shares = np.array([len(images) for images in index]), []
    for distribution in counts / counts.sum(1, keepdims=True):
        give = np.minimum(rng.multinomial(recipe.tests, distribution), have)
        chosen = [rng.permutation(images)[:size] for images, size in zip(index, give, strict=True)]
        shares.append(np.sort(np.concatenate(chosen)))
    return shares


def _classes(counts: np.ndarray, test_labels: np.ndarray, rng: Rng, recipe: Recipe) -> Shares:
    """FedGen's split: for each class that a client holds, the next floor(n_test / clients) images in stored order."""
    index = [np.flatnonzero(test_labels == label) for label in range(counts.shape[1])]
    give = (counts > 0) * (np.array([len(images) for images in index]) // len(counts))
    return _hand_out(give, index)


_TESTS: dict[str, Callable[[np.ndarray, np.ndarray, Rng, Recipe], Shares]] = {
    "matched": _matched,
    "classes": _classes,
    "law": _own_distribution,
}


def _apportion(counts: np.ndarray, available: np.ndarray, rng: Rng) -> np.ndarray:
    """Share out `available` (C,) by `counts` (clients, C): largest remainders, ties at random; none without holders."""
    quota, holders = counts * available, np.maximum(counts.sum(0), 1)
    give = quota // holders
    left = (available - give.sum(0)) * counts.any(0)
    order = rng.permutation(len(counts))
    for label, rest in enumerate(left):
        largest = np.argsort(-(quota % holders)[order, label], kind="stable")[:rest]
        give[order[largest], label] += 1
    return give


def _keep_each_supplied(give: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Give each client without a test image one of its classes, if the client with most of that class can spare it."""
    give = give.copy()
    sizes = give.sum(1)
    for client in np.flatnonzero(sizes == 0):
        for label in np.argsort(-counts[client], kind="stable")[: (counts[client] > 0).sum()]:
            spare = np.where(sizes > 1, give[:, label], 0)
            if spare.any():
                giver = spare.argmax()
                give[giver, label] -= 1
                give[client, label] += 1
                sizes[giver] -= 1
                sizes[client] += 1
                break
    return give


def _hand_out(give: np.ndarray, index: list[np.ndarray]) -> Shares:
    """Cut each class's `index` into consecutive slices of the sizes `give` (clients, C); sorted within a client."""
    clients = np.arange(len(give))
    given = np.concatenate([images[: sizes.sum()] for images, sizes in zip(index, give.T, strict=True)])
    owner = np.concatenate([np.repeat(clients, sizes) for sizes in give.T])
    # One cut for all classes: ten slices per client cost more than the rest of a split.
    return np.split(given[np.lexsort((given, owner))], give.sum(1).cumsum()[:-1])


def _counts(shares: Shares | tuple[np.ndarray, ...], labels: np.ndarray, num_classes: int) -> np.ndarray:
    owner = np.repeat(np.arange(len(shares)), [len(share) for share in shares])
    cell = owner * num_classes + labels[np.concatenate(shares)]
    return np.bincount(cell, minlength=len(shares) * num_classes).reshape(len(shares), num_classes)


def _frozen(shares: Shares) -> tuple[np.ndarray, ...]:
    arrays = tuple(share.astype(np.int64) for share in shares)
    for array in arrays:
        array.setflags(write=False)
    return arrays
