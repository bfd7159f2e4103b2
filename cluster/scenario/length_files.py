"""Lengths that a scenario names as files, put into it: values and pairs, with how often each of them is there.

So the scenario is whole, as with tables of numbers, and a file of millions of rows becomes what it says of lengths.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pimserve.cluster.scenario.descriptions import find_file, read_text
from pimserve.cluster.scenario.unread_files import UnreadFiles
from pimserve.errors import InputError, shortened

_WHERE = "workload"
_PLACES = (("input", "values", "column"), ("output", "values", "column"), ("joint", "pairs", "columns"))
_WHAT = "lengths are read from a CSV file"
_MOST = 2**20


def with_length_files(
    document: Mapping[str, Any], folders: Sequence[Path] | None, unread: UnreadFiles
) -> dict[str, Any]:
    """The scenario's document with what files say of lengths in their place.

    Args:
        document: as read, not yet validated.
        folders: where a relative path is tried, in this order; None: no file is read here.
        unread: takes what does not exist, holds no lengths, or is not read here, and stays as it is.
    """
    workload = document.get("workload")
    if not isinstance(workload, Mapping):
        return dict(document)
    changed = _with_files(workload, _WHERE, folders, unread)
    if isinstance(classes := workload.get("classes"), list):
        changed["classes"] = [
            _with_files(each, f"{_WHERE}.classes.{place}", folders, unread) if isinstance(each, Mapping) else each
            for place, each in enumerate(classes)
        ]
    return {**document, "workload": changed}


def _with_files(
    section: Mapping[str, Any], where: str, folders: Sequence[Path] | None, unread: UnreadFiles
) -> dict[str, Any]:
    """What has lengths, the workload or a class of it, with what files say of these in their place."""
    lengths = section.get("lengths")
    if not isinstance(lengths, Mapping):
        return dict(section)
    changed = dict(lengths)
    for part, key, names in _PLACES:
        law = lengths.get(part)
        if isinstance(law, Mapping) and law.get("file") is not None:
            place = f"{where}.lengths.{part}"
            read = partial(_read, law, place, key, names, folders)
            changed[part] = unread.tried(place, ("file", key), read) or law
    return {**section, "lengths": changed}


def _read(law: Mapping[str, Any], where: str, key: str, names: str, folders: Sequence[Path] | None) -> dict[str, Any]:
    """The law with the lengths of its file."""
    file, columns = law["file"], law.get(names)
    if law.get(key) is not None or law.get("weights") is not None:
        raise InputError(f"{where}.file", f"{where}.{key} and weights say the same: leave one of both out")
    if not isinstance(file, str):
        raise InputError(f"{where}.file", f"must be the path of a file: {_WHAT}")
    if folders is None:
        raise InputError(f"{where}.file", f"{shortened(repr(file))} is a file, which is not read here: give {key}")
    number = 2 if key == "pairs" else 1
    wanted = columns if isinstance(columns, list | tuple) else None if columns is None else [columns]
    if wanted is not None and (len(wanted) != number or not all(isinstance(name, str) for name in wanted)):
        raise InputError(f"{where}.{names}", f"must be the name of {'two columns' if number > 1 else 'a column'}")
    rows = np.array(_rows(find_file(file, f"{where}.file", folders), number, wanted))
    found, counts = np.unique(rows, axis=0, return_counts=True)
    if len(found) > _MOST:
        raise InputError(f"{where}.file", f"holds more than {_MOST:,} different {key}")
    said = found[:, 0].tolist() if number == 1 else found.tolist()
    return {name: value for name, value in law.items() if name not in {"file", names}} | {
        key: said,
        "weights": counts.tolist(),
    }


def _rows(path: Path, number: int, names: Sequence[str] | None) -> list[list[int]]:
    """The lengths of each row of a file: of the columns with these names, or of all, which are so many."""
    lines = csv.reader(read_text(path, _WHAT).splitlines())
    places = list(range(number))
    if names is not None:
        header = next(lines, [])
        if missing := [name for name in names if name not in header]:
            has = shortened(", ".join(header))
            raise InputError(str(path), f"has no column {missing[0]!r}; it has {has}")
        places = [header.index(name) for name in names]
    rows = []
    for line in lines:
        if line:
            where = f"{path}:{lines.line_num}"
            if names is None and len(line) != number:
                raise InputError(where, f"has {len(line)} columns, not {number}: say which, by the names of a header")
            rows.append([_tokens(line, place, where) for place in places])
    if not rows:
        raise InputError(str(path), "holds no lengths")
    return rows


def _tokens(line: Sequence[str], place: int, where: str) -> int:
    try:
        return int(line[place])
    except IndexError:
        raise InputError(where, "is too short: a column is missing") from None
    except ValueError:
        raise InputError(where, f"{shortened(repr(line[place]))} is not a whole number of tokens") from None
