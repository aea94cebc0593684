import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd.data import validation
from fedkd.data.partition import Partition
from fedkd.data.samples import Dataset, Samples
from fedkd.errors import ConfigError

LABELS = tuple("abc")


def samples(count, first):
    """Images that say which they are."""
    x = torch.arange(first, first + count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Samples(x, torch.arange(count) % 3, (1.0,), (0.0,))


def dealt(sizes):
    ends = np.cumsum([0, *sizes])
    train = tuple(np.arange(*ends[k : k + 2]) for k in range(len(sizes)))
    data = Dataset("tiny", LABELS, samples(int(ends[-1]), 0), samples(20, 200))
    return data, Partition(train, tuple(np.arange(k, k + 1) for k in range(len(sizes))), 3, {"name": "iid"})


def images(part, index):
    return {int(value) for value in part.x[torch.as_tensor(index)].flatten()}


@given(sizes=st.lists(st.integers(2, 40), min_size=1, max_size=4), share=st.floats(0.01, 0.5), seed=st.integers(0, 9))
def test_each_client_is_judged_on_training_images_of_its_own_that_it_does_not_train_on(sizes, share, seed):
    data, held = dealt(sizes)
    chosen, less = validation.instead_of_test(data, held, share, seed)
    for client, size in enumerate(sizes):
        judged, trained = images(chosen.test, less.test[client]), images(chosen.train, less.train[client])
        assert judged | trained == images(data.train, held.train[client])
        assert not judged & trained
        assert len(judged) == max(1, round(share * size))
    assert max(chosen.test.x.flatten()) < 200  # no test image is left


def test_what_is_held_out_depends_on_the_seed_alone():
    data, held = dealt([30, 30])
    one, same = (validation.instead_of_test(data, held, 0.2, 3)[1] for _ in range(2))
    other = validation.instead_of_test(data, held, 0.2, 4)[1]
    assert one.digest() == same.digest() != other.digest()
    assert not np.array_equal(one.train[0], one.train[1] - 30)  # clients draw for themselves


def test_a_client_with_one_image_trains_on_it_and_holds_none_out():
    _, less = validation.instead_of_test(*dealt([4, 1]), 0.2, 0)
    assert [len(part) for part in less.train] == [3, 1]
    assert [len(part) for part in less.test] == [1, 0]


def test_if_nobody_can_hold_an_image_out_that_is_an_error():
    with pytest.raises(ConfigError, match="every client has a single training sample"):
        validation.instead_of_test(*dealt([1, 1]), 0.2, 0)
