"""Catalogue of published models, devices and measured kernels, one YAML file each, and its loader.

A file's name is the entry's name. Every entry carries its sources.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError

from pimserve.device_models.model import ModelSpec
from pimserve.errors import TAGS, InputError, shortened, validation_error

Kind = Literal["model", "device", "kernel"]

# The C parser is several times faster, and missing from builds of PyYAML without libyaml.
_BaseLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_DEEPEST = 32  # levels; releases of PyYAML without a limit of their own end the process
_MOST_VALUES = 200_000  # each as often as anchors repeat it
_LONGEST_NUMBER = 100  # characters; long hexadecimal ones take no time to read, and cannot be written in a message
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _StrictLoader(_BaseLoader):  # type: ignore[valid-type,misc]  # chosen at run time
    """Safe YAML loader that refuses endless numbers, and a key given twice, of which YAML would keep the last."""

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:  # noqa: ANN401 as in the base class
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            problem = f"a number of {len(node.value):,} characters; {_LONGEST_NUMBER} at most"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_scalar(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401 as in the base class
        try:
            return super().construct_object(node, deep=deep)
        except (LookupError, AttributeError) as error:  # what PyYAML does where a tag and its text do not go together
            problem = f"{shortened(repr(node.value))} is not of type {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add((key.tag, key.value))
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


# YAML 1.1, which the parser follows, takes 1e9 for text; YAML 1.2 and everyone else for a number.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def model_names() -> list[str]:
    """Return the names of all models in the catalogue, sorted."""
    return _names("model")


@cache
def load_model(name: str) -> ModelSpec:
    """Return the model of that name.

    Raises:
        InputError: the catalogue has no such model.
    """
    return ModelSpec.model_validate(_load_yaml("model", name))


def model_of(document: str | Mapping[str, Any], where: str = "model") -> ModelSpec:
    """The model of a catalogue name, or of a document: a whole one with `name`, or `preset` and changes to it.

    Raises:
        InputError: unknown name, or a value out of range; `where` names the place.
    """
    if isinstance(document, str):
        return _named(document, where)
    preset = None
    if "preset" in document:
        changes = {key: value for key, value in document.items() if key != "preset"}
        preset = _named(str(document["preset"]), where)
        # What was published of a model does not hold for other shapes.
        left_out = None if "published" in changes else {"published"}
        document = merged(preset.model_dump(mode="json", exclude_none=True, exclude=left_out), changes)
    elif "name" not in document:
        raise InputError(where, f"needs `preset` (one of {', '.join(model_names())}) or a full description with `name`")
    try:
        model = ModelSpec.model_validate(document)
    except ValidationError as error:
        raise validation_error(where, error, ModelSpec) from None
    no_truth_for_a_number(where, document, model)
    if preset is not None and model.published is None and model.parameters == preset.parameters:
        return model.model_copy(update={"published": preset.published})
    return model


def _named(name: str, where: str) -> ModelSpec:
    """The model of that name, which was asked for there."""
    try:
        return load_model(name)
    except InputError as error:
        raise error.at(where) from None


def device_names() -> list[str]:
    """Return the names of all devices in the catalogue, sorted."""
    return _names("device")


def load_device_document(name: str) -> dict[str, Any]:
    """Return the device document of that name, not yet validated: its device class knows the schema.

    Raises:
        InputError: the catalogue has no such device.
    """
    return _load_yaml("device", name)


def kernel_names() -> list[str]:
    """Return the names of all sets of measured kernels in the catalogue, GPU-BACKEND, sorted."""
    return _names("kernel")


def load_kernel_document(name: str) -> dict[str, Any]:
    """Return the set of kernels of that name, not yet validated.

    Raises:
        InputError: the catalogue has no such set.
    """
    return _load_yaml("kernel", name)


def _names(kind: Kind) -> list[str]:
    folder = resources.files(__name__) / f"{kind}s"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _load_yaml(kind: Kind, name: str) -> dict[str, Any]:
    """The document of that name, which is the caller's to change."""
    return deepcopy(_read(kind, name))


@cache  # a search for the fewest devices that will do asks for the same one again and again
def _read(kind: Kind, name: str) -> dict[str, Any]:
    # Only listed names reach the file system, so a name cannot point outside the catalogue.
    known = _names(kind)
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(kind, f"unknown {kind} {name!r}{hint} (known: {', '.join(known) or 'none'})")
    text = (resources.files(__name__) / f"{kind}s" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_document(text, f"{name}.yaml")


def parse_document(text: str, place: str) -> dict[str, Any]:
    """Parse one YAML document that must be a mapping; `place` names it in errors.

    Raises:
        InputError: it is not one.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(place, f"is not UTF-8 text (byte {ord(text[error.start]) & 0xFF:#04x})") from None
    _limit(text, place)
    try:
        loader = _StrictLoader(text)
        try:
            document = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{place}{line}", f"not valid YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = f":{text.count(chr(10), 0, error.position) + 1}"
        raise InputError(f"{place}{line}", f"not valid YAML: character {chr(error.character)!r}") from None
    except (ValueError, RecursionError) as error:  # a date or a number that no calendar or machine has
        raise InputError(place, f"not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise InputError(place, "must be a mapping of keys to values")
    return document


def _limit(text: str, place: str) -> None:
    """Refuse what is small to send and large to build; what is not YAML is left to whoever builds it."""
    try:
        _count(text, place)
    except yaml.MarkedYAMLError as error:
        # The scanner is ahead of the events, so a limit of its own can stop it before they have shown ours.
        if error.problem_mark is not None:
            with suppress(yaml.YAMLError):
                _count(text[: error.problem_mark.index], place)
    except yaml.YAMLError:
        return


def _count(text: str, place: str) -> None:
    sizes: list[int] = [0]  # values in each collection that is open, outermost first
    anchors: list[str | None] = [None]
    known: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_BaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.append(1)
            anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = sizes.pop(), anchors.pop()
            if anchor is not None:
                known[anchor] = size
            sizes[-1] += size
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise InputError(place, f"*{event.anchor} is within what it stands for")
            sizes[-1] += known.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[-1] += 1
        if len(sizes) - 1 > _DEEPEST or sum(sizes) > _MOST_VALUES:
            raise InputError(place, f"is nested deeper than {_DEEPEST} levels, or has over {_MOST_VALUES:,} values")


def no_truth_for_a_number(where: str, document: object, parsed: object) -> None:
    """Refuse true and false where they were taken for 1 and 0, in lists as well."""
    if isinstance(document, bool) and not isinstance(parsed, bool):
        raise InputError(where, f"must be a number (got {str(document).lower()})")
    inner: Iterable[tuple[object, object, object]] = ()
    if isinstance(document, Mapping) and isinstance(parsed, BaseModel):
        inner = ((key, value, getattr(parsed, key, value)) for key, value in document.items())
    elif isinstance(document, list) and isinstance(parsed, list | tuple):
        inner = ((place, *pair) for place, pair in enumerate(zip(document, parsed, strict=False)))
    for key, value, given in inner:
        no_truth_for_a_number(f"{where}.{key}" if where else str(key), value, given)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A document with changes laid over it; mappings are merged key by key, anything else is replaced.

    So is a mapping that becomes another kind of description, whose keys are not those of the old one.
    """
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _other_kind(old, value):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _other_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(tag in old and tag in new and old[tag] != new[tag] for tag in TAGS)
