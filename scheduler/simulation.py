"""Serve a workload on replicas of one kind, in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pimserve.device_models.plan import FS_PER_PS, FS_PER_S, CostPlan
from pimserve.device_models.routing import ExpertPools, Routing
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.engine import FOREVER, Engine
from pimserve.scheduler.requests import NEVER, RequestTable
from pimserve.scheduler.router import Router, make_router
from pimserve.scheduler.steplog import IntArray, StepLog

_CLOCK_END_FS = 2**63 * FS_PER_PS
SpanWriter = Callable[[int, IntArray], None]  # replica, rows (n, columns of Rows)


@dataclass(frozen=True, slots=True)
class Served:
    """What came of a run.

    `ends_fs` says where the measured window ends on each replica that gets requests. In an open loop that is one time
    for all. In a closed loop a replica's window ends when its own clients have sent their last request: replicas do not
    influence each other there, and one that goes on longer is simply measured for longer.
    """

    table: RequestTable
    logs: list[StepLog]
    workload: Workload
    start_fs: int
    ends_fs: tuple[int, ...]
    trimmed: bool
    end_fs: int
    kv_blocks: int
    block_size: int
    max_model_len: int
    loop_s: float

    @property
    def end_s(self) -> float:
        """When the last step ended."""
        return self.end_fs / FS_PER_S

    @property
    def window_s(self) -> tuple[float, float]:
        """The measured part of the run: its start, and the earliest end on a replica."""
        return self.start_fs / FS_PER_S, min(self.ends_fs) / FS_PER_S


def simulate(
    plan: CostPlan,
    workload: Workload,
    spec: SchedulerSpec,
    *,
    kv_capacity_tokens: int,
    max_model_len: int,
    replicas: int = 1,
    routing: Routing = Routing(),  # noqa: B008 frozen
    seed: int = 0,
    warmup_s: float = 0.0,
    cooldown_s: float = 0.0,
    max_time_s: float | None = None,
    write_spans: SpanWriter | None = None,
    progress: Callable[[int], None] | None = None,
) -> Served:
    """Serve `workload` on `replicas` replicas that each cost what `plan` says.

    Args:
        plan: cost of a step on a replica.
        workload: requests.
        spec: scheduler settings.
        kv_capacity_tokens: tokens that a replica's KV cache holds.
        max_model_len: longest request, prompt and output, in tokens; capped at what the KV cache of one data-parallel
            group holds.
        replicas: how many.
        routing: how tokens choose experts.
        seed: of expert routing.
        warmup_s: requests that arrive earlier are not measured. In a closed loop, nor are those that arrive when a
            replica's clients have sent their last one.
        cooldown_s: nor are those that arrive in this time before the last arrival (open loop only).
        max_time_s: simulated time after which no step starts; requests still there are unfinished.
        write_spans: takes executed steps.
        progress: called now and then with the number of requests that have left.

    Raises:
        InputError: settings that do not go together, such as a warm-up that leaves nothing to measure.
    """
    kv_blocks = kv_capacity_tokens // spec.block_size
    if kv_blocks < 1:
        raise InputError(
            "scheduler.block_size",
            f"one block of {spec.block_size} tokens exceeds the KV cache of {kv_capacity_tokens}",
        )
    max_model_len = min(max_model_len, kv_blocks * spec.block_size // plan.data_parallel)
    window_fs = _window(workload, warmup_s, cooldown_s)
    table = _table(workload, max_model_len, max_time_s)
    pools = ExpertPools(plan.experts, routing, seed) if plan.experts is not None else None
    router = make_router(spec.router)
    closed = workload.concurrency
    if closed is not None and router is not None and replicas > 1:
        raise InputError("scheduler.router", "a closed loop keeps each client on one replica: use round_robin")

    engines: list[Engine] = []
    logs: list[StepLog] = []
    count = len(table)
    sharing = replicas  # the first ones, that get requests: in a closed loop those that have clients
    if closed is not None:
        sharing = min(replicas, closed, max(1, count))
    first = ReplicaCosts(plan, pools, replica=0, seed=seed, exact=routing.mode == "exact")
    for replica in range(replicas):
        costs = first.of_replica(replica)

        def flushed(rows: IntArray, replica: int = replica) -> None:
            if write_spans is not None:
                write_spans(replica, rows)
            if progress is not None:
                progress(sum(engine.finished for engine in engines))

        log = StepLog(costs, window_fs, flushed)
        mine = range(replica, count if replica < sharing else 0, sharing)
        if closed is not None:
            table["replica"][mine.start : mine.stop : mine.step] = replica
        engine = Engine(
            costs,
            spec,
            kv_blocks=kv_blocks,
            max_model_len=max_model_len,
            table=table,
            inbox=mine if closed is None and router is None else [],
            sink=log,
            closed=None if closed is None else mine,
            concurrency=0 if closed is None else len(range(replica, closed, replicas)),
        )
        logs.append(log)
        engines.append(engine)

    until = FOREVER if max_time_s is None else round(max_time_s * FS_PER_S)
    began = time.perf_counter()
    # The loop makes no reference cycles, and the collector would look through the log's rows time and again.
    collecting = gc.isenabled()
    gc.disable()
    try:
        if router is not None and closed is None:
            _route(router, engines, table, until)
        for engine, log in zip(engines, logs, strict=True):
            engine.advance(until)
            engine.settle()
            log.flush()
    except (OverflowError, ValueError) as error:
        if isinstance(error, OverflowError) or max(engine.clock for engine in engines) > _CLOCK_END_FS:
            raise InputError(
                "run",
                f"the simulated clock ends: a step of more than {2**63 / FS_PER_S:,.0f} s, or a run of more "
                f"than {2**63 / PS_PER_S:,.0f} s; is a unit of the device, the links or the arrivals wrong?",
            ) from error
        raise
    finally:
        if collecting:
            gc.enable()
    loop_s = time.perf_counter() - began
    if closed is None:
        table.reject_unseen(max_model_len)

    end_fs = max(log.clock_fs for log in logs)
    trimmed = warmup_s > 0 or cooldown_s > 0
    ends_fs = [end_fs] * sharing
    if trimmed:
        ends_fs = [min(log.window_fs[1], end_fs if closed is None else log.clock_fs) for log in logs[:sharing]]
        if min(ends_fs) <= window_fs[0]:  # a closed loop that ended, or issued its last request, too early
            raise InputError(
                "run.warmup_s",
                f"{warmup_s} s leaves nothing to measure: the run ends its window at {min(ends_fs) / FS_PER_S:.3f} s",
            )
    return Served(
        table=table,
        logs=logs,
        workload=workload,
        start_fs=window_fs[0],
        ends_fs=tuple(ends_fs),
        trimmed=trimmed,
        end_fs=end_fs,
        kv_blocks=kv_blocks,
        block_size=spec.block_size,
        max_model_len=max_model_len,
        loop_s=loop_s,
    )


def _table(workload: Workload, max_model_len: int, max_time_s: float | None) -> RequestTable:
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
    return RequestTable(arrival[:count], workload.input_tokens[:count], workload.output_tokens[:count], max_model_len)


def _window(workload: Workload, warmup_s: float, cooldown_s: float) -> tuple[int, int]:
    """Times between which steps count, fs: everything when nothing is trimmed."""
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


def _route(router: Router, engines: list[Engine], table: RequestTable, until: int) -> None:
    """Submit each request on its arrival to the replica that the router picks from the replicas' exact state."""
    quiet = [0] * len(engines)
    outstanding = [0] * len(engines)
    for request, arrival_ps in enumerate(table["arrival_ps"].tolist()):
        now = arrival_ps * FS_PER_PS
        if now >= until:
            break
        for replica, engine in enumerate(engines):
            if quiet[replica] <= now:
                quiet[replica] = engine.advance(now, lazily=True)
                outstanding[replica] = engine.outstanding(now)
        chosen = router.pick(outstanding)
        engines[chosen].submit(request)
        outstanding[chosen] += 1
        quiet[chosen] = now
