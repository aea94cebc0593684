"""Which client has which student where they differ."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd import seeds
from fedkd.config import StudentsConfig
from fedkd.errors import ConfigError
from fedkd.models import students

NAMES = st.lists(st.sampled_from(students.names()), min_size=1, max_size=5, unique=True)


def assign(mix, clients=10, sizes=(), how="shuffled", seed=0):
    sizes = sizes or tuple(range(clients))
    stream = seeds.stream(seed, "students").numpy()
    return students.assign(StudentsConfig(mix=mix, assign=how), sizes, clients, stream)


def test_without_a_mixture_nobody_is_assigned():
    assert assign(None) == ()


def test_a_list_names_the_student_of_each_client():
    assert assign(["mlp", "lenet5", "mlp"], 3) == ("mlp", "lenet5", "mlp")


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ({"mlp": 0.5, "lenet5": 0.5}, {"mlp": 5, "lenet5": 5}),
        ({"mlp": 1, "lenet5": 3}, {"mlp": 3, "lenet5": 7}),  # quotas 2.5 and 7.5: a tie, to the first
        ({"mlp": 1, "lenet5": 1, "resnet8": 1}, {"mlp": 4, "lenet5": 3, "resnet8": 3}),
        ({"mlp": 0.26, "lenet5": 0.37, "resnet8": 0.37}, {"mlp": 2, "lenet5": 4, "resnet8": 4}),
        ({"mlp": 0.01, "lenet5": 0.99}, {"lenet5": 10}),
    ],
)
def test_shares_become_clients_by_largest_remainders(shares, counts):
    assert Counter(assign(shares)) == counts


@given(NAMES, st.data(), st.integers(1, 40))
def test_each_share_is_met_within_one_client(names, data, clients):
    shares = {name: data.draw(st.floats(0.01, 10)) for name in names}
    found = Counter(assign(shares, clients))
    assert found.total() == clients
    quota = {name: share / sum(shares.values()) * clients for name, share in shares.items()}
    assert all(abs(found[name] - quota[name]) < 1 + 1e-9 for name in names)


def test_shares_are_dealt_at_random_from_the_seed_alone():
    shares = {"mlp": 0.5, "lenet5": 0.5}
    assert assign(shares) == assign(shares, sizes=tuple(reversed(range(10))))
    assert len({assign(shares, seed=seed) for seed in range(5)}) > 1


def test_by_size_the_first_named_goes_to_the_smallest_clients():
    sizes = (50, 10, 40, 20, 30)
    found = assign({"mlp": 2, "lenet5": 2, "resnet8": 1}, 5, sizes, "size")
    assert found == ("resnet8", "mlp", "lenet5", "mlp", "lenet5")
    assert found == assign({"mlp": 2, "lenet5": 2, "resnet8": 1}, 5, sizes, "size", seed=9)


@pytest.mark.parametrize(
    ("mix", "what", "mend"),
    [
        ({"mlp": 1, "lenet6": 1}, "unknown student 'lenet6'", "did you mean 'lenet5'"),
        (["mlp", "lenet6"], "unknown student 'lenet6'", "did you mean 'lenet5'"),
        (["mlp"], "names 1 students for 10 clients", "one per client, or shares"),
        ([], "names 0 students for 10 clients", "one per client, or shares"),
        ({"mlp": -1.0, "lenet5": 2.0}, "must be positive numbers", "leave out students without a share"),
        ({"mlp": 0.0, "lenet5": 2.0}, "must be positive numbers", "leave out students without a share"),
        ({"mlp": 0.0}, "must be positive numbers", "leave out students without a share"),
        ({"mlp": float("nan")}, "must be positive numbers", "leave out students without a share"),
        ({"mlp": float("inf"), "lenet5": 1.0}, "must be positive numbers", "leave out students without a share"),
        ({}, "must be positive numbers", "leave out students without a share"),
    ],
)
def test_a_mixture_that_cannot_be_is_a_mistake_with_a_mend(mix, what, mend):
    with pytest.raises(ConfigError, match=what) as caught:
        assign(mix)
    assert caught.value.mistakes[0].where == "students.mix"
    assert mend in caught.value.mistakes[0].mend


def test_in_a_mixture_the_norm_counts_where_there_are_norms():
    assert not students.make_any("resnet8", (1, 8, 8), 10, "group").statistics
    assert not students.make_any("mlp", (1, 8, 8), 10, "group").statistics
    assert students.make_any("resnet8", (1, 8, 8), 10, "batch").statistics
    with pytest.raises(ConfigError, match="unknown norm"):
        students.make_any("resnet8", (1, 8, 8), 10, "layer")
    with pytest.raises(ConfigError, match="unknown student"):
        students.make_any("resnet9", (1, 8, 8), 10)


def test_sizes_may_be_numpys():
    assert assign({"mlp": 1, "lenet5": 1}, 2, tuple(np.array([5, 3])), "size") == ("lenet5", "mlp")
