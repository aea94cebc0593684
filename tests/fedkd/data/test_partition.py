import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.data import idx, partition
from fedkd.data import partition_recipes as recipes
from fedkd.errors import ConfigError

TRAIN = np.repeat(np.arange(10), 100)
TEST = np.repeat(np.arange(10), 20)


def split(recipe, num_clients=5, seed=0, train=TRAIN, test=TEST):
    return partition.split(recipe, train, test, num_clients, 10, np.random.default_rng(seed))


def labels_of(folder, train, test, first=0):
    root = Path(os.environ.get("FEDKD_DATA", ""))
    if "FEDKD_DATA" not in os.environ or not (root / folder).exists():
        pytest.skip(f"FEDKD_DATA names no folder with {folder}")
    return [idx.read(root, f"{folder}/raw/{part}-labels-idx1-ubyte").astype(int) - first for part in (train, test)]


# Of the script of FedGen's authors. alpha: training samples a client, labels a client, all test images
MNIST = {
    0.05: (
        [1455, 2317, 489, 410, 506, 828, 221, 364, 1120, 1230, 430, 620, 314, 21, 23, 924, 1907, 340, 1257, 224],
        3.55,
        3525,
    ),
    0.1: (
        [215, 1122, 340, 673, 706, 248, 121, 425, 1036, 1524, 532, 1202, 144, 1161, 758, 202, 1825, 596, 672, 1498],
        5.35,
        5307,
    ),
    1: (
        [751, 768, 888, 1187, 820, 654, 712, 633, 533, 714, 721, 943, 637, 601, 807, 916, 935, 714, 598, 468],
        9.85,
        9764,
    ),
}
MNIST_TEST = [252, 197, 296, 396, 98, 402, 149, 250, 246, 242, 299, 247, 299, 254, 302, 148, 191, 354, 289, 396]
LETTERS = [962, 679, 626, 792, 685, 661, 316, 491, 531, 302, 779, 811, 533, 538, 706, 837, 624, 630, 288, 689]


@pytest.mark.parametrize("alpha", MNIST)
def test_fedgen_split_of_mnist_matches_to_the_last_count(alpha):
    train, test = labels_of("MNIST", "train", "t10k")
    made = split(recipes.FedGenDirichlet(alpha=alpha), 20, train=train, test=test)
    counts = made.label_counts(train)
    sizes, held, tested = MNIST[alpha]
    assert counts.sum(1).tolist() == sizes
    assert counts.sum(0).tolist() == [1500] * 10
    assert (counts > 0).sum(1).mean() == pytest.approx(held)
    assert sum(map(len, made.test)) == tested
    if alpha == 0.1:
        assert [len(index) for index in made.test] == MNIST_TEST


@pytest.mark.parametrize(("alpha", "held", "tested"), [(0.05, 7.10, 5680), (0.1, 10.15, 8120), (10, 25.75, 20600)])
def test_fedgen_split_of_letters_matches_to_the_last_count(alpha, held, tested):
    train, test = labels_of("EMNIST", "emnist-letters-train", "emnist-letters-test", first=1)
    recipe = recipes.FedGenDirichlet(alpha=alpha, ratio=0.1, min_size=260)
    made = partition.split(recipe, train, test, 20, 26, np.random.default_rng(0))
    counts = made.label_counts(train)
    assert counts.sum() == 12480
    assert (counts > 0).sum(1).mean() == pytest.approx(held)
    assert sum(map(len, made.test)) == tested
    if alpha == 0.1:
        assert counts.sum(1).tolist() == LETTERS


@settings(deadline=None, max_examples=60)
@given(
    recipe=st.sampled_from(
        [
            recipes.Iid(),
            recipes.Dirichlet(alpha=0.2, min_samples=1),
            recipes.Dirichlet(min_samples=1, samples=300),
            recipes.Dirichlet(alpha=0.5, min_samples=1, test="classes"),
            recipes.FedGenDirichlet(alpha=1, min_size=1),
            recipes.FedGenDirichlet(alpha=1, min_size=1, test="matched"),
            recipes.Shards(),
            recipes.Classes(),
            recipes.Quantity(beta=1, min_samples=1),
        ]
    ),
    num_clients=st.integers(5, 20),
    seed=st.integers(0, 50),
)
def test_every_client_gets_own_images_of_both_parts(recipe, num_clients, seed):
    made = split(recipe, num_clients, seed)
    for part, labels in ((made.train, TRAIN), (made.test, TEST)):
        dealt = np.concatenate(part)
        assert len(part) == num_clients
        assert min(map(len, part)) >= 1
        assert len(set(dealt.tolist())) == len(dealt)
        assert set(dealt.tolist()) <= set(range(len(labels)))
    for mine, tested in zip(made.train, made.test, strict=True):
        assert set(TEST[tested]) <= set(TRAIN[mine])  # nobody is tested on a class it lacks
    assert split(recipe, num_clients, seed).digest() == made.digest()


def test_matched_test_split_follows_the_training_proportions():
    made = split(recipes.Dirichlet(alpha=0.3))
    tested = np.stack([np.bincount(TEST[index], minlength=10) for index in made.test])
    expected = made.label_counts(TRAIN) * 20 / 100
    assert np.abs(tested - expected).max() < 1  # 20 test images for 100 training samples, rounded
    assert sum(map(len, made.test)) == len(TEST)


def test_matched_leaves_test_images_of_a_class_nobody_trains_on():
    made = split(recipes.Iid(), train=TRAIN[TRAIN != 3])
    assert sum(map(len, made.test)) == 180
    assert 3 not in TEST[np.concatenate(made.test)]


def test_matched_takes_from_the_whole_of_a_class_not_its_beginning():
    made = split(recipes.Iid(), 2)
    first_half = [(index % 20 < 10).sum() / len(index) for index in made.test]
    assert 0.3 < min(first_half) <= max(first_half) < 0.7


def test_a_client_too_small_for_a_test_image_gets_one_of_its_classes():
    counts = np.array([[1, 0], [500, 500]])
    give = partition._keep_each_supplied(np.array([[0, 0], [10, 10]]), counts)
    assert give.tolist() == [[1, 0], [9, 10]]


def test_classes_test_split_is_even_and_in_stored_order():
    made = split(recipes.Iid(test="classes"), 4)
    assert [index[:5].tolist() for index in made.test] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11, 12, 13, 14],
        [15, 16, 17, 18, 19],
    ]
    assert {len(index) for index in made.test} == {50}


def test_a_seed_changes_the_split_but_not_fedgens():
    assert split(recipes.Iid(), seed=0).digest() != split(recipes.Iid(), seed=1).digest()
    for test in ("classes", "matched"):
        recipe = recipes.FedGenDirichlet(alpha=1, test=test)
        assert split(recipe, seed=0).digest() == split(recipe, seed=1).digest()


def test_each_class_is_handed_out_in_consecutive_slices_sorted_within_a_client():
    give = np.array([[1, 2], [0, 0], [2, 0]])  # clients, classes
    index = [np.array([9, 4, 0, 7]), np.array([5, 3])]
    found = partition._hand_out(give, index)
    assert [part.tolist() for part in found] == [[3, 5, 9], [], [0, 4]]  # image 7 stays undealt


def test_counts_are_those_of_each_share_alone():
    shares, labels = [np.array([0, 3, 2]), np.array([], np.int64), np.array([1])], np.array([1, 0, 1, 2])
    assert partition._counts(shares, labels, 4).tolist() == [[0, 2, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_samples_limits_the_training_images():
    made = split(recipes.Iid(samples=100))
    assert [len(index) for index in made.train] == [20] * 5
    assert np.concatenate(made.train).max() > 100  # a random subset, not a beginning


def test_digest_of_a_known_partition_never_changes():
    made = partition.Partition((np.array([1, 2]), np.array([0])), (np.array([3]), np.array([4])), 2, {})
    assert made.digest() == "f27eb7d256f6740e54efc3ec45c2a3f7fffa7ab53f35823c5b68501aa4ef27d6"
    other = partition.Partition((np.array([1]), np.array([2, 0])), (np.array([3]), np.array([4])), 2, {})
    assert other.digest() != made.digest()


def test_facts_of_two_clients_without_a_common_label():
    made = partition.Partition((np.array([0, 1]), np.array([2])), (np.array([0]), np.array([1])), 2, {})
    facts = made.facts(np.array([0, 0, 1]))
    assert facts["sizes"] == {"min": 1, "median": 1.5, "max": 2}
    assert facts["labels_per_client"] == 1
    assert facts["total_variation"] == pytest.approx((1 / 3 + 2 / 3) / 2)  # from (2/3, 1/3)


def test_partition_remembers_its_recipe_as_plain_data():
    assert split(recipes.Iid()).recipe == {"name": "iid", "samples": None, "test": "matched"}


def test_index_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        split(recipes.Iid()).train[0][0] = 3


@pytest.mark.parametrize(
    ("recipe", "num_clients", "says"),
    [
        (recipes.Iid(), 1001, "1 of 1001 clients have no training sample"),
        (recipes.Iid(test="classes"), 21, "no client has a test image"),
        (recipes.Iid(samples=1001), 5, "partition.samples = 1001 but there are 1000"),
        (recipes.Dirichlet(samples=90), 10, "need 100 training samples, there are 90"),
    ],
)
def test_impossible_split_is_an_error_with_a_mend(recipe, num_clients, says):
    with pytest.raises(ConfigError, match=says) as caught:
        split(recipe, num_clients)
    assert caught.value.mend


@pytest.mark.parametrize("num_clients", [201, 500])
def test_clients_may_be_more_than_test_images(num_clients):
    """Some then have none; nobody's is lost, and nobody has two while another of its class has none."""
    made = split(recipes.Iid(), num_clients)
    sizes = [len(part) for part in made.test]
    assert sum(sizes) == 200
    assert made.untested.startswith(f"{sizes.count(0)} of {num_clients} clients have no test image")


def test_partition_imports_without_torch():
    import subprocess
    import sys

    code = "import sys, fedkd.data.partition; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
