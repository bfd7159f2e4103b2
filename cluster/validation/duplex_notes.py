"""How figures of the Duplex paper were read where it leaves a choice, and why the ones that are missed are missed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from pimserve.cluster.validation.duplex_metric import Metric, ignored_keys
from pimserve.cluster.validation.targets import Target, package_file, read_list

_NO_REASON = "missed, and no reason is known"


class _Rule(NamedTuple):
    """What is to be said of targets that have one of the values for each key of `of`."""

    of: Mapping[str, list[object]]
    text: str


@cache
def _rules(noun: str) -> list[_Rule]:
    """Readings, of which all that hold are given, or reasons, of which the first is."""
    return [_Rule(**rule) for rule in read_list(package_file("duplex_notes.json"), noun)]


def notes(target: Target, metric: Metric, *, passed: bool) -> list[str]:
    """What to know about a target's reading and, where it is missed, about the reason."""
    texts = _that_hold("reading", target, metric)
    ignored = ignored_keys(target)
    if ignored:
        texts.append(f"case keys without meaning here, ignored: {', '.join(ignored)}")
    if not passed:
        texts += _that_hold("reason", target, metric)[:1] or [_NO_REASON]
    return texts


def _that_hold(noun: str, target: Target, metric: Metric) -> list[str]:
    case = target.case
    values = {
        **{key: [getattr(metric, key)] for key in ("figure", "kind", "system", "latency", "statistic")},
        "systems": [*metric.systems, case.get("unit")],
        "model": [case.get("model")],
        "batch": [case.get("batch")],
    }
    return [
        rule.text
        for rule in _rules(noun)
        if all(any(value in wanted for value in values[key]) for key, wanted in rule.of.items())
    ]
