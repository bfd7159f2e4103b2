"""From the request table and the step logs to the summary.

Latencies of requests are those of `latencies`; ITL pools every gap between two tokens. A request is good when it
finished and every SLO holds (<=). Attainment, of a limit or of all, divides by the requests that arrived in the window
and of which it is known: rejected ones missed it, those that the end of the run cut off are censored where it is not
known (`outcomes`), and counted apart (`slo.known`, `slo.censored`). Whether what came was served, so that figures do
not hang on the run's length, is `stability`.

What a figure covers:
- TTFT: requests that arrived in the measured window and had their first token, inside it or later; TPOT, E2E: those of
  them that finished. `censored` counts those that would be among them but for the end of the run.
- Queue: requests that arrived in the window and were scheduled, finished or not.
- ITL: gaps that end in the window, of all requests. Its percentiles come from a histogram whose bins are 2**-12 of
  their value wide; mean and n are exact.
- SLO and goodput: requests that arrived in the window. Throughput: tokens and finished requests inside the window.
- Energy: active energy is that of all operators, passive energy what the devices draw whether they work or not, of all
  replicas for as long as the run takes, null where it is not known or left out; their sum is the energy.
- Request counts (but the measured ones), prompt and output tokens, energy, batch, steps, KV use, busy shares and time
  shares: the whole run. Where replicas are of two kinds, shares are means over replicas, those of a unit over the
  replicas that have it, `pools` tells them apart, and passive energy holds what is known.
- Busy shares of units are means over devices; those of the busiest device are of the replica where it has most to do.
- Pools, hand-overs and faults: the whole run.
- ci95: half the width of 95 % confidence intervals, by batch means (batch_means.py), at the places that their figures
  have here. They are of this run's own noise; seeds of their own (`pimserve sweep --repeat`) tell of all of it.

The whole run is the time in which requests were served: simulated time 0 is the arrival of the first request (of a
trace, of its first row that is used: `loadgen.workload`), and `end_s` the end of the last step, or later where some are
left (`Clock.end_fs`). Rates, busy shares, KV means and passive energy are all over this time.

Replicas of a closed loop with a warm-up end their windows one by one. Rates are then sums of the replicas' own rates,
each over its own window; the summary's window is the part that all of them measure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from pydantic import BaseModel

from pimserve.device_models.operators import CATEGORIES
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.device_models.slowdown import NORMAL
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.active_sessions import ActiveSessions
from pimserve.scheduler.class_figures import class_figures
from pimserve.scheduler.distributions import distribution, of_histogram, of_requests
from pimserve.scheduler.faults import Faults
from pimserve.scheduler.in_flight_cap import InFlightCap
from pimserve.scheduler.intervals import intervals
from pimserve.scheduler.latency_sections import Latencies
from pimserve.scheduler.measured import Measured, by_replica, rate
from pimserve.scheduler.outcomes import ALL, counts
from pimserve.scheduler.percentile_limits import at_percentiles
from pimserve.scheduler.percentiles import PERCENTILES
from pimserve.scheduler.prefix_figures import PrefixFigures
from pimserve.scheduler.requests import FINISHED, REJECT_REASONS, REJECTED, WAITING, preemptions_by_cause
from pimserve.scheduler.router_figures import router_figures
from pimserve.scheduler.sessions import Sessions
from pimserve.scheduler.sessions_served import session_figures
from pimserve.scheduler.simulation import Served
from pimserve.scheduler.spec_decode_figures import SpecDecodeFigures
from pimserve.scheduler.stability import Stability, stability
from pimserve.scheduler.stages import stage_figures
from pimserve.scheduler.steplog import passive_pj
from pimserve.scheduler.summary_sections import (
    Autoscaling,
    FaultFigures,
    FaultThatTookPlace,
    Figures,
    InSystem,
    PreemptionsByCause,
    PrefixCache,
    RejectedByReason,
    Requests,
    SizeDecision,
    Slo,
    Slowdown,
    SpecDecode,
    Swap,
    Throughput,
    Tokens,
    Window,
)
from pimserve.scheduler.swap_space import SwapSpace
from pimserve.scheduler.tier_figures import tiers_use
from pimserve.scheduler.tier_sections import KvTiersUse
from pimserve.scheduler.usage import (
    Hardware,
    batch_use,
    busiest_shares,
    busy_share,
    energy_use,
    kv_use,
    logs_of,
    pools_use,
    unit_shares,
)
from pimserve.scheduler.window import MeasuredWindow


def summarize(
    served: Served, objectives: Objectives, hardware: Hardware, percentiles: Sequence[float] = PERCENTILES
) -> Figures:
    """The run's figures; times in s, energies in J.

    Args:
        served: the run.
        objectives: limits.
        hardware: what it ran on.
        percentiles: of latencies, in per cent, ascending.
    """
    logs = served.logs
    measured = Measured(served, objectives)
    drawn_pj = [passive_pj(logs_of(served, pool), served.end_fs) for pool in served.pools]
    busy = sum(log.busy_fs for log in logs)
    window = MeasuredWindow(served.start_fs, closed=served.dealt)
    stable = stability(served.table.columns, window, served.end_fs // FS_PER_PS)
    start, end = served.window_s
    figures = Figures(
        requests=_requests(served, measured),
        window=Window(start_s=start, end_s=end, length_s=end - start, whole_run=not served.trimmed),
        offered_requests_per_s=served.workload.offered_rate_per_s,
        throughput=_throughput(served, measured, hardware),
        tokens=_tokens(served, measured),
        latency_s=_latencies(measured, percentiles),
        slo=_slo(served, objectives.of_run, measured),
        ci95=intervals(served, measured.samples(served, drawn_pj), percentiles),
        energy=energy_use(served, drawn_pj, hardware),
        batch=batch_use(logs),
        kv=kv_use(served, served.pools),
        time_share={c: sum(log.category_fs[c] for log in logs) / busy if busy else None for c in CATEGORIES},
        unit_busy_share=unit_shares(logs, served.end_s),
        unit_busy_share_of_busiest_device=busiest_shares(logs, served.end_s),
        busy_share=busy_share(logs, served.end_s),
        max_model_len=served.max_model_len,
        end_s=served.end_s,
        stability=stable.state,
        in_system=_in_system(stable),
        digest=digest(served),
    )
    where_they_apply = {
        "pools": None if served.handovers is None else pools_use(served, served.handovers, percentiles),
        "faults": None if served.faults is None else _faults(served, served.faults),
        "autoscaling": None if served.scaled is None else _autoscaling(served, served.scaled),
        "swap": None if served.swap is None else _swap(served, served.swap),
        "prefix_cache": None if served.prefixes is None else _prefix_cache(served.prefixes),
        "kv_tiers": _tiers(served, percentiles),
        "spec_decode": None if served.spec_decode is None else _spec_decode(served.spec_decode),
        "router": router_figures(served),
        "classes": class_figures(served, measured, objectives, percentiles),
        "stages": stage_figures(served, objectives, percentiles),
        **_of_clients(served, percentiles),
    }
    return figures.model_copy(update={name: part for name, part in where_they_apply.items() if part is not None})


def _of_clients(served: Served, percentiles: Sequence[float]) -> dict[str, BaseModel]:
    clients, found = served.clients, dict[str, BaseModel]()
    if isinstance(clients, Sessions):
        frontend_ps = served.pools[0].plan.frontend_ps
        found["sessions"] = session_figures(clients.turns, served.table, frontend_ps, percentiles)
    if isinstance(clients, InFlightCap) or (isinstance(clients, ActiveSessions) and not clients.closed):
        found["client_queue_time_s"] = distribution(np.array(clients.waits_ps) / PS_PER_S, percentiles)
    return found


def _swap(served: Served, space: SwapSpace) -> Swap:
    (pool,), copied = served.pools, int(served.table["swapped_blocks"].sum())
    block_bytes = pool.block_bytes(served.block_size) * pool.plan.devices
    waited_s = copied * space.fs_per_block / FS_PER_S
    return Swap(
        moved_bytes=copied * block_bytes,
        waited_s=waited_s,
        space_bytes=space.blocks * block_bytes * pool.replicas,
    )


def _prefix_cache(found: PrefixFigures) -> PrefixCache:
    queried = found.queried_tokens
    return PrefixCache(**asdict(found), hit_ratio=found.hit_tokens / queried if queried else None)


def _tiers(served: Served, percentiles: Sequence[float]) -> KvTiersUse | None:
    if served.tiers is None or served.prefixes is None:
        return None
    return tiers_use(served.tiers, served.prefixes.queried_tokens, served.end_fs, percentiles)


def _spec_decode(found: SpecDecodeFigures) -> SpecDecode:
    return SpecDecode(
        **asdict(found),
        acceptance_rate=found.accepted_tokens / found.draft_tokens if found.draft_tokens else None,
        mean_acceptance_length=1 + found.accepted_tokens / found.drafts if found.drafts else None,
    )


def _requests(served: Served, measured: Measured) -> Requests:
    table, status = served.table, served.table["status"]
    reasons = table["reject_reason"][measured.rejected]
    by_reason = {reason: int((reasons == code).sum()) for code, reason in enumerate(REJECT_REASONS) if reason}
    return Requests(
        total=int(measured.arrived.sum()),
        finished=int((status == FINISHED).sum()),
        rejected=int((status == REJECTED).sum()),
        rejected_by_reason=RejectedByReason(**by_reason),
        unfinished=int(((status == WAITING) & measured.arrived).sum()),
        truncated=int(table["truncated"][measured.arrived & ~measured.rejected].sum()),
        preempted=int((table["preemptions"] > 0).sum()),
        preemptions=int(table["preemptions"].sum()),
        preemptions_by_cause=PreemptionsByCause(
            **{cause: int(counted.sum()) for cause, counted in preemptions_by_cause(table.columns).items()}
        ),
        swaps=int(table["swaps"].sum()),
        measured=int(measured.requests.sum()),
        measured_finished=int(measured.done.sum()),
        measured_unfinished=int((measured.requests & (status == WAITING)).sum()),
    )


def _throughput(served: Served, measured: Measured, hardware: Hardware) -> Throughput:
    tokens_per_s = rate(served, (log.window_tokens for log in served.logs))
    silicon_mm2 = hardware.silicon_mm2
    return Throughput(
        requests_per_s=rate(served, by_replica(served, measured.finished_inside)) if measured.some else None,
        output_tokens_per_s=tokens_per_s,
        output_tokens_per_s_per_device=None if tokens_per_s is None else tokens_per_s / hardware.devices,
        output_tokens_per_s_per_mm2=tokens_per_s / silicon_mm2 if tokens_per_s is not None and silicon_mm2 else None,
    )


def _tokens(served: Served, measured: Measured) -> Tokens:
    table = served.table
    return Tokens(
        prompt=int(table["input_tokens"][measured.arrived & ~measured.rejected].sum()),
        prompt_rejected=int(table["input_tokens"][measured.rejected].sum()),
        output=int(table["emitted_tokens"].sum()),
        output_in_window=sum(log.window_tokens for log in served.logs),
    )


def _latencies(measured: Measured, percentiles: Sequence[float]) -> Latencies:
    of_each = {name: of_requests(measured.latencies[name], percentiles) for name in measured.latencies.names}
    return Latencies(itl=of_histogram(measured.itl, percentiles), **of_each)


def _slo(served: Served, slo: SloSpec, measured: Measured) -> Slo:
    """Attainment of each limit and of all, of the measured requests; goodput; limits at percentiles."""
    limits, judged = slo.limits(), counts(measured.outcomes)
    known = {name: outcome["met"] + outcome["missed"] for name, outcome in judged.items()}
    met = {name: outcome["met"] / known[name] if known[name] else None for name, outcome in judged.items()}
    finished = int(measured.done.sum())
    some = len(measured.outcomes.get(ALL, ()))
    at = at_percentiles(slo, measured.latencies, measured.itl)
    return Slo(
        limits=limits,
        met={name: share for name, share in met.items() if name != ALL},
        known=known,
        censored={name: outcome["censored"] for name, outcome in judged.items()},
        attainment=met.get(ALL),
        attainment_of_completed=int(measured.good.sum()) / finished if judged and finished else None,
        goodput_requests_per_s=rate(served, by_replica(served, measured.good)) if some else None,
        **({"at_percentiles": at} if at else {}),
    )


def _in_system(stable: Stability) -> InSystem:
    return InSystem(
        at_last_arrival=stable.in_system,
        waiting_at_last_arrival=stable.waiting,
        growth_per_arrival=stable.growth,
        residence_times=stable.residence_times,
    )


def digest(served: Served) -> str:
    """sha256 over every replica's executed steps and the request table: equal digests mean the same bits."""
    whole = hashlib.sha256()
    for log in served.logs:
        whole.update(bytes.fromhex(log.digest()))
    whole.update(served.table.structured().data)
    return whole.hexdigest()


def _autoscaling(served: Served, scaled: Faults) -> Autoscaling:
    """How many replicas there were."""
    events = [event for scaler in scaled.scalers for event in scaler.events if event.at_fs < served.end_fs]
    decisions = [
        SizeDecision(
            at_s=event.at_fs / FS_PER_S, pool=event.pool, before=event.before, after=event.after, metric=event.metric
        )
        for event in sorted(events, key=lambda event: event.at_fs)
    ]
    sizes = {scaler.pool: len(scaler.numbers) - scaler.away_at_first for scaler in scaled.scalers}
    others = len(served.logs) - sum(len(scaler.numbers) for scaler in scaled.scalers)
    most = sum(sizes.values())
    for decision in decisions:
        sizes[decision.pool] = decision.after
        most = max(most, sum(sizes.values()))
    there_s = [(served.end_fs - log.away_fs) / FS_PER_S for log in served.logs]
    return Autoscaling(
        decisions=decisions,
        replica_s=sum(there_s),
        device_s=sum(log.costs.plan.devices * each_s for log, each_s in zip(served.logs, there_s, strict=True)),
        mean_replicas=sum(there_s) / served.end_s if served.end_s else None,
        most_replicas=others + most,
        requeued=scaled.requeued,
    )


def _faults(served: Served, faults: Faults) -> FaultFigures:
    """What happened to the replicas while the run went on, and what it cost."""
    down_s = faults.down_fs(served.end_fs) / FS_PER_S
    replica_s = len(served.logs) * served.end_s
    events = [FaultThatTookPlace(**event) for event in faults.events if event["at_s"] < served.end_s]
    gone = {event.replica for event in events if event.for_s is None and event.kind != "slow"}
    gone |= faults.away_for_good
    return FaultFigures(
        events=events,
        replicas_left=not any(gone.issuperset(pool.numbers) for pool in served.pools),
        requeued=faults.requeued,
        recomputed_tokens=faults.lost_tokens,
        down_replica_s=down_s,
        availability=1 - down_s / replica_s if replica_s else None,
        slowdowns=[
            Slowdown(replica=replica, first_step=step, factor=thousandths / NORMAL)
            for replica, step, thousandths in faults.slowdowns
            if step < served.logs[replica].steps
        ],
    )
