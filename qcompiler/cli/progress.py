"""A progress line on stderr that appears only where somebody waits for it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

    from qcompiler.state import Progress

DELAY_S = 2.0


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Give a callback for long loops; what it is told is shown once the work has lasted two seconds.

    Nothing is shown where stderr is no terminal.
    """
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(stderr=True)
    display = rich_progress.Progress(
        rich_progress.SpinnerColumn(),
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    task: tuple[str, TaskID] | None = None

    def tell(what: str, done: int, total: int) -> None:
        nonlocal task
        if task is None or task[0] != what:
            if task is not None:
                display.remove_task(task[1])
            # A stage that cannot say how long it is pulses instead of filling a bar.
            task = what, display.add_task(what, completed=done, total=total or None)
        display.update(task[1], completed=done, total=total or None)

    # A timer, not a test in the callback: one long call that reports nothing must still show its name.
    timer = threading.Timer(DELAY_S, display.start)
    timer.daemon = True
    timer.start()
    try:
        yield tell
    finally:
        timer.cancel()
        timer.join()
        display.stop()
