"""Errors that a user can cause, and mend."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class PimserveError(Exception):
    """Base of every error that the user can mend; the command line prints it without a traceback."""


class InputError(PimserveError, ValueError):
    """A value in a scenario, a catalogue entry, a trace or a command is not acceptable.

    `where` names the place ("scheduler.max_num_seqs", "trace.csv:17"), `message` says what is wrong
    and what is allowed.
    """

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where
        self.message = message


def validation_error(where: str, error: ValidationError) -> InputError:
    """Turn pydantic's findings into one error: a line for each, with its path, what is allowed and what was given."""
    lines = []
    for found in error.errors(include_url=False, include_context=False):
        path = ".".join(str(part) for part in (where, *found["loc"]) if part != "")
        message = found["msg"].removeprefix("Value error, ")
        if found["type"] == "extra_forbidden":
            message = "unknown key"
        elif found["type"] == "missing":
            message = "is missing"
        elif isinstance(found["input"], str | int | float | bool | None):
            message = f"{message} (got {found['input']!r})"
        lines.append(f"{path}: {message}" if path else message)
    return InputError("", "\n".join(lines))
