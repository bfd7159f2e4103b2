"""How figures of the Duplex paper were read where it leaves a choice, and why the ones that are missed are missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pimserve.cluster.validation.duplex_case import ignored_keys
from pimserve.cluster.validation.duplex_metric import Metric
from pimserve.cluster.validation.targets import Target


class _Rule(NamedTuple):
    """What is to be said of targets of a figure (None: of any) that `holds` of their metric and case."""

    figure: int | None
    holds: Callable[[Metric, Mapping[str, Any]], bool]
    text: str


def _of_bank_pim(metric: Metric, case: Mapping[str, Any]) -> bool:
    return "Bank-PIM" in (*metric.systems, case.get("unit"))


def _of_edap(metric: Metric, _: Mapping[str, Any]) -> bool:
    return metric.kind == "edap"


_READINGS = (  # all that hold are given
    _Rule(
        5,
        lambda metric, _: any(name.startswith("hetero") for name in metric.systems),
        "all-reduces span the devices that hold partial sums; moving tokens between GPUs and PIM costs no more",
    ),
    _Rule(
        5,
        lambda metric, _: "hetero, weights duplicated" in metric.systems,
        "the busiest experts on the GPUs, the rest on Logic-PIM, divided so that both take equally long",
    ),
    _Rule(8, _of_edap, "equal areas, and a multiply-accumulate of 2.3 times the energy in the DRAM dies: both fitted"),
    _Rule(14, _of_bank_pim, "the unit alone is swapped: one unit at a time, whole experts per device"),
    _Rule(
        16,
        lambda metric, _: "Duplex-Split" in metric.systems,
        "Duplex-Split: two stations in closed form, no cost for handing over the KV cache",
    ),
)
_REASONS = (  # of those that hold, the first is given
    _Rule(8, _of_edap, "areas and the energy of buffers are not published, and weigh more the higher the Op/B"),
    _Rule(
        13,
        lambda metric, _: metric.latency in ("T2FT", "E2E"),
        "beyond saturation this latency grows as long as the run lasts; below, it rests on a base (QPS 4) with so few "
        "requests that even arrivals lock the batch",
    ),
    _Rule(
        11,
        lambda metric, case: (case.get("model"), case.get("batch"), metric.system) == ("GLaM", 128, "Duplex+PE+ET"),
        "the published bars do not change evenly with the length, which no cost here does",
    ),
    _Rule(
        None,
        lambda metric, _: metric.latency == "TBT" and metric.statistic in ("p90", "p99"),
        "the percentile lies on the edge between decoding-only and mixed stages, where a small shift of their shares "
        "moves it from one kind to the other",
    ),
    _Rule(
        None, _of_bank_pim, "neither the efficiency of Bank-PIM nor how it runs experts beyond its peak is published"
    ),
    _Rule(
        None,
        lambda metric, _: metric.kind == "fitting_batch",
        "which tables a device holds and what else it reserves is not published",
    ),
    _Rule(
        None,
        lambda metric, _: metric.latency == "E2E" and any(name.startswith("Duplex") for name in metric.systems),
        "request lengths are published as Gaussian, without their spread",
    ),
)
_NO_REASON = "missed, and no reason is known"


def notes(target: Target, metric: Metric, *, passed: bool) -> list[str]:
    """What to know about a target's reading and, where it is missed, about the reason."""
    texts = _that_hold(_READINGS, target, metric)
    ignored = ignored_keys(target)
    if ignored:
        texts.append(f"case keys without meaning here, ignored: {', '.join(ignored)}")
    if not passed:
        texts += _that_hold(_REASONS, target, metric)[:1] or [_NO_REASON]
    return texts


def _that_hold(rules: tuple[_Rule, ...], target: Target, metric: Metric) -> list[str]:
    return [rule.text for rule in rules if rule.figure in (None, metric.figure) and rule.holds(metric, target.case)]
