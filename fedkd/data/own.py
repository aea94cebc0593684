"""Data at the ends of a deployment: a device has its own samples, the server a test set; neither needs the data set."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedkd import seeds
from fedkd.config import DataConfig
from fedkd.data import own_data, sources
from fedkd.data.image_spec import OWN, ImageSpec, OwnData
from fedkd.data.samples import Dataset, Samples


def read(path: Path, config: DataConfig) -> OwnData:
    """The data at a path, checked against the run's image spec. Errors: ConfigError, OwnDataError."""
    return own_data.read(path, sources.spec_of(config))


def load_device(config: DataConfig, path: Path, seed: int, client: int) -> Dataset:
    """One device's own samples in stored order, checked and scaled as configured.

    If they have no test part, `data.test_share` of them is drawn from stream(seed, "own test", client), so equal files
    give an equal test part. Errors: ConfigError, OwnDataError (others may see `image_spec.public_reason`).
    """
    spec = sources.spec_of(config)
    stream = seeds.stream(seed, "own test", client=client)
    train, test = own_data.of_device(path, spec, config.test_share, config.min_samples, stream)
    return Dataset(config.name, spec.labels, sources.samples(train, spec), sources.samples(test, spec))


def load_server(config: DataConfig) -> Dataset:
    """The server's test data, perhaps none for own data; no training samples. Errors: ConfigError, DataError."""
    spec = sources.spec_of(config)
    if config.name != OWN:
        whole = sources.load(config)
        return replace(whole, train=_none(spec))
    if config.test is None:
        return Dataset(OWN, spec.labels, _none(spec), _none(spec))
    test = own_data.test_part(Path(config.test), spec)
    return Dataset(OWN, spec.labels, _none(spec), sources.samples(test, spec))


def _none(spec: ImageSpec) -> Samples:
    return sources.samples((np.empty((0, *spec.shape), np.uint8), np.empty(0, np.int64)), spec)
