"""What a description of one's own device leaves open, and what hangs on the figures that it changes: all of it stated.

A whole description starts from the preset of its kind: figures without which a device would be better than any that
is built are taken over from there. A preset with changes keeps what was measured of the preset; what such figures
become on the changed device is its kind's to say (`DeviceSpec.following`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pimserve.device_models.catalogue import load_device_document, merged
from pimserve.device_models.device import DeviceSpec

Document = Mapping[str, Any]


def described(kind: type[DeviceSpec], document: Document, preset: Document | None = None) -> DeviceSpec:
    """The device of a document, with its `assumptions`.

    Args:
        kind: schema of its kind.
        document: a whole description, or changes to `preset`.
        preset: the preset that it changes.

    Raises:
        pydantic.ValidationError: a figure is missing or out of range.
    """
    whole = document if preset is None else merged(preset, document)
    alike = preset is not None and preset["kind"] == whole["kind"]
    if not alike and kind.default_preset is None:
        return kind.model_validate(whole)
    base = kind.model_validate(preset if alike else load_device_document(str(kind.default_preset)))
    said = []
    if not alike:
        whole, taken = _completed(whole, kind, base)
        if taken:
            said.append(f"taken over from {base.name}: {', '.join(f'{key} {value}' for key, value in taken.items())}")
    spec, followed = kind.model_validate(whole).following(base, document)
    known = dict.fromkeys((*spec.assumptions, *said, *followed))
    return spec if not {*said, *followed} else spec.model_copy(update={"assumptions": tuple(known)})


def _completed(document: Document, kind: type[DeviceSpec], base: DeviceSpec) -> tuple[Document, dict[str, Any]]:
    """The document with what it leaves open of `kind.taken_over`, and these figures."""
    usual = base.model_dump(mode="json", exclude_none=True)
    taken: dict[str, Any] = {}
    for path in kind.taken_over:
        *parents, key = path.split(".")
        given, preset = _at(document, parents), _at(usual, parents)
        given = {} if given is None else given
        if not isinstance(given, Mapping) or not isinstance(preset, Mapping) or key not in preset:
            continue
        missing = _missing(given.get(key), preset[key])
        if missing is None:
            continue
        taken |= dict(_leaves(missing, path))
        change: Any = {key: missing}
        for parent in reversed(parents):
            change = {parent: change}
        document = merged(document, change)
    return document, taken


def _missing(given: object, usual: object) -> Any:  # noqa: ANN401 whatever a document holds
    """What of `usual` is not given; None where nothing is missing."""
    if given is None:
        return usual
    if not isinstance(given, Mapping) or not isinstance(usual, Mapping):
        return None
    parts = {key: _missing(given.get(key), value) for key, value in usual.items()}
    return {key: value for key, value in parts.items() if value is not None} or None


def _leaves(value: object, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        yield path, f"{value:g}" if isinstance(value, float) else value


def _at(document: object, path: list[str]) -> object:
    """What is at a path of a document; None where there is nothing."""
    for key in path:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document
