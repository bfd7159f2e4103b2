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
import math
from collections.abc import Iterable

import numpy as np

from pimserve.arrays import BoolArray
from pimserve.device_models.operators import CATEGORIES
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S, PJ_PER_J
from pimserve.device_models.slowdown import NORMAL
from pimserve.scheduler.distributions import PERCENTILES, of_histograms, of_requests
from pimserve.scheduler.faults import Faults
from pimserve.scheduler.intervals import intervals
from pimserve.scheduler.outcomes import ALL, MET, counts, outcomes
from pimserve.scheduler.requests import FINISHED, REJECT_REASONS, REJECTED, WAITING
from pimserve.scheduler.simulation import Served
from pimserve.scheduler.slo import SloSpec
from pimserve.scheduler.stability import Stability, stability
from pimserve.scheduler.stages import stage_figures
from pimserve.scheduler.steplog import passive_pj
from pimserve.scheduler.summary_sections import (
    FaultFigures,
    FaultThatTookPlace,
    Figures,
    InSystem,
    Latencies,
    RejectedByReason,
    Requests,
    Slo,
    Slowdown,
    Throughput,
    Tokens,
    Window,
)
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

_LATEST_PS = 2**63 - 1


class _Measured:
    """The requests that count, masks (n,) over all of the run, and what is known of them."""

    def __init__(self, served: Served, slo: SloSpec) -> None:
        status = served.table["status"]
        self.arrived = served.table["arrival_ps"] >= 0  # a closed loop that was stopped never issued some
        self.rejected = self.arrived & (status == REJECTED)
        self.requests = _in_window(served, "arrival_ps")
        self.done = self.requests & (status == FINISHED)
        self.finished_inside = (status == FINISHED) & _in_window(served, "finish_ps")
        self.latencies = served.latencies(self.requests)
        self.outcomes = outcomes(self.latencies, slo)
        self.good = self.done.copy()
        self.good[self.requests] &= self.outcomes[ALL] == MET if self.outcomes else False


def summarize(served: Served, slo: SloSpec, hardware: Hardware) -> Figures:
    """The run's figures; times in s, energies in J.

    Args:
        served: the run.
        slo: limits.
        hardware: what it ran on.
    """
    logs = served.logs
    measured = _Measured(served, slo)
    drawn_pj = [passive_pj(logs_of(served, pool), served.end_fs) for pool in served.pools]
    busy = sum(log.busy_fs for log in logs)
    window = MeasuredWindow(served.start_fs, closed=served.workload.concurrency is not None)
    stable = stability(served.table.columns, window, served.end_fs // FS_PER_PS)
    start, end = served.window_s
    figures = Figures(
        requests=_requests(served, measured),
        window=Window(start_s=start, end_s=end, length_s=end - start, whole_run=not served.trimmed),
        offered_requests_per_s=served.workload.offered_rate_per_s,
        throughput=_throughput(served, measured, hardware),
        tokens=_tokens(served, measured),
        latency_s=_latencies(served, measured),
        slo=_slo(served, slo, measured),
        ci95=intervals(
            served,
            {name: measured.latencies[name].known_s for name in ("ttft", "tpot", "e2e")},
            PERCENTILES,
            served.table["arrival_ps"][measured.good] if measured.outcomes and measured.requests.any() else None,
            [(pj or 0) / PJ_PER_J for pj in drawn_pj],
        ),
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
        "pools": None if served.handovers is None else pools_use(served, served.handovers),
        "faults": None if served.faults is None else _faults(served, served.faults),
        "stages": stage_figures(served, slo),
    }
    return figures.model_copy(update={name: part for name, part in where_they_apply.items() if part is not None})


def _requests(served: Served, measured: _Measured) -> Requests:
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
        measured=int(measured.requests.sum()),
        measured_finished=int(measured.done.sum()),
        measured_unfinished=int((measured.requests & (status == WAITING)).sum()),
    )


def _throughput(served: Served, measured: _Measured, hardware: Hardware) -> Throughput:
    tokens_per_s = _rate(served, (log.window_tokens for log in served.logs))
    some = (measured.requests | measured.finished_inside).any()
    silicon_mm2 = hardware.silicon_mm2
    return Throughput(
        requests_per_s=_rate(served, _by_replica(served, measured.finished_inside)) if some else None,
        output_tokens_per_s=tokens_per_s,
        output_tokens_per_s_per_device=None if tokens_per_s is None else tokens_per_s / hardware.devices,
        output_tokens_per_s_per_mm2=tokens_per_s / silicon_mm2 if tokens_per_s is not None and silicon_mm2 else None,
    )


def _tokens(served: Served, measured: _Measured) -> Tokens:
    table = served.table
    return Tokens(
        prompt=int(table["input_tokens"][measured.arrived & ~measured.rejected].sum()),
        prompt_rejected=int(table["input_tokens"][measured.rejected].sum()),
        output=int(table["emitted_tokens"].sum()),
        output_in_window=sum(log.window_tokens for log in served.logs),
    )


def _latencies(served: Served, measured: _Measured) -> Latencies:
    latencies = measured.latencies
    return Latencies(
        ttft=of_requests(latencies["ttft"]),
        tpot=of_requests(latencies["tpot"]),
        itl=of_histograms(log.itl for log in served.logs),
        e2e=of_requests(latencies["e2e"]),
        queue=of_requests(latencies["queue"]),
    )


def _slo(served: Served, slo: SloSpec, measured: _Measured) -> Slo:
    """Attainment of each limit and of all, of the measured requests; goodput."""
    limits, judged = slo.limits(), counts(measured.outcomes)
    known = {name: outcome["met"] + outcome["missed"] for name, outcome in judged.items()}
    met = {name: outcome["met"] / known[name] if known[name] else None for name, outcome in judged.items()}
    finished = int(measured.done.sum())
    some = len(measured.outcomes.get(ALL, ()))
    return Slo(
        limits=limits,
        met={name: share for name, share in met.items() if name != ALL},
        known=known,
        censored={name: outcome["censored"] for name, outcome in judged.items()},
        attainment=met.get(ALL),
        attainment_of_completed=int(measured.good.sum()) / finished if limits and finished else None,
        goodput_requests_per_s=_rate(served, _by_replica(served, measured.good)) if some else None,
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


def _faults(served: Served, faults: Faults) -> FaultFigures:
    """What happened to the replicas while the run went on, and what it cost."""
    down_s = faults.down_fs(served.end_fs) / FS_PER_S
    replica_s = len(served.logs) * served.end_s
    events = [FaultThatTookPlace(**event) for event in faults.events if event["at_s"] < served.end_s]
    gone = {event.replica for event in events if event.for_s is None and event.kind != "slow"}
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


def _in_window(served: Served, time: str) -> BoolArray:
    """Per request: whether that time of it lies in the window of its replica."""
    times = served.table[time]
    start_ps = -(-served.start_fs // FS_PER_PS)
    ends_ps = np.array([min(-(-log.window_fs[1] // FS_PER_PS), _LATEST_PS) for log in served.logs])
    return np.asarray((times >= start_ps) & (times < ends_ps[served.table["replica"]]))


def _by_replica(served: Served, rows: BoolArray) -> list[int]:
    """How many of those requests each replica has."""
    counts: list[int] = np.bincount(served.table["replica"][rows], minlength=len(served.logs)).tolist()
    return counts


def _rate(served: Served, counts: Iterable[int]) -> float | None:
    """What replicas counted inside their windows, per second: each replica's own rate, added up; None without time."""
    lengths = [(end - served.start_fs) / FS_PER_S for end in served.ends_fs]
    if not all(lengths):
        return None
    # Replicas without clients come last, and have neither a window nor anything to count.
    return math.fsum(count / length for count, length in zip(counts, lengths, strict=False))
