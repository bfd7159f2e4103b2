"""Files of published figures (`{"targets": [...]}`, or cases alike), and what becomes of a figure: a finding."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pimserve.errors import InputError

ToleranceKind = Literal["rel", "abs", "interval"]
Method = Literal["closed form", "engine", "capacity", "area model", "event-driven model", "search"]
Published = float | tuple[float, float]

_REQUIRED = ("id", "case", "quantity", "published", "tolerance", "tolerance_kind")


@dataclass(frozen=True, slots=True)
class Target:
    """One published figure.

    `case` says for which setting it holds, `metric` what is asked for, in keys (None: only `quantity` says it, in
    words); `published` is a number, or the ends of an interval. `where` names the target in errors.
    """

    id: str
    case: Mapping[str, Any]
    quantity: str
    published: Published
    tolerance: float
    tolerance_kind: ToleranceKind
    provenance: str
    where: str
    metric: Mapping[str, Any] | None = None

    def accepts(self, value: float) -> bool:
        """Whether `value` is within the tolerance: relative, absolute, or an interval widened relatively."""
        if isinstance(self.published, tuple):
            low, high = self.published
            return low * (1 - self.tolerance) <= value <= high * (1 + self.tolerance)
        if self.tolerance_kind == "abs":
            return abs(value - self.published) <= self.tolerance
        return abs(value / self.published - 1) <= self.tolerance

    def ratio(self, value: float) -> float:
        """`value` over the published one, or over the nearest end of the interval; 1 inside it."""
        if isinstance(self.published, tuple):
            return value / min(max(value, self.published[0]), self.published[1])
        return value / self.published if self.published else math.inf


@dataclass(frozen=True, slots=True)
class Finding:
    """A target and what this simulator says. `note` tells how the figure was read and, where it is missed, why.

    `published`, `ratio` and `passed` are None where there is a figure of ours but none to hold it against; `ours` is
    None where nothing could be computed, for the reason in `note`.
    """

    id: str
    quantity: str
    case: str
    published: Published | None
    ours: float | None
    ratio: float | None
    tolerance: float
    tolerance_kind: ToleranceKind
    passed: bool | None
    method: Method
    note: str


def package_file(name: str) -> Path:
    """A file of figures that comes with the package."""
    return Path(__file__).with_name(name)


def read_targets(path: Path, noun: str = "target") -> list[Target]:
    """Read a file of targets, in its order. `noun`: what the file calls one of them, and with an s the list of them.

    Raises:
        InputError: the file cannot be read, is not JSON, or a target is malformed; names file and target.
    """
    seen: set[str] = set()
    rows = enumerate(read_list(path, noun), 1)
    return [_target(*identified(path, noun, number, row, seen)) for number, row in rows]


def read_list(path: Path, noun: str) -> list[Any]:
    """Read the list `{"<noun>s": [...]}`, which has at least one entry.

    Raises:
        InputError: the file cannot be read, is not JSON, or has no such list.
    """
    document = read_json(path, f"cannot read the {noun}s")
    rows = document.get(f"{noun}s") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows:
        raise InputError(str(path), f'must be an object whose key "{noun}s" holds a list of at least one {noun}')
    return rows


def read_json(path: Path, unreadable: str) -> object:
    """Read a JSON file.

    Raises:
        InputError: it cannot be read, which is said as `unreadable`, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(str(path), f"{unreadable}: {reason}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}", f"not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep
        raise InputError(str(path), f"not valid JSON: {error}") from None


def identified(path: Path, noun: str, number: int, row: object, seen: set[str]) -> tuple[str, str, dict[str, Any]]:
    """(place in errors, id, object) of the list's entry `number`, counted from 1; its id joins those `seen` before.

    Raises:
        InputError: it is no object with an `id` of its own.
    """
    if not isinstance(row, dict):
        raise InputError(f"{path}: {noun} {number}", "must be an object")
    name = row.get("id")
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: {noun} {number}", "`id` must be a text")
    where = f"{path}: {noun} {name}"
    if name in seen:
        raise InputError(where, "the id is given twice")
    seen.add(name)
    return where, name, row


def _target(where: str, name: str, row: Mapping[str, Any]) -> Target:
    missing = [key for key in _REQUIRED if key not in row]
    if missing:
        raise InputError(where, f"lacks {', '.join(missing)} (needed: {', '.join(_REQUIRED)})")
    if not isinstance(row["case"], dict):
        raise InputError(where, "`case` must be an object")
    if not isinstance(row["quantity"], str):
        raise InputError(where, "`quantity` must be a text")
    metric = row.get("metric")
    if metric is not None and not isinstance(metric, dict):
        raise InputError(where, "`metric` must be an object")
    kind = row["tolerance_kind"]
    if kind not in get_args(ToleranceKind):
        raise InputError(where, f"unknown tolerance_kind {kind!r} (known: {', '.join(get_args(ToleranceKind))})")
    tolerance = row["tolerance"]
    if not _is_number(tolerance) or tolerance < 0:
        raise InputError(where, f"`tolerance` must be a number of at least 0 (got {tolerance!r})")
    published = _published(where, kind, row["published"])
    return Target(
        id=name,
        case=row["case"],
        quantity=row["quantity"],
        published=published,
        tolerance=float(tolerance),
        tolerance_kind=kind,
        provenance=str(row.get("provenance", "")),
        where=where,
        metric=metric,
    )


def _published(where: str, kind: ToleranceKind, value: object) -> Published:
    if kind == "interval":
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
            raise InputError(where, f"`published` of an interval must be [low, high] (got {value!r})")
        low, high = value
        if not _is_number(low) or not _is_number(high) or not 0 < low <= high:
            raise InputError(where, f"`published` must be two numbers with 0 < low <= high (got {value!r})")
        return float(low), float(high)
    if not isinstance(value, int | float) or not _is_number(value):
        raise InputError(where, f"`published` must be a number (got {value!r})")
    if kind == "rel" and value == 0:
        raise InputError(where, "`published` must not be 0 where the tolerance is relative")
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
