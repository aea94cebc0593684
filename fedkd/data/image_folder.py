"""A folder of images by class, always in sorted order: CLASS/*.png, or train/CLASS/*.png beside test/CLASS/*.png."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedkd.data import images
from fedkd.data.image_spec import MOST_BYTES, MOST_SAMPLES, ImageSpec, OwnData, OwnDataError, Pair, too_many

_PARTS = ("train", "test")
# Skipped, like names that begin with a dot: files of Windows, and a pack beside the class folders.
_LITTER = {"thumbs.db", "desktop.ini", "public.npz"}


def read(folder: Path, spec: ImageSpec) -> OwnData:
    """All images below a folder. Raises OwnDataError that names the unusable file or folder."""
    if not _is_split(folder):
        return OwnData(_part(folder, folder, spec), None)
    train, test = (folder / name for name in _PARTS)
    if not train.is_dir():
        raise OwnDataError(
            "there is a folder 'test' and none 'train' beside it",
            public="it holds test images only",
            where=str(folder),
            mend="add train/CLASS/..., or put the class folders directly here",
        )
    return OwnData(_part(train, folder, spec), _part(test, folder, spec) if test.is_dir() else None)


def _is_split(folder: Path) -> bool:
    """Whether the next level is train and test, not classes: a class may also be called `train`."""
    entries = _entries(folder, folder)
    are_parts = bool(entries) and all(path.name in _PARTS and path.is_dir() for path in entries)
    return are_parts and any(below.is_dir() for path in entries for below in _entries(path, folder))


def _part(folder: Path, root: Path, spec: ImageSpec) -> Pair:
    files = list(_files(folder, root, spec))
    if not files:
        raise OwnDataError(
            "there is no image in it",
            public="it is empty",
            where=str(folder),
            mend="put images into a folder for each class: CLASS/name.png",
        )
    size = len(files) * int(np.prod(spec.shape))
    if len(files) > MOST_SAMPLES or size > MOST_BYTES:
        raise too_many(str(folder))
    x = np.empty((len(files), *spec.shape), np.uint8)
    for row, (path, _) in zip(x, files, strict=True):
        row[:] = images.read(path, spec)
    return x, np.array([label for _, label in files], np.int64)


def _files(folder: Path, root: Path, spec: ImageSpec) -> Iterator[tuple[Path, int]]:
    """Each image with its label; classes and images are in sorted order."""
    count = 0
    for class_folder in _entries(folder, root):
        if not class_folder.is_dir():
            raise _stray("a file is not in a folder of its class", class_folder)
        label = spec.number(class_folder.name, str(class_folder))
        for path in _entries(class_folder, root):
            if not path.is_file():  # reading a pipe or a device may never end
                raise _stray("a class folder holds images only, this is no file", path)
            count += 1
            if count > MOST_SAMPLES:
                raise too_many(str(folder))
            yield path, label


def _entries(folder: Path, root: Path) -> list[Path]:
    """The entries of a folder, sorted, without skipped ones. Raises OwnDataError for a link that leaves `root`."""
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
