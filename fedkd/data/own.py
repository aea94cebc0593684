"""Data at the ends of a deployment: a device has its own samples, the server a test set; neither needs the data set."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedkd import seeds
from fedkd.config import DataConfig
from fedkd.data import own_data, sources
from fedkd.data.image_spec import OWN, Agreed, Brought
from fedkd.data.samples import Dataset, Samples


def read(path: Path, config: DataConfig) -> Brought:
    """What lies at a path, as stored and as agreed: `brought.read`. Errors: ConfigError, OwnDataError."""
    return own_data.read(path, sources.agree(config))


def load_device(config: DataConfig, path: Path, seed: int, client: int) -> Dataset:
    """One device's own samples in stored order, checked and scaled as configured.

    If they have no test part, `data.test_share` of them is drawn from stream(seed, "own test", client), so equal files
    give an equal test part. Errors: ConfigError, OwnDataError (others may see `image_spec.public_reason`).
    """
    common = sources.agree(config)
    stream = seeds.stream(seed, "own test", client=client)
    train, test = own_data.of_device(path, common, config.test_share, config.min_samples, stream)
    return Dataset(config.name, common.labels, sources.samples(train, common), sources.samples(test, common))


def load_server(config: DataConfig) -> Dataset:
    """The server's data: no training samples, and the source's test set or, for own data, that of `data.test`.

    Own data without `data.test` have an empty pooled test set. Errors: ConfigError, DataError.
    """
    common = sources.agree(config)
    if config.name != OWN:
        whole = sources.load(config)
        return replace(whole, train=_none(common))
    if config.test is None:
        return Dataset(OWN, common.labels, _none(common), _none(common))
    test = own_data.test_part(Path(config.test), common)
    return Dataset(OWN, common.labels, _none(common), sources.samples(test, common))


def _none(common: Agreed) -> Samples:
    return sources.samples((np.empty((0, *common.shape), np.uint8), np.empty(0, np.int64)), common)
