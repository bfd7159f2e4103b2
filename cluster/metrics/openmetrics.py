"""Metrics with timestamps, as OpenMetrics text (1.0.0)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from pimserve.cluster.metrics.families import FAMILIES, Family
from pimserve.cluster.metrics.state import Layout, RunMetrics

_TYPES = {"counter": "_total", "info": "_info"}


def header() -> Iterator[str]:
    """What each family is."""
    for family in FAMILIES:
        name = family.name.removesuffix(_TYPES.get(family.kind, ""))
        yield f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n"


def samples(moments: Iterable[tuple[float, RunMetrics]]) -> Iterator[str]:
    """Lines of all series of a run, moment by moment; what is not a number is left out.

    Args:
        moments: timestamp, s since 1970, and the metrics then; ascending, for samples that come late are lost without
            a word when they are loaded.
    """
    names: dict[str, list[str]] | None = None
    for timestamp, metrics in moments:
        if names is None:
            names = {family.name: _series(family, metrics.layout) for family in FAMILIES}
        stamp = f"{timestamp:.3f}\n"
        lines = []
        for family in FAMILIES:
            values = _values(family, metrics)
            for series, value in zip(names[family.name], values, strict=True):
                if not math.isnan(value):
                    lines.append(f"{series} {value:.17g} {stamp}")
        yield "".join(lines)


END = "# EOF\n"


def _series(family: Family, layout: Layout) -> list[str]:
    """Names with labels of all samples, in the order of `_values`."""
    found = []
    for labels in layout.labels[family.name]:
        inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
        if family.kind != "histogram":
            found.append(f"{family.name}{{{inner}}}")
            continue
        found += [f'{family.name}_bucket{{{inner},le="{edge}"}}' for edge in layout.edges[family.name]]
        found += [f"{family.name}_count{{{inner}}}", f"{family.name}_sum{{{inner}}}"]
    return found


def _values(family: Family, metrics: RunMetrics) -> list[float]:
    if family.kind != "histogram":
        plain: list[float] = metrics.values[family.name].tolist()
        return plain
    found: list[float] = []
    counts = metrics.counts[family.name].cumsum(axis=1).tolist()
    for cumulative, total in zip(counts, metrics.sums[family.name].tolist(), strict=True):
        found += [*cumulative, cumulative[-1], total]
    return found


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
