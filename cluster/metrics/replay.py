"""The metrics that a finished run had at moments of its simulated time, from its results folder.

Requests count from the moment at which they left, steps from that of the span of equal steps that holds them: spans
last up to some hundred steps, so that a moment may be as many ahead. What results do not tell is not a number: which
prefill replica a request waited for, what each prefix cache and its tiers found, when a router chose what, how many
drafts were accepted where prompts were computed again, the context of those that wait while prompts alone are computed,
and the wall clock before the end. Nor do they tell how long requests that were preempted, handed over or moved waited
between two tokens: inter-token latencies are those of steps, and of steps of prompts that were waited for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.metrics.families import PREFIX_CACHE, SPEC_DECODE
from pimserve.cluster.metrics.feed import LedgerMetrics, RequestMetrics, set_usage
from pimserve.cluster.metrics.run_metrics import RunMetrics, metrics_of
from pimserve.cluster.metrics.tier_families import KV_LOADS, KV_TIERS
from pimserve.cluster.run.history import History
from pimserve.cluster.run.replica_progress import ReplicaProgress
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.control import Ledger
from pimserve.scheduler.fleet import PREFILL
from pimserve.scheduler.requests import FINISHED, REJECTED, REMOTE
from pimserve.scheduler.summary_sections import FaultThatTookPlace


def replay(
    history: History, run_id: str, times_s: Sequence[float], *, per_engine: bool = False
) -> Iterator[RunMetrics]:
    """The metrics at each of the times; the same object each time, changed.

    Args:
        history: the run.
        run_id: label of its series.
        times_s: simulated seconds, ascending; the last one not before the run's end.
        per_engine: histograms of each engine, also where there are so many that they are merged.

    Raises:
        InputError: the tables are not those that the run wrote; some of it shows at the last moment only.
    """
    prepared, requests = history.prepared, history.requests
    metrics = metrics_of(prepared, run_id, per_engine=per_engine)
    metrics.values["pimserve_requests_expected"][0] = len(requests)
    finished = RequestMetrics(metrics, prepared.objectives, frontend_ps=prepared.frontend_ps)
    ledgers = LedgerMetrics(metrics)
    columns = history.columns
    left_ps = np.where(columns["status"] == REJECTED, columns["arrival_ps"], columns["finish_ps"])
    gone = np.flatnonzero((columns["status"] == REJECTED) | (columns["status"] == FINISHED))
    gone = gone[np.argsort(left_ps[gone], kind="stable")]
    logs = [ReplicaProgress(history, replica) for replica in range(len(history.spans))]
    states, drafts = _States(history, metrics, logs), _Drafts(history, metrics)
    begin, ended = 0, False

    def judge(mine: NDArray[np.int64], end_ps: int = 0) -> None:
        gaps_ps = history.longest_gap_ps
        finished.judge(columns, mine, None if gaps_ps is None else gaps_ps[mine], end_ps)

    for time_s in times_s:
        now_ps = round(time_s * PS_PER_S)
        last = time_s >= history.end_s
        end = len(gone) if last else int(np.searchsorted(left_ps[gone], now_ps, side="right"))
        judge(finished.add(columns, gone[begin:end], history.measured))
        begin = end
        if last and not ended:
            judge(finished.end(columns, history.measured, now_ps), now_ps)
            ended = True
        done = [log.until(now_ps, last=last) for log in logs]
        finished.show_limits(done)
        ledgers.set(done, round(time_s * FS_PER_S))
        drafts.set(done)
        states.at(now_ps)
        finished.show_clients(columns, history.senders, now_ps)
        values = metrics.values
        values["pimserve_virtual_time_seconds_total"][0] = time_s
        arrived = (columns["arrival_ps"] >= 0) & (columns["arrival_ps"] <= now_ps)
        values["pimserve_requests_arrived_total"][0] = int(arrived.sum())
        simulator = history.summary.simulator
        spread = simulator.spread or {}
        values["pimserve_wall_time_seconds_total"][0] = simulator.loop_s if last else np.nan
        values["pimserve_sim_windows_total"][0] = np.nan
        values["pimserve_sim_memory_bytes"][0] = simulator.peak_memory_mb * 1e6 if last else np.nan
        values["pimserve_actor_restarts_total"][0] = spread.get("recoveries", 0) if last else np.nan
        values["pimserve_audit_checks_total"][0] = spread.get("audited_spans", 0) if last else np.nan
        if last:
            history.check_digest([log.digest() for log in logs])
        yield metrics


class _States:
    """How full replicas were."""

    def __init__(self, history: History, metrics: RunMetrics, logs: Sequence[ReplicaProgress]) -> None:
        self._spans = history.spans
        self._decoding = [log.waits.decoding for log in logs]
        self._columns = history.columns
        self._values = metrics.values
        self._pooled = len(history.prepared.pools) > 1
        self._values["pimserve_kv_cache_blocks"][:] = history.prepared.kv_blocks
        for name in (*PREFIX_CACHE, *KV_TIERS, *KV_LOADS, "pimserve_router_decisions_total"):
            self._values[name][:] = np.nan
        faults = history.summary.faults
        self._down = down_s([] if faults is None else faults.events)
        self._prefill = np.array([role == "prefill" for _, role in metrics.layout.engines])

    def at(self, now_ps: int) -> None:
        """Fill in the gauges."""
        values, columns = self._values, self._columns
        rows = [self._span_at(spans, now_ps) for spans in self._spans]
        none = np.zeros(1, self._spans[0].dtype)[0]
        spans = [none if row is None else mine[row] for row, mine in zip(rows, self._spans, strict=True)]
        decoding = [0 if row is None else mine[row] for row, mine in zip(rows, self._decoding, strict=True)]
        values["pimserve_requests_decoding"][:] = decoding
        values["pimserve_requests_running"][:] = [n + row["chunks"] for n, row in zip(decoding, spans, strict=True)]
        values["pimserve_context_tokens"][:] = [
            row["context"] if n == row["decodes"] else np.nan for n, row in zip(decoding, spans, strict=True)
        ]
        values["pimserve_kv_cache_used_blocks"][:] = [row["blocks_begin"] for row in spans]
        set_usage(values)
        now_s = now_ps / PS_PER_S
        values["pimserve_engine_up"][:] = 1
        values["pimserve_engine_up"][[replica for replica, since, until in self._down if since <= now_s < until]] = 0
        scheduled = columns["first_scheduled_ps"]
        arrived = (columns["arrival_ps"] >= 0) & (columns["arrival_ps"] <= now_ps)
        waits = arrived & (columns["status"] != REJECTED) & ((scheduled < 0) | (scheduled > now_ps))
        waiting = np.bincount(columns["replica"][waits], minlength=len(rows)).astype(float)
        if self._pooled:  # the table has the replica that decodes
            local = waits & (columns["local_prefill"] != REMOTE)
            waiting = np.where(self._prefill, np.nan, np.bincount(columns["replica"][local], minlength=len(rows)))
        values["pimserve_requests_waiting"][:] = waiting

    @staticmethod
    def _span_at(spans: NDArray[Any], now_ps: int) -> int | None:
        """The span that is under way; None while the replica rests."""
        index = int(np.searchsorted(spans["begin_ps"], now_ps, side="right")) - 1
        if index < 0 or spans["begin_ps"][index] + spans["duration_fs"][index] // 1000 <= now_ps:
            return None
        return index


class _Drafts:
    """What came of drafts, of the steps of replicas that decode.

    A step emits a token of each decoding request, what it accepts of drafts, and one of each prompt that is complete
    with it. Results tell when prompts were complete for the first time; where some were computed again, the sum is not
    that of the summary, and how many drafts each replica accepted is not known.
    """

    def __init__(self, history: History, metrics: RunMetrics) -> None:
        self._values = metrics.values
        found = history.summary.spec_decode
        engines = [] if found is None else [number for number, role in metrics.layout.engines if role != PREFILL]
        columns = history.columns
        here = columns["first_token_ps"] >= 0
        if len(history.prepared.pools) > 1:
            here &= columns["local_prefill"] != REMOTE
        self._complete_ps = {
            engine: np.sort(columns["first_token_ps"][here & (columns["replica"] == engine)]) for engine in engines
        }
        spans = {engine: history.spans[engine] for engine in engines}
        self._drafts = {engine: np.cumsum([0, *rows["decodes"] * rows["steps"]]) for engine, rows in spans.items()}
        spec = history.prepared.scenario.scheduler.speculative
        self._each = 0 if spec is None else spec.num_speculative_tokens
        emitted = sum(int(rows["outputs"] @ rows["steps"]) for rows in spans.values())
        drafts = sum(int(sums[-1]) for sums in self._drafts.values())
        accepted = emitted - drafts - sum(map(len, self._complete_ps.values()))
        self._known = found is not None and accepted == found.accepted_tokens

    def set(self, ledgers: Sequence[Ledger]) -> None:
        """Fill in the counters, of the steps in these ledgers of all replicas."""
        drafts = np.array([sums[ledgers[engine].spans] for engine, sums in self._drafts.items()])
        complete = [
            np.searchsorted(times_ps, ledgers[engine].clock_fs // FS_PER_PS, side="right")
            for engine, times_ps in self._complete_ps.items()
        ]
        emitted = np.array([ledgers[engine].output_tokens for engine in self._drafts])
        counted = {
            "drafts": drafts,
            "draft_tokens": drafts * self._each,
            "accepted_tokens": emitted - drafts - complete if self._known else np.nan,
        }
        for name, attribute in SPEC_DECODE.items():
            self._values[name][:] = counted[attribute]


def down_s(events: Sequence[FaultThatTookPlace]) -> list[tuple[int, float, float]]:
    """When replicas were down: (replica, since, until), s; these may overlap, as devices fail one by one."""
    return [
        (
            event.replica,
            event.at_s if event.took_effect_s is None else event.took_effect_s,
            np.inf if event.for_s is None else event.at_s + event.for_s,
        )
        for event in events
        if event.kind == "fail"
    ]
