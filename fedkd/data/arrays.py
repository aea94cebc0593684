"""Arrays in a .npz or .safetensors file: their headers are checked before memory is allocated."""

import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedkd.data import images
from fedkd.data.image_spec import MOST_BYTES, MOST_SAMPLES, ImageSpec, OwnData, OwnDataError, Pair, too_many

SUFFIXES = (".npz", ".safetensors")
_LAYOUTS = ({"x", "y"}, {"train_x", "train_y"}, {"train_x", "train_y", "test_x", "test_y"})
_DAMAGE = (OSError, EOFError, ValueError, KeyError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile)
_MOST_ARRAYS = 100  # per file
_LONGEST_HEADER = 1000  # characters; a usual header has about a hundred
_SAFETENSORS = {"U8": "u1", "U16": "u2", "U32": "u4", "U64": "u8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8"}
_SAFETENSORS |= {"F16": "f2", "F32": "f4", "F64": "f8", "BOOL": "?"}


@dataclass(frozen=True)
class Entry:
    """The header of one array that is not yet read; it promises no more than the file holds."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


def read(path: Path, spec: ImageSpec) -> OwnData:
    """train_x, train_y and optionally test_x, test_y of a file; or x, y. Raises OwnDataError."""
    arrays = parts(entries(path), path)
    train = pair(arrays, "x" if "x" in arrays else "train_x", path, spec)
    return OwnData(train, pair(arrays, "test_x", path, spec) if "test_x" in arrays else None)


def parts(arrays: Mapping[str, Entry], path: Path) -> dict[str, Entry]:
    """The arrays of a file under our names: also X and Y, x_train and y_train. Raises OwnDataError for others."""
    found = {_our_name(name): entry for name, entry in arrays.items()}
    if set(found) not in _LAYOUTS or len(found) < len(arrays):
        shown = ", ".join(sorted(arrays))[:200] or "nothing"
        raise _refused(f"the file holds {shown}", path, "name its arrays train_x, train_y, test_x, test_y; or x, y")
    return found


def _our_name(name: str) -> str:
    first, _, part = name.lower().partition("_")
    return f"{part}_{first}" if first in ("x", "y") and part else name.lower()


def entries(path: Path) -> dict[str, Entry]:
    """The arrays of a file by name. Raises OwnDataError if it is damaged."""
    arrays = _guarded(path, partial(_of_npz if path.suffix.lower() == ".npz" else _of_safetensors, path))
    for entry in arrays.values():
        if math.prod(entry.shape) * entry.dtype.itemsize > MOST_BYTES:
            raise too_many(str(path))
    return arrays


def pair(arrays: Mapping[str, Entry], name: str, path: Path, spec: ImageSpec) -> Pair:
    """The images `name` (ending in x) and their labels, as agreed. Raises OwnDataError."""
    names = f"{name[:-1]}y"
    x, y = arrays[name], arrays[names]
    if x.shape[:1] != y.shape or len(y.shape) != 1:
        raise _refused(f"{name} has shape {x.shape} and {names} {y.shape}", path, "give each image one label")
    if y.dtype.kind not in "iuU":
        mend = "save labels as whole numbers, or as the names of the classes"
        raise _refused(f"{names} holds labels of type {y.dtype}", path, mend)
    return of_images(x, name, path, spec), spec.numbers(load(y, path), f"{names} in {path}")


def of_images(entry: Entry, name: str, path: Path, spec: ImageSpec) -> np.ndarray:
    """The images of an entry as agreed, (N, channels, height, width) uint8. Raises OwnDataError."""
    _, high, wide = spec.shape
    where, layout = f"{name} in {path}", _layout(entry.shape, spec)
    if entry.dtype != np.uint8:
        mend = f"save the pixels as uint8, 0 to {spec.top}"
        raise _refused(f"{name} holds pixels of type {entry.dtype}", path, mend)
    if layout is None:
        mend = "save images as (N, height, width), (N, channels, height, width) or (N, height, width, channels)"
        raise _refused(f"{name} has shape {entry.shape}", path, f"{mend}, with 1 channel or 3")
    height, width = (entry.shape[layout.index(axis)] for axis in "HW")
    if not math.prod(entry.shape):
        raise OwnDataError(f"{name} is empty", public="it is empty", where=str(path), mend="put images into it")
    if entry.shape[0] > MOST_SAMPLES or entry.shape[0] * math.prod(spec.shape) > MOST_BYTES:
        raise too_many(where)
    if (height, width) != (high, wide) and spec.resize == "refuse":
        raise images.wrong_size(height, width, spec, where)
    x = load(entry, path)
    spec.check_pixels(x, where)
    x = x[:, None] if layout == "NHW" else x.transpose(0, 3, 1, 2) if layout == "NHWC" else x
    return np.ascontiguousarray(x) if x.shape[1:] == spec.shape else _fitted(x, spec, where)


def load(entry: Entry, path: Path) -> np.ndarray:
    """The array of an entry. Raises OwnDataError if its bytes are damaged."""
    return _guarded(path, entry.load)


def _layout(shape: tuple[int, ...], spec: ImageSpec) -> str | None:
    """The order of the axes; if two orders are possible, the agreed shape decides."""
    channels, *size = spec.shape
    if len(shape) == 3:
        return "NHW"
    if len(shape) != 4:
        return None
    if shape[1:] == (*size, channels) != spec.shape:
        return "NHWC"
    return "NCHW" if shape[1] in (1, 3) else "NHWC" if shape[3] in (1, 3) else None


def _fitted(x: np.ndarray, spec: ImageSpec, where: str) -> np.ndarray:
    """Images (N, 1 or 3, height, width), converted to the agreed channels and size."""
    from PIL import Image

    fitted = np.empty((len(x), *spec.shape), np.uint8)
    for row, image in zip(fitted, x, strict=True):
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        row[:] = images.fit(Image.fromarray(np.ascontiguousarray(pixels)), spec, where)
    return fitted


def _of_npz(path: Path) -> dict[str, Entry]:
    arrays: dict[str, Entry] = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > _MOST_ARRAYS:
            raise ValueError(f"it holds {len(members)} arrays")
        for member in members:
            with archive.open(member) as stream:
                dtype, shape = _header(stream)
                promised = stream.tell() + math.prod(shape) * dtype.itemsize
            name = member.filename.removesuffix(".npy")
            if dtype.hasobject:
                mend = "save it as numbers or text, without pickle"
                raise _refused(f"{name} holds Python objects, which fedkd does not unpickle", path, mend)
            if promised != member.file_size or name in arrays:
                raise ValueError(f"{name} has {member.file_size} bytes, its header promises {promised}")
            arrays[name] = Entry(dtype, shape, partial(_member, path, member.filename))
    return arrays


def _header(stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of an array in NumPy's format; leaves the stream where its bytes begin."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its arrays are in version {version} of NumPy's format")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(stream, max_header_size=_LONGEST_HEADER)
    if any(side < 0 for side in shape):
        raise ValueError(f"an array has shape {shape}")
    return dtype, shape


def _member(path: Path, name: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_LONGEST_HEADER)
        return array


def _of_safetensors(path: Path) -> dict[str, Entry]:
    from safetensors import safe_open

    arrays = {}
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  # not a mapping
            part = file.get_slice(name)
            dtype = np.dtype(_SAFETENSORS.get(part.get_dtype(), "V1"))
            arrays[name] = Entry(dtype, tuple(part.get_shape()), partial(_tensor, path, name))
    return arrays


def _tensor(path: Path, name: str) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        array: np.ndarray = file.get_tensor(name)
        return array


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """The result of reading a file. Raises OwnDataError for the errors of damaged files."""
    from safetensors import SafetensorError

    try:
        return read()
    except OwnDataError:
        raise
    except (*_DAMAGE, SafetensorError) as error:
        raise OwnDataError(
            f"the file cannot be read: {str(error)[:200] or type(error).__name__}",
            public="it cannot be read",
            where=str(path),
            mend="save it again with numpy.savez, or safetensors",
        ) from error


def _refused(what: str, path: Path, mend: str) -> OwnDataError:
    return OwnDataError(what, public="its arrays are not laid out as agreed", where=str(path), mend=mend)
