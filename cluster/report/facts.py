"""Tables and key figures of a summary. Whatever a summary lacks, of another version say, is left out or a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pimserve.cluster.compare import Comparison, Quantity
from pimserve.cluster.figures import ABSENT, count, figure, named, ratio, scale, scaled, share
from pimserve.cluster.render import saturation_warning
from pimserve.cluster.report.content import Table, Tile
from pimserve.cluster.report.inputs import Summary, at, number, numbers
from pimserve.device_models.operators import CATEGORIES

MOMENTS = ("mean", "p50", "p90", "p99")
_LATENCY_GROUPS = "latency."
_REQUESTS = {
    "truncated": "cut at max_model_len",
    "measured": "arrived in the measured window",
    "measured_finished": "of these finished",
}
_FEW_SAMPLES = 1000  # fewer leave less than ten above the 99th percentile
_GROUPS = {
    "requests": "Requests, whole run",
    "throughput": "Throughput and energy",
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
    saturation = None
    if summary.get("saturated") is True and all(
        number(summary, f"waiting.{key}") is not None for key in ("at_last_arrival", "growth_per_arrival")
    ):
        saturation = saturation_warning(summary)
    told = summary.get("warnings")
    return [
        *([saturation.removeprefix("warning: ")] if saturation else []),
        *(str(each) for each in (told if isinstance(told, list) else [])),
    ]


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
            f"offered {figure(number(summary, 'offered_requests_per_s'))}"
            if number(summary, "offered_requests_per_s") is not None
            else "closed loop",
        ),
        seconds("ttft", ""),
        seconds("tpot", ""),
        seconds("e2e", ""),
    ]
    attainment = number(summary, "slo.attainment")
    if attainment is not None:
        goodput = figure(number(summary, "slo.goodput_requests_per_s"))
        found.append(Tile("SLO met", share(attainment), f"goodput {goodput} requests/s"))
    found.append(
        Tile(
            "energy per output token",
            scaled(number(summary, "energy.joules_per_output_token"), "J"),
            "without passive power"
            if number(summary, "energy.static_joules") is None
            else f"{scaled(number(summary, 'energy.static_joules_per_output_token'), 'J')} passive",
        )
    )
    busy = numbers(summary, "unit_busy_share")
    if busy:
        most = max(busy, key=lambda unit: busy[unit])
        found.append(Tile("busiest unit", named(most), f"busy {share(busy[most])} of the time"))
    found.append(
        Tile("KV cache, peak", share(number(summary, "kv.peak_use")), f"mean {share(number(summary, 'kv.mean_use'))}")
    )
    return found


def run_tables(comparison: Comparison) -> list[Table]:
    """All figures of the only run of a comparison, but latencies."""
    summary = comparison.runs[0].summary
    found = []
    for group, caption in _GROUPS.items():
        rows = [(each.label.strip(), _with_unit(each, 0)) for each in comparison.quantities if each.group == group]
        if group == "requests":
            rows = [(name, count(value)) for name, value in _requests(summary)]
        if group == "load":
            rows += _steps(summary)
        if group == "slo":
            rows = [*_limits(summary), *rows]
        if rows:
            found.append(Table(caption, ("", ""), rows))
    return found


def _requests(summary: Summary) -> list[tuple[str, int]]:
    found = numbers(summary, "requests")
    return [(_REQUESTS.get(name, name), int(value)) for name, value in found.items()]


def _steps(summary: Summary) -> list[tuple[str, str]]:
    counts = {"steps": "batch.steps", "prompt tokens": "tokens.prompt", "output tokens": "tokens.output"}
    found = [(name, count(int(n))) for name, path in counts.items() if (n := number(summary, path)) is not None]
    return [*found, ("steps of decoding only", share(number(summary, "batch.decode_only_share")))]


def _limits(summary: Summary) -> list[tuple[str, str]]:
    met = numbers(summary, "slo.met")
    rows = []
    for key, limit in numbers(summary, "slo.limits").items():
        name = key.removesuffix("_s")
        rows.append((f"{named(name)} within {scaled(limit, 's')}", share(met.get(name))))
    return rows


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
        rows.append((f"{named(key)}, {unit}", *cells[:-1], cells[-1] + ("*" if weak else ""), count(n)))
    note = f"* of fewer than {_FEW_SAMPLES:,} samples: fewer than ten lie above it" if few else ""
    return Table("Latency", ("", *MOMENTS, "n"), rows, note)


def _with_unit(quantity: Quantity, index: int) -> str:
    value = quantity.values[index]
    if quantity.unit == "share":
        return share(value)
    if quantity.unit:
        return scaled(value, quantity.unit)
    return count(value) if isinstance(value, int) else figure(value)


def comparison_tables(comparison: Comparison, names: Sequence[str]) -> list[Table]:
    """Figures of all runs, and their ratios to the first run's."""
    groups: dict[str, list[Quantity]] = {}
    for quantity in comparison.quantities:
        group = "latency" if quantity.group.startswith(_LATENCY_GROUPS) else quantity.group
        groups.setdefault(group, []).append(quantity)
    columns = ["", names[0]]
    for name in names[1:]:
        columns += [name, f"{name}/{names[0]}"]
    found = []
    for group, quantities in groups.items():
        rows = []
        for quantity in quantities:
            known = [value for value in quantity.values if value][:1]
            size, unit = scale(known, quantity.unit) if quantity.unit in {"s", "J"} else (1.0, "")
            write = share if quantity.unit == "share" else figure
            cells = []
            for index, (value, times) in enumerate(zip(quantity.values, quantity.ratios, strict=True)):
                cells.append(write(None if value is None else value / size))
                cells += [ratio(times)] if index else []
            rows.append((quantity.label.strip() + (f", {unit}" if unit else ""), *cells))
        found.append(Table(_GROUPS.get(group, "Latency"), tuple(columns), rows))
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
    static = number(summary, "energy.static_joules")
    if static is not None:
        rows.append(("passive power", ABSENT, share(static / joules if joules else None), ABSENT, ABSENT))
    if not rows:
        return None
    columns = ("", "time", "energy", "of it memory", "of it compute")
    return Table("Time and energy by operator, whole run", columns, rows)


def pool_table(pools: Mapping[str, Any]) -> Table:
    """The pools side by side."""
    names = ("prefill", "decode")
    parts = [pools.get(name) for name in names]
    units = dict.fromkeys(unit for part in parts for unit in numbers(part, "unit_busy_share"))
    shares = [("busy share", "busy_share"), *((f"{named(unit)} busy", f"unit_busy_share.{unit}") for unit in units)]
    rows = [
        ("device", *(text(part, "device") for part in parts)),
        ("replicas", *(whole(part, "replicas") for part in parts)),
        ("devices", *(whole(part, "devices") for part in parts)),
        *((label, *(share(number(part, path)) for part in parts)) for label, path in shares),
        ("steps", *(whole(part, "steps") for part in parts)),
        ("requests in a step, mean", *(figure(number(part, "mean_requests")) for part in parts)),
        ("KV cache in use, mean", *(share(number(part, "kv.mean_use")) for part in parts)),
        ("KV cache in use, peak", *(share(number(part, "kv.peak_use")) for part in parts)),
        ("energy", *(scaled(number(part, "joules"), "J") for part in parts)),
    ]
    return Table("Pools", ("", *names), rows)


def handover_table(pools: Mapping[str, Any]) -> Table:
    """What goes from the prefill pool to the decode pool."""
    bytes_ = number(pools, "handover.bytes")
    rows = [
        ("requests handed over", whole(pools, "handover.n")),
        ("held back by a full pool", whole(pools, "handover.held")),
        ("KV caches moved, GB", figure(None if bytes_ is None else bytes_ / 1e9)),
    ]
    for key, name in (("waiting_s", "waiting"), ("transfer_s", "transfer")):
        rows += [(f"{name}, {each}", scaled(number(pools, f"handover.{key}.{each}"), "s")) for each in ("mean", "p99")]
    for pool in ("prefill", "decode"):
        rows.append((f"link of {pool} busy", share(number(pools, f"handover.link_busy_share.{pool}"))))
    return Table("Hand-over", ("", ""), rows)


def fault_tables(faults: Mapping[str, Any]) -> list[Table]:
    """What happened to the replicas, and what it cost."""
    kinds = {"fail": "fails", "slow": "slows down", "leave": "leaves"}
    events = faults.get("events")
    rows = []
    for event in events if isinstance(events, list) else []:
        lasts, factor = number(event, "for_s"), number(event, "factor")
        rows.append(
            (
                f"{figure(number(event, 'at_s'))} s",
                text(event, "replica"),
                text(event, "device"),
                kinds.get(text(event, "kind"), text(event, "kind")),
                ABSENT if lasts is None else f"{figure(lasts)} s",
                ABSENT if factor is None else ratio(factor),
            )
        )
    cost = [
        ("requests queued again", whole(faults, "requeued")),
        ("tokens computed again", whole(faults, "recomputed_tokens")),
        ("replicas down, together", scaled(number(faults, "down_replica_s"), "s")),
        ("availability", share(number(faults, "availability"))),
    ]
    columns = ("at", "replica", "device", "what", "for", "steps take")
    return [Table("Events", columns, rows, text=True), Table("Cost", ("", ""), cost)]


def device_table(facts: Mapping[str, Any], caption: str) -> Table:
    """What the devices say of themselves."""
    rows = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            rows += [(f"{key}: {name}".replace("_", " "), _said(each)) for name, each in value.items()]
        else:
            rows.append((str(key).replace("_", " "), _said(value)))
    return Table(caption, ("", ""), rows, text=True)


def _said(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ABSENT}[value]
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return count(int(value)) if value == int(value) else figure(value)
    return ", ".join(map(_said, value)) if isinstance(value, list) else str(value)
