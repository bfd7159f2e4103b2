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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.operators import CATEGORIES
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S, HOST, PJ_PER_J
from pimserve.device_models.slowdown import NORMAL
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.batch_means import nearest_place
from pimserve.scheduler.faults import Faults
from pimserve.scheduler.fleet import DECODE, PREFILL, Pool
from pimserve.scheduler.handover import HandoverFigures
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.intervals import intervals
from pimserve.scheduler.latencies import Latency
from pimserve.scheduler.outcomes import ALL, MET, Outcomes, counts, outcomes
from pimserve.scheduler.requests import FINISHED, REJECT_REASONS, REJECTED, WAITING
from pimserve.scheduler.simulation import Served
from pimserve.scheduler.slo import SloSpec
from pimserve.scheduler.stability import stability
from pimserve.scheduler.steplog import StepLog
from pimserve.scheduler.window import MeasuredWindow

PERCENTILES = (50, 90, 99)
_LATEST_PS = 2**63 - 1


def percentile(ordered: NDArray[np.float64], percent: float) -> float:
    """Nearest-rank percentile of an ascending array of one element or more."""
    return float(ordered[nearest_place(len(ordered), percent)])


def distribution(values: NDArray[np.float64]) -> dict[str, float | int | None]:
    """Mean, percentiles and count of exact samples."""
    ordered = np.sort(values)
    n = len(ordered)
    found: dict[str, float | int | None] = {"mean": float(ordered.mean()) if n else None}
    for percent in PERCENTILES:
        found[f"p{percent}"] = percentile(ordered, percent) if n else None
    return {**found, "n": n}


def summarize(served: Served, slo: SloSpec, devices: int) -> dict[str, Any]:
    """The run's figures; times in s, energies in J.

    Args:
        served: the run.
        slo: limits.
        devices: devices of all replicas together.
    """
    table, logs = served.table, served.logs
    start, end = served.window_s
    length = end - start
    arrival, status = table["arrival_ps"], table["status"]
    arrived = arrival >= 0  # a closed loop that was stopped has requests that it never issued
    measured = _in_window(served, "arrival_ps")
    done = measured & (status == FINISHED)

    cut_off = measured & (status == WAITING)
    latencies = served.latencies(measured)
    end_ps = served.end_fs // FS_PER_PS
    found = outcomes(latencies, slo)
    in_window = (status == FINISHED) & _in_window(served, "finish_ps")
    good = done.copy()
    good[measured] &= found[ALL] == MET if found else False
    tokens = sum(log.window_tokens for log in logs)
    tokens_per_s = _rate(served, (log.window_tokens for log in logs))
    all_tokens = int(table["emitted_tokens"].sum())
    busy = sum(log.busy_fs for log in logs)
    energy = {key: sum(log.energy_pj[key] for log in logs) for key in logs[0].energy_pj}
    passive_pj = [_passive_pj(pool, _logs_of(served, pool), served.end_fs) for pool in served.pools]
    steps = sum(log.steps for log in logs)
    capacity_fs = len(logs) * served.end_s * FS_PER_S
    units = dict.fromkeys(unit for log in logs for unit in log.unit_fs)
    closed = served.workload.concurrency is not None
    stable = stability(table.columns, MeasuredWindow(served.start_fs, closed=closed), end_ps)
    rejected = arrived & (status == REJECTED)
    return {
        "requests": {
            "total": int(arrived.sum()),
            "finished": int((status == FINISHED).sum()),
            "rejected": int((status == REJECTED).sum()),
            "rejected_by_reason": {
                reason: int((table["reject_reason"][rejected] == code).sum())
                for code, reason in enumerate(REJECT_REASONS)
                if reason
            },
            "unfinished": int(((status == WAITING) & arrived).sum()),
            "truncated": int(table["truncated"][arrived & ~rejected].sum()),
            "preempted": int((table["preemptions"] > 0).sum()),
            "preemptions": int(table["preemptions"].sum()),
            "measured": int(measured.sum()),
            "measured_finished": int(done.sum()),
            "measured_unfinished": int(cut_off.sum()),
        },
        "window": {"start_s": start, "end_s": end, "length_s": length, "whole_run": not served.trimmed},
        "offered_requests_per_s": served.workload.offered_rate_per_s,
        "throughput": {
            "requests_per_s": _rate(served, _by_replica(served, in_window)) if (measured | in_window).any() else None,
            "output_tokens_per_s": tokens_per_s,
            "output_tokens_per_s_per_device": None if tokens_per_s is None else tokens_per_s / devices,
        },
        "tokens": {
            "prompt": int(table["input_tokens"][arrived & ~rejected].sum()),
            "prompt_rejected": int(table["input_tokens"][rejected].sum()),
            "output": all_tokens,
            "output_in_window": tokens,
        },
        "latency_s": {
            **{name: of_requests(latencies[name]) for name in ("ttft", "tpot")},
            "itl": _pooled([log.itl for log in logs]),
            **{name: of_requests(latencies[name]) for name in ("e2e", "queue")},
        },
        "slo": _slo(served, slo, found, good, done),
        "ci95": intervals(
            served,
            {name: latencies[name].known_s for name in ("ttft", "tpot", "e2e")},
            PERCENTILES,
            arrival[good] if found and measured.any() else None,
            [(pj or 0) / PJ_PER_J for pj in passive_pj],
        ),
        "energy": {
            **_per_token(_joules(sum(energy.values()), passive_pj), all_tokens),
            "joules_by_category": {
                category: {kind: energy[category, kind] / PJ_PER_J for kind in ("dram", "compute")}
                for category in CATEGORIES
            },
        },
        "batch": {
            "mean_requests": _mean_requests(logs),
            "steps": steps,
            "decode_only_share": 1 - sum(log.mixed_steps for log in logs) / steps if steps else None,
        },
        "kv": _kv_use(served, served.pools),
        "time_share": {c: sum(log.category_fs[c] for log in logs) / busy if busy else None for c in CATEGORIES},
        "unit_busy_share": {unit: _unit_share(logs, unit, served.end_s) for unit in units},
        "unit_busy_share_of_busiest_device": {unit: _busiest_share(logs, unit, served.end_s) for unit in units},
        "busy_share": busy / capacity_fs if capacity_fs else None,
        "max_model_len": served.max_model_len,
        "end_s": served.end_s,
        "stability": stable.state,
        "in_system": {
            "at_last_arrival": stable.in_system,
            "waiting_at_last_arrival": stable.waiting,
            "growth_per_arrival": stable.growth,
            "residence_times": stable.residence_times,
        },
        "digest": digest(served),
        **({} if served.handovers is None else {"pools": _pools(served, served.handovers)}),
        **({} if served.faults is None else {"faults": _faults(served, served.faults)}),
    }


def of_requests(latency: Latency) -> dict[str, float | int | None]:
    """Distribution over the requests whose latency is known, and how many more there would be without the run's end."""
    return {**distribution(latency.known_s), "censored": int(latency.censored.sum())}


def _slo(
    served: Served,
    slo: SloSpec,
    found: Mapping[str, Outcomes],
    good: NDArray[np.bool_],
    done: NDArray[np.bool_],
) -> dict[str, Any]:
    """Attainment of each limit and of all, given the outcomes of the measured requests; goodput.

    `good` and `done` say of all requests whether they were measured and finished, the former with all limits met.
    """
    limits = slo.limits()
    counted = counts(found)
    known = {name: each["met"] + each["missed"] for name, each in counted.items()}
    met = {name: each["met"] / known[name] if known[name] else None for name, each in counted.items()}
    finished = int(done.sum())
    return {
        "limits": limits,
        "met": {name: share for name, share in met.items() if name != ALL},
        "known": known,
        "censored": {name: each["censored"] for name, each in counted.items()},
        "attainment": met.get(ALL),
        "attainment_of_completed": int(good.sum()) / finished if limits and finished else None,
        "goodput_requests_per_s": _rate(served, _by_replica(served, good)) if len(found.get(ALL, ())) else None,
    }


def digest(served: Served) -> str:
    """sha256 over every replica's executed steps and the request table: equal digests mean the same bits."""
    whole = hashlib.sha256()
    for log in served.logs:
        whole.update(bytes.fromhex(log.digest()))
    whole.update(served.table.structured().data)
    return whole.hexdigest()


def _logs_of(served: Served, pool: Pool) -> list[StepLog]:
    return [served.logs[replica] for replica in pool.numbers]


def _joules(active_pj: int, passive_pj: Sequence[int | None]) -> dict[str, float | None]:
    """Energy, active energy, and passive energy as far as it is known."""
    known = [pj for pj in passive_pj if pj is not None]
    return {
        "joules": (active_pj + sum(known)) / PJ_PER_J,
        "active_joules": active_pj / PJ_PER_J,
        "passive_joules": sum(known) / PJ_PER_J if known else None,
    }


def _per_token(joules: dict[str, float | None], tokens: int) -> dict[str, float | None]:
    """These energies, and each per output token."""

    def each(value: float | None) -> float | None:
        return value / tokens if value is not None and tokens else None

    return {**joules, **{f"{key}_per_output_token": each(value) for key, value in joules.items()}}


def _passive_pj(pool: Pool, logs: Sequence[StepLog], end_fs: int) -> int | None:
    """What a pool's devices draw whether they work or not; None where it is not known or left out."""
    passive = pool.plan.passive
    if passive is None:
        return None
    chain = sum(log.chain_fs for log in logs)
    # A device rests while the host is at work.
    working = sum(log.busy_fs - log.unit_fs.get(HOST, 0) for log in logs)
    return passive.energy_pj(len(logs) * end_fs - working, working, chain)


def _mean_requests(logs: Sequence[StepLog]) -> float | None:
    steps = sum(log.steps for log in logs)
    return sum(log.batch_steps for log in logs) / steps if steps else None


def _unit_share(logs: Sequence[StepLog], unit: str, end_s: float) -> float | None:
    """Busy share of a unit, over the replicas that have it."""
    busy = [log.unit_fs[unit] for log in logs if unit in log.unit_fs]
    capacity_fs = len(busy) * end_s * FS_PER_S
    return sum(busy) / capacity_fs if capacity_fs else None


def _busiest_share(logs: Sequence[StepLog], unit: str, end_s: float) -> float | None:
    """Busy share of a unit in the device where it has most to do."""
    most = max(log.busiest_unit_fs.get(unit, 0) for log in logs)
    return most / (end_s * FS_PER_S) if end_s else None


def _kv_use(served: Served, pools: Sequence[Pool]) -> dict[str, Any]:
    """Size of the KV caches of some pools, and how full they were."""
    blocks = sum(pool.kv_blocks(served.block_size) * pool.replicas for pool in pools)
    block_fs = blocks * served.end_s * FS_PER_S
    used = sum(log.twice_block_fs for pool in pools for log in _logs_of(served, pool))
    return {
        "capacity_tokens": sum(pool.kv_tokens(served.block_size) * len(pool.numbers) for pool in pools),
        "mean_use": used / (2 * block_fs) if block_fs else None,
        "peak_use": max(
            log.peak_blocks / pool.kv_blocks(served.block_size) for pool in pools for log in _logs_of(served, pool)
        ),
    }


def _pools(served: Served, handovers: HandoverFigures) -> dict[str, Any]:
    """Figures of each pool, and of what goes from one to the other."""
    found: dict[str, Any] = {}
    for pool in served.pools:
        logs = _logs_of(served, pool)
        capacity_fs = len(logs) * served.end_s * FS_PER_S
        active_pj = sum(sum(log.energy_pj.values()) for log in logs)
        busy = sum(log.busy_fs for log in logs)
        found[pool.name] = {
            "replicas": len(logs),
            "devices": pool.plan.devices * len(logs),
            "busy_share": busy / capacity_fs if capacity_fs else None,
            "unit_busy_share": {unit: _unit_share(logs, unit, served.end_s) for unit in logs[0].unit_fs},
            "unit_busy_share_of_busiest_device": {
                unit: _busiest_share(logs, unit, served.end_s) for unit in logs[0].unit_fs
            },
            "steps": sum(log.steps for log in logs),
            "mean_requests": _mean_requests(logs),
            "output_tokens": sum(log.tokens for log in logs),
            "kv": _kv_use(served, [pool]),
            **_joules(active_pj, [_passive_pj(pool, logs, served.end_fs)]),
        }
    busy_s = handovers.busy_fs / FS_PER_S
    return {
        **found,
        "handover": {
            "n": len(handovers.waits_ps),
            "bytes": handovers.bytes,
            "held": handovers.held,
            "waiting_s": distribution(np.array(handovers.waits_ps, np.int64) / PS_PER_S),
            "transfer_s": distribution(np.array(handovers.transfers_ps, np.int64) / PS_PER_S),
            "link_busy_share": {
                name: busy_s / (found[name]["replicas"] * served.end_s) if served.end_s else None
                for name in (PREFILL, DECODE)
            },
        },
    }


def _faults(served: Served, faults: Faults) -> dict[str, Any]:
    """What happened to the replicas while the run went on, and what it cost."""
    down_s = faults.down_fs(served.end_fs) / FS_PER_S
    replica_s = len(served.logs) * served.end_s
    return {
        "events": [event for event in faults.took_place if event["at_s"] < served.end_s],
        "replicas_left": faults.hope,
        "requeued": faults.requeued,
        "recomputed_tokens": faults.lost_tokens,
        "down_replica_s": down_s,
        "availability": 1 - down_s / replica_s if replica_s else None,
        "slowdowns": [
            {"replica": replica, "first_step": step, "factor": thousandths / NORMAL}
            for replica, step, thousandths in faults.slowdowns
            if step < served.logs[replica].steps
        ],
    }


def _in_window(served: Served, time: str) -> NDArray[np.bool_]:
    """Per request: whether that time of it lies in the window of its replica."""
    times = served.table[time]
    start_ps = -(-served.start_fs // FS_PER_PS)
    ends_ps = np.array([min(-(-log.window_fs[1] // FS_PER_PS), _LATEST_PS) for log in served.logs])
    return np.asarray((times >= start_ps) & (times < ends_ps[served.table["replica"]]))


def _by_replica(served: Served, rows: NDArray[np.bool_] | NDArray[np.intp]) -> list[int]:
    """How many of those requests each replica has."""
    found: list[int] = np.bincount(served.table["replica"][rows], minlength=len(served.logs)).tolist()
    return found


def _rate(served: Served, counts: Iterable[int]) -> float | None:
    """What replicas counted inside their windows, per second: each replica's own rate, added up; None without time."""
    lengths = [(end - served.start_fs) / FS_PER_S for end in served.ends_fs]
    if not all(lengths):
        return None
    # Replicas without clients come last, and have neither a window nor anything to count.
    return math.fsum(count / length for count, length in zip(counts, lengths, strict=False))


def _pooled(histograms: list[DurationHistogram]) -> dict[str, float | int | None]:
    merged = DurationHistogram.merged(histograms)
    found: dict[str, float | int | None] = {"mean": merged.mean_s()}
    for percent in PERCENTILES:
        found[f"p{percent}"] = merged.percentile_s(percent)
    return {**found, "n": merged.count}
