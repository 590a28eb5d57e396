"""What a signal does: end a search once there is a result, end the program before that and at the second time."""

from __future__ import annotations

import signal
import threading

import pytest

from qcompiler.budget import Budget
from qcompiler.interrupts import finish_on_signals, terminate_as_interrupt

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def handlers():
    """Check that every test leaves the handlers as they were."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@BOTH
def test_the_first_signal_asks_to_stop_and_the_second_stops(number, capfd):
    budget = Budget()
    with finish_on_signals(budget, lambda: True):
        signal.raise_signal(number)
        assert budget.cause() == "interrupted"
        assert capfd.readouterr().err.count("once more stops at once") == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


@BOTH
def test_without_a_result_the_first_signal_stops(number):
    budget, results = Budget(), []
    with finish_on_signals(budget, lambda: bool(results)):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert not budget.stopping
        results.append("verified meanwhile")
        signal.raise_signal(number)
        assert budget.stopping


def test_a_target_behind_an_interrupted_one_stops_at_the_next_signal():
    whole = Budget()
    whole.share(2).stop()
    with finish_on_signals(whole.share(1), lambda: True), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_request_to_terminate_is_an_interrupt():
    with terminate_as_interrupt(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


@BOTH
def test_what_the_process_was_started_to_ignore_stays_ignored(number, monkeypatch):
    budget, before = Budget(), signal.signal(number, signal.SIG_IGN)
    try:
        with terminate_as_interrupt(), finish_on_signals(budget, lambda: True):
            signal.raise_signal(number)
            assert signal.getsignal(number) == signal.SIG_IGN
        assert not budget.stopping
    finally:
        signal.signal(number, before)


def test_other_threads_take_no_signals():
    taken = []

    def work() -> None:
        with finish_on_signals(Budget(), lambda: True), terminate_as_interrupt():
            taken.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert taken == [signal.getsignal(signal.SIGINT)]
