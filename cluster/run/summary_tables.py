"""Tables of a summary. Whatever it lacks, of another version say, is left out or a dash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pimserve.cluster.base.figures import ABSENT, count, figure, named, scaled, share, text_of, written
from pimserve.cluster.base.tables import Row, Table, table_of
from pimserve.cluster.run.run_figures import unit_of, value_at
from pimserve.cluster.run.summary_schema import Pools
from pimserve.device_models.operators import CATEGORIES, EXPERT_REBALANCING
from pimserve.scheduler.latency_sections import Distribution
from pimserve.scheduler.part_sections import RouterFigures, StageFigures
from pimserve.scheduler.summary_sections import (
    Autoscaling,
    Energy,
    FaultFigures,
    PrefixCache,
    SessionFigures,
    SpecDecode,
    Swap,
)
from pimserve.scheduler.tier_sections import KvTiersUse

POOLS = ("prefill", "decode")
FACT_UNITS = {"s": "s", "w": "W", "days": "days", "years": "years", "mm2": "mm2"}  # ends of names of facts
_FAULTS = {"fail": "devices that failed", "slow": "that slowed down", "leave": "that left"}
_BYTES_PER_GB = 10**9
_MOST_ROUTED = 32  # replicas that the table of a router shows one by one


def breakdown_table(times: Mapping[str, float | None], energy: Energy) -> Table:
    """Time and energy by operator."""

    def of_all(joules: float) -> str:
        return share(joules / energy.joules if energy.joules else None)

    rows = []
    for name in (*CATEGORIES, EXPERT_REBALANCING):
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


def handover_table(pools: Pools) -> Table:
    """What goes from the prefill pool to the decode pool, and what does not."""
    handover, stayed = pools.handover, pools.conditional_disagg
    waits = {"waiting": handover.waiting_s, "transfer": handover.transfer_s}
    moved = figure(None if handover.bytes is None else handover.bytes / _BYTES_PER_GB)
    rows = [
        Row("requests handed over", (count(handover.n),), short="requests"),
        Row("held back by a full pool", (count(handover.held),)),
        Row("KV caches moved, GB", (moved,), short="GB"),
    ]
    if handover.lost:
        rows.insert(2, Row("lost with a replica that failed", (count(handover.lost),), short="lost"))
    if stayed is not None:
        rows.append(Row("short prompts that stayed", (count(stayed.short_prompt),), short="stayed, short"))
        rows.append(Row("stayed as enough waited for prefill", (count(stayed.prefill_queue),), short="stayed, queue"))
    for name, wait in waits.items():
        rows += [Row(f"{name}, mean", (scaled(wait.mean, "s"),)), Row(f"{name}, p99", (scaled(wait.p99, "s"),))]
    if handover.overlapped_s is not None:
        rows.append(Row("behind the prompt, mean", (scaled(handover.overlapped_s.mean, "s"),)))
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


def autoscaling_table(found: Autoscaling) -> Table:
    """How many replicas there were."""
    rows = [
        Row("decisions to change a size", (count(len(found.decisions)),), short="decisions"),
        Row("replicas, mean", (figure(found.mean_replicas),)),
        Row("replicas, most", (count(found.most_replicas),)),
        Row("replicas were there, together", (scaled(found.replica_s, "s"),), only="wide"),
        Row("devices were there, s", (figure(found.device_s),)),
        Row("requests routed again", (count(found.requeued),)),
    ]
    return Table("Replicas", ("",), rows)


def size_table(found: Autoscaling) -> Table:
    """The decisions that changed a size."""
    columns = ("pool", "from", "to", "metric")
    rows = [
        Row(
            f"{figure(each.at_s)} s",
            (text_of(each.pool), count(each.before), count(each.after), figure(each.metric)),
        )
        for each in found.decisions
    ]
    return Table("at", columns, rows)


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


def client_table(sessions: SessionFigures | None, waits: Distribution | None) -> Table | None:
    """Sessions, or waiting at the client; None where there is neither."""
    rows = []
    if sessions is not None:
        lasted = sessions.duration_s
        rows += [
            Row("sessions", (count(sessions.total),)),
            Row("sessions that finished", (count(sessions.finished),), short="finished"),
            Row("turns, mean", (figure(sessions.mean_turns),)),
            Row("time per session, mean", (scaled(lasted.mean, "s"),)),
            Row("time per session, p99", (scaled(lasted.p99, "s"),)),
        ]
    if waits is not None:
        rows += [
            Row("queue at the client, mean", (scaled(waits.mean, "s"),)),
            Row("queue at the client, p99", (scaled(waits.p99, "s"),)),
        ]
    return Table("Clients", ("",), rows) if rows else None


def prefix_table(cache: PrefixCache) -> Table:
    """What prefix caches of all replicas found."""
    rows = [
        Row("prompt tokens looked up", (count(cache.queried_tokens),), short="looked up"),
        Row("cached", (count(cache.hit_tokens),)),
        Row("hit ratio", (share(cache.hit_ratio),)),
        Row("blocks evicted", (count(cache.evicted_blocks),)),
        Row("blocks cached at the end", (count(cache.cached_blocks),)),
    ]
    if queried := cache.preempted_queried_tokens:
        found = f"{count(cache.preempted_hit_tokens)} of {count(queried)}"
        rows.append(Row("cached, of preempted requests", (found,), short="of preempted"))
    return Table("Prefix cache", ("",), rows)


def tier_table(use: KvTiersUse) -> Table:
    """What tiers below the prefix cache held and moved."""
    tiers = use.tiers

    def gigabytes(moved: int) -> str:
        return figure(moved / _BYTES_PER_GB)

    rows = [
        Row("tokens looked up", tuple(count(tier.queried_tokens) for tier in tiers)),
        Row("tokens found", tuple(count(tier.hit_tokens) for tier in tiers)),
        Row("of all prompts", tuple(share(tier.hit_ratio) for tier in tiers)),  # the dashboard's ratio is of a tier's
        Row("read, GB", tuple(gigabytes(tier.read_bytes) for tier in tiers)),
        Row("written, GB", tuple(gigabytes(tier.written_bytes) for tier in tiers)),
        Row("blocks kept", tuple(count(tier.kept_blocks) for tier in tiers)),
        Row("blocks evicted", tuple(count(tier.evicted_blocks) for tier in tiers)),
        Row("link busy", tuple(share(tier.link_busy_share) for tier in tiers)),
    ]
    return Table("Tiers of KV cache", tuple(tier.name for tier in tiers), rows)


def load_wait_table(use: KvTiersUse) -> Table:
    """How long requests waited for blocks from the tiers."""
    waits = use.load_wait_s
    rows = [
        Row("requests that waited for blocks", (count(waits.n),), short="waited"),
        Row("mean", (scaled(waits.mean, "s"),)),
        Row("p99", (scaled(waits.p99, "s"),)),
    ]
    return Table("Waiting for blocks", ("",), rows)


def draft_table(drafts: SpecDecode) -> Table:
    """What came of drafts, of all replicas."""
    rows = [
        Row("draft tokens", (count(drafts.draft_tokens),)),
        Row("accepted", (count(drafts.accepted_tokens),)),
        Row("acceptance rate", (share(drafts.acceptance_rate),)),
        Row("tokens of a request in a step", (figure(drafts.mean_acceptance_length),), short="acceptance length"),
    ]
    return Table("Speculative decoding", ("",), rows)


def router_table(router: RouterFigures) -> Table:
    """Where the router sent requests, and why: a column for each reason."""
    reasons = list(router.by_reason)

    def row(label: str, requests: int, by_reason: Mapping[str, int]) -> Row:
        return Row(label, (count(requests), *(count(by_reason.get(reason, 0)) for reason in reasons)))

    rows = [row("all", router.requests, router.by_reason)]
    if len(router.replicas) <= _MOST_ROUTED:
        rows += [row(f"replica {each.replica}", each.requests, each.by_reason) for each in router.replicas]
    return Table(f"Requests by router {router.name}", ("sent", *reasons), rows)


def swap_table(swap: Swap) -> Table:
    """What preemption by swap moved, and how long steps waited for it."""
    rows = [
        Row("copied, GB", (figure(swap.moved_bytes / 1e9),)),
        Row("steps waited, s", (figure(swap.waited_s),)),
        Row("space, GB", (figure(swap.space_bytes / 1e9),)),
    ]
    return Table("Swap", ("",), rows)


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
