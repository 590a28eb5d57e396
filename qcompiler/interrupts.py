"""What Ctrl-C and a request to terminate mean: the first ends the search, the second ends the program."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from qcompiler.budget import Budget

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FINISHING = b"\ninterrupted: finishing with the best result so far; once more stops at once\n"
_STDERR = 2

_Handler = Callable[[int, FrameType | None], None]


@contextmanager
def finish_on_signals(budget: Budget, has_result: Callable[[], bool]) -> Iterator[None]:
    """Turn the first signal into a request to stop, as long as there is a result to finish with.

    Without a result, and from the second signal on, a signal raises KeyboardInterrupt. Outside of the main thread,
    where Python takes no signals, and for signals that the process was started to ignore, nothing changes.

    Args:
        budget: is asked to stop.
        has_result: returns True once a result has passed the gate.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if budget.stopping or not has_result():
            raise KeyboardInterrupt
        budget.stop()
        os.write(_STDERR, _FINISHING)  # print() may be what was interrupted

    with _handled(handle):
        yield


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Let a request to terminate end the program as Ctrl-C does: what is half written is removed."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(handle):
        yield


@contextmanager
def _handled(handler: _Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in taken:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in taken.items():
            signal.signal(number, old)
