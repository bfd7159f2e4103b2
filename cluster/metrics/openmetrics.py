"""Metrics with timestamps, as OpenMetrics text (1.0.0)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from pimserve.cluster.metrics.exposition import head, series, values
from pimserve.cluster.metrics.families import FAMILIES
from pimserve.cluster.metrics.state import RunMetrics


def header() -> Iterator[str]:
    """What each family is."""
    for family in FAMILIES:
        yield head(family, openmetrics=True)


def samples(moments: Iterable[tuple[float, RunMetrics]]) -> Iterator[str]:
    """Lines of all series of a run, moment by moment; what is not a number is left out.

    Args:
        moments: timestamp, s since 1970, and the metrics then; ascending, for samples that come late are lost without
            a word when they are loaded.
    """
    names: dict[str, list[str]] | None = None
    for timestamp, metrics in moments:
        if names is None:
            names = {family.name: series(family, metrics.layout) for family in FAMILIES}
        stamp = f"{timestamp:.3f}\n"
        lines = []
        for family in FAMILIES:
            for sample, value in zip(names[family.name], values(family, metrics), strict=True):
                if not math.isnan(value):
                    lines.append(f"{sample} {value:.17g} {stamp}")
        yield "".join(lines)


END = "# EOF\n"
