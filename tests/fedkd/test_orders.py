"""What a server tells a client, as numbers."""

import pytest

from fedkd import orders
from fedkd.orders import Order


def test_an_order_survives_its_numbers():
    order = Order(depth=3, temperature=2.5, is_copy=1, max_samples=7)
    assert orders.read(order.numbers()) == order
    assert set(order.numbers()) == {"depth", "temperature", "is_copy", "max_samples"}


def test_who_is_told_nothing_trains_alone():
    assert Order().numbers() is None
    assert orders.read(None) == Order()
    assert not Order().reports


def test_an_unknown_number_is_an_error():
    with pytest.raises(TypeError):
        orders.read({"deep": 3.0})


@pytest.mark.parametrize(
    ("order", "rows"),
    [(Order(), 25), (Order(max_samples=7), 7), (Order(held_out=1), 23), (Order(held_out=1, max_samples=99), 23)],
)
def test_rows_are_what_is_left_to_report(order, rows):
    assert order.rows(25) == rows


def test_a_client_with_few_samples_holds_none_out():
    assert Order(held_out=1).held(9) == 0
