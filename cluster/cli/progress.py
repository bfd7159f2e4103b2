"""Signs of life on standard error, when a person looks at it. They vanish when done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

_REDRAW_S = 0.1


def spinner(text: str) -> AbstractContextManager[object]:
    """For work of which no share is known."""
    if not sys.stderr.isatty():
        return nullcontext()
    from pimserve.cluster.cli.terminal import console  # noqa: PLC0415 not needed in a pipeline

    return console(sys.stderr).status(text)


@contextmanager
def progress_bar(*, shown: bool, of: str = "requests") -> Iterator[Callable[[int, int], None] | None]:
    """A bar of requests, or what `of` says; yields what takes (done, all), or None if no bar is shown."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

    from pimserve.cluster.cli.terminal import console  # noqa: PLC0415

    # Redrawn from here: a thread that does it would take the interpreter from the simulation.
    columns = (of, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=None)
        drawn = 0.0

        def update(done: int, total: int) -> None:
            nonlocal drawn
            if time.monotonic() - drawn >= _REDRAW_S:
                bar.update(task, completed=done, total=total, refresh=True)
                drawn = time.monotonic()

        yield update
