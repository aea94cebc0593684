"""Opens one image, turns it upright, and converts it to the agreed channels and size. Pillow is imported late."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.data.image_spec import ImageSpec, OwnDataError

# Not all of Pillow's formats: EPS starts another program, and readers of rare formats are rarely tested.
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MOST_PIXELS = 1 << 26  # of one stored image; photos of telephones have a quarter of it
_DEEP = ("I", "F")  # modes, and prefixes of modes, of more than eight bits per channel, which conversion clips


def read(path: Path, spec: ImageSpec) -> np.ndarray:
    """The image in a file, (channels, height, width) uint8. Raises OwnDataError naming the file."""
    from PIL import Image, ImageOps

    Image.init()
    where = str(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                _check(image, where)
                upright = ImageOps.exif_transpose(image)  # decodes the first frame
                return fit(upright, spec, where)
    except OwnDataError:
        raise
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise _unreadable(f"a file cannot be read as an image: {str(error) or type(error).__name__}", where) from error


def fit(image: Any, spec: ImageSpec, where: str) -> np.ndarray:
    """A Pillow image in the agreed form: grey or RGB, of the agreed size or resampled to it. Raises OwnDataError."""
    from PIL import Image

    channels, height, width = spec.shape
    if image.size != (width, height):
        if spec.resize == "refuse":
            raise wrong_size(image.height, image.width, spec, where)
        image = image.convert("L" if channels == 1 else "RGB")  # before the resize: palette numbers have no mean
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased when it shrinks
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def wrong_size(height: int, width: int, spec: ImageSpec, where: str) -> OwnDataError:
    """The error for an image of another size than agreed."""
    _, high, wide = spec.shape
    return OwnDataError(
        f"an image is {height}x{width} pixels, agreed are {high}x{wide} (height x width)",
        public="its images have another size than agreed",
        where=where,
        mend="resize it, or agree on data.resize=fit",
    )


def _check(image: Any, where: str) -> None:
    """Checks the header of a file before any pixel is decoded."""
    if image.width * image.height > MOST_PIXELS:
        raise OwnDataError(
            f"an image has {image.width}x{image.height} pixels, at most {MOST_PIXELS} in all are read",
            public="it holds an image larger than fedkd reads",
            where=where,
            mend="make it smaller, or remove it",
        )
    if image.mode.startswith(_DEEP):
        raise _unreadable("an image has more than 8 bits per channel", where)


def _unreadable(what: str, where: str) -> OwnDataError:
    return OwnDataError(
        what,
        public="it holds a file that cannot be read as an image",
        where=where,
        mend="save it as an 8-bit PNG or JPEG, or remove it",
    )
