"""Names, addresses and ports: what is right passes, what is wrong says how to mend it."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.deploy import kit, names


@given(host=st.sampled_from(["fl.example.org", "10.0.0.1", "::1", "2001:db8::1", "a"]), port=st.integers(1, 65535))
def test_host_and_port_come_back(host, port):
    assert kit.split(names.with_port(host, port)) == (host, port)


@given(text=st.text(string.printable))
def test_no_text_breaks_the_reading_of_host_and_port(text):
    host, port = kit.split(text)
    assert not host or (names.with_port(host, port).lower() == text.lower() or str(port) != text.rpartition(":")[2])


@pytest.mark.parametrize(
    "host", ["fl.example.org", "localhost", "pi", "10.0.0.1", "2001:db8::1", "xn--bcher-kva.example"]
)
def test_right_addresses(host):
    assert names.address(host) == ""


@pytest.mark.parametrize(
    ("host", "mend"),
    [
        ("https://fl.example.org", "leave out the scheme"),
        ("fl.example.org:9000", "--address fl.example.org --port 9000"),
        ("0.0.0.0", "no device can connect"),
        ("::", "no device can connect"),
        ("[::1]", "leave out the brackets"),
        ("fe80::1%eth0", "write a DNS name"),
        ("300.1.1.1", "write a DNS name"),
        ("my_host", "write a DNS name"),
        ("-a.org", "write a DNS name"),
        ("", "write a DNS name"),
        ("a" * 64, "write a DNS name"),
        (".".join(["a" * 60] * 5), "write a DNS name"),
        ("fl example", "write a DNS name"),
        ("$(reboot)", "write a DNS name"),
    ],
)
def test_wrong_addresses_say_how_to_mend_them(host, mend):
    assert mend in names.address(host)


@given(taken=st.integers(1, 65535) | st.integers(9090, 9300), count=st.integers(1, 200))
def test_runtime_ports_on_one_machine_never_meet(taken, count):
    ports = [names.runtime_port(client, taken) for client in range(count)]
    assert len({*ports, taken}) == count + 1
