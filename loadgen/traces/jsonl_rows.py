"""JSON Lines: an object in every line, its members by name, others beside them."""

import json
from collections.abc import Iterator
from pathlib import Path

from pimserve.errors import InputError
from pimserve.loadgen.traces.rows import Columns, Record, TraceRows, checked
from pimserve.loadgen.traces.trace_files import read_text


def read_jsonl(path: Path, columns: Columns) -> TraceRows:
    """Rows of a file of JSON Lines. Raises InputError with "path:line" for a bad one."""
    text = read_text(path).rstrip("\n")
    if not text.strip():
        raise InputError(str(path), f"the file is empty; lines with {', '.join(columns.names)} are needed")
    others: set[str] = set()
    return checked(path, _records(path, text, columns, others), columns).beside(others)


def _records(path: Path, text: str, columns: Columns, others: set[str]) -> Iterator[Record]:
    # Numbers stay text, so that times are exact.
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
    for number, line in enumerate(text.split("\n"), start=1):
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
        others.update(document)
        others.difference_update(columns.names)
        time, inputs, outputs = (_text(document[name]) for name in columns.names)
        yield number, (time, inputs, outputs)


def _text(value: object) -> str:
    """A number as written; what is none is refused later, with these words."""
    return value if isinstance(value, str) else json.dumps(value)
