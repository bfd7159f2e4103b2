"""Placements of attention and experts in a few words, where tables have them beside others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pimserve.cluster.scenario.placement_spec import GROUP_NAMES

_SECTION = "placement."


def placement_label(placement: Mapping[str, Any]) -> str:
    """A `placement` of a scenario, given or resolved: what is on which devices; empty for any other mapping."""
    experts = placement.get("experts")
    if experts == "attention":
        return "experts with attention"
    if not isinstance(experts, Mapping):
        return ""
    groups = {group: placement[group] for group in GROUP_NAMES if isinstance(placement.get(group), Mapping)}
    return ", ".join(
        f"{group.replace('_', ' ')} on {_name(spec.get('device'))}"
        for group, spec in groups.items()
        if spec.get("device") or group == "experts"
    )


def _name(device: object) -> str:
    if isinstance(device, Mapping):
        return str(device.get("name") or device.get("preset") or "devices of their own")
    return "devices of their own" if device is None else str(device)


def with_labels(differences: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """Settings that differ between runs, by dotted path: of placements that not all runs have, one line with labels."""
    sections: dict[str, dict[str, tuple[Any, ...]]] = {}
    for path, values in differences.items():
        before, section, key = path.partition(_SECTION)
        if section and before.endswith(".") and before.startswith("cluster."):
            sections.setdefault(before + section.removesuffix("."), {})[key] = values
    lacking = {
        section: inside
        for section, inside in sections.items()
        if any(all(value is None for value in of_run) for of_run in zip(*inside.values(), strict=True))
    }
    labelled: dict[str, tuple[Any, ...]] = {}
    for path, values in differences.items():
        within = next((section for section in lacking if path.startswith(f"{section}.")), None)
        if within is None:
            labelled[path] = values
        elif within not in labelled:
            inside = lacking[within]
            labelled[within] = tuple(
                placement_label(_nested({key: values[run] for key, values in inside.items()})) or None
                for run in range(len(values))
            )
    return labelled


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Of dotted keys, those that there are."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        if value is not None:
            *way, last = path.split(".")
            inner = nested
            for key in way:
                inner = inner.setdefault(key, {})
            inner[last] = value
    return nested
