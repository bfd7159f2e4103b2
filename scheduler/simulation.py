"""Serve a workload on replicas of one kind, or of one for prefill and another for decode."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import BoolArray, IntArray
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S, CostPlan
from pimserve.device_models.routing import Routing
from pimserve.errors import InputError
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.autoscaling import AutoscalingSpec
from pimserve.scheduler.clients import Clients
from pimserve.scheduler.clock import Clock
from pimserve.scheduler.clock_range import clock_ends, out_of_range
from pimserve.scheduler.commands import Journal
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import Control
from pimserve.scheduler.faults import Faults, FaultSpec
from pimserve.scheduler.fleet import DECODE, Fleet, Pool, RowSink
from pimserve.scheduler.follow_bounds import FollowBounds
from pimserve.scheduler.handover import HandoverFigures, Link
from pimserve.scheduler.latencies import Latencies
from pimserve.scheduler.load_shedding import check_shedding
from pimserve.scheduler.longest_gaps import LongestGaps
from pimserve.scheduler.prefix_figures import PrefixFigures, together
from pimserve.scheduler.queue_classes import queue_classes
from pimserve.scheduler.requests import FOREVER, REJECTED, SERVABLE, RequestTable
from pimserve.scheduler.router_books import Decisions
from pimserve.scheduler.run_requests import (
    check_kv_caches,
    check_together,
    dealt_out,
    make_clients,
    make_scalers,
    measured_window,
    run_table,
    sent_on_ends,
)
from pimserve.scheduler.sessions import Sessions
from pimserve.scheduler.shard import Shard
from pimserve.scheduler.shard_port import ShardPort
from pimserve.scheduler.spec_decode_figures import SpecDecodeFigures, drafts_together
from pimserve.scheduler.steplog import StepLog
from pimserve.scheduler.swap_space import SwapSpace
from pimserve.scheduler.tier_figures import ServedTiers

_CLOCK_END_FS = 2**63 * FS_PER_PS
_WATCHED_WALL_S = 0.1  # of a window, where somebody watches or checkpoints are kept


@dataclass(frozen=True)
class Served:
    """What came of a run.

    `dealt` says whether it was a closed loop of which each replica had its own clients.

    `ends_fs` says where the measured window ends on each replica that gets requests. In an open loop that is one time
    for all. In a closed loop a replica's window ends when its own clients have sent their last request: replicas do not
    influence each other there, and one that goes on longer is simply measured for longer.

    `max_model_len` is the most tokens that a request may have, for whatever reason; `limits_tokens` has the most by
    reason, as in `requests.REJECT_REASONS`.
    """

    table: RequestTable
    logs: list[StepLog]
    workload: Workload
    start_fs: int
    ends_fs: tuple[int, ...]
    trimmed: bool
    dealt: bool
    end_fs: int
    pools: tuple[Pool, ...]
    block_size: int
    max_model_len: int
    limits_tokens: Mapping[str, int]
    loop_s: float
    handovers: HandoverFigures | None = None
    clients: Clients | None = None
    faults: Faults | None = None
    scaled: Faults | None = None
    prefixes: PrefixFigures | None = None
    spec_decode: SpecDecodeFigures | None = None
    router: str = ""
    swap: SwapSpace | None = None
    decisions: Decisions = field(default_factory=Counter)
    tiers: ServedTiers | None = None

    @property
    def end_s(self) -> float:
        """When the run ended: with its last step, or later where requests were left (`Clock.end_fs`)."""
        return self.end_fs / FS_PER_S

    def latencies(self, requests: BoolArray | IntArray) -> Latencies:
        """Latencies of some requests that arrived, as the end of the run has them."""
        return Latencies(
            self.table.columns,
            requests,
            frontend_ps=self.pools[0].plan.frontend_ps,
            end_ps=self.end_fs // FS_PER_PS,
            longest_gap_ps=None if (gaps_fs := self.longest_gaps_fs) is None else gaps_fs[requests] // FS_PER_PS,
        )

    @cached_property
    def longest_gaps_fs(self) -> IntArray | None:
        """(n,) the longest gap between tokens of each request, 0 without any; None where nobody wanted them."""
        return LongestGaps.of_all((log.longest for log in self.logs), len(self.table))

    @property
    def window_s(self) -> tuple[float, float]:
        """The measured part of the run: its start, and the earliest end on a replica."""
        return self.start_fs / FS_PER_S, min(self.ends_fs) / FS_PER_S


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where and in which pieces a run goes on. Nothing of it changes a bit of the result, but commands of `control`.

    Args:
        shards: makes the shards; None: one, in this process.
        control: watches and changes the run.
        journal: keeps the commands of `control`.
        checkpoints: keeps the run's state now and then, and has it from before an interruption.
        window_wall_s: how long a window should last on the wall clock, where nothing else says; None: no matter.
        flush: executed steps are handed on at the end of each window.
    """

    shards: Callable[[Fleet, RequestTable, RowSink | None], Sequence[ShardPort]] | None = None
    control: Control | None = None
    journal: Journal | None = None
    checkpoints: Checkpoints | None = None
    window_wall_s: float | None = None
    flush: bool = False

    @property
    def alone(self) -> bool:
        """In this process, and nobody gives commands."""
        return self.shards is None and self.control is None and self.journal is None


class Checkpoints(Protocol):
    """Keeps the state of a run."""

    def load(self) -> tuple[dict[str, Any], NDArray[Any]] | None:
        """The last state that was saved, and the rows of the request table; None for a fresh run."""

    def due(self) -> bool:
        """Whether it is time for another."""

    def save(self, state: dict[str, Any], rows: NDArray[Any]) -> None:
        """Keep a state, as JSON can hold it, and the rows of the request table that belong to it."""


def simulate(
    pools: Sequence[Pool],
    workload: Workload,
    spec: SchedulerSpec,
    *,
    max_model_len: int,
    link: Link | None = None,
    routing: Routing = Routing(),  # noqa: B008 frozen
    seed: int = 0,
    warmup_s: float = 0.0,
    cooldown_s: float = 0.0,
    max_time_s: float | None = None,
    write_rows: RowSink | None = None,
    progress: Callable[[int], None] | None = None,
    deployment: Deployment = Deployment(),
    faults: FaultSpec = FaultSpec(),  # noqa: B008 frozen
    longest_gaps: bool = False,
    slo: SloSpec = SloSpec(),  # noqa: B008 frozen
    autoscaling: AutoscalingSpec | None = None,
) -> Served:
    """Serve `workload` on the replicas of one pool, or of two.

    Args:
        pools: one serves requests where they come; of two the first hands them to the second after their first token.
        workload: requests.
        spec: scheduler settings.
        max_model_len: longest request, prompt and output, in tokens, if a data-parallel group's KV cache holds it.
        link: from the first pool to the second.
        routing: how tokens choose experts.
        seed: of expert routing, and of predicted output lengths.
        warmup_s: earlier requests are not measured; in a closed loop, nor are any after the last one of a replica.
        cooldown_s: nor are those that arrive in this time before the last arrival (open loop only).
        max_time_s: simulated time after which no step starts; requests still there are unfinished.
        write_rows: takes executed steps.
        progress: called now and then with the number of requests that have left.
        deployment: where and in which pieces it goes on.
        faults: what happens to the replicas.
        longest_gaps: whether the longest gap between tokens of each request is wanted.
        slo: limits of requests, for policies that go by them.
        autoscaling: replicas that join and leave.

    Raises:
        InputError: settings that do not go together, such as a warm-up that leaves nothing to measure.
    """
    check_kv_caches(spec, pools)
    window_fs = measured_window(workload, warmup_s, cooldown_s)
    check_together(spec, classes := queue_classes(workload.classes, slo), pools=link is not None)
    check_shedding(spec, classes, dependent=sent_on_ends(workload))
    dealt = dealt_out([pool.replicas for pool in pools], spec, faults, think=workload.think_ps is not None)
    concurrency = workload.concurrency if dealt else None
    fleet = Fleet(tuple(pools), spec, max_model_len, routing, seed, window_fs, concurrency, link, longest_gaps, classes)
    scalers = make_scalers(autoscaling, pools, workload, slo)
    schedule = Faults(faults, [pool.plan.devices for pool in pools for _ in pool.numbers], seed, scalers)
    table, turns = run_table(workload, fleet, max_time_s)
    _check_progress(faults, pools if max_time_s is None else (), table)
    stop_fs = FOREVER if max_time_s is None else round(max_time_s * FS_PER_S)
    here = link is None and not schedule.any and deployment.alone
    clients = partial(make_clients, workload, fleet, turns=turns, here=here)
    clock = _clock(fleet, table, clients, deployment, schedule, stop_fs, write_rows, progress)
    return _served(clock, workload, trimmed=warmup_s > 0 or cooldown_s > 0, loop_s=_run(clock))


def _clock(
    fleet: Fleet,
    table: RequestTable,
    clients: Callable[[RequestTable], Clients | None],
    deployment: Deployment,
    faults: Faults,
    stop_fs: int,
    write_rows: RowSink | None,
    progress: Callable[[int], None] | None,
) -> Clock:
    """The clock of a run, where it begins, or was interrupted."""
    checkpoints = deployment.checkpoints
    saved = checkpoints.load() if checkpoints is not None else None
    if saved is not None:
        prefixes = table.prefixes
        table = RequestTable.of_rows(saved[1])
        table.prefixes = prefixes
    sending = clients(table)
    followed = sending if isinstance(sending, Sessions) and sending.here else None
    if isinstance(sending, Sessions) and not (followed or fleet.link or faults.any or fleet.spec.sheds):
        sending.bounds = FollowBounds(fleet, table, sending)
    if deployment.shards is None:
        shard = Shard(fleet, range(fleet.replicas), table, write_rows, sessions=followed)
        shards: Sequence[ShardPort] = [shard]
    else:
        shards = deployment.shards(fleet, table, write_rows)
    watched = checkpoints is not None or progress is not None
    clock = Clock(
        fleet,
        table,
        shards,
        faults,
        stop_fs=stop_fs,
        report_fs=round(fleet.spec.report_interval_s * FS_PER_S),
        clients=sending,
        control=deployment.control,
        journal=deployment.journal,
        checkpoint=None if checkpoints is None else partial(_save, checkpoints),
        window_wall_s=deployment.window_wall_s or (_WATCHED_WALL_S if watched else None),
        progress=progress,
        flush=deployment.flush,
    )
    if followed is not None and followed.routed_here:
        shard.follow(followed, clock.arrivals.deal)
    if saved is not None:
        _restore(clock, *saved)
    return clock


def _run(clock: Clock) -> float:
    """Run to the end; returns how long that took on the wall clock, s."""
    began = time.perf_counter()
    # The loop makes no reference cycles, and the collector would look through the log's rows time and again.
    collecting = gc.isenabled()
    gc.disable()
    try:
        clock.run()
    except OverflowError as error:
        raise out_of_range(clock.fleet) from error
    except ValueError as error:
        if clock.latest_fs() > _CLOCK_END_FS:
            raise clock_ends() from error
        raise
    finally:
        if collecting:
            gc.enable()
    return time.perf_counter() - began


def _check_progress(faults: FaultSpec, pools: Sequence[Pool], table: RequestTable) -> None:
    """Refuse failures at random that come so often that a run would not end."""
    for pool in pools:
        computes = pool.name != DECODE or pool.conditional is not None
        prompt_s = _longest_prompt_s(pool.plan, table) if computes else 0.0
        faults.check_progress(pool.plan.devices, prompt_s, horizon_s=_CLOCK_END_FS / FS_PER_S)


def _longest_prompt_s(plan: CostPlan, table: RequestTable) -> float:
    """A bound from below of the time that the longest prompt which is served takes alone."""
    tokens = int(table["input_tokens"][table["reject_reason"] == SERVABLE].max(initial=0))
    if not tokens:
        return 0.0
    time = evaluate(plan, shape_of(plan, 0, 0, [(tokens, 0)], 1)).duration_fs
    if plan.experts is not None:
        time += plan.experts.least_fs(tokens)
    return time / FS_PER_S


def _served(clock: Clock, workload: Workload, *, trimmed: bool, loop_s: float) -> Served:
    """What came of a run that has ended."""
    fleet, table = clock.fleet, clock.table
    caches = (state.prefix_cache for state in clock.states() if state.prefix_cache is not None)
    drafts = [state.spec_decode for state in clock.states() if state.spec_decode is not None]
    by_replica = {log.costs.replica: log for shard in clock.shards for log in shard.logs}
    logs = [by_replica[replica] for replica in range(fleet.replicas)]
    end_fs = clock.end_fs(max(log.clock_fs for log in logs))
    for log in logs:
        log.away_fs = clock.faults.away_fs(log.costs.replica, clock.states(), end_fs)
    sharing = fleet.clients(len(table))
    ends_fs = [end_fs] * sharing
    start_fs = fleet.window_fs[0]
    if trimmed:
        closed = fleet.concurrency is not None
        ends_fs = [min(log.window_fs[1], log.clock_fs if closed else end_fs) for log in logs[:sharing]]
        if min(ends_fs) <= start_fs:  # a closed loop that ended, or issued its last request, too early
            why = ", as all requests were rejected; a run without warm-up says why"
            raise InputError(
                "run.warmup_s",
                f"{start_fs / FS_PER_S} s leaves nothing to measure: the run ends its window at "
                f"{min(ends_fs) / FS_PER_S:.3f} s{why if (table['status'] == REJECTED).all() else ''}",
            )
    return Served(
        table=table,
        logs=logs,
        workload=workload,
        start_fs=start_fs,
        ends_fs=tuple(ends_fs),
        trimmed=trimmed,
        dealt=fleet.concurrency is not None,
        end_fs=end_fs,
        pools=fleet.pools,
        block_size=fleet.spec.block_size,
        max_model_len=fleet.most_tokens,
        limits_tokens={"max_model_len": fleet.max_model_len, "kv_cache": fleet.kv_tokens},
        loop_s=loop_s,
        handovers=None if clock.handovers is None else clock.handovers.figures,
        clients=clock.arrivals.clients,
        spec_decode=drafts_together(drafts) if drafts else None,
        faults=clock.faults if clock.faults.simulated else None,
        scaled=clock.faults if clock.faults.scalers else None,
        swap=fleet.pools[0].swap_space(fleet.spec),
        prefixes=together(caches) if fleet.spec.enable_prefix_caching else None,
        router=fleet.spec.router_name,
        decisions=clock.arrivals.decisions,
        tiers=_tiers(clock) if fleet.spec.kv_tiers else None,
    )


def _tiers(clock: Clock) -> ServedTiers:
    """Tiers of all replicas, by their numbers."""
    tiers = {replica: tiers for shard in clock.shards for replica, tiers in shard.tiers().items()}
    caches = {state.replica: state.prefix_cache for state in clock.states()}
    found = ((tiers[replica], caches[replica]) for replica in sorted(tiers))
    return ServedTiers.of((there, cache) for there, cache in found if cache is not None)


def _save(checkpoints: Checkpoints, clock: Clock) -> None:
    """Keep the state of a run between two windows, if it is time."""
    if checkpoints.due():
        state = {"clock": clock.state(), "shards": [shard.state() for shard in clock.shards], "spread": _spread(clock)}
        checkpoints.save(state, clock.table.structured())


def _restore(clock: Clock, state: dict[str, Any], rows: NDArray[Any]) -> None:
    """Let a run go on from a state that was saved; it must be spread over as many shards."""
    if state["spread"] != _spread(clock):
        raise InputError(
            "checkpoint", "is of a run that was spread otherwise; go on with the same --shards, with or without devices"
        )
    clock.restore(state["clock"])
    for shard, shard_state in zip(clock.shards, state["shards"], strict=True):
        shard.rebind()  # numbers of requests are known now
        shard.restore(shard_state)
    clock.table.write(np.arange(len(rows)), rows)  # fresh engines of a closed loop have issued requests


def _spread(clock: Clock) -> list[list[Any]]:
    """Which replicas each shard has, and whether it has devices: states fit no other spread."""
    return [[shard.has_devices, list(shard.replicas)] for shard in clock.shards]
