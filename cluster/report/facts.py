"""Tables and key figures of a summary. Whatever a summary lacks, of another version say, is left out or a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pimserve.cluster.base.figures import (
    ABSENT,
    WHY_REJECTED,
    count,
    figure,
    half_width,
    known,
    named,
    scaled,
    share,
    text_of,
    written,
)
from pimserve.cluster.base.tables import Table, table_of
from pimserve.cluster.report.content import Tile
from pimserve.cluster.run.class_tables import limits_of_all
from pimserve.cluster.run.compare import Comparison, Quantity
from pimserve.cluster.run.comparison_tables import quantity_table
from pimserve.cluster.run.run_figures import FIGURES, REQUESTS, unit_of, value_at
from pimserve.cluster.run.summary_schema import Summary
from pimserve.scheduler.interval_sections import Ci95
from pimserve.scheduler.summary_sections import Requests

_LATENCY, _LATENCIES, _CLASSES = "latency", "latency.", "classes"
_BOUND = 0.5  # a unit that is busy for less of the time that replicas are is not what they wait for
_GROUPS = {
    "requests": "Requests, whole run",
    "throughput": "Throughput and energy",
    _LATENCY: "Latency",
    "slo": "SLO",
    "load": "Load, whole run",
    "pools": "Hand-over of KV caches",
    "faults": "Simulated faults",
    "autoscaling": "Replicas that join and leave",
    "groups": "Groups of devices, whole run",
    "busy": "Busy share of time, whole run",
    _CLASSES: "Classes of requests",
}


def setting(summary: Summary) -> str:
    """Whether costs are ideal or measured, and with what."""
    return " + ".join(dict.fromkeys(_setting(pool.costs) for pool in summary.by_pool().values()))


def _setting(costs: Mapping[str, Any]) -> str:
    if costs.get("setting") != "measured":
        return "ideal"
    gpu, backend, version, measured = (text_of(costs.get(key)) for key in ("gpu", "backend", "version", "measured"))
    parts = "" if measured in {"all", ABSENT} else f": {measured}, the rest projected"
    return f"measured ({gpu}, {backend} {version}){parts}"


def measured(summary: Summary) -> str:
    """What part of the run is measured."""
    window = summary.window
    if window.whole_run is not False:
        return f"Measured: the whole run of {figure(summary.end_s)} s"
    return f"Measured: {figure(window.start_s)} s to {figure(window.end_s)} s of {figure(summary.end_s)} s"


def tiles(summary: Summary) -> list[Tile]:
    """Key figures of a run."""

    def at(path: str) -> str:
        return written(value_at(summary, path), unit_of(path))

    def seconds(key: str) -> Tile:
        return Tile(f"{named(key)} p99", at(f"latency_s.{key}.p99"), f"p50 {at(f'latency_s.{key}.p50')}")

    throughput = "throughput.output_tokens_per_s"
    shown = [
        Tile("output tokens/s", at(throughput), f"{at(f'{throughput}_per_device')} per device"),
        Tile("requests/s", at("throughput.requests_per_s"), f"offered {at('offered_requests_per_s')}"),
        *map(seconds, ("ttft", "tpot", "e2e")),
        Tile(
            "stability",
            text_of(summary.stability),
            f"{at('in_system.at_last_arrival')} in the system at the last arrival",
        ),
    ]
    if summary.slo.attainment is not None:
        shown.append(Tile("SLO met", at("slo.attainment"), f"goodput {at('slo.goodput_requests_per_s')} requests/s"))
    kinds = (f"{part} {at(f'energy.{part}_joules_per_output_token')}" for part in ("active", "passive"))
    remark = "without passive power" if summary.energy.passive_joules is None else ", ".join(kinds)
    shown.append(Tile("energy per output token", at("energy.joules_per_output_token"), remark))
    shown += _bottleneck(summary)
    shown.append(Tile("KV cache, peak", at("kv.peak_use"), f"mean {at('kv.mean_use')}"))
    return shown


def _bottleneck(summary: Summary) -> list[Tile]:
    """The busiest unit of the busiest device, and what takes most of the time."""
    shown = []
    mean = known(summary.unit_busy_share)
    busy = known(summary.unit_busy_share_of_busiest_device) or mean
    if busy:
        most = max(busy, key=lambda unit: busy[unit])
        remark = f"busy {share(busy[most])} of the time on the busiest device, {share(mean.get(most))} in the mean"
        if busy[most] < _BOUND * (summary.busy_share or 0.0):
            remark += "; none is the bottleneck: steps wait for work that goes from device to device, or unit to unit"
        shown.append(Tile("busiest unit", named(most), remark))
    times = known(summary.time_share)
    if times:
        most = max(times, key=lambda operator: times[operator])
        shown.append(Tile("most of the time", named(most), f"{share(times[most])} of the time in steps"))
    return shown


def run_tables(comparison: Comparison) -> list[Table]:
    """All figures of the only run of a comparison, but those that have sections of their own."""
    tables = []
    for group, quantities in _by_group(comparison).items():
        if quantities and group not in {_LATENCY, _CLASSES}:
            intervals = comparison.runs[0].summary.ci95
            rows = [(quantity.label.strip(), _with_unit(quantity, intervals)) for quantity in quantities]
            tables.append(table_of(_GROUPS[group], ("", ""), rows))
    return tables


def _with_unit(quantity: Quantity, intervals: Ci95) -> str:
    """The figure of the only run, and how far it may be off if it is a rate."""
    value, width = quantity.values[0], value_at(intervals, quantity.path)
    if quantity.unit:
        return written(value, quantity.unit)
    return _plain(value) if value is None or width is None else f"{_plain(value)} ± {half_width(_plain, value, width)}"


def _by_group(comparison: Comparison) -> dict[str, list[Quantity]]:
    """What runs are compared in, and what summaries have beside it, in the order in which groups are shown."""
    summaries = [run.summary for run in comparison.runs]

    def quantity(group: str, label: str, path: str, unit: str = "count") -> Quantity:
        return Quantity(path, group, label, unit, tuple(value_at(summary, path) for summary in summaries))

    groups: dict[str, list[Quantity]] = {group: [] for group in _GROUPS}
    for compared in comparison.quantities:
        groups[_LATENCY if compared.group.startswith(_LATENCIES) else compared.group].append(compared)
    counts = [kind for kind, field in Requests.model_fields.items() if field.annotation is int]
    groups["requests"] = [quantity("requests", REQUESTS.get(kind, kind), f"requests.{kind}") for kind in counts]
    limits = _limits(summaries)
    rejected, censored = "requests.rejected_by_reason", [*limits, "all"]
    where_any = [
        *(quantity("requests", f"rejected, {words}", f"{rejected}.{reason}") for reason, words in WHY_REJECTED.items()),
        *(quantity("slo", f"censored, {named(name)}", f"slo.censored.{name}") for name in censored),
    ]
    groups["slo"] = [
        quantity("slo", f"{named(name)} within {limit}", f"slo.met.{name}", "share") for name, limit in limits.items()
    ] + groups["slo"]
    for counted in where_any:
        if any(counted.values):
            groups[counted.group].append(counted)
    groups["load"] += [Quantity.of(summaries, figure) for figure in FIGURES if not figure.compared]
    return {
        group: [quantity for quantity in quantities if any(value is not None for value in quantity.values)]
        for group, quantities in groups.items()
    }


def _limits(summaries: Sequence[Summary]) -> dict[str, str]:
    """The limit of each latency that has one, as text."""
    texts: dict[str, set[str]] = {}
    for summary in summaries:
        limits_s = limits_of_all(summary)
        for name in known(summary.slo.met):
            limit_s = limits_s.get(f"{name}_s")
            texts.setdefault(name, set()).add("limits of classes" if limit_s is None else scaled(limit_s, "s"))
    return {name: limits.pop() if len(limits) == 1 else "the run's limit" for name, limits in texts.items()}


def _plain(value: float | None) -> str:
    """A figure whose label says what it is of."""
    return count(value) if isinstance(value, int) else figure(value)


def comparison_tables(comparison: Comparison, names: Sequence[str]) -> list[Table]:
    """Figures of all runs, and their ratios to the first run's."""
    others = range(1, len(names))
    return [
        quantity_table(_GROUPS[group], _stripped(quantities), names, others, _plain)
        for group, quantities in _by_group(comparison).items()
        if quantities
    ]


def _stripped(quantities: Sequence[Quantity]) -> list[Quantity]:
    """Quantities whose labels do not lean on the ones above."""
    return [replace(quantity, label=quantity.label.strip()) for quantity in quantities]
