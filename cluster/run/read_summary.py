"""Summaries read back: whole, or as far as they go where another version wrote them, or somebody changed them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError

from pimserve.cluster.run.checkpoint_files import is_checkpoint, not_ended
from pimserve.cluster.run.summary_schema import SCHEMA_VERSION, Summary
from pimserve.errors import InputError, shortened, validation_error
from pimserve.scheduler.sections import Section

_PARTS = {"requests", "window", "throughput", "latency_s", "slo", "energy", "batch", "kv", "simulator"}


def load_document(path: Path) -> dict[str, Any]:
    """The summary of a results folder, or of a summary.json, as the file has it.

    Raises:
        InputError: there is none, or it is not one of ours.
    """
    file = path / "summary.json" if path.is_dir() else path
    if file.exists() and not file.is_file():
        raise InputError(str(file), "is no file: a folder with summary.json is needed")
    try:
        document = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise InputError(str(path), f"no results here: {_why_none(path)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(file), f"cannot be read as a summary: {error}") from None
    if not isinstance(document, dict) or "schema_version" not in document:
        raise InputError(str(file), "is not a summary that pimserve wrote (no schema_version)")
    if document["schema_version"] != SCHEMA_VERSION:
        version = shortened(repr(document["schema_version"]))
        raise InputError(str(file), f"has schema_version {version}; this pimserve reads {SCHEMA_VERSION}")
    missing = sorted(_PARTS - {key for key, value in document.items() if isinstance(value, dict)})
    if missing:
        raise InputError(str(file), f"is cut short or was changed: {', '.join(missing)} missing, or no mapping")
    return document


def _why_none(path: Path) -> str:
    """Why there is no summary at a place."""
    if is_checkpoint(path):
        return not_ended(path)
    return (
        "a folder with summary.json is needed"
        if path.exists()
        else "nothing is there; a run writes its results as it ends"
    )


def read_summary(place: Path) -> Summary:
    """The summary of a results folder, or of a summary.json, if it is whole.

    Raises:
        InputError: there is none, or it is not as a run writes it.
    """
    try:
        return Summary.model_validate(load_document(place))
    except ValidationError as error:
        raise validation_error(str(place), error, Summary) from None


def load_summary(place: Path) -> Summary:
    """The summary of a results folder, or of a summary.json, as far as it goes (`summary_of_document`).

    Raises:
        InputError: there is none, or it is not one of ours.
    """
    return summary_of_document(load_document(place))


def summary_of_document(document: dict[str, Any]) -> Summary:
    """A summary in which what the document lacks, or has of another kind, is None, or a section or list of nothing."""
    summary: Summary = _section(Summary, document)
    return summary


def _section(kind: type[Section], document: object) -> Any:  # noqa: ANN401 one of that kind
    values = document if isinstance(document, dict) else {}
    parts = {name: _part(field.annotation, values.get(name)) for name, field in kind.model_fields.items()}
    return kind.model_construct(_fields_set=values.keys() & parts.keys(), **parts)


def _part(kind: Any, value: Any) -> Any:  # noqa: ANN401 a type, and whatever JSON holds
    """What a field of that type holds for a value of a document."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    first, *others = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    form = get_origin(first) or first
    if form in {dict, list} or section_in(form) is not None:
        holds = list if form is list else dict
        if not isinstance(value, holds):
            if others:
                return None
            value = holds()
        if form is dict:
            return {key: _part(get_args(first)[1], item) for key, item in value.items()}
        return [_part(get_args(first)[0], item) for item in value] if form is list else _section(form, value)
    if form is str:
        return None if value is None else str(value)
    fits = form is Any or type(value) in {first, *others} or (type(value) is int and form is float)
    return value if fits and (not isinstance(value, int | float) or abs(value) <= sys.float_info.max) else None


def section_in(kind: Any) -> type[Section] | None:  # noqa: ANN401 a type
    """The section that a type is, or that it allows beside None."""
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, Section)), None)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
