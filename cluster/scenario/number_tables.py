"""Tables of numbers that a scenario names as files, put into it: popularities of experts, and layouts.

A row stands for an MoE layer, a single one for all; a number in it for an expert, or a slot. CSV, JSON (a list, or a
list of lists) and NPY are read.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pimserve.cluster.scenario.descriptions import find_file, read_text
from pimserve.cluster.scenario.unread_files import UnreadFiles
from pimserve.errors import InputError, shortened

_MOST_NUMBERS = 2**22
_PLACES = (  # section, key that names a file, key that holds what it says
    (("routing",), "weights_file", "weights"),
    (("cluster", "expert_placement"), "file", "slots"),
    (("cluster", "pools", "prefill", "expert_placement"), "file", "slots"),
    (("cluster", "pools", "decode", "expert_placement"), "file", "slots"),
)
_WHAT = "a table of numbers (.csv, .json or .npy)"


def with_tables(document: Mapping[str, Any], folders: Sequence[Path] | None, unread: UnreadFiles) -> dict[str, Any]:
    """The scenario's document with what files hold in their place.

    Args:
        document: as read, not yet validated.
        folders: where a relative path is tried, in this order; None: no file is read here.
        unread: takes what does not exist, holds no table, or is not read here, and stays as it is.
    """
    result = dict(document)
    for section, *keys in _PLACES:
        where = ".".join(section)
        replaced = partial(_replaced, result, section, (keys[0], keys[1]), where, folders)
        result = unread.tried(where, keys, replaced) or result
    return result


def read_table(path: Path) -> list[list[float]]:
    """The rows of a file.

    Raises:
        InputError: it holds no table of numbers.
    """
    suffix = path.suffix.lower()
    rows = {".csv": _csv, ".json": _json, ".npy": _npy}.get(suffix, _none)(path)
    if not rows or not all(rows):
        raise InputError(str(path), "holds no numbers")
    if sum(map(len, rows)) > _MOST_NUMBERS:
        raise InputError(str(path), f"holds more than {_MOST_NUMBERS:,} numbers")
    return rows


def _replaced(
    document: Mapping[str, Any],
    section: Sequence[str],
    keys: tuple[str, str],
    where: str,
    folders: Sequence[Path] | None,
) -> dict[str, Any]:
    result = dict(document)
    if section:
        inner = result.get(section[0])
        if isinstance(inner, Mapping):
            result[section[0]] = _replaced(inner, section[1:], keys, where, folders)
        return result
    file_key, key = keys
    name = result.pop(file_key, None)
    if name is None:
        return result
    place = f"{where}.{file_key}"
    if result.get(key) is not None:
        raise InputError(place, f"{where}.{key} says the same: leave one of both out")
    if not isinstance(name, str):
        raise InputError(place, f"must be the path of {_WHAT}")
    if folders is None:
        raise InputError(place, f"{shortened(repr(name))} is a file, which is not read here: give {where}.{key}")
    return {**result, key: read_table(find_file(name, place, folders))}


def _none(path: Path) -> list[list[float]]:
    raise InputError(str(path), f"is not {_WHAT}")


def _csv(path: Path) -> list[list[float]]:
    rows = []
    for number, line in enumerate(csv.reader(read_text(path, f"it should be {_WHAT}").splitlines()), 1):
        if line:
            rows.append([_number(cell, f"{path}:{number}") for cell in line])
    return rows


def _json(path: Path) -> list[list[float]]:
    try:
        document = json.loads(read_text(path, f"it should be {_WHAT}"))
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not JSON: {error}") from None
    if not isinstance(document, list):
        raise InputError(str(path), "must be a list of numbers, or a list of these for each MoE layer")
    rows = document if any(isinstance(row, list) for row in document) else [document]
    for number, row in enumerate(rows):
        if not isinstance(row, list):
            raise InputError(f"{path}: [{number}]", "must be a list of numbers")
    return [[_number(cell, f"{path}: [{number}]") for cell in row] for number, row in enumerate(rows)]


def _npy(path: Path) -> list[list[float]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(str(path), f"cannot be read: {error}") from None
    if not isinstance(array, np.ndarray) or array.ndim not in {1, 2} or array.dtype.kind not in "iuf":
        raise InputError(str(path), "must be an array of numbers, (experts,) or (MoE layers, experts)")
    rows: list[list[float]] = np.atleast_2d(array).tolist()
    return rows


def _number(cell: object, where: str) -> float:
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise InputError(where, f"{shortened(repr(cell))} is not a number")
    try:
        return float(cell)
    except (ValueError, OverflowError):
        raise InputError(where, f"{shortened(repr(cell))} is not a number") from None
