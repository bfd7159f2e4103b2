"""What a format of traces is: how it is recognised, how it is read, and what of it is not modelled."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pimserve.errors import InputError
from pimserve.loadgen.traces.csv_rows import csv_header
from pimserve.loadgen.traces.jsonl_rows import DECODER
from pimserve.loadgen.traces.rows import Columns, Reading, Selection, TraceRows
from pimserve.loadgen.traces.trace_files import Head, is_named

ReadRows = Callable[[Path, Columns, Reading], TraceRows]
Describe = Callable[[Path, Selection], dict[str, Any]]
OWN_NAMES = Columns("arrival_s", "input_tokens", "output_tokens", label="class")
"""What pimserve's own tables call them, and what a generic file is taken to, where the scenario does not say."""


@dataclass(frozen=True)
class TraceFormat:
    """A format of traces.

    `name`: in scenarios. `title`: what it holds, for the documentation. `recognises`: whether files that begin so, of
    one trace, are of the format, given the columns to be read. `read`: the rows of a file, folder or archive.
    `columns`: what the files call them; empty names in formats that are no tables. `not_modelled`: for columns that
    are not used, what a user must know of that. `open_names`: the scenario may say what the columns are called.
    `long_name`: in documents of statistics; empty: the name. `describe`: such a document, where that of requests alone
    would leave out what its files say.
    """

    name: str
    title: str
    recognises: Callable[[Sequence[Head], Columns], bool]
    read: ReadRows
    columns: Columns
    not_modelled: Mapping[str, str] = field(default_factory=dict)
    open_names: bool = False
    long_name: str = ""
    describe: Describe | None = None


def csv_names(head: Head) -> frozenset[str]:
    """Columns of a file, if it begins as CSV with a header does, else none."""
    try:
        return frozenset(csv_header(head.name, head.first_line)) - {""}
    except InputError:
        return frozenset()


def json_names(head: Head) -> frozenset[str]:
    """Members of the object in a file's first line, if it begins as JSON Lines does, else none."""
    line = head.first_line
    try:
        document = DECODER.decode(line)
    except (ValueError, RecursionError):
        # A line may be longer than what was looked at: the names so far, if it begins as an object of numbers does.
        cut = not head.whole and len(line) > len(head.data) // 2 and line.startswith("{")
        return frozenset(re.findall(r'"(\w{1,40})"\s*:', line)) if cut else frozenset()
    return frozenset(document) if isinstance(document, dict) else frozenset()


Names = Callable[[Head], frozenset[str]]
_ALIKE = 0.8  # ratio of difflib from which on a name may have been meant by another


@dataclass(frozen=True)
class Lack:
    """What a file lacks.

    `share_there`: of the columns that are needed, those called nearly so counting half. `said`: for messages.
    """

    share_there: float
    said: str


@dataclass(frozen=True)
class HasColumns:
    """Recognises files that have all columns to be read and `also`, and none of `without`, those of other formats.

    `names_of`: the columns of a file. `ending`: of the names of its files, where they are in a folder or archive.
    """

    names_of: Names
    ending: str
    also: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()

    def __call__(self, heads: Sequence[Head], columns: Columns) -> bool:
        """Whether files that begin so are of the format."""
        found = [self.names_of(head) for head in self._tables(heads)]
        needed = self._needed(columns)
        return bool(found) and all(needed <= names and names.isdisjoint(self.without) for names in found)

    def _needed(self, columns: Columns) -> frozenset[str]:
        """Columns without which no file is of the format."""
        return self.also | {*columns.names}

    def lack(self, heads: Sequence[Head], columns: Columns) -> Lack | None:
        """What the file lacks that lacks most; None where none lacks anything."""
        lacks = filter(None, (self._lack_of(head, columns) for head in self._tables(heads)))
        return min(lacks, key=lambda lack: lack.share_there, default=None)

    def _lack_of(self, head: Head, columns: Columns) -> Lack | None:
        names, needed = self.names_of(head), self._needed(columns)
        others = {name.lower(): name for name in sorted(names - needed)}
        there, said = float(len(needed & names)), []
        for name in sorted(needed - names):
            alike = difflib.get_close_matches(name.lower(), others, 1, _ALIKE)
            there += len(alike) / 2
            said.append(f"{name!r} (is it {others[alike[0]]!r}?)" if alike else repr(name))
        return Lack(there / len(needed), f"{head.name} lacks {' and '.join(said)}") if said else None

    def _tables(self, heads: Sequence[Head]) -> list[Head]:
        return [head for head in heads if head.alone or is_named(head.name, self.ending)]
