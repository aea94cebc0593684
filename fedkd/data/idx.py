"""The idx files of the MNIST family, read whole and checked, which torchvision does not do."""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

from fedkd.errors import DataError

# SHA-256 and bytes of the published files, unpacked. A file of another size is a user's selection, without a checksum.
_LISTED = """
ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db 47040016 MNIST/raw/train-images-idx3
65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5 60008 MNIST/raw/train-labels-idx1
0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7 7840016 MNIST/raw/t10k-images-idx3
ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2 10008 MNIST/raw/t10k-labels-idx1
c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888 47040016 FashionMNIST/raw/train-images-idx3
bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9 60008 FashionMNIST/raw/train-labels-idx1
5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b 7840016 FashionMNIST/raw/t10k-images-idx3
0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34 10008 FashionMNIST/raw/t10k-labels-idx1
7a786db773b2096a7b9a3f3275388a27711f4451548c3ca8be96f09ae94371ae 97843216 EMNIST/raw/emnist-letters-train-images-idx3
e8e94c3f4353d5532fd9604b939cb4c76e7847945b9b0d9ff7884d881dead6bc 124808 EMNIST/raw/emnist-letters-train-labels-idx1
d5895e82d14765b22a84342337bc5c25f1affd61cc97d3821d4e65504bbf8dbc 16307216 EMNIST/raw/emnist-letters-test-images-idx3
22dbcde0a929a7f166bdac863b9195b2994d840a1e082f8f6daaeac5606376a6 20808 EMNIST/raw/emnist-letters-test-labels-idx1
"""
_PUBLISHED = {f"{name}-ubyte": (int(size), sha) for sha, size, name in map(str.split, _LISTED.strip().splitlines())}


def find(root: Path, name: str) -> Path | None:
    """The file `name` below `root`, or its .gz; None if neither is there."""
    plain, packed = root / name, root / f"{name}.gz"
    return plain if plain.is_file() else packed if packed.is_file() else None


def read(root: Path, name: str) -> np.ndarray:
    """The uint8 array in `name` below `root`: (N,) labels or (N, height, width). Raises DataError for damaged files."""
    path = find(root, name)
    if path is None:
        raise damaged(root, name, "has disappeared")
    shown = str(path.relative_to(root))
    content = _content(root, path, shown)
    shape = _shape(content)
    if shape is None:
        raise damaged(root, shown, "is damaged: it does not begin like an idx file of bytes")
    start = 4 + 4 * len(shape)
    promised = start + math.prod(shape)
    if len(content) != promised:
        verb = "truncated" if len(content) < promised else "damaged"
        raise damaged(root, shown, f"is {verb}: {len(content)} bytes, its header promises {promised}")
    size, sha256 = _PUBLISHED.get(name, (-1, ""))
    if len(content) == size and hashlib.sha256(content).hexdigest() != sha256:
        raise damaged(root, shown, "is damaged (SHA-256 differs)")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def damaged(root: Path, name: str, how: str) -> DataError:
    """The error for a bad file `name` below `root`."""
    mend = "delete that file and run again with data.download=true, or set data.root to another copy"
    return DataError(f"{name} {how}", where=f"data root {root}", mend=mend)


def _content(root: Path, path: Path, shown: str) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(root, shown, f"is truncated or damaged ({error})") from error
    except OSError as error:
        raise DataError(
            f"{shown} cannot be read: {error.strerror}", where=f"data root {root}", mend="check its rights"
        ) from error


def _shape(content: bytes) -> tuple[int, ...] | None:
    """Dimensions from the header (two zeros, 8 for bytes, their number, each as big-endian uint32), if it is one."""
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] not in (1, 3) or len(content) < 4 + 4 * content[3]:
        return None
    return tuple(int(size) for size in np.frombuffer(content, ">u4", content[3], 4))
