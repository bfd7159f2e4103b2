"""Files of what real GPUs reach, in the two forms of the reference data.

Timed operators are `{"rows": [...]}`; served configurations and published anchors
`{"served": {"rows": [...]}, "anchors": [...]}`, of which one part may be missing. A malformed row is an error; rows
that are only beyond what can be predicted are read like the others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pimserve.cluster.validation.gpu_rows import SHAPES, Anchor, OperatorRow, Row, ServedRow
from pimserve.cluster.validation.targets import read_json
from pimserve.errors import InputError, validation_error

REFERENCE_ENV = "PIMSERVE_REFERENCE"
_DEFAULT_REFERENCE = "../shared/reference"
MEASURED, SERVED = "gpu/measured.json", "gpu/end_to_end.json"

_Row = TypeVar("_Row", bound=Row)
_Form = TypeVar("_Form", bound=BaseModel)


def reference_file(name: str) -> Path:
    """A file of the reference data, in the folder $PIMSERVE_REFERENCE or its default place.

    Raises:
        InputError: it is not there; says what to give instead.
    """
    folder = Path(os.environ.get(REFERENCE_ENV) or _DEFAULT_REFERENCE)
    path = folder / name
    if not path.is_file():
        option = "--measured" if name == MEASURED else "--served"
        raise InputError(
            str(path),
            f"no such file; name one with {option} FILE, or the folder of reference data with {REFERENCE_ENV}",
        )
    return path


def read_measured(path: Path) -> list[OperatorRow]:
    """Timed operators of a file, in its order.

    Raises:
        InputError: the file cannot be read, or a row is malformed; names file, row (from 0) and field.
    """
    rows = _list(path, _document(path), "rows")
    if not rows:
        raise InputError(str(path), 'must be an object whose key "rows" holds a list of at least one timed operator')
    return [_operator(f"{path}: rows[{index}]", row) for index, row in enumerate(rows)]


def read_served(path: Path) -> tuple[list[ServedRow], list[Anchor]]:
    """Served configurations and anchors of a file, in its order; one of the two may be empty.

    Raises:
        InputError: the file cannot be read, or a row is malformed; names file, row (from 0) and field.
    """
    document = _document(path)
    part = document.get("served", {})
    if not isinstance(part, dict):
        raise InputError(f"{path}: served", "must be an object with a list `rows`")
    served = _list(path, part, "rows", "served.")
    anchors = _list(path, document, "anchors")
    if not served and not anchors:
        raise InputError(str(path), "must have a list `served.rows` or a list `anchors`, of at least one row")
    return (
        [_parsed(ServedRow, f"{path}: served.rows[{index}]", row) for index, row in enumerate(served)],
        [_parsed(Anchor, f"{path}: anchors[{index}]", row) for index, row in enumerate(anchors)],
    )


def _document(path: Path) -> dict[str, Any]:
    document = read_json(path, "cannot be read")
    if not isinstance(document, dict):
        raise InputError(str(path), "must be a JSON object")
    return document


def _list(path: Path, document: Mapping[str, Any], key: str, above: str = "") -> list[Any]:
    rows = document.get(key, [])
    if not isinstance(rows, list):
        raise InputError(f"{path}: {above}{key}", "must be a list of objects")
    return rows


def _operator(where: str, row: object) -> OperatorRow:
    if isinstance(row, dict):
        op, shape = row.get("op"), row.get("shape")
        row = {**row, "shape": None}
        if not isinstance(shape, dict):
            raise InputError(f"{where}.shape", "must be an object with the operator's sizes")
        if isinstance(op, str) and op in SHAPES:
            row["shape"] = _validated(SHAPES[op], f"{where}.shape", shape)
    return _parsed(OperatorRow, where, row)


def _parsed(form: type[_Row], where: str, row: object) -> _Row:
    if not isinstance(row, dict):
        raise InputError(where, "must be an object")
    return _validated(form, where, {**row, "where": where})


def _validated(form: type[_Form], where: str, row: dict[str, Any]) -> _Form:
    try:
        return form.model_validate(row)
    except ValidationError as error:
        raise validation_error(where, error, form) from None
