"""Tables of the service for the terminal. All fit 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType

from pimserve.cluster.base.figures import ABSENT, WHY_REJECTED, count, figure, named, scaled, share
from pimserve.cluster.cli.replica_tables import MOST_REPLICAS, replica_table
from pimserve.cluster.cli.terminal import FittedTable, headed_table
from pimserve.cluster.client.answers import (
    DeviceGroup,
    Devices,
    GroupTime,
    Latencies,
    Ledgers,
    LimitAtPercentile,
    Placement,
    ReplicaPlacement,
    Replicas,
    Request,
    Run,
)
from pimserve.cluster.run.group_schema import TIMES
from pimserve.cluster.run.latency_tables import VERDICTS

_BYTES_PER_GB = 10**9


def run_line(run: Run) -> str:
    """How a run stands, in a line."""
    parts = [f"run {run.id} ({run.name}): {run.state}"]
    if run.queue_position is not None:
        parts.append(f"{run.queue_position} before it")
    if (progress := run.progress) is not None:
        parts.append(f"{figure(progress.simulated_s)} s simulated")
        parts.append(f"{count(progress.finished + progress.rejected)} of {count(progress.requests)} requests done")
        parts.append(f"{count(progress.steps)} steps")
        if progress.stability is not None:
            parts.append(progress.stability)
    if run.on != "local":
        parts.append(
            f"on {run.on} with {run.shards} shard{'' if run.shards == 1 else 's'}, device actors {run.devices}"
        )
    if run.restarts:
        parts.append(f"restarted {run.restarts} times")
    return ", ".join(parts)


def run_list(runs: Sequence[Run]) -> RenderableType:
    """Runs, a row each."""
    table = FittedTable("run", "name", "state", "requests", "simulated", "launched", left=3)
    for run in runs:
        progress = run.progress
        table.add_row(
            run.id,
            run.name if len(run.name) <= 24 else f"{run.name[:21]}...",
            run.state,
            ABSENT
            if progress is None
            else f"{count(progress.finished + progress.rejected)}/{count(progress.requests)}",
            ABSENT if progress is None else f"{figure(progress.simulated_s)} s",
            _ago(run.created_at),
        )
    return table


def run_page(run: Run, replicas: Replicas, latencies: Latencies) -> RenderableType:
    """A run that goes on: its replicas and latencies."""
    window = measured_line(latencies)
    return Group(
        *(run_line(run), "", replica_table(replicas), "", latency_table(latencies), ""),
        *([window] if window else []),
        slo_line(latencies),
        *(["", limit_table(latencies.at_percentiles)] if latencies.at_percentiles else []),
    )


def latency_table(latencies: Latencies) -> RenderableType:
    """Percentiles so far."""
    percents = sorted({percent for latency in latencies.latencies.values() for percent in latency.percentiles})
    table = FittedTable("latency so far", "mean", *(f"p{percent:g}" for percent in percents), "requests")
    for name, latency in latencies.latencies.items():
        table.add_row(
            named(name),
            scaled(latency.mean_s, "s"),
            *(scaled(latency.percentiles.get(percent), "s") for percent in percents),
            count(latency.count),
        )
    return table


def measured_line(latencies: Latencies) -> str:
    """From when to when these count; nothing where all of the run does."""
    since, until = latencies.measured_from_s, latencies.measured_until_s
    if not since and until is None:
        return ""
    end = "" if until is None else f" to {figure(until)} s"
    return f"of requests that arrive from {figure(since)} s{end or ' on'}, and of gaps between tokens then"


def slo_line(latencies: Latencies) -> str:
    """SLO attainment so far."""
    if not latencies.limits_s and latencies.attainment is None:
        return "no SLO"
    limits = ", ".join(
        f"{named(name.removesuffix('_s'))} {scaled(limit, 's')}" for name, limit in latencies.limits_s.items()
    )
    censored = f", {count(latencies.censored)} censored" if latencies.censored else ""
    return (
        f"SLO ({limits or 'of classes'}): {share(latencies.attainment)} of {count(latencies.left)} requests{censored}"
    )


def limit_table(limits: Sequence[LimitAtPercentile]) -> RenderableType:
    """What limits at percentiles came to so far."""
    table = FittedTable("limit at a percentile", "limit", "so far", "margin", "n", "verdict")
    for each in limits:
        latency, percentile, _ = each.name.split("_")
        sign = "" if each.margin_s is None else "-" if each.margin_s < 0 else "+"
        table.add_row(
            f"{named(latency)} {percentile}",
            scaled(each.limit_s, "s"),
            scaled(each.measured_s, "s"),
            sign + scaled(None if each.margin_s is None else abs(each.margin_s), "s"),
            count(each.count),
            VERDICTS[each.passed],
        )
    return table


def request_page(request: Request) -> RenderableType:
    """One request's life."""
    table = headed_table(f"request {request.request}", "")
    table.add_row("state", request.state)
    if request.reject_reason is not None:
        table.add_row("reason", WHY_REJECTED[request.reject_reason])
    table.add_row("tokens in, out", f"{count(request.input_tokens)}, {count(request.output_tokens)}")
    table.add_row("replica", ABSENT if request.replica is None else f"{request.replica}")
    for label, time_s in (
        ("arrives", request.arrival_s),
        ("first scheduled", request.first_scheduled_s),
        ("first token", request.first_token_s),
        ("finish", request.finish_s),
    ):
        table.add_row(label, ABSENT if time_s is None else f"{time_s:,.6f} s")
    table.add_row("preemptions", count(request.preemptions))
    table.add_row("now", f"{request.simulated_s:,.6f} s")
    return table


def ledger_table(ledgers: Ledgers) -> RenderableType:
    """What devices have done."""
    units = list(dict.fromkeys(unit for ledger in ledgers.ledgers for unit in ledger.busy_s))
    table = FittedTable("replica", *(f"{named(unit)} busy" for unit in units), "active", "passive", "tokens")
    for ledger in ledgers.ledgers[:MOST_REPLICAS]:
        table.add_row(
            f"{ledger.replica}",
            *(scaled(ledger.busy_s.get(unit), "s") for unit in units),
            scaled(ledger.active_joules, "J"),
            scaled(ledger.passive_joules, "J"),
            count(ledger.output_tokens),
        )
    more = len(ledgers.ledgers) - MOST_REPLICAS
    groups = [(ledger.replica, time) for ledger in ledgers.ledgers[:MOST_REPLICAS] for time in ledger.groups]
    parts: list[RenderableType] = [table, *(["", _group_times(groups)] if groups else [])]
    return Group(*parts, *([f"and {count(more)} more"] if more > 0 else []))


def _group_times(groups: Sequence[tuple[int, GroupTime]]) -> RenderableType:
    """What groups of devices did, a row for each of each replica."""
    table = FittedTable("replica", "group", *TIMES.values(), left=2, keys=2)
    for replica, time in groups:
        cells = (scaled(getattr(time, f"{part}_s"), "s") for part in TIMES)
        table.add_row(f"{replica}", time.group.replace("_", " "), *cells)
    return table


def device_table(devices: Devices) -> RenderableType:
    """What each device actor has done."""
    table = FittedTable(
        "replica", "device", "host", "busy", "active", "tokens", "KV", "GB out", "GB in", left=3, keys=2
    )
    for device in devices.devices[:MOST_REPLICAS]:
        table.add_row(
            f"{device.replica}",
            f"{device.device} {device.group.replace('_', ' ')}".rstrip(),
            device.host,
            scaled(device.busy_s, "s"),
            scaled(device.active_joules, "J"),
            count(device.output_tokens),
            count(device.kv_blocks),
            figure(sum(traffic.sent_bytes for traffic in device.traffic) / _BYTES_PER_GB),
            figure(sum(traffic.received_bytes for traffic in device.traffic) / _BYTES_PER_GB),
        )
    more = len(devices.devices) - MOST_REPLICAS
    return Group(table, f"and {count(more)} more") if more > 0 else table


def placement_table(placement: Placement) -> RenderableType:
    """Which devices replicas have."""
    table = FittedTable("replica", "", "device", "devices", "KV tokens", "weights per device", left=3, keys=2)
    for replica in placement.replicas[:MOST_REPLICAS]:
        for number, part in enumerate(_parts(replica)):
            table.add_row(
                f"{replica.replica}",
                " ".join(filter(None, (replica.pool, _group(part)))),
                part.device,
                f"{part.first_device}..{part.first_device + part.devices - 1}",
                ABSENT if number else count(replica.kv_capacity_tokens),
                f"{figure(part.weights_gb_per_device)} GB",
            )
    split = "; ".join(
        ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in part.parallelism.items())
        for part in _parts(placement.replicas[0])
    )
    return Group(f"{placement.model} on {placement.device} ({split})", "", table)


def _parts(replica: ReplicaPlacement) -> Sequence[ReplicaPlacement | DeviceGroup]:
    """Its groups of devices, that with the KV cache first, or all of them."""
    return replica.groups or (replica,)


def _group(part: ReplicaPlacement | DeviceGroup) -> str:
    return part.group.replace("_", " ") if isinstance(part, DeviceGroup) else ""


def _ago(moment: datetime) -> str:
    seconds = (datetime.now(UTC) - moment).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"
