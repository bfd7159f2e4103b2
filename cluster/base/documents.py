"""Reading JSON documents of any version by dotted paths: what is not there, or is of another kind, is None."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def at(document: object, path: str) -> Any:  # noqa: ANN401 whatever JSON holds
    """What is at a dotted path; None where there is nothing, as in a summary of another version."""
    if not isinstance(document, Mapping) or path in document:
        return document[path] if isinstance(document, Mapping) else None
    keys = path.split(".")
    for depth in range(1, len(keys)):
        name = ".".join(keys[:depth])  # which may hold a dot, as ttft_p99.9_s does
        if name in document:
            return at(document[name], ".".join(keys[depth:]))
    return None


def number(document: object, path: str) -> float | None:
    """The finite number at a dotted path; None where there is none."""
    value = at(document, path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None  # nor where a float holds no such number


def numbers(document: object, path: str) -> dict[str, float]:
    """The numbers of the mapping at a dotted path, without what is none."""
    values = at(document, path)
    if not isinstance(values, Mapping):
        return {}
    return {str(key): value for key in values if (value := number(values, str(key))) is not None}
