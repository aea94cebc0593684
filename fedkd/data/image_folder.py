"""A folder of images by class: CLASS/*.png, or train/CLASS/*.png beside test/CLASS/*.png. In sorted order, always."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedkd.data import images
from fedkd.data.image_spec import MOST_BYTES, MOST_SAMPLES, Agreed, Brought, OwnDataError, Pair, too_many

_PARTS = ("train", "test")
# Skipped, as is what begins with a dot: what Windows leaves, and the pack that may lie beside the class folders.
_LITTER = {"thumbs.db", "desktop.ini", "public.npz"}


def read(folder: Path, agreed: Agreed) -> Brought:
    """All images below a folder. Raises OwnDataError naming what cannot be used."""
    if not _is_split(folder):
        return Brought(_part(folder, folder, agreed), None)
    train, test = (folder / name for name in _PARTS)
    if not train.is_dir():
        raise OwnDataError(
            "there is a folder 'test' and none 'train' beside it",
            public="it holds test images only",
            where=str(folder),
            mend="add train/CLASS/..., or put the class folders directly here",
        )
    return Brought(_part(train, folder, agreed), _part(test, folder, agreed) if test.is_dir() else None)


def _is_split(folder: Path) -> bool:
    """Whether train and test, and no classes, are the next level: a class may be called `train` too."""
    found = _entries(folder, folder)
    are_parts = bool(found) and all(path.name in _PARTS and path.is_dir() for path in found)
    return are_parts and any(below.is_dir() for path in found for below in _entries(path, folder))


def _part(folder: Path, root: Path, agreed: Agreed) -> Pair:
    files = list(_files(folder, root, agreed))
    if not files:
        raise OwnDataError(
            "there is no image in it",
            public="it is empty",
            where=str(folder),
            mend="put images into a folder for each class: CLASS/name.png",
        )
    size = len(files) * int(np.prod(agreed.shape))
    if len(files) > MOST_SAMPLES or size > MOST_BYTES:
        raise too_many(str(folder))
    x = np.empty((len(files), *agreed.shape), np.uint8)
    for row, (path, _) in zip(x, files, strict=True):
        row[:] = images.read(path, agreed)
    return x, np.array([label for _, label in files], np.int64)


def _files(folder: Path, root: Path, agreed: Agreed) -> Iterator[tuple[Path, int]]:
    """Each image with its label, classes and images in sorted order."""
    count = 0
    for class_folder in _entries(folder, root):
        if not class_folder.is_dir():
            raise _stray("a file is not in a folder of its class", class_folder)
        label = agreed.number(class_folder.name, str(class_folder))
        for path in _entries(class_folder, root):
            if not path.is_file():  # a pipe or a device would be waited for without end
                raise _stray("a class folder holds images only, this is no file", path)
            count += 1
            if count > MOST_SAMPLES:
                raise too_many(str(folder))
            yield path, label


def _entries(folder: Path, root: Path) -> list[Path]:
    """What lies in a folder, sorted by name, without what is skipped. Raises OwnDataError for a way out of `root`."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise OwnDataError(
            f"the folder cannot be read: {error.strerror}",
            public="it cannot be read",
            where=str(folder),
            mend="give this user the right to read it",
        ) from error
    paths = [folder / name for name in names if not name.startswith(".") and name.lower() not in _LITTER]
    inside = os.path.realpath(root)
    for path in paths:
        if path.is_symlink() and os.path.commonpath((inside, os.path.realpath(path))) != inside:
            raise OwnDataError(
                "a link leads out of the data folder",
                public="it holds a link that leads out of it",
                where=str(path),
                mend="put a copy in its place",
            )
    return paths


def _stray(what: str, path: Path) -> OwnDataError:
    return OwnDataError(
        what,
        public="it is not laid out as a folder of images by class",
        where=str(path),
        mend="lay the folder out as CLASS/name.png, or train/CLASS/name.png and test/CLASS/name.png",
    )
