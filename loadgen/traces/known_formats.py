"""Which formats of traces there are, and which of them a trace has.

Built-in formats are the modules of `formats/`. Packages add theirs through the entry point group `pimserve.traces`,
each of which names a `TraceFormat`.
"""

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import ParamSpec, TypeVar

from pimserve.errors import InputError
from pimserve.loadgen.traces import formats
from pimserve.loadgen.traces.rows import Columns
from pimserve.loadgen.traces.trace_files import Head, heads, is_named, names_in
from pimserve.loadgen.traces.trace_format import HasColumns, TraceFormat
from pimserve.plugin_calls import named

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
AUTO = "auto"
_WHERE = "workload.trace.format"
_MOST_HEADS = 16  # files of a folder or archive that are looked at
_TABLES = (".csv", ".jsonl", ".parquet")
_HALF = 0.5  # of a format's columns, from which on it may have been meant


def _built_in() -> dict[str, TraceFormat]:
    names = (module.name for module in pkgutil.iter_modules(formats.__path__))
    found: list[TraceFormat] = [import_module(f"{formats.__name__}.{name}").FORMAT for name in names]
    return {each.name: each for each in sorted(found, key=lambda each: each.name)}


BUILT_IN_FORMATS = _built_in()
"""By name, which is how they are sorted."""


def format_names() -> list[str]:
    """Of all formats, those of packages last."""
    return [*BUILT_IN_FORMATS, *sorted(entry_points(group="pimserve.traces").names - BUILT_IN_FORMATS.keys())]


def trace_format(name: str) -> TraceFormat:
    """The format of that name.

    Raises:
        InputError: there is no such format, or it does not load.
    """
    if name in BUILT_IN_FORMATS:
        return BUILT_IN_FORMATS[name]
    registered = entry_points(group="pimserve.traces")
    if name not in registered.names:
        known = ", ".join([AUTO, *format_names()])
        raise InputError(_WHERE, f"unknown format of traces {name!r} (known: {known})")
    return _loaded(registered[name])


@cache
def _loaded(entry: EntryPoint) -> TraceFormat:
    place = f"format {entry.name!r} of {entry.value}"
    with named(_WHERE, place, "does not load"):
        loaded = entry.load()
    if not isinstance(loaded, TraceFormat):
        raise InputError(_WHERE, f"{place} is no TraceFormat")
    return replace(loaded, recognises=_told(place, loaded.recognises), read=_told(place, loaded.read))


def _told(place: str, call: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same, which tells who it was when it goes wrong."""

    def told(*args: Arguments.args, **keys: Arguments.kwargs) -> Result:
        with named(_WHERE, place, "failed"):
            return call(*args, **keys)

    return told


def recognise(path: Path, columns: Columns | None = None) -> TraceFormat:
    """The one format that a trace has.

    Args:
        path: file, folder or archive.
        columns: what it calls the columns; None: each format's own names.

    Raises:
        InputError: it cannot be read, or has none of the formats, or several.
    """
    begins = heads(path, _MOST_HEADS)
    found = [each for each in map(trace_format, format_names()) if _fits(each, begins, columns)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(each.name for each in found)
        raise InputError(str(path), f"may be {names}: say which with workload.trace.format")
    if begins and not any(head.data.strip(b"\xef\xbb\xbf \t\r\n") for head in begins):
        raise InputError(str(path), "the file is empty")
    looked = "; ".join(f"{head.name} begins with {head.shown}" for head in begins[:3]) or "it is empty"
    known = ", ".join(format_names())
    hint = "" if columns is not None else ", and workload.trace.columns what its columns are called"
    near = _nearest(begins, columns)
    raise InputError(
        str(path),
        f"has none of the formats {known} ({looked}){near}; workload.trace.format says which it is{hint}",
    )


def tables_beside(path: Path, form: TraceFormat, passed_over: Sequence[str]) -> list[str]:
    """Names of tables that `form`, which was recognised, does not read: their names end otherwise.

    Of a folder all of them; of an archive those among what was `passed_over`, as it is not read beyond what is used.
    """
    if not isinstance(form.recognises, HasColumns):
        return []
    others = [ending for ending in _TABLES if ending != form.recognises.ending]
    names = names_in(path) if path.is_dir() else passed_over
    return [name for name in names if any(is_named(name, ending) for ending in others)]


def _fits(each: TraceFormat, begins: Sequence[Head], columns: Columns | None) -> bool:
    if columns is None:
        return each.recognises(begins, each.columns)
    return each.open_names and each.recognises(begins, columns)


def _nearest(begins: Sequence[Head], columns: Columns | None) -> str:
    """What the files lack of the format whose columns they have most of, for messages; nothing if they have few."""
    lacks = (
        (lack, each.name)
        for each in BUILT_IN_FORMATS.values()
        if isinstance(each.recognises, HasColumns) and (columns is None or each.open_names)
        if (lack := each.recognises.lack(begins, columns or each.columns)) is not None
    )
    lack, name = max(lacks, key=lambda each: each[0].share_there, default=(None, ""))
    return f"; the nearest is {name}, of which {lack.said}" if lack and lack.share_there >= _HALF else ""
