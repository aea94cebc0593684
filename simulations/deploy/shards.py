"""Shards: the configured data set, split for devices exactly as in a simulation, one folder per client.

data.npz     the client's samples, readable by its owner only; in the order of the partition, so that a device that
             uses them as stored trains on the batches of the simulation
public.npz   data that server and devices may see, the same for all: docs/data.md
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
    """Write client k's samples into `folders[k]`, created if missing; returns one row per client.

    Raises ConfigError if the recipe cannot be followed or a client has too few samples to join, DataError for missing
    files, FolderError if a folder cannot be written.
    """
    if len(folders) != config.clients:
        what = f"clients = {config.clients}, and there are {len(folders)} devices"
        raise ConfigError(what, where="clients", mend=f"set clients={len(folders)}")
    dataset, held, proxy_set = _partitioned(config)
    _check_sizes(held, config.data.min_samples)
    public = _packed(_public(config, dataset, proxy_set))
    rows = [_write_one(client, Path(folder), dataset, held) for client, folder in enumerate(folders)]
    return [{**row, "public": _publish(Path(folder), public)} for row, folder in zip(rows, folders, strict=True)]


def write_public(config: RunConfig, folders: Sequence[Path]) -> list[Row]:
    """Write only the public pack, into any folders: for devices with data of their own. Returns one row per folder.

    Own data without `data.root` are not on one machine: then the pack is drawn from `data.test`, and the public set
    cannot contain images of the devices. Raises ConfigError, DataError, FolderError.
    """
    if config.data.name == OWN and not config.data.root:
        dataset = own.load_server(config.data)
        proxy_set = _without_clients(config, dataset)
    else:
        dataset, _, proxy_set = _partitioned(config)
    public = _packed(_public(config, dataset, proxy_set))
    return [{"public": _publish(Path(folder), public)} for folder in folders]


def _partitioned(config: RunConfig) -> tuple[Dataset, Partition, Proxy | None]:
    """The data set, its partition among the clients, and the public set, as in `assemble.assemble`."""
    dataset = sources.load(config.data)
    held, proxy_set = assemble.partition_data(config, dataset)
    if config.evaluate.on == "validation":
        dataset, held = validation.instead_of_test(dataset, held, config.evaluate.validation, config.seed)
    return dataset, held, proxy_set


def _without_clients(config: RunConfig, dataset: Dataset) -> Proxy | None:
    if config.proxy.name in proxy.OF_THE_TASK:
        what = f"proxy={config.proxy.name} takes images of the clients, which stay on the devices"
        raise ConfigError(what, where="proxy.name", mend="use proxy=noise or a foreign source: fedkd list proxies")
    nothing = np.empty(0, np.int64)
    return proxy.load(config, dataset, Partition((nothing,), (nothing,), len(dataset.labels), {}), nothing)


def _check_sizes(held: Partition, fewest: int) -> None:
    """The checks that devices make of their data, made before the shards are copied."""
    small = [client for client, index in enumerate(held.train) if len(index) < fewest]
    if small:
        count = len(held.train[small[0]])
        what = f"client {small[0]} would have {count} training samples, a device may join with {fewest}"
        mend = f"set data.min_samples={count}, or use fewer clients"
        raise ConfigError(what, where="data.min_samples", mend=mend)
    if held.untested:
        client = next(client for client, index in enumerate(held.test) if not len(index))
        what = f"client {client} would have no test sample, and a device needs at least one"
        raise ConfigError(what, where="partition", mend="use fewer clients")


def _write_one(client: int, folder: Path, dataset: Dataset, held: Partition) -> Row:
    train, test = (torch.from_numpy(part[client].copy()) for part in (held.train, held.test))
    packed = _packed({**_pair("train", dataset.train, train), **_pair("test", dataset.test, test)})
    assert packed is not None
    _make_private(folder)
    files.replace(folder / DATA, files.Content(packed, files.SECRET))
    return {"client": client, "train": len(train), "test": len(test), "data": str(folder / DATA)}


def _publish(folder: Path, public: bytes | None) -> str | None:
    """Write the pack into a folder; returns its path. If nothing is public: None, and an older pack is deleted."""
    path = folder / public_pack.NAME
    _make_private(folder)
    if public is None:
        with files.writing(folder):
            path.unlink(missing_ok=True)
        return None
    files.replace(path, files.Content(public))
    return str(path)


def _make_private(folder: Path) -> None:
    with files.writing(folder):
        folder.mkdir(files.PRIVATE, parents=True, exist_ok=True)


def _public(config: RunConfig, dataset: Dataset, proxy_set: Proxy | None) -> dict[str, np.ndarray]:
    """The arrays of public.npz, drawn as in `assemble.assemble`."""
    arrays: dict[str, np.ndarray] = {}
    available = len(dataset.test)
    if proxy_set is not None:
        arrays |= _pair("proxy", proxy_set.samples, torch.arange(len(proxy_set)))
        arrays["proxy_scaling"] = np.array([proxy_set.samples.scale, proxy_set.samples.offset])
    num_probes = probing.num_images(config, dataset.shape, len(dataset.labels), available)
    probe = assemble.draw_probe(config.seed, available, num_probes)
    if len(probe):
        arrays["probe_x"] = dataset.test.x[probe].numpy()
    common = assemble.draw_common(config.seed, available, config.evaluate.common)
    if len(common):
        arrays |= _pair("common", dataset.test, common)
    return arrays


def _pair(part: str, samples: Samples, index: torch.Tensor) -> dict[str, np.ndarray]:
    return {f"{part}_x": samples.x[index].numpy(), f"{part}_y": samples.y[index].numpy()}


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes | None:
    """A .npz file of some arrays, the same bytes for the same arrays; None if there are none."""
    if not arrays:
        return None
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()
