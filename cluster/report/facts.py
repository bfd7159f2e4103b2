"""Tables and key figures of a summary. Whatever a summary lacks, of another version say, is left out or a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pimserve.cluster.base.documents import at, number, numbers
from pimserve.cluster.base.figures import ABSENT, TOO_LONG, count, figure, named, scaled, share, written
from pimserve.cluster.base.tables import Table, table_of
from pimserve.cluster.report.content import Tile
from pimserve.cluster.report.inputs import Summary
from pimserve.cluster.run.compare import Comparison, Quantity
from pimserve.cluster.run.comparison_tables import quantity_table
from pimserve.cluster.run.summary_tables import POOLS, text_at, whole_at

_LATENCY, _LATENCIES = "latency", "latency."
_REQUESTS = {
    "truncated": "cut at max_model_len",
    "measured": "arrived in the measured window",
    "measured_finished": "of these finished",
    "measured_unfinished": "of these cut off by the end of the run",
}
_LOAD = (
    ("steps", "batch.steps"),
    ("prompt tokens", "tokens.prompt"),
    ("output tokens", "tokens.output"),
    ("steps of decoding only", "batch.decode_only_share", "share"),
)
_BOUND = 0.5  # a unit that is busy for less of the time that replicas are is not what they wait for
_GROUPS = {
    "requests": "Requests, whole run",
    "throughput": "Throughput and energy",
    _LATENCY: "Latency",
    "slo": "SLO",
    "load": "Load, whole run",
    "pools": "Hand-over of KV caches",
    "faults": "Simulated faults",
    "busy": "Busy share of time, whole run",
}


def warnings(summary: Summary) -> list[str]:
    """What belongs with every figure of a run."""
    texts = summary.get("warnings")
    return [str(text) for text in (texts if isinstance(texts, list) else [])]


def setting(summary: Summary) -> str:
    """Whether costs are ideal or measured, and with what."""
    pools = at(summary, "pools")
    parts = [summary] if not isinstance(pools, Mapping) else [pools.get(name) for name in POOLS]
    return " + ".join(dict.fromkeys(_setting(part) for part in parts))


def _setting(part: object) -> str:
    if text_at(part, "costs.setting") != "measured":
        return "ideal"
    gpu, backend, version = (text_at(part, f"costs.{key}") for key in ("gpu", "backend", "version"))
    measured = text_at(part, "costs.measured")
    parts = "" if measured in {"all", ABSENT} else f": {measured}, the rest projected"
    return f"measured ({gpu}, {backend} {version}){parts}"


def measured(summary: Summary) -> str:
    """What part of the run is measured."""
    if at(summary, "window.whole_run") is not False:
        return f"Measured: the whole run of {figure(number(summary, 'end_s'))} s"
    return (
        f"Measured: {figure(number(summary, 'window.start_s'))} s to {figure(number(summary, 'window.end_s'))} s "
        f"of {figure(number(summary, 'end_s'))} s"
    )


def tiles(summary: Summary) -> list[Tile]:
    """Key figures of a run."""

    def seconds(key: str, remark: str) -> Tile:
        p99 = scaled(number(summary, f"latency_s.{key}.p99"), "s")
        return Tile(f"{named(key)} p99", p99, f"p50 {scaled(number(summary, f'latency_s.{key}.p50'), 's')}{remark}")

    shown = [
        Tile(
            "output tokens/s",
            figure(number(summary, "throughput.output_tokens_per_s")),
            f"{figure(number(summary, 'throughput.output_tokens_per_s_per_device'))} per device",
        ),
        Tile(
            "requests/s",
            figure(number(summary, "throughput.requests_per_s")),
            f"offered {figure(number(summary, 'offered_requests_per_s'))}",
        ),
        seconds("ttft", ""),
        seconds("tpot", ""),
        seconds("e2e", ""),
    ]
    in_system = f"{whole_at(summary, 'in_system.at_last_arrival')} in the system at the last arrival"
    shown.append(Tile("stability", text_at(summary, "stability"), in_system))
    attainment = number(summary, "slo.attainment")
    if attainment is not None:
        goodput = figure(number(summary, "slo.goodput_requests_per_s"))
        shown.append(Tile("SLO met", share(attainment), f"goodput {goodput} requests/s"))
    shown.append(
        Tile(
            "energy per output token",
            scaled(number(summary, "energy.joules_per_output_token"), "J"),
            "without passive power"
            if number(summary, "energy.passive_joules") is None
            else ", ".join(
                f"{part} {scaled(number(summary, f'energy.{part}_joules_per_output_token'), 'J')}"
                for part in ("active", "passive")
            ),
        )
    )
    shown += _bottleneck(summary)
    shown.append(
        Tile("KV cache, peak", share(number(summary, "kv.peak_use")), f"mean {share(number(summary, 'kv.mean_use'))}")
    )
    return shown


def _bottleneck(summary: Summary) -> list[Tile]:
    """The busiest unit of the busiest device, and what takes most of the time."""
    shown = []
    mean = numbers(summary, "unit_busy_share")
    busy = numbers(summary, "unit_busy_share_of_busiest_device") or mean
    if busy:
        most = max(busy, key=lambda unit: busy[unit])
        remark = f"busy {share(busy[most])} of the time on the busiest device, {share(mean.get(most))} in the mean"
        if busy[most] < _BOUND * (number(summary, "busy_share") or 0.0):
            remark += "; none is the bottleneck: steps wait for work that goes from device to device, or unit to unit"
        shown.append(Tile("busiest unit", named(most), remark))
    times = numbers(summary, "time_share")
    if times:
        most = max(times, key=lambda operator: times[operator])
        shown.append(Tile("most of the time", named(most), f"{share(times[most])} of the time in steps"))
    return shown


def run_tables(comparison: Comparison) -> list[Table]:
    """All figures of the only run of a comparison, but latencies."""
    tables = []
    for group, quantities in _by_group(comparison).items():
        if quantities and group != _LATENCY:
            rows = [(quantity.label.strip(), _with_unit(quantity)) for quantity in quantities]
            tables.append(table_of(_GROUPS[group], ("", ""), rows))
    return tables


def _with_unit(quantity: Quantity) -> str:
    """The figure of the only run."""
    value = quantity.values[0]
    return written(value, quantity.unit) if quantity.unit else _plain(value)


def _by_group(comparison: Comparison) -> dict[str, list[Quantity]]:
    """What runs are compared in, and what summaries have beside it, in the order in which groups are shown."""
    summaries = [run.summary for run in comparison.runs]

    def quantity(group: str, label: str, path: str, unit: str = "") -> Quantity:
        return Quantity(path, group, label, unit, tuple(number(summary, path) for summary in summaries))

    groups: dict[str, list[Quantity]] = {group: [] for group in _GROUPS}
    for compared in comparison.quantities:
        groups[_LATENCY if compared.group.startswith(_LATENCIES) else compared.group].append(compared)
    kinds = dict.fromkeys(kind for summary in summaries for kind in numbers(summary, "requests"))
    groups["requests"] = [quantity("requests", _REQUESTS.get(kind, kind), f"requests.{kind}") for kind in kinds]
    reasons = dict.fromkeys(
        reason for summary in summaries for reason in numbers(summary, "requests.rejected_by_reason")
    )
    limits = _limits(summaries)
    there_or_not = [
        *(
            quantity("requests", f"rejected, {TOO_LONG.get(reason, reason)}", f"requests.rejected_by_reason.{reason}")
            for reason in reasons
        ),
        *(quantity("slo", f"censored, {named(name)}", f"slo.censored.{name}") for name in [*limits, "all"]),
    ]
    groups["slo"] = [
        quantity("slo", f"{named(name)} within {limit}", f"slo.met.{name}", "share") for name, limit in limits.items()
    ] + groups["slo"]
    for counted in there_or_not:
        if any(counted.values):
            groups[counted.group].append(counted)
    groups["load"] += [quantity("load", *figure) for figure in _LOAD]
    return {
        group: [quantity for quantity in quantities if any(value is not None for value in quantity.values)]
        for group, quantities in groups.items()
    }


def _limits(summaries: Sequence[Summary]) -> dict[str, str]:
    """The limit of each latency that has one, as text."""
    texts: dict[str, set[str]] = {}
    for summary in summaries:
        for key, limit in numbers(summary, "slo.limits").items():
            texts.setdefault(key.removesuffix("_s"), set()).add(scaled(limit, "s"))
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
