"""Public sets: whose images they are, that they are nobody else's, and that all hold the same in the same order."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd import seeds
from fedkd.config import DataConfig, ProxyConfig, RunConfig
from fedkd.configuration import compose
from fedkd.data import partition, proxy, sources
from fedkd.data.samples import Dataset, Samples
from fedkd.errors import ConfigError

CLASSES = 3


def samples(count: int, seed: int, side: int = 4) -> Samples:
    """Different images; labels go round."""
    x = torch.randint(0, 200, (count, 1, side, side), generator=seeds.stream(seed, "x").torch()).to(torch.uint8)
    return Samples(x, torch.arange(count) % CLASSES, (2 / 255,), (-1.0,))


DATASET = Dataset("digits", ("a", "b", "c"), samples(60, seed=1), samples(30, seed=2))


def config(name: str, size: int = 9, **changes) -> RunConfig:
    return replace(RunConfig(clients=4, proxy=ProxyConfig(name=name, size=size)), **changes)


def deal(config: RunConfig, dataset: Dataset = DATASET, recipe=None):
    """The partition and the public set, as `assemble.partition_data` makes them."""
    taken = proxy.hold_out(config, dataset)
    left = np.setdiff1d(np.arange(len(dataset.train)), taken)
    rng = seeds.stream(config.seed, "partition").numpy()
    labels = dataset.train.y.numpy(), dataset.test.y.numpy()
    held = partition.split(recipe or partition.RECIPES["iid"](), *labels, config.clients, CLASSES, rng, left)
    return held, proxy.load(config, dataset, held, taken)


def images(x: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in x]


def of_clients(held: partition.Partition) -> set[bytes]:
    return set(images(DATASET.train.x[torch.from_numpy(np.concatenate(held.train))]))


@pytest.fixture
def elsewhere(monkeypatch):
    """Makes `mnist` a source of the given samples."""

    def become(train: Samples) -> None:
        other = Dataset("mnist", ("x",), train, samples(3, seed=9))
        monkeypatch.setattr(sources, "load", lambda config: other)

    return become


# Of the task's own training set


@given(st.integers(0, 50), st.sampled_from(["held-out", "unused"]), st.integers(1, 12))
def test_images_of_the_task_are_no_clients_and_no_test_images(seed, name, size):
    recipe = partition.RECIPES["iid"](samples=20)
    held, public = deal(config(name, size, seed=seed), recipe=recipe)
    found = set(images(public.samples.x))
    assert len(found) == len(public) == size
    assert not found & of_clients(held)
    assert not found & set(images(DATASET.test.x))
    assert found <= set(images(DATASET.train.x))


@given(st.integers(0, 50), st.integers(1, 29))
def test_classes_are_alike_but_for_one_image(seed, size):
    counts = torch.bincount(deal(config("held-out", size, seed=seed))[1].samples.y, minlength=CLASSES)
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize("name", ["held-out", "unused"])
def test_a_class_without_an_image_is_left_out_of_the_public_set(name):
    there = DATASET.train.y != 1
    train = replace(DATASET.train, x=DATASET.train.x[there], y=DATASET.train.y[there])
    recipe = partition.RECIPES["iid"](samples=20) if name == "unused" else None
    public = deal(config(name, 5), replace(DATASET, train=train), recipe)[1]
    assert sorted(torch.bincount(public.samples.y, minlength=CLASSES).tolist()) == [0, 2, 3]


def test_labels_are_those_of_the_images():
    _, public = deal(config("held-out"))
    of = dict(zip(images(DATASET.train.x), DATASET.train.y.tolist(), strict=True))
    assert [of[image] for image in images(public.samples.x)] == public.samples.y.tolist()
    assert public.is_labelled


def test_what_is_held_out_goes_to_no_client_and_all_else_does():
    held, public = deal(config("held-out", 9))
    assert sum(map(len, held.train)) == 51
    assert of_clients(held) | set(images(public.samples.x)) == set(images(DATASET.train.x))


def test_no_other_public_set_changes_the_partition(elsewhere):
    elsewhere(samples(40, seed=7))
    recipe = partition.RECIPES["iid"](samples=40)
    digests = {name: deal(config(name), recipe=recipe)[0].digest() for name in ("none", "noise", "unused", "mnist")}
    assert len(set(digests.values())) == 1
    assert deal(config("held-out"), recipe=recipe)[0].digest() != digests["none"]


def test_images_that_are_also_test_images_are_never_chosen():
    x = DATASET.train.x.clone()
    x[:30] = DATASET.test.x  # labels agree: both go round
    dataset = replace(DATASET, train=replace(DATASET.train, x=x))
    for name, recipe in (("held-out", None), ("unused", partition.RECIPES["iid"](samples=4))):
        _, public = deal(config(name, 12), dataset, recipe)
        assert not set(images(public.samples.x)) & set(images(dataset.test.x))
    with pytest.raises(ConfigError, match=r"wants 11 samples of class \d \([abc]\), there are 10"):
        deal(config("held-out", 33), dataset)


def test_more_than_there_are_is_a_mistake_with_a_mend():
    with pytest.raises(ConfigError, match=r"proxy=held-out wants 21 samples of class 0 \(a\), there are 20") as caught:
        deal(config("held-out", 63))
    assert (caught.value.mistakes[0].where, caught.value.mend[:16]) == ("proxy.size", "lower proxy.size")
    with pytest.raises(ConfigError, match="proxy=unused finds no image that no client holds"):
        deal(config("unused"))  # iid gives all away


# Noise


def test_noise_is_of_the_tasks_shape_and_range_and_has_no_labels():
    _, public = deal(config("noise", 200))
    assert public.samples.x.shape == (200, 1, 4, 4)
    assert public.samples.x.dtype == torch.uint8
    assert 0 <= int(public.samples.x.min()) < 10
    assert 190 <= int(public.samples.x.max()) <= int(DATASET.train.x.max())
    assert not public.is_labelled
    assert set(public.samples.y.tolist()) == {-1}


# A foreign source


def test_of_a_foreign_source_only_images_count(elsewhere):
    other = samples(40, seed=7)
    elsewhere(other)
    _, public = deal(config("mnist", 12))
    assert set(images(public.samples.x)) < set(images(other.x))
    assert len(set(images(public.samples.x))) == 12
    assert not public.is_labelled
    assert set(public.samples.y.tolist()) == {-1}
    assert public.name == "mnist"


def test_a_foreign_source_of_another_shape_is_refused(elsewhere):
    elsewhere(samples(40, seed=7, side=5))
    with pytest.raises(ConfigError, match=r"images of proxy=mnist have shape \(1, 5, 5\), those of digits \(1, 4, 4\)"):
        deal(config("mnist"))


def test_a_foreign_source_that_is_too_small_is_refused(elsewhere):
    elsewhere(samples(8, seed=7))
    with pytest.raises(ConfigError, match=r"proxy.size = 9, but mnist has 8 training images"):
        deal(config("mnist", 9))


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_foreign_source_that_holds_the_tasks_images_is_refused(elsewhere, part):
    x = samples(12, seed=7).x
    x[3] = getattr(DATASET, part).x[0]
    elsewhere(replace(samples(12, seed=7), x=x))
    with pytest.raises(ConfigError, match="1 images of proxy=mnist are also in digits"):
        deal(config("mnist", 12))


def test_the_tasks_own_source_is_not_foreign():
    with pytest.raises(ConfigError, match="proxy=digits is the task's own source") as caught:
        deal(config("digits"))
    assert "held-out" in caught.value.mend


def test_an_unknown_name_is_a_mistake_that_lists_the_known():
    with pytest.raises(ConfigError, match="there is no proxy 'nix'") as caught:
        deal(config("nix"))
    assert "held-out, unused, noise, digits" in caught.value.mend


# The same everywhere


@pytest.mark.parametrize("name", ["held-out", "noise", "mnist"])
def test_the_set_is_the_same_for_a_seed_and_another_for_another(elsewhere, name):
    elsewhere(samples(40, seed=7))
    one, other, third = (deal(config(name, seed=seed))[1] for seed in (0, 0, 1))
    assert torch.equal(one.samples.x, other.samples.x)
    assert one.checksum == other.checksum != third.checksum


def test_the_checksum_is_of_images_in_their_order():
    _, public = deal(config("held-out"))
    turned = replace(public.samples, x=public.samples.x.flip(0))
    assert 0 <= public.checksum < 2**52
    assert public.checksum == float(public.checksum)  # it travels as a number
    again = proxy.of("held-out", public.samples, is_labelled=True).checksum
    assert proxy.of("held-out", turned, is_labelled=True).checksum != public.checksum == again


def test_there_is_none_by_default():
    assert RunConfig().proxy.name == "none"
    assert deal(config("none"))[1] is None


def test_conf_offers_each_that_can_be(tmp_path):
    assert set(compose.options("proxy")) == set(proxy.names()) - {"digits"}  # no other task has its shape
    for name in compose.options("proxy"):
        assert compose.node("proxy", name) == {"name": name}


def test_a_foreign_source_is_loaded_as_the_tasks_is(monkeypatch):
    asked = []

    def load(config):
        asked.append(config)
        return Dataset("mnist", ("x",), samples(40, seed=7), samples(3, seed=9))

    monkeypatch.setattr(sources, "load", load)
    deal(config("mnist", data=DataConfig(name="digits", root="somewhere", scaling="standard")))
    assert asked == [DataConfig(name="mnist", root="somewhere", scaling="standard")]
