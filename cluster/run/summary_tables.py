"""Tables of a summary. Whatever it lacks, of another version say, is left out or a dash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pimserve.cluster.base.figures import ABSENT, count, figure, named, scale, scaled, share, text_of, written
from pimserve.cluster.base.tables import Row, Table, table_of
from pimserve.cluster.run.run_figures import MOMENTS, unit_of, value_at
from pimserve.cluster.run.summary_schema import Pools
from pimserve.device_models.operators import CATEGORIES
from pimserve.scheduler.summary_sections import Energy, FaultFigures, Handover, Latencies, StageFigures

POOLS = ("prefill", "decode")
FACT_UNITS = {"s": "s", "w": "W", "days": "days", "years": "years", "mm2": "mm2"}  # ends of names of facts
_FEW_SAMPLES = 1000  # fewer leave less than ten above the 99th percentile
_FAULTS = {"fail": "devices that failed", "slow": "that slowed down", "leave": "that left"}
_BYTES_PER_GB = 10**9


def latency_table(latencies: Latencies) -> Table:
    """Means and percentiles; a star beside those of few samples."""
    rows, few, censored = [], False, []
    for key, latency in latencies:
        values = [getattr(latency, moment) for moment in MOMENTS]
        size, unit = scale(values, "s")
        cells = [ABSENT if value is None else figure(value / size) for value in values]
        n, hidden = latency.n or 0, getattr(latency, "censored", None)
        if 0 < n < _FEW_SAMPLES:
            few = True
            cells[-1] += "*"
        if hidden:
            censored.append(f"{named(key)} {count(hidden)}")
        rows.append(
            Row(
                named(key) if n else f"{named(key)}, {unit}",
                (*cells, count(n), count(hidden)),
                unit if n else "",  # only figures have one
                short=named(key),
                only="wide" if latency.n is None else "",
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


def breakdown_table(times: Mapping[str, float | None], energy: Energy) -> Table:
    """Time and energy by operator."""

    def of_all(joules: float) -> str:
        return share(joules / energy.joules if energy.joules else None)

    rows = []
    for name in CATEGORIES:
        parts = energy.joules_by_category.get(name)
        energies = [0.0, 0.0] if parts is None else [parts.dram or 0.0, parts.compute or 0.0]
        cells = (share(times.get(name)), of_all(sum(energies)), *(scaled(part, "J") for part in energies))
        if times.get(name) or any(energies):
            rows.append(Row(named(name), cells))
        elif name in times and name != "step":  # only measured costs know that one
            rows.append(Row(named(name), cells, only="narrow"))
    if energy.passive_joules is not None:
        rows.append(Row("passive power", (ABSENT, of_all(energy.passive_joules), ABSENT, ABSENT)))
    parts_of_energy = ("of it memory", "of it compute")
    columns = ("time", "energy", *parts_of_energy)
    return Table("Time and energy by operator, whole run", columns, rows, wide_columns=parts_of_energy)


def pool_table(pools: Pools) -> Table:
    """The pools side by side."""
    parts = (pools.prefill, pools.decode)
    units = dict.fromkeys(unit for part in parts for unit in part.unit_busy_share)

    def row(label: str, path: str, short: str = "", only: Literal["", "wide"] = "") -> Row:
        unit = unit_of(f"pools.decode.{path}")
        return Row(label, tuple(written(value_at(part, path), unit) for part in parts), short=short, only=only)

    def busy(unit: str) -> Row:
        shares = tuple(share(part.unit_busy_share.get(unit)) for part in parts)
        return Row(f"{named(unit)} busy", shares, short=f"  {named(unit)}")

    rows = [
        Row("device", tuple(text_of(part.device) for part in parts), only="wide"),
        row("replicas", "replicas", only="wide"),
        row("devices", "devices", only="wide"),
        row("busy share", "busy_share"),
        *map(busy, units),
        row("steps", "steps"),
        row("requests in a step, mean", "mean_requests", "mean requests"),
        row("KV cache in use, mean", "kv.mean_use", "KV in use, mean"),
        row("KV cache in use, peak", "kv.peak_use", "KV in use, peak"),
        row("energy", "joules"),
        row("of it passive", "passive_joules", "  passive"),
    ]
    return Table("Pools", POOLS, rows)


def handover_table(handover: Handover) -> Table:
    """What goes from the prefill pool to the decode pool."""
    waits = {"waiting": handover.waiting_s, "transfer": handover.transfer_s}
    moved = figure(None if handover.bytes is None else handover.bytes / _BYTES_PER_GB)
    rows = [
        Row("requests handed over", (count(handover.n),), short="requests"),
        Row("held back by a full pool", (count(handover.held),)),
        Row("KV caches moved, GB", (moved,), short="GB"),
    ]
    if handover.lost:
        rows.insert(2, Row("lost with a replica that failed", (count(handover.lost),), short="lost"))
    for name, wait in waits.items():
        rows += [Row(f"{name}, mean", (scaled(wait.mean, "s"),)), Row(f"{name}, p99", (scaled(wait.p99, "s"),))]
    rows += [Row(f"link of {pool} busy", (share(handover.link_busy_share.get(pool)),)) for pool in POOLS]
    return Table("Hand-over", ("",), rows)


def fault_cost_table(faults: FaultFigures) -> Table:
    """What simulated faults cost. How often there was which, a page shows event by event."""
    kinds = Counter(event.kind for event in faults.events)
    rows = [
        *(Row(name, (count(kinds[kind]),), only="narrow") for kind, name in _FAULTS.items()),
        Row("requests queued again", (count(faults.requeued),)),
        Row("tokens computed again", (count(faults.recomputed_tokens),)),
        Row("replicas down, together", (scaled(faults.down_replica_s, "s"),), only="wide"),
        Row("replicas down, s", (figure(faults.down_replica_s),), only="narrow"),
        Row("availability", (share(faults.availability),)),
    ]
    return Table("Cost", ("",), rows)


def stage_table(stages: Sequence[StageFigures]) -> Table:
    """The stages of a rate that steps."""
    columns = ("requests", "offered\n/s", "finished\n/s", "TTFT\np50", "TTFT\np99", "TPOT\np99", "SLO")
    rows = []
    for stage in stages:
        ttft, tpot = stage.latency_s.ttft, stage.latency_s.tpot
        cells = (
            count(stage.requests),
            figure(stage.offered_requests_per_s),
            figure(stage.throughput.requests_per_s),
            *(scaled(seconds, "s") for seconds in (ttft.p50, ttft.p99, tpot.p99)),
            share(stage.slo.attainment),
        )
        rows.append(Row(f"{stage.from_s:g} to {stage.to_s:g} s", cells))
    return Table("Stages", columns, rows, name="stage")


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
