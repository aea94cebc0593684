"""Shards: what devices read from them is what the clients of a simulation hold, bit for bit."""

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedkd.config import DataConfig, EvaluateConfig, ProxyConfig, RunConfig
from fedkd.data import own, public_pack
from fedkd.data.image_spec import OwnDataError, public_reason
from fedkd.errors import ConfigError, DataError
from simulations import assemble
from simulations.assemble import Assembly
from simulations.deploy import shards

CLIENTS = 4
CONFIG = RunConfig(
    seed=3,
    clients=CLIENTS,
    partition={"name": "dirichlet", "alpha": 0.1},
    strategy={"name": "fedavg", "client": "supervised"},
    proxy=ProxyConfig(name="held-out", size=30),
    evaluate=EvaluateConfig(probe=16, common=25),
)
VARIANTS = {
    "dirichlet": CONFIG,
    "standard scaling": replace(CONFIG, data=DataConfig(scaling="standard")),
    "validation": replace(CONFIG, evaluate=EvaluateConfig(on="validation", probe=16, common=25)),
    "noise": replace(CONFIG, proxy=ProxyConfig(name="noise", size=20)),
}


def folders(place: Path) -> list[Path]:
    return [place / f"device-{client}" for client in range(CLIENTS)]


@pytest.fixture(scope="module", params=VARIANTS)
def cut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Assembly, Path]:
    """A configuration, its simulation, and where its shards lie."""
    config, place = VARIANTS[request.param], tmp_path_factory.mktemp("shards")
    shards.write(config, folders(place))
    return config, assemble.assemble(config), place


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def test_a_device_holds_what_its_client_holds_bit_for_bit(cut):
    config, made, place = cut
    site = made.site
    for client, folder in enumerate(folders(place)):
        mine = own.load_device(config.data, folder / shards.DATA, config.seed, client)
        for samples, whole, index in (
            (mine.train, site.train, site.train_index[client]),
            (mine.test, site.test, site.test_index[client]),
        ):
            x, y = samples.take(torch.arange(len(samples)))
            expected_x, expected_y = whole.take(index)
            assert same(x, expected_x)
            assert same(y, expected_y)
        assert (mine.shape, mine.labels) == (made.dataset.shape, made.dataset.labels)


def test_what_is_public_is_that_of_the_simulation(cut):
    config, made, place = cut
    site, proxy = made.site, made.site.problem.proxy
    public = public_pack.read(place / "device-2", config)
    assert public.proxy.checksum == proxy.checksum
    assert (public.proxy.name, public.proxy.is_labelled) == (proxy.name, proxy.is_labelled)
    every = torch.arange(len(proxy))
    assert all(map(same, public.proxy.samples.take(every), proxy.samples.take(every)))
    assert same(public.probe, site.probe)
    assert all(map(same, public.common.take(torch.arange(25)), site.test.take(site.common)))
    assert len({(folder / public_pack.NAME).read_bytes() for folder in folders(place)}) == 1


def test_a_foreign_public_set_keeps_its_own_scaling(tmp_path):
    config = replace(CONFIG, proxy=ProxyConfig(name="mnist", size=2))
    x = np.zeros((2, 1, 8, 8), np.uint8)
    scaling = np.array([[0.1], [0.7]])
    np.savez(tmp_path / "public.npz", proxy_x=x, proxy_y=np.array([-1, -1]), proxy_scaling=scaling)
    public = public_pack.read(tmp_path / "public.npz", config).proxy
    assert (public.samples.scale, public.samples.offset) == ((0.1,), (0.7,))
    assert not public.is_labelled
    assert public.samples.y.tolist() == [-1, -1]


def test_private_files_are_for_their_owner_only(cut):
    _, _, place = cut
    folder = place / "device-0"
    assert stat.S_IMODE((folder / shards.DATA).stat().st_mode) == 0o600
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "public.npz"]  # no temporary file is left


def test_writing_twice_gives_the_same_bytes(tmp_path):
    rows = shards.write(CONFIG, folders(tmp_path / "a"))
    again = shards.write(CONFIG, folders(tmp_path / "b"))
    for one, other in zip(rows, again, strict=True):
        assert Path(one["data"]).read_bytes() == Path(other["data"]).read_bytes()
    assert [row["client"] for row in rows] == list(range(CLIENTS))
    assert sum(row["train"] for row in rows) == 1442 - 30  # all of the digits but the public set


def test_a_run_without_anything_public_has_no_pack(tmp_path):
    bare = replace(CONFIG, proxy=ProxyConfig(), evaluate=EvaluateConfig(probe=0, common=0))
    shards.write(CONFIG, folders(tmp_path))
    rows = shards.write(bare, folders(tmp_path))
    assert {row["public"] for row in rows} == {None}
    assert not (tmp_path / "device-1" / public_pack.NAME).exists()
    assert public_pack.read(tmp_path / "device-1", bare) == public_pack.Public()


def test_as_many_devices_as_clients():
    with pytest.raises(ConfigError, match="clients = 4, and there are 3 devices"):
        shards.write(CONFIG, [Path("a"), Path("b"), Path("c")])


def test_a_shard_that_its_device_would_refuse_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match=r"client \d would have \d+ training samples, a device may join with 500"):
        shards.write(replace(CONFIG, data=DataConfig(min_samples=500)), folders(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"proxy_x": 4, "secret": 1}, "the file holds secret"),
        ({"probe_x": 4}, "there is no public set, and proxy=held-out"),
        ({"proxy_x": 4}, "the file holds no proxy_y"),
        ({"proxy_x": 4, "proxy_y": 3}, "proxy_y is int64"),
        ({"proxy_x": 4, "proxy_y": 4, "proxy_scaling": 4}, "proxy_scaling is int64"),
    ],
)
def test_a_pack_that_is_not_this_runs_is_refused(tmp_path, arrays, what):
    made = {
        name: np.zeros((size, 1, 8, 8), np.uint8) if name.endswith("_x") else np.zeros(size, np.int64)
        for name, size in arrays.items()
    }
    np.savez(tmp_path / "public.npz", **made)
    with pytest.raises(DataError, match=what):
        public_pack.read(tmp_path, CONFIG)


def test_a_flipped_bit_in_a_shard_is_found(tmp_path):
    shards.write(CONFIG, folders(tmp_path))
    path = tmp_path / "device-0" / shards.DATA
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(OwnDataError, match="the file cannot be read") as caught:
        own.load_device(CONFIG.data, path, CONFIG.seed, 0)
    assert public_reason(caught.value) == "it cannot be read"


def test_the_pack_alone_is_the_same_and_leaves_data_alone(cut, tmp_path):
    config, _, place = cut
    (row,) = shards.write_public(config, [tmp_path / "new"])
    assert Path(row["public"]).read_bytes() == (place / "device-0" / public_pack.NAME).read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [public_pack.NAME]


def test_where_own_data_stay_on_devices_the_pack_comes_from_the_servers_test_images(tmp_path):
    test = tmp_path / "test.npz"
    np.savez(test, x=np.arange(30, dtype=np.uint8)[:, None, None] + np.zeros((30, 8, 8), np.uint8), y=np.arange(30) % 2)
    data = DataConfig(name="own", labels=["a", "b"], shape=[1, 8, 8], test=str(test))
    config = replace(CONFIG, data=data, proxy=ProxyConfig(name="noise", size=5))
    shards.write_public(config, [tmp_path])
    public = public_pack.read(tmp_path, config)
    assert (len(public.proxy), len(public.probe), len(public.common)) == (5, 16, 25)
    with pytest.raises(ConfigError, match="proxy=held-out takes images of the clients"):
        shards.write_public(replace(config, proxy=ProxyConfig(name="held-out")), [tmp_path])
