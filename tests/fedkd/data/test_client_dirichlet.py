"""client-dirichlet: clients of one size, each with a label distribution of its own; test images of the same law."""

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.data import partition
from fedkd.data.partition import RECIPES
from fedkd.data.partition_recipes import ClientDirichlet
from fedkd.errors import ConfigError

LABELS = np.repeat(np.arange(10), 100)
TESTS = np.repeat(np.arange(10), 50)


def deal(recipe, clients=5, labels=LABELS, seed=0):
    return recipe.partition(labels, clients, 10, np.random.default_rng(seed))


def split(recipe, clients=5, seed=0):
    return partition.split(recipe, LABELS, TESTS, clients, 10, np.random.default_rng(seed))


@given(st.integers(0, 99), st.integers(1, 20), st.sampled_from([0.01, 0.1, 0.5, 10.0, 1e6]), st.data())
def test_all_clients_are_of_one_size_and_no_image_is_dealt_twice(seed, clients, alpha, data):
    size = data.draw(st.integers(1, 1000 // clients))
    shares = deal(ClientDirichlet(alpha=alpha, per_client=size), clients, seed=seed)
    assert [len(share) for share in shares] == [size] * clients
    every = np.concatenate(shares)
    assert len(set(every.tolist())) == clients * size
    assert every.min() >= 0
    assert every.max() < 1000


def test_by_default_everything_is_dealt_that_divides_evenly():
    assert [len(share) for share in deal(ClientDirichlet(), 7)] == [142] * 7


def test_a_class_that_runs_out_is_made_up_for_by_the_others():
    """Alone with a distribution on one class, a client that wants all images gets the rest of the others."""
    (share,) = deal(ClientDirichlet(alpha=1e-3, per_client=1000), 1)
    assert sorted(share.tolist()) == list(range(1000))


def test_tiny_alpha_gives_one_class_and_huge_alpha_all_alike():
    def counts(alpha):
        shares = deal(ClientDirichlet(alpha=alpha, per_client=20), 20)
        return np.stack([np.bincount(LABELS[share], minlength=10) for share in shares])

    assert (counts(1e-4).max(1) == 20).sum() >= 19
    assert counts(1e6).max() <= 9


def test_distributions_follow_the_dirichlet_law():
    """Of 400 clients the mean share of the largest class, as 20,000 draws of the law have it (0.418 at alpha 0.5)."""
    labels = np.repeat(np.arange(10), 40_000)
    shares = deal(ClientDirichlet(alpha=0.5, per_client=200), 400, labels)
    largest = [np.bincount(labels[share], minlength=10).max() / 200 for share in shares]
    law = np.random.default_rng(1).dirichlet([0.5] * 10, 20_000).max(1)
    assert np.mean(largest) == pytest.approx(law.mean(), abs=4 * law.std() / 20)


def test_a_classs_images_are_dealt_at_random():
    one, other = (deal(ClientDirichlet(per_client=50), seed=seed) for seed in (0, 1))
    assert [share.tolist() for share in one] == [share.tolist() for share in deal(ClientDirichlet(per_client=50))]
    assert one[0].tolist() != other[0].tolist()
    assert one[0].tolist() != sorted(one[0].tolist())


def test_a_known_partition_never_changes():
    made = partition.split(
        ClientDirichlet(alpha=0.5, per_client=60, tests=40), LABELS, TESTS, 5, 10, np.random.RandomState(0)
    )
    assert made.label_counts(LABELS)[0].tolist() == [21, 4, 6, 6, 2, 0, 2, 1, 0, 18]
    assert made.digest() == "458707eeae48ed445e1ac68e9d85db630f237e108312d085b35859ae73b73e59"


# Test images of the client's own law


@given(st.integers(0, 99), st.sampled_from([0.05, 0.5, 5.0]), st.integers(1, 60))
def test_test_images_are_of_classes_that_the_client_holds_and_none_twice(seed, alpha, tests):
    made = split(ClientDirichlet(alpha=alpha, per_client=60, tests=tests), seed=seed)
    counts = made.label_counts(LABELS)
    for client, index in enumerate(made.test):
        assert 0 < len(index) <= tests
        assert len(set(index.tolist())) == len(index)
        assert set(TESTS[index].tolist()) <= set(np.flatnonzero(counts[client]).tolist())


def test_each_client_gets_as_many_test_images_if_its_classes_have_them():
    made = split(ClientDirichlet(alpha=10.0, per_client=100, tests=40))
    assert [len(index) for index in made.test] == [40] * 5


def test_clients_may_share_test_images_and_a_class_has_no_more_than_there_are():
    made = split(ClientDirichlet(alpha=1e-4, per_client=50, tests=400))
    assert [len(index) for index in made.test] == [50] * 5  # all of the one class that each holds
    skewed = split(ClientDirichlet(alpha=0.1, per_client=100, tests=200))
    assert len(set(np.concatenate(skewed.test).tolist())) < sum(map(len, skewed.test))


def test_test_proportions_are_the_training_proportions_on_average():
    made = split(ClientDirichlet(alpha=5.0, per_client=200, tests=100), 5)
    counts = made.label_counts(LABELS)
    found = np.stack([np.bincount(TESTS[index], minlength=10) for index in made.test])
    assert np.abs(found / found.sum(1, keepdims=True) - counts / 200).mean() < 0.04


def test_the_other_test_splits_may_be_asked_for():
    made = split(ClientDirichlet(test="matched", per_client=100))
    assert len(set(np.concatenate(made.test).tolist())) == sum(map(len, made.test))


# Mistakes


def test_too_many_images_a_client_is_a_mistake_with_a_mend():
    with pytest.raises(
        ConfigError, match="5 clients x at least 201 samples need 1005 training samples, there are 1000"
    ):
        deal(ClientDirichlet(per_client=201))
    with pytest.raises(ConfigError, match="1001 clients x at least 1 samples"):
        deal(ClientDirichlet(), 1001)


@pytest.mark.parametrize("keys", [{"alpha": 0}, {"per_client": 0}, {"tests": 0}, {"test": "laws"}, {"beta": 1}])
def test_values_out_of_range_are_refused(keys):
    with pytest.raises(pydantic.ValidationError):
        pydantic.TypeAdapter(ClientDirichlet).validate_python(keys)


def test_only_this_recipe_has_a_law_of_its_own():
    for name, recipe in RECIPES.items():
        keys = pydantic.TypeAdapter(recipe)
        if name != "client-dirichlet":
            with pytest.raises(pydantic.ValidationError):
                keys.validate_python({"test": "law"})
