"""Errors that a user can cause, and mend."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

_OF_SECTIONS = ("model_type", "model_attributes_type")
# What pydantic says in terms of Python, said in terms of the document.
_MESSAGES = {
    "missing": "is missing",
    "invalid_key": "keys must be strings",
    **dict.fromkeys((*_OF_SECTIONS, "dict_type"), "must be a mapping of keys to values"),
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list"),
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be text",
    "string_unicode": "must be UTF-8 text",
}
_FORMS = ("<", "function-", "tagged-union[")
Result = TypeVar("Result")
_LONGEST = 200  # characters of a value that a message repeats


class PimserveError(Exception):
    """Base of every error that the user can mend; the command line prints it without a traceback."""


class Terminated(SystemExit):
    """The system asked the process to end: what a plug-in raises to that effect is its mistake, and this is none."""


TAGS = ("kind", "model", "name")  # keys by which a mapping says which of several descriptions it is


class InputError(PimserveError, ValueError):
    """A value in a scenario, a catalogue entry, a trace or a command is not acceptable.

    `where` names the place ("scheduler.max_num_seqs", "trace.csv:17"), `message` says what is wrong
    and what is allowed.
    """

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where
        self.message = message

    def at(self, where: str) -> InputError:
        """The same of another place."""
        return InputError(where, self.message)

    def moved(self, place: Callable[[str], str]) -> InputError:
        """The same, its place (or each, of several mistakes) as `place` names it."""
        return self.at(place(self.where))


class InputsError(InputError):
    """Several mistakes, a line for each."""

    def __init__(self, errors: Sequence[InputError]) -> None:
        self.errors = tuple({str(error): error for error in errors}.values())
        super().__init__("", "\n".join(map(str, self.errors)))

    def moved(self, place: Callable[[str], str]) -> InputError:
        """The same, each place as `place` names it."""
        return InputsError([error.moved(place) for error in self.errors])


def together(errors: Sequence[InputError]) -> InputError:
    """One error that says what several say, a line each."""
    return errors[0] if len(errors) == 1 else InputsError(errors)


def tried(wrong: list[InputError], look: Callable[[], Result]) -> Result | None:
    """What was asked for; None, and noted in `wrong`, if it is not acceptable."""
    try:
        return look()
    except InputError as error:
        wrong.append(error)
        return None


class DoesNotFitError(InputError):
    """A model does not fit that many devices. `least`: the fewest that hold it, None where no number of them does."""

    def __init__(self, where: str, message: str, least: int | None) -> None:
        super().__init__(where, message)
        self.least = least

    def at(self, where: str) -> DoesNotFitError:
        """The same of another place."""
        return DoesNotFitError(where, self.message, self.least)


def validation_error(where: str, error: ValidationError, schema: type[BaseModel] | None = None) -> InputError:
    """Turn pydantic's findings into one error: a line for each, with its path, what is allowed and what was given.

    Args:
        where: path of the validated document.
        error: the findings.
        schema: what was validated; with it, paths hold the document's keys only, and unknown keys get a hint.
    """
    told: list[tuple[tuple[int | str, ...], bool, InputError]] = []
    for found in error.errors(include_url=False):
        if found["type"] == "too_short" and len(found["input"]) >= found["ctx"]["min_length"]:
            continue  # entries that are wrong were not counted; what is wrong with them is told
        keys, parent, here = _walk(schema, found["loc"], unknown=found["type"] == "extra_forbidden")
        message = _message(found, parent, here)
        if found["type"] == "union_tag_invalid":
            keys.append(found["ctx"]["discriminator"].strip("'"))
        place = ".".join(str(part) for part in (where, *keys) if part != "")
        told.append((tuple(keys), _other_form(found), InputError(place, message)))
    # Of a key that takes several forms, only what is wrong with the one that was given.
    formed = [keys for keys, other_form, _ in told if not other_form]
    return InputsError(
        [
            each
            for keys, other_form, each in told
            if not (other_form and any(keys == below[: len(keys)] for below in formed))
        ]
    )


def _other_form(found: ErrorDetails) -> bool:
    """Whether one value was expected where a mapping or list is, or the other way round."""
    if found["type"] in _OF_SECTIONS:
        return not isinstance(found["input"], dict)
    return found["type"] in _MESSAGES and found["type"].endswith("_type") and isinstance(found["input"], dict | list)


def _message(found: ErrorDetails, parent: Sequence[type[BaseModel]], here: Sequence[type[BaseModel]]) -> str:
    kind, given = found["type"], found["input"]
    if kind == "extra_forbidden":
        known = [key for model in parent for key in model.model_fields]
        close = difflib.get_close_matches(str(found["loc"][-1]), known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"unknown key{hint} (known: {', '.join(known)})" if known else "unknown key"
    if kind == "union_tag_not_found":
        kinds = ", ".join(repr(tag) for model in here for tag in _tags(model))
        return f"needs `{found['ctx']['discriminator'].strip(chr(39))}`{f', one of {kinds}' if kinds else ''}"
    if kind == "union_tag_invalid":
        return f"must be one of {found['ctx']['expected_tags']} (got {found['ctx']['tag']!r})"
    message = _MESSAGES.get(kind) or found["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if kind == "missing" or (isinstance(given, str) and repr(given) in message):
        return message
    if kind in {"too_short", "too_long"}:
        context = found["ctx"]
        side, count = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
        entries = "entry" if context[count] == 1 else "entries"
        return f"must have at {side} {context[count]} {entries} (got {context['actual_length']})"
    if given is None:
        fields = [model.model_fields.get(str(found["loc"][-1])) for model in parent]
        has_default = kind in _OF_SECTIONS and any(field and not field.is_required() for field in fields)
        return f"{message} (got null){'; leave it out, or write {}, for its defaults' if has_default else ''}"
    if isinstance(given, bool):
        return f"{message} (got {str(given).lower()})"
    if isinstance(given, str | int | float):
        return f"{message} (got {shortened(repr(given))})"
    return f"{message} (got a {'mapping' if isinstance(given, dict) else 'list'})" if kind in _MESSAGES else message


def shortened(text: str) -> str:
    """Text for a message, without its middle where it is long."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 4 :]}"


def _walk(
    schema: type[BaseModel] | None, loc: tuple[int | str, ...], *, unknown: bool
) -> tuple[list[int | str], list[type[BaseModel]], list[type[BaseModel]]]:
    """(keys of the document on the way, models whose key comes last, models that it may hold).

    Where one of several models is chosen by its tag, pydantic has that tag in its path as well. `unknown`: the last
    part is a key that no model has, whatever it looks like.
    """
    keys: list[int | str] = []
    parent: list[type[BaseModel]] = []
    here = [schema] if schema is not None else []
    for place, part in enumerate(loc, 1):
        if str(part).startswith(_FORMS) and not (
            unknown and place == len(loc)
        ):  # a union's name for one of its forms, which is no key
            continue
        if len(here) > 1:
            here = [model for model in here if part in _tags(model)]
            continue
        keys.append(part)
        if isinstance(part, int):  # one of a list, of which `here` says what each may be
            continue
        parent = here
        field = parent[0].model_fields.get(str(part)) if parent else None
        here = _models(field.annotation) if field is not None else []
    return keys, parent, here


def _models(annotation: object) -> list[type[BaseModel]]:
    """Pydantic models in a type."""
    if hasattr(annotation, "model_fields"):
        return [cast("type[BaseModel]", annotation)]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """Values of the key that choose a model."""
    found = [get_args(model.model_fields[key].annotation) for key in TAGS if key in model.model_fields]
    return found[0] if found else ()
