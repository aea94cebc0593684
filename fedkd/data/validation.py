"""Validation: a share of each client's training data replaces the test data, which choices must not see."""

from dataclasses import replace

import numpy as np
import torch

from fedkd import seeds
from fedkd.data.partition import Partition
from fedkd.data.samples import Dataset, Samples
from fedkd.errors import ConfigError


def instead_of_test(dataset: Dataset, partition: Partition, share: float, seed: int) -> tuple[Dataset, Partition]:
    """The same clients with fewer training samples; the held-out images are the test part of data set and partition.

    Each client gives round(share * n), at least 1, drawn from stream(seed, "validation", client); a client with a
    single image trains on it and gives none. The result has no test image, so a run on it cannot use one. Raises
    ConfigError if no client can give any.
    """
    train, kept_out = [], []
    for client, index in enumerate(partition.train):
        count = min(max(1, round(share * len(index))), len(index) - 1)
        order = seeds.stream(seed, "validation", client=client).numpy().permutation(len(index))
        kept_out.append(index[np.sort(order[:count])])
        train.append(index[np.sort(order[count:])])
    if not any(map(len, kept_out)):
        what = "every client has a single training sample: none can be held out"
        raise ConfigError(what, where="evaluate.validation", mend="use fewer clients, or raise partition.samples")
    ends = np.cumsum([0, *map(len, kept_out)])
    test = tuple(np.arange(*ends[client : client + 2]) for client in range(len(partition)))
    every = torch.from_numpy(np.concatenate(kept_out))
    chosen = Samples(dataset.train.x[every], dataset.train.y[every], dataset.train.scale, dataset.train.offset)
    recipe = {**partition.recipe, "validation": share}
    return replace(dataset, test=chosen), replace(partition, train=tuple(train), test=test, recipe=recipe)
