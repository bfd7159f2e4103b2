"""The requests of a run as its table has them, which of them count, and who sends them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.errors import InputError
from pimserve.loadgen.slo import LimitAtPercentile, SloSpec
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.turns import Turns
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.active_sessions import ActiveSessions
from pimserve.scheduler.autoscaling import AutoscalingSpec, PoolScaler, PoolScaling
from pimserve.scheduler.clients import Clients
from pimserve.scheduler.config import FCFS, SchedulerSpec
from pimserve.scheduler.faults import FaultSpec
from pimserve.scheduler.fleet import Fleet, Pool
from pimserve.scheduler.in_flight_cap import InFlightCap
from pimserve.scheduler.policy import make_policy
from pimserve.scheduler.queue_classes import QueueClass
from pimserve.scheduler.requests import FOREVER, NEVER, RequestTable
from pimserve.scheduler.router import ROUND_ROBIN
from pimserve.scheduler.sessions import Sessions
from pimserve.scheduler.slo_metric import SloMetric
from pimserve.scheduler.users import Users

_MIXES = "use chunked or stage"
_PREFIX_CACHING = "scheduler.enable_prefix_caching"
_GROUPS = "several data-parallel groups in a replica: leave it out, or raise cluster.tensor_parallel to all devices"


def check_together(spec: SchedulerSpec, classes: Sequence[QueueClass], *, pools: bool) -> None:
    """Refuse what does not go together with pools, and a policy that there is not.

    Raises:
        InputError: says what.
    """
    make_policy(spec, classes)
    if spec.preemption == "swap":
        for wrong, what in (
            (pools, "pools for prefill and decode"),
            (spec.enable_prefix_caching, "enable_prefix_caching"),
            (spec.speculative is not None, "speculative"),
            (spec.reserves is not None, f"kv_admission: {spec.kv_admission}, by which nothing is preempted"),
        ):
            if wrong:
                raise InputError("scheduler.preemption", f"swap does not go together with {what}")
    if not spec.mixes:
        for wrong, what in (
            (pools, "pools for prefill and decode"),
            (spec.preemption == "swap", "preemption: swap"),
            (spec.speculative is not None, "speculative"),
            (bool(spec.kv_tiers), "kv_tiers"),
        ):
            if wrong:
                raise InputError("scheduler.batching", f"{spec.batching} does not go together with {what}: {_MIXES}")
    if pools and not spec.report_interval_s:
        raise InputError(
            "scheduler.report_interval_s", "is 0; pools hear of each other in intervals: give one, such as 0.1"
        )


def sent_on_ends(workload: Workload) -> bool:
    """Whether requests are sent when others have ended."""
    waiting = workload.turns, workload.concurrency, workload.max_concurrency
    return any(each is not None for each in waiting)


def check_kv_caches(spec: SchedulerSpec, pools: Sequence[Pool]) -> None:
    """Refuse KV caches that have no room, or cannot keep the prefixes that they should, and pools that go without.

    Raises:
        InputError: says why.
    """
    _check_conditional(spec, pools)
    for pool in pools:
        pool.kv_blocks(spec.block_size)
        if spec.preemption == "swap" and pool.plan.engine_cores > 1:
            raise InputError("scheduler.preemption", f"swap is not modelled with {_GROUPS}")
    if not spec.mixes and any(pool.plan.engine_cores > 1 for pool in pools):
        raise InputError(
            "scheduler.batching",
            f"{spec.batching} is not modelled with several data-parallel groups in a replica: {_MIXES}, or raise "
            "cluster.tensor_parallel to all devices",
        )
    if spec.kv_tiers and pools[0].plan.engine_cores > 1:
        raise InputError("scheduler.kv_tiers", f"are not modelled with {_GROUPS}")
    if spec.sheds and any(pool.plan.engine_cores > 1 for pool in pools):
        raise InputError(
            "scheduler.early_rejection" if spec.early_rejection else "scheduler.max_queued_requests",
            f"sheds load, which is not modelled with {_GROUPS}",
        )
    if spec.enable_prefix_caching and any(pool.plan.data_parallel > pool.plan.engine_cores for pool in pools):
        raise InputError(
            _PREFIX_CACHING,
            "is not modelled together with experts on devices of their own beside data-parallel attention: "
            "leave it out, or raise cluster.tensor_parallel to all devices of attention",
        )


def _check_conditional(spec: SchedulerSpec, pools: Sequence[Pool]) -> None:
    """Refuse what does not go together with prompts that stay on decode replicas."""
    if all(pool.conditional is None for pool in pools):
        return
    for wrong, what in (
        (spec.enable_prefix_caching, f"{_PREFIX_CACHING}: what replicas have cached of a prompt is not looked at"),
        (spec.early_rejection, "scheduler.early_rejection, which goes by prompts ahead on a prefill replica"),
        (spec.max_queued_requests is not None, "scheduler.max_queued_requests, which is of prefill replicas"),
    ):
        if wrong:
            raise InputError("cluster.pools.conditional_disagg", f"is not modelled together with {what}")


def dealt_out(replicas: Sequence[int], spec: SchedulerSpec, faults: FaultSpec, *, think: bool) -> bool:
    """Whether users of a closed loop are dealt out to replicas, so many in each pool, which then know nothing of each
    other.
    """
    routed = spec.router != ROUND_ROBIN and sum(replicas) > 1
    return not (routed or think or len(replicas) > 1 or faults.any)


def check_autoscaling(
    spec: AutoscalingSpec, pools: Sequence[Pool], slo: SloSpec, *, closed: bool
) -> dict[str, tuple[PoolScaling, LimitAtPercentile | None]]:
    """What holds for each pool that changes its size, by its name, and the limit that its metric goes by, if any.

    Raises:
        InputError: the spec does not go with the pools or the limits, or requests are of a closed loop.
    """
    if closed:
        raise InputError("autoscaling", "a closed loop has as many users for few replicas as for many: use arrivals")
    limits = {limit.key: limit for limit in slo.at_percentiles()}
    found: dict[str, tuple[PoolScaling, LimitAtPercentile | None]] = {}
    for name, rule in spec.of_pools({pool.name: pool.replicas for pool in pools}).items():
        key = rule.metric or ""
        if rule.of_slo and key not in limits:
            known = f"has {', '.join(limits)}" if limits else "has no limit at a percentile"
            raise InputError(f"autoscaling.{name or 'replicas'}.metric", f"{key}: give slo.{key}; slo {known}")
        found[name] = rule, limits.get(key)
    return found


def make_scalers(
    spec: AutoscalingSpec | None, pools: Sequence[Pool], workload: Workload, slo: SloSpec
) -> list[PoolScaler]:
    """What decides which replicas of the pools there are.

    Raises:
        InputError: as `check_autoscaling`.
    """
    if spec is None:
        return []
    found = check_autoscaling(spec, pools, slo, closed=workload.closed)
    scalers = []
    for pool in pools:
        if pool.name in found:
            rule, limit = found[pool.name]
            metric = None if limit is None else SloMetric(limit, pools[0].plan.frontend_ps)
            scalers.append(PoolScaler(pool.name, pool.numbers, rule, metric))
    return scalers


def run_table(workload: Workload, fleet: Fleet, max_time_s: float | None) -> tuple[RequestTable, Turns | None]:
    """Requests of the run, and how they depend on each other.

    Of those that arrive by themselves, there are those that do before the run stops, and all that follow these only;
    of a closed loop, all.

    Raises:
        InputError: there are none.
    """
    arrival, turns = workload.arrival_ps, workload.turns
    rows = np.arange(len(arrival))
    if workload.closed:
        arrival = np.full(len(arrival), NEVER)
    elif max_time_s is not None:
        wanted = arrival < round(max_time_s * PS_PER_S)
        rows = np.flatnonzero(wanted if turns is None else turns.complete(wanted))
        if not len(rows) and len(arrival):
            raise InputError(
                "run.max_time_s",
                f"{max_time_s:g} s leaves no request to serve: the first arrival is at {arrival[0] / PS_PER_S:g} s",
            )
        turns = None if turns is None else turns.taken(rows)
    tokens = workload.input_tokens[rows], workload.output_tokens[rows]
    declared = None if workload.max_tokens is None else workload.max_tokens[rows]
    table = RequestTable(arrival[rows], *tokens, fleet.max_model_len, fleet.kv_tokens, declared)
    if workload.class_ids is not None:
        table["class_id"][:] = workload.class_ids[rows]
    if fleet.spec.enable_prefix_caching and workload.prefixes is not None:
        table.prefixes = workload.prefixes.take(rows).ids(fleet.spec.block_size)
    table["predicted_tokens"][:] = fleet.predictor.predict(workload.output_tokens)[rows]
    return table, turns


def make_clients(
    workload: Workload, fleet: Fleet, table: RequestTable, turns: Turns | None, *, here: bool
) -> Clients | None:
    """Who sends requests when others have ended; None: nobody, or the replicas' own clients.

    `here`: all replicas are in one shard, in this process, always take requests, and nobody gives commands.
    """
    here = here and not fleet.spec.shares_tier  # else replicas go on as their turns at it are, not as sessions have it
    if turns is not None:
        frontend_ps = fleet.pools[0].plan.frontend_ps
        if workload.max_active_sessions is not None:
            here = here and not fleet.spec.report_interval_s
            return ActiveSessions(
                workload.max_active_sessions, turns, table, frontend_ps, closed=workload.closed, here=here
            )
        single = fleet.replicas == 1 and fleet.pools[0].plan.engine_cores == 1
        by_one = here and single and fleet.spec.policy == FCFS
        routed_here = here and not by_one and not fleet.spec.report_interval_s
        return Sessions(turns, table, frontend_ps, here=by_one or routed_here, routed_here=routed_here)
    if workload.max_concurrency is not None:
        return InFlightCap(workload.max_concurrency, table)
    if workload.concurrency is None or fleet.concurrency is not None:
        return None
    think_ps = np.zeros(len(table), np.int64) if workload.think_ps is None else workload.think_ps
    return Users(workload.concurrency, think_ps, table, fleet.pools[0].plan.frontend_ps)


def measured_window(workload: Workload, warmup_s: float, cooldown_s: float) -> tuple[int, int]:
    """Times between which steps count, fs: everything when nothing is trimmed.

    Raises:
        InputError: nothing is left.
    """
    if warmup_s == 0 and cooldown_s == 0:
        return 0, FOREVER
    start = round(warmup_s * FS_PER_S)
    if workload.closed:
        if cooldown_s:
            raise InputError(
                "run.cooldown_s", "a closed loop ends its window when its last request is issued: leave it at 0"
            )
        return start, FOREVER
    last_ps = int(workload.arrival_ps.max())
    end = last_ps * FS_PER_PS - round(cooldown_s * FS_PER_S)
    if end <= start:
        raise InputError(
            "run.warmup_s",
            f"warm-up ({warmup_s} s) and cool-down ({cooldown_s} s) leave nothing of the "
            f"{last_ps / PS_PER_S:.3f} s in which requests arrive",
        )
    return start, end
