"""How figures of the Duplex paper were read where it leaves a choice, and why the ones that are missed are missed."""

from __future__ import annotations

import re

from pimserve.cluster.validation.duplex_case import figure_of, ignored_keys
from pimserve.cluster.validation.targets import Target

# (figures or None for any, pattern of id, quantity, system, baseline and unit, text). All readings that fit are given,
# and the first reason.
_READINGS: tuple[tuple[tuple[int, ...] | None, str, str], ...] = (
    (
        (5,),
        "hetero",
        "all-reduces span the devices that hold partial sums; moving tokens between GPUs and PIM costs no more",
    ),
    (
        (5,),
        "duplicated",
        "the busiest experts on the GPUs, the rest on Logic-PIM, divided so that both take equally long",
    ),
    ((8,), "EDAP", "equal areas, and a multiply-accumulate of 2.3 times the energy in the DRAM dies: both fitted"),
    ((14,), "Bank-?PIM", "the unit alone is swapped: one unit at a time, whole experts per device"),
    ((16,), "prefill|Split", "Duplex-Split: two stations in closed form, no cost for handing over the KV cache"),
)
_REASONS: tuple[tuple[tuple[int, ...] | None, str, str], ...] = (
    ((8,), "EDAP", "areas and the energy of buffers are not published, and weigh more the higher the Op/B"),
    (
        (13,),
        "T2FT|E2E",
        "beyond saturation this latency grows as long as the run lasts; below, it rests on a base (QPS 4) with so few "
        "requests that even arrivals lock the batch",
    ),
    ((11,), "F11-GLaM-128.*ET", "the published bars do not change evenly with the length, which no cost here does"),
    (
        None,
        "TBT_p9|p9. TBT",
        "the percentile lies on the edge between decoding-only and mixed stages, where a small shift of their shares "
        "moves it from one kind to the other",
    ),
    (None, "Bank-?PIM", "neither the efficiency of Bank-PIM nor how it runs experts beyond its peak is published"),
    (None, "fits", "which tables a device holds and what else it reserves is not published"),
    (None, "Duplex.*E2E|E2E.*Duplex", "request lengths are published as Gaussian, without their spread"),
)
_NO_REASON = "missed, and no reason is known"


def notes(target: Target, *, passed: bool) -> list[str]:
    """What to know about a target's reading and, where it is missed, about the reason."""
    found = _matching(target, _READINGS)
    ignored = ignored_keys(target)
    if ignored:
        found.append(f"case keys without meaning here, ignored: {', '.join(ignored)}")
    if not passed:
        found += _matching(target, _REASONS)[:1] or [_NO_REASON]
    return found


def _matching(target: Target, rules: tuple[tuple[tuple[int, ...] | None, str, str], ...]) -> list[str]:
    figure = figure_of(target)
    words = " ".join(
        [target.id, target.quantity, *(str(target.case.get(key, "")) for key in ("system", "baseline", "unit"))]
    )
    return [
        text for figures, pattern, text in rules if (figures is None or figure in figures) and re.search(pattern, words)
    ]
