"""Shards: the configured data set, split for devices exactly as in a simulation, a folder per client.

data.npz     that client's samples alone, for its owner only; in the order of the partition, so that a device that takes
             them as stored trains on the simulation's batches
public.npz   what every end may see, the same for all: docs/data.md
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd.config import RunConfig
from fedkd.data import own, proxy, public_pack, sources, validation
from fedkd.data.image_spec import OWN
from fedkd.data.partition import Partition
from fedkd.data.samples import Dataset, Proxy, Samples
from fedkd.errors import ConfigError
from fedkd.training import probing
from simulations import assemble
from simulations.deploy import files

DATA = "data.npz"
Row = dict[str, Any]


def write(config: RunConfig, folders: Sequence[Path]) -> list[Row]:
    """Client k's samples into `folders[k]`, created if missing; gives a row per client.

    Raises ConfigError if the recipe cannot be followed or a client has too few samples to join, DataError for missing
    files, FolderError if a folder cannot be written.
    """
    if len(folders) != config.clients:
        raise ConfigError(
            f"clients = {config.clients}, and there are {len(folders)} devices",
            where="clients",
            mend=f"say clients={len(folders)}",
        )
    dataset, held, proxy_set = _dealt(config)
    _check_sizes(held, config.data.min_samples)
    public = _packed(_public(config, dataset, proxy_set))
    rows = [_write_one(client, Path(folder), dataset, held) for client, folder in enumerate(folders)]
    return [{**row, "public": _publish(Path(folder), public)} for row, folder in zip(rows, folders, strict=True)]


def write_public(config: RunConfig, folders: Sequence[Path]) -> list[Row]:
    """The public pack alone, into any folders: for devices that have data of their own. A row a folder.

    Own data without `data.root` are in no one place: then the pack is drawn from `data.test`, and the public set cannot
    be some of the devices' images. Raises ConfigError, DataError, FolderError.
    """
    if config.data.name == OWN and not config.data.root:
        dataset = own.load_server(config.data)
        proxy_set = _without_clients(config, dataset)
    else:
        dataset, _, proxy_set = _dealt(config)
    public = _packed(_public(config, dataset, proxy_set))
    return [{"public": _publish(Path(folder), public)} for folder in folders]


def _dealt(config: RunConfig) -> tuple[Dataset, Partition, Proxy | None]:
    """The data set, who holds what of it, and the public set: as `assemble.assemble` has them."""
    dataset = sources.load(config.data)
    held, proxy_set = assemble.partition_data(config, dataset)
    if config.evaluate.on == "validation":
        dataset, held = validation.instead_of_test(dataset, held, config.evaluate.validation, config.seed)
    return dataset, held, proxy_set


def _without_clients(config: RunConfig, dataset: Dataset) -> Proxy | None:
    if config.proxy.name in proxy.OF_THE_TASK:
        raise ConfigError(
            f"proxy={config.proxy.name} takes images of the clients, which stay on the devices",
            where="proxy.name",
            mend="say proxy=noise or a foreign source: fedkd list proxies",
        )
    nothing = np.empty(0, np.int64)
    return proxy.load(config, dataset, Partition((nothing,), (nothing,), len(dataset.labels), {}), nothing)


def _check_sizes(held: Partition, fewest: int) -> None:
    """The devices' own checks, made before the shards are copied to them."""
    small = [client for client, index in enumerate(held.train) if len(index) < fewest]
    if small:
        count = len(held.train[small[0]])
        raise ConfigError(
            f"client {small[0]} would have {count} training samples, a device may join with {fewest}",
            where="data.min_samples",
            mend=f"say data.min_samples={count}, or use fewer clients",
        )
    if held.untested:
        client = next(client for client, index in enumerate(held.test) if not len(index))
        what = f"client {client} would have no test sample, and a device needs at least one"
        raise ConfigError(what, where="partition", mend="use fewer clients")


def _write_one(client: int, folder: Path, dataset: Dataset, held: Partition) -> Row:
    train, test = (torch.from_numpy(part[client].copy()) for part in (held.train, held.test))
    packed = _packed({**_pair("train", dataset.train, train), **_pair("test", dataset.test, test)})
    assert packed is not None
    with files.writing(folder):
        folder.mkdir(files.PRIVATE, parents=True, exist_ok=True)
    files.replace(folder / DATA, files.Content(packed, files.SECRET))
    return {"client": client, "train": len(train), "test": len(test), "data": str(folder / DATA)}


def _publish(folder: Path, public: bytes | None) -> str | None:
    """The place of the pack in a folder; None, and no file of a run before, if nothing is public."""
    path = folder / public_pack.NAME
    with files.writing(folder):
        folder.mkdir(files.PRIVATE, parents=True, exist_ok=True)
        if public is None:
            path.unlink(missing_ok=True)
            return None
    files.replace(path, files.Content(public))
    return str(path)


def _public(config: RunConfig, dataset: Dataset, proxy_set: Proxy | None) -> dict[str, np.ndarray]:
    """The arrays of public.npz, drawn as `assemble.assemble` draws them."""
    found: dict[str, np.ndarray] = {}
    available = len(dataset.test)
    if proxy_set is not None:
        found |= _pair("proxy", proxy_set.samples, torch.arange(len(proxy_set)))
        found["proxy_scaling"] = np.array([proxy_set.samples.scale, proxy_set.samples.offset])
    num_probes = probing.num_images(config, dataset.shape, len(dataset.labels), available)
    probe = assemble.draw_probe(config.seed, available, num_probes)
    if len(probe):
        found["probe_x"] = dataset.test.x[probe].numpy()
    common = assemble.draw_common(config.seed, available, config.evaluate.common)
    if len(common):
        found |= _pair("common", dataset.test, common)
    return found


def _pair(part: str, samples: Samples, index: torch.Tensor) -> dict[str, np.ndarray]:
    return {f"{part}_x": samples.x[index].numpy(), f"{part}_y": samples.y[index].numpy()}


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes | None:
    """A .npz of some arrays, the same bytes for the same arrays; None if there are none."""
    if not arrays:
        return None
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()
