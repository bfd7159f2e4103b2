"""Fills a run's metrics while it goes, from what it shows at the ends of windows."""

from __future__ import annotations

import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.cluster.metrics.families import ALL_ENGINES, PREFIX_CACHE, SPEC_DECODE
from pimserve.cluster.metrics.layout import HANDOVER, Layout
from pimserve.cluster.metrics.limit_metrics import LimitMetrics
from pimserve.cluster.metrics.part_metrics import part_metrics
from pimserve.cluster.metrics.run_metrics import RunMetrics
from pimserve.cluster.metrics.tier_families import KV_LOADS, KV_TIERS
from pimserve.cluster.run.awaited_gaps import AwaitedGaps
from pimserve.cluster.scenario.placement_spec import GROUPS
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S, HOST
from pimserve.loadgen.objectives import Objectives
from pimserve.scheduler.at_clients import Senders
from pimserve.scheduler.control import Ledger, ReplicaState, RunView
from pimserve.scheduler.group_times import IDLE, group_times
from pimserve.scheduler.handover import Link
from pimserve.scheduler.latencies import Latencies
from pimserve.scheduler.outcomes import counts, cut_off, outcomes
from pimserve.scheduler.requests import (
    FINISHED,
    REJECT_REASONS,
    REJECTED,
    REMOTE,
    WAITING,
    Columns,
    preemptions_by_cause,
)
from pimserve.scheduler.router_protocol import OTHER, REASONS
from pimserve.scheduler.stability import STATES, stability
from pimserve.scheduler.window import MeasuredWindow

_LATENCIES = {
    "ttft": "pimserve_time_to_first_token_seconds",
    "tpot": "pimserve_time_per_output_token_seconds",
    "e2e": "pimserve_e2e_request_latency_seconds",
    "queue": "pimserve_request_queue_time_seconds",
    "prefill": "pimserve_request_prefill_time_seconds",
    "decode": "pimserve_request_decode_time_seconds",
}
_AT_CLIENTS = {
    "sessions_active": "pimserve_sessions_active",
    "sessions_thinking": "pimserve_sessions_thinking",
    "users_thinking": "pimserve_users_thinking",
    "requests_waiting": "pimserve_client_requests_waiting",
}
_GAUGES = {
    "pimserve_engine_up": "up",
    "pimserve_requests_running": "running",
    "pimserve_requests_waiting": "waiting",
    "pimserve_requests_decoding": "decoding",
    "pimserve_context_tokens": "context_tokens",
    "pimserve_kv_cache_used_blocks": "kv_blocks_used",
    "pimserve_kv_cache_blocks": "kv_blocks",
}


class MetricsFeed:
    """Takes in a run, window by window; `latest` may be called from any thread.

    Args:
        metrics: of the run at its beginning (`metrics_of`).
        objectives: limits.
        frontend_ps: time in front of the scheduler, which TTFT and E2E hold.
    """

    def __init__(self, metrics: RunMetrics, objectives: Objectives, *, frontend_ps: int = 0) -> None:
        self._facts: Callable[[], Mapping[str, Any]] | None = None
        self._metrics = metrics
        self._requests = RequestMetrics(metrics, objectives, frontend_ps=frontend_ps)
        self._ledgers = LedgerMetrics(metrics)
        self._awaited = AwaitedGaps(wanted=objectives.of_longest_gaps)
        self._lock = threading.Lock()
        self._began_s = time.monotonic()
        self._now_fs = 0
        self._fresh = True

    def watch(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Take in the run's hosts too, of which `facts` tells (`Runtime.facts`)."""
        self._facts = facts

    def take(self, view: RunView, ledgers: Sequence[Ledger] = ()) -> None:
        """Take in the window that has ended.

        Args:
            view: of the run.
            ledgers: of all replicas, once in a while and when it is the last window; else none.
        """
        left = view.left
        if self._fresh:  # it may be continued: then others have left before
            left, self._fresh = np.flatnonzero(view.table["status"] != WAITING), False
        self._now_fs = max(self._now_fs, view.now_fs)  # the last window may end after the last step
        with self._lock:
            measured = self._requests.add(view.table.columns, left, view.measured)
            self._judge(view, measured, ledgers)
            self._states(view.replicas)
            # Of whoever has requests, the step or span under way is not in its ledger yet.
            self._ledgers.set(ledgers, self._now_fs, {state.replica for state in view.replicas if state.outstanding})
            self._set("pimserve_virtual_time_seconds_total", self._now_fs / FS_PER_S)
            self._set("pimserve_wall_time_seconds_total", time.monotonic() - self._began_s)
            self._set("pimserve_requests_expected", len(view.table))
            self._set("pimserve_requests_arrived_total", view.arrived)
            self._set("pimserve_sim_windows_total", view.window)
            self._decisions(view.decisions)
            if ledgers:
                self._set("pimserve_sim_memory_bytes", _memory_bytes())
                self._requests.show_clients(view.table.columns, Senders.of(view.clients), view.now_fs // FS_PER_PS)
            if self._facts is not None and ledgers:
                facts = self._facts()
                self._set("pimserve_actor_restarts_total", facts["recoveries"])
                self._set("pimserve_audit_checks_total", facts["audited_spans"])

    def end(self, view: RunView) -> None:
        """Take in what the end of the run, which has been taken, leaves."""
        with self._lock:
            ledgers, end_ps = view.ledgers(), view.now_fs // FS_PER_PS
            self._judge(view, self._requests.end(view.table.columns, view.measured, end_ps), ledgers, end_ps)
            self._ledgers.set(ledgers, self._now_fs)

    def latest(self) -> RunMetrics:
        """The metrics as of the last window."""
        with self._lock:
            return self._metrics.copy()

    def _judge(self, view: RunView, measured: IntArray, ledgers: Sequence[Ledger], end_ps: int = 0) -> None:
        known = self._awaited.known(measured, ledgers, len(view.table))
        self._requests.judge(view.table.columns, *known, end_ps)
        self._requests.show_limits(ledgers)

    def _set(self, name: str, value: float) -> None:
        self._metrics.values[name][0] = value

    def _decisions(self, decisions: Mapping[tuple[int, str], int]) -> None:
        keys = self._metrics.layout.keys["pimserve_router_decisions_total"]
        found: Counter[tuple[str, str]] = Counter()
        for (replica, reason), count in decisions.items():
            of = reason if reason in REASONS else OTHER
            found[str(replica), of] += count
            found[ALL_ENGINES, of] += count
        self._metrics.values["pimserve_router_decisions_total"][:] = [found[engine, why] for _, engine, _, why in keys]

    def _states(self, states: Sequence[ReplicaState]) -> None:
        values = self._metrics.values
        for name, attribute in _GAUGES.items():
            values[name][:] = [getattr(state, attribute) for state in states]
        caches = [state.prefix_cache for state in states if state.prefix_cache is not None]
        for name, attribute in PREFIX_CACHE.items():
            values[name][:] = [getattr(cache, attribute) for cache in caches]
        below = [state.kv_tiers for state in states if state.kv_tiers is not None]
        for name, attribute in KV_LOADS.items():
            values[name][:] = [getattr(tiers, attribute) for tiers in below]
        for name, attribute in KV_TIERS.items():
            values[name][:] = [getattr(tier, attribute) for tiers in below for tier in tiers.tiers]
        drafts = [state.spec_decode for state in states if state.spec_decode is not None]
        for name, attribute in SPEC_DECODE.items():
            values[name][:] = [getattr(each, attribute) for each in drafts]
        set_usage(values)


def set_usage(values: Mapping[str, NDArray[Any]]) -> None:
    """What follows from the KV blocks that are used."""
    used, blocks = values["pimserve_kv_cache_used_blocks"], values["pimserve_kv_cache_blocks"]
    ratio = np.divide(used, blocks, out=np.zeros_like(used), where=blocks > 0)
    values["pimserve_kv_cache_usage_ratio"][:] = ratio
    values["pimserve_device_kv_bytes"][:] = ratio * values["pimserve_device_kv_capacity_bytes"]


class RequestMetrics:
    """What requests that have left come to.

    Args:
        metrics: to fill.
        objectives: limits.
        frontend_ps: time in front of the scheduler, which TTFT and E2E hold.
    """

    def __init__(self, metrics: RunMetrics, objectives: Objectives, *, frontend_ps: int) -> None:
        self._metrics = metrics
        self._objectives = objectives
        self._frontend_ps = frontend_ps
        self._limits = LimitMetrics(metrics, objectives)
        self._rows = np.array(metrics.layout.histogram_rows, np.int64)
        self._handover, self._parts = metrics.layout.handover, tuple(part_metrics(metrics))
        links = _places(metrics.layout, "pimserve_link_bytes_total")
        self._brought = {engine: index for (engine, operator, _), index in links.items() if operator == HANDOVER}

    def add(self, columns: Columns, left: IntArray, window: MeasuredWindow) -> IntArray:
        """Take in requests, by their numbers, that have left; definitions as in scheduler/latencies.py.

        Latencies are of those in the window, all else is of all. Returns the former, who are to be judged.
        """
        if not len(left):
            return left
        metrics = self._metrics
        done = left[columns["status"][left] == FINISHED]
        metrics.values["pimserve_requests_total"] += [len(done), len(left) - len(done)]
        reasons = columns["reject_reason"][left[columns["status"][left] == REJECTED]]
        metrics.values["pimserve_admission_rejections_total"] += np.bincount(reasons, minlength=len(REJECT_REASONS))[1:]
        replica, tokens = columns["replica"][done], columns["output_tokens"][done]
        engines = len(metrics.layout.engines)
        metrics.values["pimserve_engine_requests_total"] += np.bincount(replica, minlength=engines)
        for cause, counted in enumerate(preemptions_by_cause(columns).values()):
            by_engine = metrics.values["pimserve_preemptions_total"].reshape(engines, -1)
            by_engine[:, cause] += np.bincount(replica, counted[done], minlength=engines)
        if self._handover is not None:
            brought = columns["local_prefill"][done] == REMOTE
            self._count_handovers(self._handover, replica[brought], columns["input_tokens"][done[brought]])
        metrics.observe("pimserve_request_prompt_tokens", self._rows[replica], columns["input_tokens"][done])
        metrics.observe("pimserve_request_generation_tokens", self._rows[replica], tokens)
        measured = left[window.holds(columns, left)]
        self._latencies(columns, measured, end_ps=0)
        return measured

    def end(self, columns: Columns, window: MeasuredWindow, end_ps: int) -> IntArray:
        """Take in what is known of the requests that the end of the run has cut off, and its state.

        Returns those of them in the window, who are to be judged.
        """
        rest = cut_off(columns)
        measured = rest[window.holds(columns, rest)]
        self._latencies(columns, measured, end_ps)
        state = stability(columns, window, end_ps).state
        self._metrics.values["pimserve_run_stability"][:] = [name == state for name in STATES]
        return measured

    def judge(
        self, columns: Columns, requests: IntArray, longest_gap_ps: IntArray | None = None, end_ps: int = 0
    ) -> None:
        """Count whether measured requests met the SLO; with their longest gaps (n,), where a limit is of these."""
        latencies = Latencies(
            columns, requests, frontend_ps=self._frontend_ps, end_ps=end_ps, longest_gap_ps=longest_gap_ps
        )
        by_limit = outcomes(latencies, self._objectives)
        self._count_slo(counts(by_limit))
        for parts in self._parts:
            parts.add(columns, requests, latencies, by_limit)

    def show_limits(self, ledgers: Sequence[Ledger]) -> None:
        """Say what limits at percentiles come to by now; of gaps between tokens, as the last ledgers had them."""
        self._limits.show(ledgers)

    def show_clients(self, columns: Columns, senders: Senders, now_ps: int) -> None:
        """Say what waits at the clients at that time."""
        at = senders.at(columns, now_ps, self._frontend_ps)
        for name, family in _AT_CLIENTS.items():
            self._metrics.values[family][0] = getattr(at, name)

    def _latencies(self, columns: Columns, requests: IntArray, end_ps: int) -> None:
        """Latencies of requests that have left, or that the end of the run has cut off."""
        metrics = self._metrics
        latencies = Latencies(columns, requests, frontend_ps=self._frontend_ps, end_ps=end_ps)
        row = self._rows[columns["replica"][requests]]
        for name, family in _LATENCIES.items():
            latency = latencies[name]
            metrics.observe(family, row[latency.known], latency.known_s)
        self._limits.add(latencies)

    def _count_handovers(self, link: Link, replica: NDArray[Any], tokens: NDArray[Any]) -> None:
        """Whoever finished in the decode pool brought the KV cache of its prompt there."""
        sizes = link.bytes_per_token * tokens.astype(np.int64)
        sizes += link.window_bytes_per_token * np.minimum(tokens, link.window_tokens)
        brought = np.bincount(replica, sizes, minlength=len(self._metrics.layout.engines))
        for engine, index in self._brought.items():
            self._metrics.values["pimserve_link_bytes_total"][index] += brought[engine]

    def _count_slo(self, outcomes_by_limit: Mapping[str, Mapping[str, int]]) -> None:
        """Met, missed and censored, by limit."""
        values, keys = self._metrics.values, self._metrics.layout.keys
        for index, (_, slo, result) in enumerate(keys["pimserve_slo_requests_total"]):
            values["pimserve_slo_requests_total"][index] += outcomes_by_limit[slo][result]
        for index, (_, slo) in enumerate(keys["pimserve_slo_censored_requests_total"]):
            values["pimserve_slo_censored_requests_total"][index] += outcomes_by_limit[slo]["censored"]


class LedgerMetrics:
    """What the steps of each replica come to.

    Args:
        metrics: to fill.
    """

    def __init__(self, metrics: RunMetrics) -> None:
        self._metrics = metrics
        layout = metrics.layout
        self._busy = _places(layout, "pimserve_device_busy_seconds_total")
        self._time = _places(layout, "pimserve_operator_time_seconds_total")
        self._energy = _places(layout, "pimserve_device_energy_joules_total")
        self._group_busy = _places(layout, "pimserve_group_busy_seconds_total")
        self._group_idle = _places(layout, "pimserve_group_idle_seconds_total")
        # By replica, its series of what goes over links with tokens: the family, its place there, and how much of it.
        self._links: dict[int, list[tuple[str, int, tuple[str, str], tuple[float, float]]]] = {}
        for what, sent in (("bytes", layout.link_bytes), ("tokens", layout.link_tokens)):
            name = f"pimserve_link_{what}_total"
            for (engine, operator, _), index in _places(layout, name).items():
                if operator != HANDOVER:
                    self._links.setdefault(engine, []).append((name, index, (operator, what), sent[index]))

    def set(self, ledgers: Sequence[Ledger], now_fs: int, at_work: Set[int] = frozenset()) -> None:
        """Ledgers of all replicas, as of that time; none changes nothing. Those `at_work` do not rest after theirs."""
        if not ledgers:
            return
        metrics, layout = self._metrics, self._metrics.layout
        values = metrics.values
        names = ("pimserve_inter_token_latency_seconds", "pimserve_step_duration_seconds", "pimserve_step_tokens")
        for name in names:
            metrics.counts[name][:] = 0
            metrics.sums[name][:] = 0
        values["pimserve_sim_events_total"][0] = sum(ledger.spans for ledger in ledgers)
        for ledger in ledgers:
            index = ledger.replica
            values["pimserve_steps_total"][index] = ledger.steps
            values["pimserve_prompt_tokens_total"][index] = ledger.prompt_tokens
            values["pimserve_generation_tokens_total"][index] = ledger.output_tokens
            row = layout.histogram_rows[index]
            for name, histogram in zip(names, (ledger.itl, ledger.durations), strict=False):
                metrics.counts[name][row] += histogram.counts(layout.bounds[name])
                metrics.sums[name][row] += histogram.sum_s
            metrics.counts[names[2]][row] += ledger.step_tokens
            metrics.sums[names[2]][row] += ledger.computed_tokens
            for name, busy in (("device", ledger.busy_s), ("busiest_device", ledger.busiest_s)):
                for unit, busy_s in busy.items():
                    values[f"pimserve_{name}_busy_seconds_total"][self._busy[index, unit]] = busy_s
            for operator, time_s in ledger.operator_s.items():
                values["pimserve_operator_time_seconds_total"][self._time[index, operator]] = time_s
            energy = values["pimserve_device_energy_joules_total"]
            more_of: Mapping[Any, float] = ledger.link_more
            for (operator, part), joules in ledger.joules.items():
                energy[self._energy[index, operator, part]] = joules
            for name, place, key, (computed, sampled) in self._links.get(index, ()):
                more = more_of.get(key, 0.0)
                values[name][place] = computed * ledger.computed_tokens + sampled * ledger.sampled_rows + more
            if ledger.stage_s:
                until_fs = ledger.clock_fs if index in at_work else max(now_fs, ledger.clock_fs)
                self._set_groups(ledger, until_fs / FS_PER_S)
            if ledger.passive_joules is not None:
                idle_s = max(0, now_fs - ledger.clock_fs) / FS_PER_S
                energy[self._energy[index, "passive", "passive"]] = ledger.passive_joules + ledger.idle_w * idle_s

    def _set_groups(self, ledger: Ledger, until_s: float) -> None:
        """What the groups of a replica's devices did with the time until then."""
        values, index = self._metrics.values, ledger.replica
        times = group_times(ledger.step_s, ledger.busy_s.get(HOST, 0.0), ledger.stage_s, until_s)
        for group, spent in zip(GROUPS, times, strict=True):
            values["pimserve_group_busy_seconds_total"][self._group_busy[index, group]] = spent.working
            for cause in IDLE:
                place = self._group_idle[index, group, cause]
                values["pimserve_group_idle_seconds_total"][place] = getattr(spent, cause)


def _places(layout: Layout, name: str) -> dict[tuple[Any, ...], int]:
    """Where the values of a device family are, by replica and what it has for labels besides."""
    return {(int(key[1]), *key[4:]): index for index, key in enumerate(layout.keys[name])}


def _memory_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # not Linux: the peak is what there is
