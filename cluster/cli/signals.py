"""What the command does when it is told to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from pimserve.errors import Terminated

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_given = 0
"""How often Ctrl-C was given to this command."""


def handle_signals() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end the command so that it leaves nothing behind."""
    global _given  # noqa: PLW0603 signals are the process's own
    _given = 0
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us has it ignored
        signal.signal(signal.SIGINT, _interrupt)
    for number in _ENDING:
        signal.signal(number, _terminate)


def interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is behind an error: libraries turn it into errors of their own, with or without the cause."""
    return isinstance(error, KeyboardInterrupt) or (_given > 0 and isinstance(error, Exception))


@contextmanager
def saying_when_interrupted(message: str) -> Iterator[None]:
    """Say how to go on where Ctrl-C ends what is inside; it goes on as `KeyboardInterrupt`, whatever came of it."""
    try:
        yield
    except BaseException as error:
        if not interrupted(error):
            raise
        typer.echo(message, err=True)
        raise KeyboardInterrupt from error


def _interrupt(_number: int, _frame: object) -> None:
    """Ctrl-C: the first ends the command, which tidies up; the third ends the process at once."""
    global _given  # noqa: PLW0603 signals are the process's own
    _given += 1
    match _given:
        case 1:
            raise KeyboardInterrupt
        case 2:
            os.write(2, b"tidying up; once more ends it at once\n")
        case _:
            os._exit(130)


def _terminate(number: int, _frame: object) -> NoReturn:
    """The first ends the command, which tidies up; it gets more where all processes of a group are told."""
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise Terminated(128 + number)
