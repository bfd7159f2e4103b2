"""A run as the messages of the services tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import grpc

from pimserve.cluster.base.rpc.statuses import RefusedError, unknown_request
from pimserve.cluster.metrics.feed import MetricsFeed
from pimserve.cluster.run.live_control import Snapshot, total_steps
from pimserve.cluster.run.running_latencies import Quantiles, RunningLatencies
from pimserve.cluster.scenario.device_groups import device_groups
from pimserve.cluster.scenario.placement_spec import GROUPS
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.cluster.service.device_queries import DeviceQueries
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S, HOST
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.control import Ledger
from pimserve.scheduler.group_times import group_times
from pimserve.scheduler.latency_sections import AtPercentile
from pimserve.scheduler.requests import FINISHED, REJECT_REASONS, REJECTED
from pimserve.scheduler.router_figures import reasons_of, routed_to
from pimserve.scheduler.spec_decode_figures import SpecDecodeFigures
from pimserve.scheduler.tier_states import TiersState
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import simulation_pb2 as sim

_BYTES_PER_GB = 10**9
_CONVERTED = {"clock_s", "prefix_cache", "kv_tiers", "preemptions_by_cause", "spec_decode"}
_TIER_FIELDS = tuple(field.name for field in sched.KvTierState.DESCRIPTOR.fields)
_STATE_FIELDS = tuple(field.name for field in sched.Replica.DESCRIPTOR.fields if field.name not in _CONVERTED)


@dataclass(frozen=True, slots=True)
class Site:
    """What a run is about, and where it is.

    Args:
        run_id: of the run.
        prepared: what runs.
        metrics: that the run fills.
        devices: answers for its device actors.
    """

    run_id: str
    prepared: Prepared
    metrics: MetricsFeed
    devices: DeviceQueries = field(default_factory=DeviceQueries)


def progress_of(snapshot: Snapshot) -> sim.Progress:
    """How far a run is."""
    return sim.Progress(
        simulated_s=snapshot.now_fs / FS_PER_S,
        requests=snapshot.requests,
        arrived=snapshot.arrived,
        finished=snapshot.finished,
        rejected=snapshot.rejected,
        running=sum(state.running for state in snapshot.replicas),
        waiting=sum(state.waiting for state in snapshot.replicas),
        steps=total_steps(snapshot.replicas),
        windows=snapshot.window,
    )


def life_of(snapshot: Snapshot, request: int) -> sched.DescribeRequestResponse:
    """What has happened to the request of that number by the time of the snapshot.

    The run may have written what happens later meanwhile; that does not count.

    Raises:
        RefusedError: there is none of that number, or not yet again in a run that was interrupted.
    """
    try:
        at = snapshot.numbers.row_of(request)
    except IndexError:
        raise unknown_request(request, snapshot.numbers.end) from None
    if at is None:
        raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the run goes on from before that request; try again")
    return life({name: int(column[at]) for name, column in snapshot.columns.items()}, request, snapshot.now_fs)


def life(row: Mapping[str, int], request: int, now_fs: int) -> sched.DescribeRequestResponse:
    """What has happened to a request by that time; `row` is its in the request table."""
    now_ps = now_fs // FS_PER_PS
    arrived = 0 <= row["arrival_ps"] <= now_ps

    def happened(name: str) -> float | None:
        time_ps = row[f"{name}_ps"]
        return time_ps / PS_PER_S if arrived and 0 <= time_ps <= now_ps else None

    scheduled, first_token = happened("first_scheduled"), happened("first_token")
    finish = happened("finish") if row["status"] == FINISHED else None
    state = sched.REQUEST_STATE_EXPECTED
    if row["status"] == REJECTED and arrived:
        state = sched.REQUEST_STATE_REJECTED
    elif finish is not None:
        state = sched.REQUEST_STATE_FINISHED
    elif first_token is not None:
        state = sched.REQUEST_STATE_DECODE
    elif scheduled is not None:
        state = sched.REQUEST_STATE_PREFILL
    elif arrived:
        state = sched.REQUEST_STATE_WAITING
    return sched.DescribeRequestResponse(
        simulated_s=now_fs / FS_PER_S,
        request=request,
        state=state,
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        replica=row["replica"] if arrived and state != sched.REQUEST_STATE_REJECTED else None,
        arrival_s=row["arrival_ps"] / PS_PER_S if row["arrival_ps"] >= 0 else None,
        first_scheduled_s=scheduled,
        first_token_s=first_token,
        finish_s=finish,
        preemptions=row["preemptions"] if finish is not None else None,
        reject_reason=(REJECT_REASONS[row["reject_reason"]] if state == sched.REQUEST_STATE_REJECTED else None),
    )


def replicas_of(snapshot: Snapshot) -> sched.GetReplicasResponse:
    """Queue and batch of every replica."""
    replicas = [
        sched.Replica(
            clock_s=state.clock_fs / FS_PER_S,
            prefix_cache=None if (cache := state.prefix_cache) is None else sched.PrefixCacheState(**asdict(cache)),
            kv_tiers=None if state.kv_tiers is None else _tiers_of(state.kv_tiers),
            preemptions_by_cause=sched.PreemptionsByCause(**causes) if (causes := state.preemptions_by_cause) else None,
            spec_decode=None if state.spec_decode is None else _drafts_of(state.spec_decode),
            **{name: getattr(state, name) for name in _STATE_FIELDS},
        )
        for state in snapshot.replicas
    ]
    return sched.GetReplicasResponse(
        simulated_s=snapshot.now_fs / FS_PER_S, replicas=replicas, router=_router_of(snapshot)
    )


def _router_of(snapshot: Snapshot) -> sched.RouterState | None:
    """Decisions of the router; None where there was nothing to choose."""
    entry = [state.replica for state in snapshot.replicas if state.pool == snapshot.replicas[0].pool]
    routed = routed_to(snapshot.decisions, entry)
    if not routed:
        return None
    reasons = reasons_of(routed)
    replicas = (
        sched.RoutedTo(replica=each.replica, requests=each.requests, by_reason_requests=each.by_reason)
        for each in routed
    )
    return sched.RouterState(requests=reasons.total(), by_reason_requests=reasons, replicas=replicas)


def _drafts_of(found: SpecDecodeFigures) -> sched.SpecDecodeState:
    return sched.SpecDecodeState(
        drafts_requests=found.drafts, draft_tokens=found.draft_tokens, accepted_tokens=found.accepted_tokens
    )


def _tiers_of(state: TiersState) -> sched.KvTiersState:
    tiers = (sched.KvTierState(**{name: getattr(tier, name) for name in _TIER_FIELDS}) for tier in state.tiers)
    return sched.KvTiersState(tiers=tiers, load_waits=state.load_waits, load_wait_s=state.load_wait_s)


def latencies_of(
    snapshot: Snapshot, latencies: RunningLatencies, percentiles: Sequence[float] = ()
) -> sched.GetLatenciesResponse:
    """Percentiles so far, and SLO attainment."""
    so_far = latencies.so_far(percentiles)
    return sched.GetLatenciesResponse(
        simulated_s=snapshot.now_fs / FS_PER_S,
        measured_from_s=snapshot.measured.start_s,
        measured_until_s=snapshot.measured.end_s,
        latencies=[
            latency_of(
                name,
                quantiles,
                counted_from_s=snapshot.measured.start_s,
                as_of_s=(so_far.gaps_fs if name == "itl" else snapshot.now_fs) / FS_PER_S,
            )
            for name, quantiles in so_far.latencies.items()
        ],
        slo=sched.SloAttainment(
            left=so_far.left,
            good=so_far.good,
            attainment=so_far.good / so_far.left if so_far.limited and so_far.left else None,
            limits_s=so_far.limits,
            censored=so_far.censored,
            at_percentiles=[limit_of(name, limit) for name, limit in so_far.at_percentiles.items()],
        ),
    )


def limit_of(name: str, limit: AtPercentile) -> sched.LimitAtPercentile:
    """What a limit at a percentile came to."""
    return sched.LimitAtPercentile(
        name=name,
        limit_s=limit.limit,
        measured_s=limit.measured,
        passed=limit.passed,
        margin_s=limit.margin,
        count=limit.n,
        enough_samples=limit.enough_samples,
    )


def latency_of(name: str, quantiles: Quantiles, *, counted_from_s: float, as_of_s: float) -> sched.Latency:
    """One latency."""
    return sched.Latency(
        name=name,
        count=quantiles.count,
        mean_s=quantiles.mean_s,
        percentiles=[
            sched.Percentile(percent=percent, value_s=value)
            for percent, value in quantiles.percentiles_s.items()
            if value is not None
        ],
        counted_from_s=counted_from_s,
        as_of_s=as_of_s,
    )


def ledgers_of(now_fs: int, ledgers: Sequence[Ledger]) -> sched.GetLedgersResponse:
    """What devices have done."""
    return sched.GetLedgersResponse(
        simulated_s=now_fs / FS_PER_S,
        ledgers=[
            sched.Ledger(
                replica=ledger.replica,
                busy_s=ledger.busy_s,
                dynamic_joules=sum(ledger.joules.values()),  # for clients that know nothing of passive energy
                active_joules=sum(ledger.joules.values()),
                passive_joules=ledger.passive_joules,
                steps=ledger.steps,
                output_tokens=ledger.output_tokens,
                groups=_group_times(ledger),
            )
            for ledger in ledgers
        ],
    )


def _group_times(ledger: Ledger) -> list[sched.GroupTime]:
    """What both groups of devices of a replica did; none where it has one."""
    if not ledger.stage_s:
        return []
    host_s = ledger.busy_s.get(HOST, 0.0)
    times = group_times(ledger.step_s, host_s, ledger.stage_s, ledger.clock_fs / FS_PER_S)
    return [
        sched.GroupTime(group=group, **{f"{part}_s": seconds for part, seconds in time._asdict().items()})
        for group, time in zip(GROUPS, times, strict=True)
    ]


def _texts(parallelism: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in parallelism.items()}


def placement_of(site: Site) -> sched.GetPlacementResponse:
    """Which devices each replica has."""
    answer = sched.GetPlacementResponse(model=site.prepared.model.name, device=site.prepared.device)
    first_device = 0
    for pool in site.prepared.pools:
        groups = device_groups(pool, site.prepared.model) if pool.groups else []
        for replica in pool.numbers:
            answer.replicas.add(
                replica=replica,
                pool=pool.name,
                first_device=first_device,
                devices=pool.devices_per_replica,
                parallelism=_texts(pool.replica.parallelism),
                kv_capacity_tokens=pool.kv_capacity_tokens,
                weights_gb_per_device=pool.replica.weight_bytes_per_device / _BYTES_PER_GB,
                device=pool.label,
                groups=[
                    sched.DeviceGroup(
                        group=group.name,
                        first_device=first_device + group.numbers.start,
                        devices=len(group.numbers),
                        device=group.placed.label,
                        parts=group.parts,
                        parallelism=_texts(group.placed.replica.parallelism),
                        weights_gb_per_device=group.placed.replica.weight_bytes_per_device / _BYTES_PER_GB,
                    )
                    for group in groups
                ],
            )
            first_device += pool.devices_per_replica
    return answer
