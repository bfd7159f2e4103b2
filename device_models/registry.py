"""From a device document to the device: built-in kinds, and those that installed packages register.

A package adds a kind with an entry point in the group `pimserve.devices` that names a class as `Device` describes.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from pimserve.device_models.catalogue import device_names, load_device_document
from pimserve.device_models.defaults import described
from pimserve.device_models.device import Device
from pimserve.errors import InputError, validation_error
from pimserve.plugin_calls import named

# Loaded when they are asked for: most runs need one.
_BUILT_IN = {
    "gpu": ("pimserve.device_models.gpu", "Gpu"),
    "duplex": ("pimserve.device_models.duplex", "Duplex"),
    "aimc": ("pimserve.device_models.aimc.aimc", "Aimc"),
}
BUILT_IN_KINDS = frozenset(_BUILT_IN)


def device_class(kind: str) -> type[Any]:
    """The class registered for a kind of device."""
    if kind in _BUILT_IN:
        module, name = _BUILT_IN[kind]
        built_in: type[Any] = getattr(import_module(module), name)
        return built_in
    registered = entry_points(group="pimserve.devices")
    if kind in registered.names:
        with named("device.kind", f"{kind!r} of {registered[kind].value}", "does not load"):
            registered_class: type[Any] = registered[kind].load()
        return registered_class
    known = sorted({*_BUILT_IN, *registered.names})
    raise InputError("device.kind", f"unknown kind of device {kind!r} (known: {', '.join(known)})")


def load_device(document: str | Mapping[str, Any], where: str = "device") -> Device:
    """Build the device of a catalogue name, or of a document: a whole one with `kind`, or `preset` and changes to it.

    Raises:
        InputError: unknown name or kind, or a value out of range.
    """
    if isinstance(document, str):
        document = {"preset": document}
    preset = load_device_document(str(document["preset"])) if "preset" in document else None
    changes = {key: value for key, value in document.items() if key != "preset"}
    kind = changes.get("kind", None if preset is None else preset["kind"])
    if not isinstance(kind, str):
        raise InputError(
            where, f"needs `preset` (one of {', '.join(device_names())}) or a full description with `kind`"
        )
    cls = device_class(kind)
    try:
        device: Device = cls(described(cls.Spec, changes, preset))
    except ValidationError as error:
        raise validation_error(where, error, cls.Spec) from None
    return device
