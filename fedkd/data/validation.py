"""Validation: a share of each client's training data, judged in the place of test data that choices must not see."""

from dataclasses import replace

import numpy as np
import torch

from fedkd import seeds
from fedkd.data.partition import Partition
from fedkd.data.samples import Dataset, Samples
from fedkd.errors import ConfigError


def instead_of_test(dataset: Dataset, held: Partition, share: float, seed: int) -> tuple[Dataset, Partition]:
    """The same clients with less to train on; data set and partition have the images held out as their test part.

    Each client gives round(share * n), at least 1, drawn from stream(seed, "validation", client). No test image is left
    in what comes back, so nothing that is played on it can look at one. Raises ConfigError for a client with one image.
    """
    train, kept_out = [], []
    for client, index in enumerate(held.train):
        count = max(1, round(share * len(index)))
        if count >= len(index):
            images = "1 training image" if len(index) == 1 else f"{len(index)} training images"
            raise ConfigError(
                f"client {client} has {images}: none is left beside validation",
                where="evaluate.validation",
                mend="hold out a smaller share, or give clients more samples",
            )
        order = seeds.stream(seed, "validation", client=client).numpy().permutation(len(index))
        kept_out.append(index[np.sort(order[:count])])
        train.append(index[np.sort(order[count:])])
    ends = np.cumsum([0, *map(len, kept_out)])
    test = tuple(np.arange(*ends[client : client + 2]) for client in range(len(held)))
    every = torch.from_numpy(np.concatenate(kept_out))
    chosen = Samples(dataset.train.x[every], dataset.train.y[every], dataset.train.scale, dataset.train.offset)
    recipe = {**held.recipe, "validation": share}
    return replace(dataset, test=chosen), replace(held, train=tuple(train), test=test, recipe=recipe)
