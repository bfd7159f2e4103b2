"""What the command does when it is told to stop."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from pimserve.errors import Terminated


def handle_signals() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end the command so that it leaves nothing behind."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us has it ignored
        signal.signal(signal.SIGINT, _interrupts())
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _terminate)


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: libraries that are being imported turn it into errors of their own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _interrupts() -> Callable[[int, object], None]:
    """A handler of Ctrl-C: the first ends the command, which tidies up; the third ends the process at once."""
    given = itertools.count(1)

    def interrupt(_number: int, _frame: object) -> None:
        match next(given):
            case 1:
                raise KeyboardInterrupt
            case 2:
                os.write(2, b"tidying up; once more ends it at once\n")
            case _:
                os._exit(130)

    return interrupt


def _terminate(number: int, _frame: object) -> NoReturn:
    raise Terminated(128 + number)
