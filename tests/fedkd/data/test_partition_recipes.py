import random

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.data import partition_recipes as recipes
from fedkd.errors import ConfigError

LABELS = np.repeat(np.arange(10), 100)


def legacy():
    return np.random.RandomState(0)


def sizes(shares):
    return [len(share) for share in shares]


def labels_held(shares):
    return [len(set(LABELS[share])) for share in shares]


# --- golden values, of a loop apart from this code (labels in order, 5 clients, legacy generator seeded with 0)


@pytest.mark.parametrize(
    ("alpha", "expected", "held", "begins"),
    [
        (0.5, [190, 226, 177, 213, 194], [9, 5, 10, 6, 10], [26, 139, 137, 189, 128]),
        (0.1, [172, 179, 242, 220, 187], [3, 5, 4, 3, 10], [260, 274, 224, 263, 255]),
    ],
)
def test_dirichlet_matches_niid_bench(alpha, expected, held, begins):
    shares = recipes.dirichlet(LABELS, 5, 10, alpha, 10, legacy())
    assert sizes(shares) == expected
    assert labels_held(shares) == held
    assert shares[0][:5].tolist() == begins  # before the final shuffle
    dealt = recipes.Dirichlet(alpha=alpha).partition(LABELS, 5, 10, legacy())
    assert [set(share) for share in dealt] == [set(share) for share in shares]
    assert dealt[0].tolist() != shares[0].tolist()


def test_a_repeated_draw_starts_from_the_stored_order_again():
    rng, tries, least = np.random.RandomState(1), 0, 0
    while least < 190:  # the routine as published, for 5 clients
        tries += 1
        shares = [np.empty(0, int) for _ in range(5)]
        for label in range(10):
            index = np.flatnonzero(label == LABELS)
            rng.shuffle(index)
            share = rng.dirichlet([0.5] * 5) * [len(mine) < 200 for mine in shares]
            cuts = (np.cumsum(share / share.sum()) * 100).astype(int)[:-1]
            shares = [np.append(mine, more) for mine, more in zip(shares, np.split(index, cuts), strict=True)]
        least = min(sizes(shares))
    assert tries > 1
    dealt = recipes.dirichlet(LABELS, 5, 10, 0.5, 190, np.random.RandomState(1))
    assert all((mine == same).all() for mine, same in zip(dealt, shares, strict=True))


def test_shards_match_their_golden_pairs():
    shares = recipes.Shards(shards_per_client=2).partition(LABELS, 5, 10, legacy())
    assert [set(LABELS[share]) for share in shares] == [{2, 8}, {4, 9}, {1, 6}, {3, 7}, {0, 5}]


def test_quantity_matches_its_golden_sizes():
    assert sizes(recipes.Quantity(beta=0.5).partition(LABELS, 5, 10, legacy())) == [122, 89, 212, 40, 537]


# --- laws of each recipe

RECIPES = [
    recipes.Iid(),
    recipes.Dirichlet(min_samples=1),
    recipes.FedGenDirichlet(alpha=1, min_size=1),
    recipes.FedGenDirichlet(alpha=1, ratio=1, min_size=1),
    recipes.Shards(),
    recipes.Classes(classes_per_client=3),
    recipes.Quantity(min_samples=1),
]


@settings(deadline=None, max_examples=60)
@given(
    recipe=st.sampled_from(RECIPES),
    counts=st.lists(st.integers(20, 60), min_size=3, max_size=6),
    num_clients=st.integers(3, 12),
    seed=st.integers(0, 100),
)
def test_every_recipe_deals_each_image_at_most_once_and_the_same_again(recipe, counts, num_clients, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    first, again = (
        recipe.partition(labels, num_clients, len(counts), recipe.generator(np.random.default_rng(seed)))
        for _ in range(2)
    )
    dealt = np.concatenate(first)
    assert len(first) == num_clients
    assert min(sizes(first)) >= 1
    assert len(set(dealt.tolist())) == len(dealt)
    assert all((mine == same).all() for mine, same in zip(first, again, strict=True))
    if not isinstance(recipe, recipes.FedGenDirichlet) or recipe.ratio == 1:
        assert len(dealt) == len(labels)


def test_iid_clients_differ_by_one_image_at_most():
    assert sorted(sizes(recipes.Iid().partition(LABELS, 7, 10, legacy()))) == [142] + [143] * 6


@settings(deadline=None, max_examples=60)
@given(num_clients=st.integers(4, 30), k=st.integers(3, 10), seed=st.integers(0, 1000))
def test_classes_gives_exactly_k_classes_and_divides_each_evenly(num_clients, k, seed):
    shares = recipes.Classes(classes_per_client=k).partition(LABELS, num_clients, 10, np.random.default_rng(seed))
    assert labels_held(shares) == [k] * num_clients
    assert all(client % 10 in LABELS[share] for client, share in enumerate(shares))
    for label in range(10):
        held = [count for share in shares if (count := (LABELS[share] == label).sum())]
        assert sum(held) == 100
        assert max(held) - min(held) <= 1


def test_fedgen_caps_the_images_of_a_class():
    # cap = 0.5 * 1000 / 20 = 25 < 0.5 * 100: 25 images of each of 10 classes.
    shares = recipes.FedGenDirichlet(alpha=1, min_size=1).partition(LABELS, 20, 10, legacy())
    assert np.bincount(LABELS[np.concatenate(shares)]).tolist() == [25] * 10


def test_fedgen_stores_classes_in_its_shuffled_order():
    shares = recipes.FedGenDirichlet(alpha=10).partition(LABELS, 5, 10, legacy())
    assert list(dict.fromkeys(LABELS[shares[0]].tolist())) == [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]


def test_fedgen_ignores_the_seed_of_the_run():
    recipe = recipes.FedGenDirichlet(alpha=1)
    first, second = (recipe.generator(np.random.default_rng(seed)) for seed in (1, 2))
    assert first.uniform() == second.uniform()


def test_no_recipe_touches_the_global_generators():
    random.seed(7)
    before, legacy_before = random.getstate(), np.random.get_state()[1].tolist()
    for recipe in RECIPES:
        recipe.partition(LABELS, 5, 10, recipe.generator(np.random.default_rng(0)))
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == legacy_before


# --- the impossible


@pytest.mark.parametrize(
    ("recipe", "num_clients", "says"),
    [
        (
            recipes.Dirichlet(),
            101,
            "101 clients x at least 10 samples need 1010 training samples, there are 1000",
        ),
        (recipes.Quantity(min_samples=11), 100, "need 1100 training samples"),
        (recipes.FedGenDirichlet(), 40, "need 400 training samples, there are 120"),  # cap 12 images a class
        (recipes.Shards(shards_per_client=20), 51, "need 1020"),
        (recipes.Classes(classes_per_client=11), 5, "there are 10 classes"),
        (recipes.Classes(classes_per_client=1), 5, "cannot hold all 10 classes"),
        (recipes.Classes(classes_per_client=1), 1001, r"class 0 has 100 training samples for 101 clients"),
        (recipes.Dirichlet(alpha=0.01), 100, "none of 1000 draws gave each client 10"),
    ],
)
def test_impossible_recipe_is_an_error_with_a_mend(recipe, num_clients, says):
    with pytest.raises(ConfigError, match=says) as caught:
        recipe.partition(LABELS, num_clients, 10, np.random.default_rng(0))
    assert caught.value.mend


def test_draws_that_give_everything_to_full_clients_are_repeated():
    with np.errstate(all="raise"):
        shares = recipes.Dirichlet(alpha=1e-9).partition(LABELS, 2, 10, np.random.default_rng(0))
    assert sizes(shares) == [500, 500]


def test_a_class_without_images_is_skipped():
    shares = recipes.Dirichlet(min_samples=1).partition(np.zeros(40, int), 2, 10, np.random.default_rng(0))
    assert sum(sizes(shares)) == 40


# --- schema


def test_every_recipe_is_found_by_its_name():
    assert {name: recipe().name for name, recipe in recipes.RECIPES.items()} == {name: name for name in recipes.RECIPES}


@pytest.mark.parametrize("recipe", recipes.RECIPES.values())
def test_unknown_key_is_refused(recipe):
    with pytest.raises(pydantic.ValidationError, match="bogus"):
        pydantic.TypeAdapter(recipe).validate_python({"bogus": 1})


def test_ranges_are_checked():
    with pytest.raises(pydantic.ValidationError, match="greater than 0"):
        pydantic.TypeAdapter(recipes.Dirichlet).validate_python({"alpha": 0})
