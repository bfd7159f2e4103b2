"""What a class of another package does wrong is told with its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pimserve.errors import InputError, Terminated


@contextmanager
def named(where: str, who: str, what: str) -> Iterator[None]:
    """Tell who it was.

    Raises:
        InputError: at `where`, `who` did `what`; a package does not end the run otherwise. Its own go on as they are.
    """
    try:
        yield
    except (InputError, Terminated):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(where, f"{who} {what}: {type(error).__name__}: {error}") from error
