"""Serve a workload on replicas of one kind, or of one for prefill and another for decode."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import BoolArray
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S, PJ_PER_J, CostPlan
from pimserve.device_models.routing import Routing
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.clock import Clock
from pimserve.scheduler.commands import Journal
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import Control
from pimserve.scheduler.faults import Faults, FaultSpec
from pimserve.scheduler.fleet import DECODE, Fleet, Pool, RowSink
from pimserve.scheduler.handover import HandoverFigures, Link
from pimserve.scheduler.latencies import Latencies
from pimserve.scheduler.requests import FOREVER, KV_CACHE, MAX_MODEL_LEN, NEVER, REJECT_REASONS, SERVABLE, RequestTable
from pimserve.scheduler.router import ROUND_ROBIN
from pimserve.scheduler.shard import Shard, ShardPort
from pimserve.scheduler.steplog import StepLog

_CLOCK_END_FS = 2**63 * FS_PER_PS
_MOST_STEP_PJ = 2**59
_WATCHED_WALL_S = 0.1  # of a window, where somebody watches or checkpoints are kept


class EnergyRangeError(InputError):
    """Energies of a device exceed what can be counted: it needs one of their keys."""


@dataclass(frozen=True, slots=True)
class Served:
    """What came of a run.

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
    end_fs: int
    pools: tuple[Pool, ...]
    block_size: int
    max_model_len: int
    limits_tokens: Mapping[str, int]
    loop_s: float
    handovers: HandoverFigures | None = None
    faults: Faults | None = None

    @property
    def end_s(self) -> float:
        """When the run ended: with its last step, or later where requests were left (`Clock.end_fs`)."""
        return self.end_fs / FS_PER_S

    def latencies(self, requests: BoolArray) -> Latencies:
        """Latencies of some requests that arrived, as the end of the run has them."""
        frontend_ps = self.pools[0].plan.frontend_ps
        return Latencies(self.table.columns, requests, frontend_ps=frontend_ps, end_ps=self.end_fs // FS_PER_PS)

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
) -> Served:
    """Serve `workload` on the replicas of one pool, or of two.

    Args:
        pools: the replicas. Of two pools the first takes requests, and hands them over to the second after their first
            token; with one, each is served where it came.
        workload: requests.
        spec: scheduler settings.
        max_model_len: longest request, prompt and output, in tokens; none may be longer than what the KV cache of one
            data-parallel group holds.
        link: from the first pool to the second.
        routing: how tokens choose experts.
        seed: of expert routing.
        warmup_s: requests that arrive earlier are not measured. In a closed loop, nor are those that arrive when a
            replica's clients have sent their last one.
        cooldown_s: nor are those that arrive in this time before the last arrival (open loop only).
        max_time_s: simulated time after which no step starts; requests still there are unfinished.
        write_rows: takes executed steps.
        progress: called now and then with the number of requests that have left.
        deployment: where and in which pieces it goes on.
        faults: what happens to the replicas.

    Raises:
        InputError: settings that do not go together, such as a warm-up that leaves nothing to measure.
    """
    for pool in pools:
        pool.kv_blocks(spec.block_size)
    window_fs = measured_window(workload, warmup_s, cooldown_s)
    closed = workload.concurrency is not None
    fleet = Fleet(tuple(pools), spec, max_model_len, routing, seed, window_fs, workload.concurrency, link)
    check_together(spec, faults, closed=closed, pools=link is not None, replicas=fleet.replicas)
    schedule = Faults(faults, [pool.plan.devices for pool in pools for _ in pool.numbers], seed)
    table = _table(workload, fleet, max_time_s)
    if max_time_s is None:
        for pool in pools:
            prompt_s = 0.0 if pool.name == DECODE else _longest_prompt_s(pool.plan, table)
            faults.check_progress(pool.plan.devices, prompt_s, horizon_s=_CLOCK_END_FS / FS_PER_S)
    stop_fs = FOREVER if max_time_s is None else round(max_time_s * FS_PER_S)
    clock = _clock(fleet, table, deployment, schedule, stop_fs, write_rows, progress)
    loop_s = _run(clock)
    return _served(clock, workload, trimmed=warmup_s > 0 or cooldown_s > 0, loop_s=loop_s)


def _clock(
    fleet: Fleet,
    table: RequestTable,
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
        table = RequestTable.of_rows(saved[1])
    if deployment.shards is None:
        shards: Sequence[ShardPort] = [Shard(fleet, range(fleet.replicas), table, write_rows)]
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
        control=deployment.control,
        journal=deployment.journal,
        checkpoint=None if checkpoints is None else partial(_save, checkpoints),
        window_wall_s=deployment.window_wall_s or (_WATCHED_WALL_S if watched else None),
        progress=progress,
        flush=deployment.flush,
    )
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
        raise _out_of_range(clock.fleet) from error
    except ValueError as error:
        if clock.latest_fs() > _CLOCK_END_FS:
            raise _clock_ends() from error
        raise
    finally:
        if collecting:
            gc.enable()
    return time.perf_counter() - began


def _longest_prompt_s(plan: CostPlan, table: RequestTable) -> float:
    """A bound from below of the time that the longest prompt which is served takes alone."""
    tokens = int(table["input_tokens"][table["reject_reason"] == SERVABLE].max(initial=0))
    if not tokens:
        return 0.0
    time = evaluate(plan, shape_of(plan, 0, 0, [(tokens, 0)], 1)).duration_fs
    if plan.experts is not None:
        time += plan.experts.least_fs(tokens)
    return time / FS_PER_S


def check_together(spec: SchedulerSpec, faults: FaultSpec, *, closed: bool, pools: bool, replicas: int) -> None:
    """Refuse what does not go together with a closed loop, pools or faults.

    Raises:
        InputError: says what.
    """
    if pools and closed:
        raise InputError("cluster.pools", "a closed loop keeps each client on one replica: leave pools out")
    if closed and replicas > 1 and spec.router != ROUND_ROBIN:
        raise InputError("scheduler.router", "a closed loop keeps each client on one replica: use round_robin")
    if pools and not spec.report_interval_s:
        raise InputError(
            "scheduler.report_interval_s", "is 0; pools hear of each other in intervals: give one, such as 0.1"
        )
    if faults.any and closed:
        raise InputError(
            "faults", "a closed loop keeps each client on one replica, which then may fail: leave them out"
        )


def _served(clock: Clock, workload: Workload, *, trimmed: bool, loop_s: float) -> Served:
    """What came of a run that has ended."""
    fleet, table = clock.fleet, clock.table
    by_replica = {log.costs.replica: log for shard in clock.shards for log in shard.logs}
    logs = [by_replica[replica] for replica in range(fleet.replicas)]
    end_fs = clock.end_fs(max(log.clock_fs for log in logs))
    sharing = fleet.clients(len(table))
    ends_fs = [end_fs] * sharing
    start_fs = fleet.window_fs[0]
    if trimmed:
        closed = fleet.concurrency is not None
        ends_fs = [min(log.window_fs[1], log.clock_fs if closed else end_fs) for log in logs[:sharing]]
        if min(ends_fs) <= start_fs:  # a closed loop that ended, or issued its last request, too early
            raise InputError(
                "run.warmup_s",
                f"{start_fs / FS_PER_S} s leaves nothing to measure: the run ends its window at "
                f"{min(ends_fs) / FS_PER_S:.3f} s",
            )
    return Served(
        table=table,
        logs=logs,
        workload=workload,
        start_fs=start_fs,
        ends_fs=tuple(ends_fs),
        trimmed=trimmed,
        end_fs=end_fs,
        pools=fleet.pools,
        block_size=fleet.spec.block_size,
        max_model_len=fleet.most_tokens,
        limits_tokens={
            REJECT_REASONS[MAX_MODEL_LEN]: fleet.max_model_len,
            REJECT_REASONS[KV_CACHE]: fleet.kv_tokens,
        },
        loop_s=loop_s,
        handovers=None if clock.handovers is None else clock.handovers.figures,
        faults=clock.faults if clock.faults.any else None,
    )


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
        shard.restore(shard_state)
    clock.table.write(np.arange(len(rows)), rows)  # fresh engines of a closed loop have issued requests


def _spread(clock: Clock) -> list[list[Any]]:
    """Which replicas each shard has, and whether it has devices: states fit no other spread."""
    return [[shard.has_devices, list(shard.replicas)] for shard in clock.shards]


def _out_of_range(fleet: Fleet) -> InputError:
    """What does not fit 64 bit: energies, if those of the largest step come near it, else times."""
    tokens = min(fleet.spec.max_step_tokens(fleet.max_model_len), 2**20)
    most = max(pool.plan.most_step_pj(tokens, fleet.max_model_len) for pool in fleet.pools)
    if most < _MOST_STEP_PJ:
        return _clock_ends()
    return EnergyRangeError(
        "cluster.device", f"a step may take {most / PJ_PER_J:.3g} J, more than its picojoules can be counted"
    )


def _clock_ends() -> InputError:
    return InputError(
        "run",
        f"the simulated clock ends: a step of more than {2**63 / FS_PER_S:,.0f} s, or a run of more "
        f"than {2**63 / PS_PER_S:,.0f} s; is a unit of the device, the links or the arrivals wrong?",
    )


def _table(workload: Workload, fleet: Fleet, max_time_s: float | None) -> RequestTable:
    """Requests of the run: those of an open loop that arrive before it stops, all of a closed loop."""
    arrival = workload.arrival_ps.copy()
    count = len(arrival)
    if workload.concurrency is not None:
        arrival[:] = NEVER  # the engines issue them
    elif max_time_s is not None:
        count = int(np.searchsorted(arrival, round(max_time_s * PS_PER_S)))
        if not count and len(arrival):
            raise InputError(
                "run.max_time_s",
                f"{max_time_s:g} s leaves no request to serve: the first arrival is at {arrival[0] / PS_PER_S:g} s",
            )
    tokens = workload.input_tokens[:count], workload.output_tokens[:count]
    return RequestTable(arrival[:count], *tokens, fleet.max_model_len, fleet.kv_tokens)


def measured_window(workload: Workload, warmup_s: float, cooldown_s: float) -> tuple[int, int]:
    """Times between which steps count, fs: everything when nothing is trimmed.

    Raises:
        InputError: nothing is left.
    """
    if warmup_s == 0 and cooldown_s == 0:
        return 0, FOREVER
    start = round(warmup_s * FS_PER_S)
    if workload.concurrency is not None:
        if cooldown_s:
            raise InputError(
                "run.cooldown_s", "a closed loop ends its window when its last request is issued: leave it at 0"
            )
        return start, FOREVER
    end = int(workload.arrival_ps[-1]) * FS_PER_PS - round(cooldown_s * FS_PER_S)
    if end <= start:
        raise InputError(
            "run.warmup_s",
            f"warm-up ({warmup_s} s) and cool-down ({cooldown_s} s) leave nothing of the "
            f"{workload.arrival_ps[-1] / PS_PER_S:.3f} s in which requests arrive",
        )
    return start, end
