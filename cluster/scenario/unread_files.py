"""Files that a scenario names and that cannot be read: what is wrong with them, not what is missing without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from pimserve.errors import InputError, InputsError, tried

_Read = TypeVar("_Read")


class UnreadFiles:
    """Collects them while the files of a document are put into it; `wrong` says what is the matter with each."""

    def __init__(self) -> None:
        self.wrong: list[InputError] = []
        self._open: set[str] = set()

    def tried(self, section: str, keys: Sequence[str], read: Callable[[], _Read]) -> _Read | None:
        """What a file says; None, and noted, where it cannot be read.

        Args:
            section: of the document, which names the file.
            keys: of that section: the one that names it, and the one for what it says.
            read: it.
        """
        found = tried(self.wrong, read)
        if found is None:
            self._open |= {section, *(f"{section}.{key}" for key in keys)}
        return found

    def others(self, error: InputError) -> list[InputError]:
        """Of the mistakes in a document without what these files say, those that it may have with it."""
        errors = error.errors if isinstance(error, InputsError) else (error,)
        return [each for each in errors if each.where not in self._open]
