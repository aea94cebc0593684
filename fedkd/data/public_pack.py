"""The public pack, public.npz: data that every end of a deployment may see, equal for all. Bytes as stored.

proxy_x, proxy_y      the public set, in its order; labels are -1 if there are none
proxy_scaling         (2, channels) float64: scale and offset, if the set comes from another source
probe_x               test images that measure drift
common_x, common_y    test images on which every client's own student is evaluated
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, arange

from fedkd.config import RunConfig
from fedkd.data import arrays, proxy, sources
from fedkd.data.arrays import Entry
from fedkd.data.image_spec import ImageSpec
from fedkd.data.samples import Proxy, Samples
from fedkd.errors import DataError

NAME = "public.npz"
_NAMES = {"proxy_x", "proxy_y", "proxy_scaling", "probe_x", "common_x", "common_y"}


@dataclass(frozen=True)
class Public:
    """The content of a pack; None for missing parts."""

    proxy: Proxy | None = None
    probe: Tensor | None = None  # (N, channels, height, width) float32, scaled
    common: Samples | None = None


def read(path: Path, config: RunConfig) -> Public:
    """The pack at a path, a file or a folder with public.npz; empty if there is none.

    Raises OwnDataError if it is damaged or not in the agreed form, ConfigError, and DataError if the run has a public
    set and the pack has none.
    """
    path = path.expanduser()
    path = path / NAME if path.is_dir() else path
    spec = sources.spec_of(config.data)
    pack = arrays.entries(path) if path.is_file() else {}
    if strangers := set(pack) - _NAMES:
        raise DataError(f"the file holds {', '.join(sorted(strangers))[:200]}", where=str(path), mend=_MEND)
    if config.proxy.name != "none" and "proxy_x" not in pack:
        raise DataError(f"there is no public set, and proxy={config.proxy.name}", where=str(path), mend=_MEND)
    return Public(
        _proxy(pack, path, config.proxy.name, spec) if config.proxy.name != "none" else None,
        _probe(pack, path, spec) if "probe_x" in pack else None,
        _pair(pack, "common", path, spec) if "common_x" in pack else None,
    )


_MEND = "copy the public.npz that was written for this run"


def _proxy(pack: Mapping[str, Entry], path: Path, name: str, spec: ImageSpec) -> Proxy:
    samples = _pair(pack, "proxy", path, spec)
    if "proxy_scaling" in pack:
        scaling = _loaded(pack, "proxy_scaling", path)
        if scaling.shape != (2, spec.shape[0]) or scaling.dtype.kind != "f" or not np.isfinite(scaling).all():
            raise DataError(f"proxy_scaling is {scaling.dtype} {scaling.shape}", where=str(path), mend=_MEND)
        scale, offset = scaling.tolist()
        samples = Samples(samples.x, samples.y, tuple(scale), tuple(offset))
    return proxy.of(name, samples, is_labelled=bool((samples.y >= 0).all()))


def _probe(pack: Mapping[str, Entry], path: Path, spec: ImageSpec) -> Tensor:
    x = arrays.of_images(pack["probe_x"], "probe_x", path, spec)
    return sources.samples((x, np.zeros(len(x), np.int64)), spec).take(arange(len(x)))[0]


def _pair(pack: Mapping[str, Entry], part: str, path: Path, spec: ImageSpec) -> Samples:
    """Images and labels; those of a public set may all be -1."""
    x = arrays.of_images(pack[f"{part}_x"], f"{part}_x", path, spec)
    y = _loaded(pack, f"{part}_y", path)
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise DataError(f"{part}_y is {y.dtype} {y.shape}, images are {len(x)}", where=str(path), mend=_MEND)
    is_unlabelled = part == "proxy" and bool((y == -1).all())
    labels = y.astype(np.int64) if is_unlabelled else spec.numbers(y, f"{part}_y in {path}")
    return sources.samples((x, labels), spec)


def _loaded(pack: Mapping[str, Entry], name: str, path: Path) -> np.ndarray:
    if name not in pack:
        raise DataError(f"the file holds no {name}", where=str(path), mend=_MEND)
    return arrays.load(pack[name], path)
