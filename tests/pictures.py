"""Own data for the tests: arrays and folders of small images, and what becomes of them. Builders, no fixtures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd.config import DataConfig
from fedkd.data import own
from fedkd.data.image_spec import OwnDataError, Pair, public_reason
from fedkd.data.samples import Dataset

LABELS = ["cat", "dog", "owl"]
GREY = DataConfig(name="own", labels=LABELS, shape=[1, 4, 5], min_samples=1)
COLOUR = replace(GREY, shape=[3, 4, 5])


def pixels(count: int, shape: tuple[int, ...] = (4, 5), seed: int = 0) -> np.ndarray:
    made: np.ndarray = np.random.Generator(np.random.Philox(seed)).integers(0, 256, (count, *shape), np.uint8)
    return made


def write_folder(folder: Path, x: np.ndarray, labels: list[str], suffix: str = ".png") -> Path:
    """Images (N, height, width) or (N, height, width, 3) in class folders, named in order."""
    for number, (image, label) in enumerate(zip(x, labels, strict=True)):
        path = folder / label / f"{number:04}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def device(config: DataConfig, path: Path, seed: int = 0, client: int = 0) -> Dataset:
    return own.load_device(config, path, seed, client)


def refusal(config: DataConfig, path: Path) -> OwnDataError:
    """Why a device is refused; whatever it is, others are told neither names nor numbers."""
    with pytest.raises(OwnDataError) as caught:
        device(config, path)
    error = caught.value
    assert error.what
    assert error.where
    assert error.mend
    told = public_reason(error)
    assert told
    assert not any(letter.isdigit() or letter in "'/." for letter in told), told
    return error


def attempt(path: Path) -> Pair | OwnDataError:
    """The samples that are read, or why they are not."""
    try:
        return own.read(path, GREY).train
    except OwnDataError as error:
        return error
