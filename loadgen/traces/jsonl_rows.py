"""JSON Lines: an object in every line, its members by name, others beside them."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from pimserve.errors import InputError
from pimserve.loadgen.traces.rows import Columns, Record, RowsRead, Selection, TraceRows, read_checked
from pimserve.loadgen.traces.trace_files import TextBlock, lines_of, text_blocks

_MOST_OTHERS = 1000  # names that are kept of members that are not read


def read_jsonl(path: Path, columns: Columns, selection: Selection) -> TraceRows:
    """Rows of a file of JSON Lines, no further than they are used. Raises InputError with "path:line" for a bad one."""
    read = RowsRead(columns, selection)
    others: set[str] = set()
    records = _records(path, text_blocks(path, read.enough), columns, others)
    read_checked(path, records, read)
    return read.rows().beside(others)


def _records(path: Path, blocks: Iterable[TextBlock], columns: Columns, others: set[str]) -> Iterator[Record]:
    # Numbers stay text, so that times are exact.
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
    number = 0
    for number, line in enumerate(lines_of(blocks), start=1):
        try:
            document = decoder.decode(line)
        except ValueError as error:
            raise InputError(f"{path}:{number}", f"not JSON: {error}") from None
        except RecursionError:
            raise InputError(f"{path}:{number}", "not JSON that can be read: nested too deep") from None
        if not isinstance(document, dict):
            raise InputError(f"{path}:{number}", f"must be an object with {', '.join(columns.names)}")
        if missing := [name for name in columns.names if name not in document]:
            raise InputError(
                f"{path}:{number}",
                f"{', '.join(missing)} is missing; found: {', '.join(document)[:200]!r}, needed: "
                f"{', '.join(columns.names)!r}",
            )
        if len(others) < _MOST_OTHERS:
            others.update(document)
            others.difference_update(columns.names)
        time, inputs, outputs = (_text(document[name]) for name in columns.names)
        yield number, (time, inputs, outputs)
    if number == 0:
        raise InputError(str(path), f"the file is empty; lines with {', '.join(columns.names)} are needed")


def _text(value: object) -> str:
    """A number as written; what is none is refused later, with these words."""
    return value if isinstance(value, str) else json.dumps(value)
