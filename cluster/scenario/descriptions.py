"""What a scenario names as files: models and devices of the user's own, put into it, and its trace.

A file is looked for in the scenario's folder, then in the working folder. What is put in makes the scenario whole: it
runs the same from anywhere, on any process, and its results say what was run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pimserve.cluster.scenario.placement_spec import GROUP_NAMES
from pimserve.device_models.catalogue import merged, parse_document
from pimserve.errors import InputError, shortened

_SUFFIXES = (".yaml", ".yml")
_PLACES = (
    ("model",),
    ("cluster", "device"),
    ("cluster", "pools", "prefill", "device"),
    ("cluster", "pools", "decode", "device"),
    *(
        ("cluster", *pool, "placement", group, "device")
        for pool in ((), ("pools", "prefill"), ("pools", "decode"))
        for group in GROUP_NAMES
    ),
)


def is_file(name: object) -> bool:
    """Whether a model or device is named by a file, not by the catalogue."""
    return isinstance(name, str) and name.endswith(_SUFFIXES)


def read_yaml(path: Path, what: str) -> str:
    """The text of a YAML file; `what` it should be is for messages ("a scenario").

    Raises:
        InputError: there is none, or it is no text.
    """
    return read_text(path, f"{what} is a YAML file")


def read_text(path: Path, what: str) -> str:
    """The text of a file; `what` it should be is a sentence for messages.

    Raises:
        InputError: there is none, or it is no text.
    """
    try:
        if path.is_char_device():
            raise InputError(str(path), f"is a device; {what}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(str(path), "no such file") from None
    except IsADirectoryError:
        raise InputError(str(path), f"is a folder; {what}") from None
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"is not UTF-8 text (byte {error.start}); {what}") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None


def read_description(name: str, where: str, folders: Sequence[Path]) -> dict[str, Any]:
    """The description that a file holds, named after the file unless it has a name.

    Args:
        name: the file.
        where: key that names it.
        folders: where a relative path is tried, in this order.

    Raises:
        InputError: there is no such file, or it holds none.
    """
    path = find_file(name, where, folders)
    document = parse_document(read_yaml(path, "a description"), str(path))
    if is_file(document.get("preset")):
        raise InputError(
            str(path), f"builds on {document['preset']!r}; a file may build on a preset of the catalogue only"
        )
    return {"name": path.stem, **document}


def with_descriptions(document: Mapping[str, Any], folders: Sequence[Path] | None) -> dict[str, Any]:
    """The scenario's document with what files describe in their place.

    Args:
        document: as read, not yet validated.
        folders: as for `read_description`; None: no file is read here.

    Raises:
        InputError: as `read_description`; or a file is named, and none is read here.
    """
    result = dict(document)
    for place in _PLACES:
        result = _replaced(result, place, ".".join(place), folders)
    return result


def with_trace_beside(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The document with its trace's path in that folder, if it is there."""
    result, workload = dict(document), document.get("workload")
    trace = workload.get("trace") if isinstance(workload, Mapping) else None
    path = trace.get("path") if isinstance(trace, Mapping) else None
    if not isinstance(path, str) or "\0" in path or not (folder / path).exists():
        return result
    result["workload"] = {**workload, "trace": {**trace, "path": str(folder / path)}}  # type: ignore[dict-item]
    return result


def _replaced(
    document: Mapping[str, Any], place: Sequence[str], where: str, folders: Sequence[Path] | None
) -> dict[str, Any]:
    result, (key, *inner) = dict(document), place
    value = result.get(key)
    if inner:
        if isinstance(value, Mapping):
            result[key] = _replaced(value, inner, where, folders)
        return result
    name = value.get("preset") if isinstance(value, Mapping) else value
    if not is_file(name):
        return result
    if folders is None:
        message = (
            f"{shortened(repr(name))} is a file, which is not read here: put what it says into the scenario itself"
        )
        raise InputError(where, message)
    changes = {key: part for key, part in value.items() if key != "preset"} if isinstance(value, Mapping) else {}
    result[key] = merged(read_description(str(name), where, folders), changes)
    return result


def find_file(name: str, where: str, folders: Sequence[Path]) -> Path:
    """The file of that name, in the first of the folders that has it.

    Raises:
        InputError: there is none.
    """
    tried = list(dict.fromkeys((folder / name).absolute() for folder in folders))
    try:
        return next(path for path in tried if path.exists())
    except StopIteration:
        raise InputError(where, f"no such file: {', nor '.join(map(str, tried))}") from None
    except (OSError, ValueError) as error:  # too long, a zero in it
        raise InputError(where, f"{shortened(repr(name))} is no file: {error}") from None
