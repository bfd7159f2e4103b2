"""Tables of a summary. Whatever it lacks, of another version say, is left out or a dash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pimserve.cluster.base.documents import at, number, numbers
from pimserve.cluster.base.figures import ABSENT, count, figure, named, scale, scaled, share, written
from pimserve.cluster.base.tables import Row, Table, table_of
from pimserve.device_models.operators import CATEGORIES

LATENCIES = ("ttft", "tpot", "itl", "e2e", "queue")
MOMENTS = ("mean", "p50", "p90", "p99")
POOLS = ("prefill", "decode")
FACT_UNITS = {"s": "s", "w": "W", "days": "days", "years": "years", "mm2": "mm2"}  # ends of names of facts
_FEW_SAMPLES = 1000  # fewer leave less than ten above the 99th percentile
_FAULTS = {"fail": "devices that failed", "slow": "that slowed down", "leave": "that left"}
_BYTES_PER_GB = 10**9


def text_at(document: object, path: str) -> str:
    """What is at a dotted path, as text."""
    value = at(document, path)
    return ABSENT if value is None else str(value)


def whole_at(document: object, path: str) -> str:
    """The count at a dotted path."""
    value = number(document, path)
    return count(None if value is None else int(value))


def latency_table(summary: Mapping[str, Any]) -> Table:
    """Means and percentiles; a star beside those of few samples."""
    rows, few, censored = [], False, []
    for key in LATENCIES:
        figures = numbers(summary, f"latency_s.{key}")
        size, unit = scale([figures.get(moment) for moment in MOMENTS], "s")
        cells = [figure(figures[moment] / size) if moment in figures else ABSENT for moment in MOMENTS]
        n = int(figures.get("n", 0))
        if 0 < n < _FEW_SAMPLES:
            few = True
            cells[-1] += "*"
        left_out = count(int(figures["censored"])) if "censored" in figures else ABSENT
        if figures.get("censored"):
            censored.append(f"{named(key)} {left_out}")
        known = isinstance(at(summary, f"latency_s.{key}"), Mapping)
        rows.append(
            Row(
                named(key) if n else f"{named(key)}, {unit}",
                (*cells, count(n), left_out),
                unit if n else "",  # only figures have one
                short=named(key),
                only="" if known else "wide",
            )
        )
    return Table(
        "Latency",
        (*MOMENTS, "n", "left out"),
        rows,
        note=f"* of fewer than {_FEW_SAMPLES:,} samples: fewer than ten lie above it" if few else "",
        wide_columns=("left out",),
        narrow_note=f"left out, as the end of the run hides them: {', '.join(censored)}" if censored else "",
    )


def breakdown_table(summary: Mapping[str, Any]) -> Table:
    """Time and energy by operator."""
    times, joules = at(summary, "time_share"), number(summary, "energy.joules")
    rows = []
    for name in CATEGORIES:
        time, parts = number(times, name), numbers(summary, f"energy.joules_by_category.{name}")
        energies = [parts.get(kind, 0.0) for kind in ("dram", "compute")]
        cells = (
            share(time),
            share(sum(energies) / joules if joules else None),
            *(scaled(part, "J") for part in energies),
        )
        if time or any(parts.values()):
            rows.append(Row(named(name), cells))
        elif isinstance(times, Mapping) and name in times and name != "step":  # only measured costs know that one
            rows.append(Row(named(name), cells, only="narrow"))
    passive = number(summary, "energy.passive_joules")
    if passive is not None:
        of_all = share(passive / joules if joules else None)
        rows.append(Row("passive power", (ABSENT, of_all, ABSENT, ABSENT)))
    parts_of_energy = ("of it memory", "of it compute")
    columns = ("time", "energy", *parts_of_energy)
    return Table("Time and energy by operator, whole run", columns, rows, wide_columns=parts_of_energy)


def pool_table(pools: Mapping[str, Any]) -> Table:
    """The pools side by side."""
    parts = [pools.get(name) for name in POOLS]
    units = dict.fromkeys(unit for part in parts for unit in numbers(part, "unit_busy_share"))

    def row(label: str, path: str, unit: str, short: str = "") -> Row:
        return Row(label, tuple(written(number(part, path), unit) for part in parts), short=short)

    rows = [
        Row("device", tuple(text_at(part, "device") for part in parts), only="wide"),
        *(Row(key, tuple(whole_at(part, key) for part in parts), only="wide") for key in ("replicas", "devices")),
        row("busy share", "busy_share", "share"),
        *(row(f"{named(unit)} busy", f"unit_busy_share.{unit}", "share", f"  {named(unit)}") for unit in units),
        Row("steps", tuple(whole_at(part, "steps") for part in parts)),
        row("requests in a step, mean", "mean_requests", "", "mean requests"),
        row("KV cache in use, mean", "kv.mean_use", "share", "KV in use, mean"),
        row("KV cache in use, peak", "kv.peak_use", "share", "KV in use, peak"),
        row("energy", "joules", "J"),
        row("of it passive", "passive_joules", "J", "  passive"),
    ]
    return Table("Pools", POOLS, rows)


def handover_table(pools: Mapping[str, Any]) -> Table:
    """What goes from the prefill pool to the decode pool."""
    moved_bytes = number(pools, "handover.bytes")
    moved = figure(None if moved_bytes is None else moved_bytes / _BYTES_PER_GB)
    rows = [
        Row("requests handed over", (whole_at(pools, "handover.n"),), short="requests"),
        Row("held back by a full pool", (whole_at(pools, "handover.held"),)),
        Row("KV caches moved, GB", (moved,), short="GB"),
    ]
    rows += [
        Row(f"{key.removesuffix('_s')}, {moment}", (scaled(number(pools, f"handover.{key}.{moment}"), "s"),))
        for key in ("waiting_s", "transfer_s")
        for moment in ("mean", "p99")
    ]
    rows += [Row(f"link of {pool} busy", (share(number(pools, f"handover.link_busy_share.{pool}")),)) for pool in POOLS]
    return Table("Hand-over", ("",), rows)


def fault_cost_table(faults: Mapping[str, Any]) -> Table:
    """What simulated faults cost. How often there was which, a page shows event by event."""
    events = faults.get("events")
    kinds = Counter(text_at(event, "kind") for event in (events if isinstance(events, list) else []))
    down_s = number(faults, "down_replica_s")
    rows = [
        *(Row(name, (count(kinds[kind]),), only="narrow") for kind, name in _FAULTS.items()),
        Row("requests queued again", (whole_at(faults, "requeued"),)),
        Row("tokens computed again", (whole_at(faults, "recomputed_tokens"),)),
        Row("replicas down, together", (scaled(down_s, "s"),), only="wide"),
        Row("replicas down, s", (figure(down_s),), only="narrow"),
        Row("availability", (share(number(faults, "availability")),)),
    ]
    return Table("Cost", ("",), rows)


def stage_table(stages: Sequence[Mapping[str, Any]]) -> Table:
    """The stages of a rate that steps."""
    paths = {
        "requests": ("requests", "count"),
        "offered\n/s": ("offered_requests_per_s", ""),
        "finished\n/s": ("throughput.requests_per_s", ""),
        "TTFT\np50": ("latency_s.ttft.p50", "s"),
        "TTFT\np99": ("latency_s.ttft.p99", "s"),
        "TPOT\np99": ("latency_s.tpot.p99", "s"),
        "SLO": ("slo.attainment", "share"),
    }
    rows = [
        Row(
            f"{stage['from_s']:g} to {stage['to_s']:g} s",
            tuple(written(number(stage, path), unit) for path, unit in paths.values()),
        )
        for stage in stages
    ]
    return Table("Stages", tuple(paths), rows, name="stage")


def fact_table(facts: Mapping[str, Any], caption: str) -> Table:
    """What the devices say of themselves."""
    rows = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            group = fact_label(str(key))
            rows += [(f"{group}: {fact_label(str(name))}", fact_text(fact)) for name, fact in value.items()]
        else:
            rows.append((fact_label(str(key)), fact_text(value)))
    return table_of(caption, ("", ""), rows, text=True)


def fact_label(key: str) -> str:
    """The name of a fact, with the unit that it ends in."""
    name, unit = fact_name(key)
    return f"{name}, {unit}" if unit else name


def fact_name(key: str) -> tuple[str, str]:
    """The name of a fact without its unit, and the unit; empty for none."""
    stem, _, end = key.rpartition("_")
    return (named(stem), FACT_UNITS[end]) if stem and end in FACT_UNITS else (named(key), "")


def fact_text(value: object) -> str:
    """The value of a fact, without its unit."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return count(int(value)) if value == int(value) else figure(value)
    return ", ".join(map(fact_text, value)) if isinstance(value, list | tuple) else str(value)
