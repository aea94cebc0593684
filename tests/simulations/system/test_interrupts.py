"""The first signal stops in order, the second kills; blocks that belong together are not cut."""

import os
import signal

import pytest

from simulations.system.interrupts import Interrupts, Stop


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_where_it_meets_the_program(number):
    with Interrupts() as interrupts:
        with pytest.raises(Stop):
            send(number)
        assert interrupts.caught == number


def test_a_block_that_belongs_together_is_ended_first():
    done = []

    def record(interrupts):
        with interrupts.deferred():
            send()
            done.append("rows and commit")

    with Interrupts() as interrupts, pytest.raises(Stop):
        record(interrupts)
    assert done == ["rows and commit"]


def test_an_error_in_such_a_block_is_not_hidden_by_the_signal():
    def record(interrupts):
        with interrupts.deferred():
            send()
            raise ZeroDivisionError

    with Interrupts() as interrupts, pytest.raises(ZeroDivisionError):
        record(interrupts)


def test_after_hold_a_signal_changes_nothing():
    with Interrupts() as interrupts:
        interrupts.hold()
        send()
        assert interrupts.caught == signal.SIGINT


def test_the_second_signal_kills():
    with Interrupts() as interrupts:
        interrupts.hold()
        send()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
