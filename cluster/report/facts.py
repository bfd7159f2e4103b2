"""Tables and key figures of a summary. Whatever a summary lacks, of another version say, is left out or a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pimserve.cluster.base.figures import ABSENT, TOO_LONG, count, figure, named, ratio, scale, scaled, share
from pimserve.cluster.report.content import Table, Tile
from pimserve.cluster.report.inputs import Summary, at, number, numbers
from pimserve.cluster.run.compare import Comparison, Quantity
from pimserve.device_models.operators import CATEGORIES

MOMENTS = ("mean", "p50", "p90", "p99")
_LATENCY, _LATENCIES = "latency", "latency."
_SCALED = {"s", "J"}
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
_FEW_SAMPLES = 1000  # fewer leave less than ten above the 99th percentile
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


def text(document: object, path: str) -> str:
    """What is at a dotted path, as text."""
    found = at(document, path)
    return ABSENT if found is None else str(found)


def whole(document: object, path: str) -> str:
    """The count at a dotted path."""
    found = number(document, path)
    return count(None if found is None else int(found))


def warnings(summary: Summary) -> list[str]:
    """What belongs with every figure of a run."""
    told = summary.get("warnings")
    return [str(each) for each in (told if isinstance(told, list) else [])]


def setting(summary: Summary) -> str:
    """Whether costs are ideal or measured, and with what."""
    pools = at(summary, "pools")
    parts = [summary] if not isinstance(pools, Mapping) else [pools.get(name) for name in ("prefill", "decode")]
    return " + ".join(dict.fromkeys(_setting(part) for part in parts))


def _setting(part: object) -> str:
    if text(part, "costs.setting") != "measured":
        return "ideal"
    said = f"measured ({text(part, 'costs.gpu')}, {text(part, 'costs.backend')} {text(part, 'costs.version')})"
    measured = text(part, "costs.measured")
    return said if measured in {"all", ABSENT} else f"{said}: {measured}, the rest projected"


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

    found = [
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
    in_system = f"{whole(summary, 'in_system.at_last_arrival')} in the system at the last arrival"
    found.append(Tile("stability", text(summary, "stability"), in_system))
    attainment = number(summary, "slo.attainment")
    if attainment is not None:
        goodput = figure(number(summary, "slo.goodput_requests_per_s"))
        found.append(Tile("SLO met", share(attainment), f"goodput {goodput} requests/s"))
    found.append(
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
    found += _bottleneck(summary)
    found.append(
        Tile("KV cache, peak", share(number(summary, "kv.peak_use")), f"mean {share(number(summary, 'kv.mean_use'))}")
    )
    return found


def _bottleneck(summary: Summary) -> list[Tile]:
    """The busiest unit of the busiest device, and what takes most of the time."""
    found = []
    mean = numbers(summary, "unit_busy_share")
    busy = numbers(summary, "unit_busy_share_of_busiest_device") or mean
    if busy:
        most = max(busy, key=lambda unit: busy[unit])
        remark = f"busy {share(busy[most])} of the time on the busiest device, {share(mean.get(most))} in the mean"
        if busy[most] < _BOUND * (number(summary, "busy_share") or 0.0):
            remark += "; none is the bottleneck: steps wait for work that goes from device to device, or unit to unit"
        found.append(Tile("busiest unit", named(most), remark))
    times = numbers(summary, "time_share")
    if times:
        most = max(times, key=lambda operator: times[operator])
        found.append(Tile("most of the time", named(most), f"{share(times[most])} of the time in steps"))
    return found


def run_tables(comparison: Comparison) -> list[Table]:
    """All figures of the only run of a comparison, but latencies."""
    found = []
    for group, quantities in _by_group(comparison).items():
        rows = [(each.label.strip(), _with_unit(each.values[0], each.unit)) for each in quantities]
        if rows and group != _LATENCY:
            found.append(Table(_GROUPS[group], ("", ""), rows))
    return found


def _by_group(comparison: Comparison) -> dict[str, list[Quantity]]:
    """What runs are compared in, and what summaries have beside it, in the order in which groups are shown."""
    summaries = [run.summary for run in comparison.runs]

    def quantity(group: str, label: str, path: str, unit: str = "") -> Quantity:
        return Quantity(path, group, label, unit, tuple(number(summary, path) for summary in summaries))

    found: dict[str, list[Quantity]] = {group: [] for group in _GROUPS}
    for each in comparison.quantities:
        found[_LATENCY if each.group.startswith(_LATENCIES) else each.group].append(each)
    kinds = dict.fromkeys(kind for summary in summaries for kind in numbers(summary, "requests"))
    found["requests"] = [quantity("requests", _REQUESTS.get(kind, kind), f"requests.{kind}") for kind in kinds]
    reasons = dict.fromkeys(each for summary in summaries for each in numbers(summary, "requests.rejected_by_reason"))
    limits = _limits(summaries)
    there_or_not = [
        *(
            quantity("requests", f"rejected, {TOO_LONG.get(each, each)}", f"requests.rejected_by_reason.{each}")
            for each in reasons
        ),
        *(quantity("slo", f"censored, {named(name)}", f"slo.censored.{name}") for name in [*limits, "all"]),
    ]
    found["slo"] = [
        quantity("slo", f"{named(name)} within {limit}", f"slo.met.{name}", "share") for name, limit in limits.items()
    ] + found["slo"]
    for each in there_or_not:
        if any(each.values):
            found[each.group].append(each)
    found["load"] += [quantity("load", *more) for more in _LOAD]
    return {
        group: [each for each in quantities if any(value is not None for value in each.values)]
        for group, quantities in found.items()
    }


def _limits(summaries: Sequence[Summary]) -> dict[str, str]:
    """The limit of each latency that has one, as text."""
    found: dict[str, set[str]] = {}
    for summary in summaries:
        for key, limit in numbers(summary, "slo.limits").items():
            found.setdefault(key.removesuffix("_s"), set()).add(scaled(limit, "s"))
    return {name: limits.pop() if len(limits) == 1 else "the run's limit" for name, limits in found.items()}


def latency_table(summary: Summary) -> Table:
    """Means and percentiles."""
    rows, few = [], False
    for key in ("ttft", "tpot", "itl", "e2e", "queue"):
        found = numbers(summary, f"latency_s.{key}")
        size, unit = scale([found.get(moment) for moment in MOMENTS], "s")
        cells = [figure(found[moment] / size) if moment in found else ABSENT for moment in MOMENTS]
        n = int(found.get("n", 0))
        weak = 0 < n < _FEW_SAMPLES
        few |= weak
        left_out = count(int(found["censored"])) if "censored" in found else ABSENT
        rows.append((f"{named(key)}, {unit}", *cells[:-1], cells[-1] + ("*" if weak else ""), count(n), left_out))
    note = f"* of fewer than {_FEW_SAMPLES:,} samples: fewer than ten lie above it" if few else ""
    return Table("Latency", ("", *MOMENTS, "n", "left out"), rows, note)


def _with_unit(value: float | None, unit: str) -> str:
    return scaled(value, unit) if unit in _SCALED else _plain(value, unit)


def _plain(value: float | None, unit: str) -> str:
    if unit == "share":
        return share(value)
    return count(value) if isinstance(value, int) else figure(value)


def comparison_tables(comparison: Comparison, names: Sequence[str]) -> list[Table]:
    """Figures of all runs, and their ratios to the first run's."""
    columns = ["", names[0]]
    for name in names[1:]:
        columns += [name, f"{name}/{names[0]}"]
    found = []
    for group, quantities in _by_group(comparison).items():
        rows = []
        for quantity in quantities:
            label, values = quantity.label.strip(), quantity.values
            if quantity.unit in _SCALED:
                size, unit = scale([value for value in values if value][:1], quantity.unit)
                label, values = f"{label}, {unit}", tuple(None if value is None else value / size for value in values)
            cells = []
            for index, (value, times) in enumerate(zip(values, quantity.ratios, strict=True)):
                cells.append(_plain(value, quantity.unit))
                cells += [ratio(times)] if index else []
            rows.append((label, *cells))
        if rows:
            found.append(Table(_GROUPS[group], tuple(columns), rows))
    return found


def breakdown_table(summary: Summary) -> Table | None:
    """Time and energy by operator."""
    times, joules = numbers(summary, "time_share"), number(summary, "energy.joules")
    rows = []
    for name in CATEGORIES:
        parts = numbers(summary, f"energy.joules_by_category.{name}")
        if times.get(name) or any(parts.values()):
            energies = [parts.get(kind, 0.0) for kind in ("dram", "compute")]
            of_all = share(sum(energies) / joules if joules else None)
            rows.append((named(name), share(times.get(name)), of_all, *(scaled(each, "J") for each in energies)))
    passive = number(summary, "energy.passive_joules")
    if passive is not None:
        rows.append(("passive power", ABSENT, share(passive / joules if joules else None), ABSENT, ABSENT))
    if not rows:
        return None
    columns = ("", "time", "energy", "of it memory", "of it compute")
    return Table("Time and energy by operator, whole run", columns, rows)
