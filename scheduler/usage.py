"""What replicas did with the run's time: steps, busy units, KV caches, energy, hand-overs; of all, and of each pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pimserve.device_models.plan import FS_PER_S, PJ_PER_J
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.distributions import distribution
from pimserve.scheduler.fleet import DECODE, PREFILL, Pool
from pimserve.scheduler.handover import HandoverFigures
from pimserve.scheduler.latency_sections import Distribution
from pimserve.scheduler.requests import NEVER, PREFILL_QUEUE, REMOTE, SERVABLE, SHORT_PROMPT, RequestTable
from pimserve.scheduler.simulation import Served
from pimserve.scheduler.steplog import StepLog, passive_pj
from pimserve.scheduler.summary_sections import (
    Batch,
    ConditionalDisagg,
    DramCompute,
    Energy,
    Handover,
    Kv,
    PoolsUse,
    PoolUse,
)
from pimserve.scheduler.totals import EnergyPart


@dataclass(frozen=True, slots=True)
class Hardware:
    """What figures are related to.

    Args:
        devices: of all replicas together.
        silicon_mm2: of all devices; None where it is not known of all.
        tdp_w: power at which all devices are sold; likewise.
        passive_power: whether plans hold the passive power of devices, where it is known.
    """

    devices: int
    silicon_mm2: float | None = None
    tdp_w: float | None = None
    passive_power: bool = True


def batch_use(logs: Sequence[StepLog]) -> Batch:
    """Steps of some replicas."""
    steps = sum(log.steps for log in logs)
    alone = 1 - sum(log.mixed_steps for log in logs) / steps if steps else None
    of_groups: dict[str, float | None] = {}
    if any(log.costs.plan.engine_cores > 1 for log in logs):
        time_fs = sum(log.costs.plan.engine_cores * log.busy_fs for log in logs)
        of_groups["group_wait_share"] = sum(log.waited_fs for log in logs) / time_fs if time_fs else None
    return Batch(mean_requests=_mean_requests(logs), steps=steps, decode_only_share=alone, **of_groups)


def logs_of(served: Served, pool: Pool) -> list[StepLog]:
    """Of a pool's replicas."""
    return [served.logs[replica] for replica in pool.numbers]


def _joules(active_pj: int, passive_pj: Sequence[int | None]) -> tuple[float, float, float | None]:
    """Energy, active energy, and passive energy as far as it is known, J."""
    known = [pj for pj in passive_pj if pj is not None]
    return (active_pj + sum(known)) / PJ_PER_J, active_pj / PJ_PER_J, sum(known) / PJ_PER_J if known else None


def energy_use(served: Served, passive_pj: Sequence[int | None], hardware: Hardware) -> Energy:
    """Energy of all devices, given the passive energy of each pool."""
    logs, tokens = served.logs, int(served.table["emitted_tokens"].sum())
    by_part: Counter[EnergyPart] = Counter()
    for log in logs:
        by_part.update(log.energy_pj)
    joules, active, passive = _joules(sum(by_part.values()), passive_pj)
    tdp_w, known = hardware.tdp_w, [pj is not None for pj in passive_pj]
    told = "counted" if all(known) else "partly_known" if any(known) else "not_known"
    return Energy(
        joules=joules,
        active_joules=active,
        passive_joules=passive,
        joules_per_output_token=joules / tokens if tokens else None,
        active_joules_per_output_token=active / tokens if tokens else None,
        passive_joules_per_output_token=passive / tokens if passive is not None and tokens else None,
        joules_by_category={
            category: DramCompute(
                dram=by_part[category, "dram"] / PJ_PER_J, compute=by_part[category, "compute"] / PJ_PER_J
            )
            for category in dict.fromkeys(category for category, _ in by_part)
        },
        tdp_joules_per_output_token=tdp_w * served.end_s / tokens if tdp_w and tokens else None,
        passive_power=told if hardware.passive_power else "left_out",
    )


def _mean_requests(logs: Sequence[StepLog]) -> float | None:
    steps = sum(log.steps for log in logs)
    return sum(log.batch_steps for log in logs) / steps if steps else None


def busy_share(logs: Sequence[StepLog], end_s: float) -> float | None:
    """Share of the time in which replicas executed steps, mean."""
    capacity_fs = len(logs) * end_s * FS_PER_S
    return sum(log.busy_fs for log in logs) / capacity_fs if capacity_fs else None


def unit_shares(logs: Sequence[StepLog], end_s: float) -> dict[str, float | None]:
    """Busy share of each unit, over the replicas that have it."""
    shares: dict[str, float | None] = {}
    for unit in dict.fromkeys(unit for log in logs for unit in log.unit_fs):
        busy = [log.unit_fs[unit] for log in logs if unit in log.unit_fs]
        capacity_fs = len(busy) * end_s * FS_PER_S
        shares[unit] = sum(busy) / capacity_fs if capacity_fs else None
    return shares


def busiest_shares(logs: Sequence[StepLog], end_s: float) -> dict[str, float | None]:
    """Busy share of each unit in the device where it has most to do."""
    units = dict.fromkeys(unit for log in logs for unit in log.unit_fs)
    most = {unit: max(log.busiest_unit_fs.get(unit, 0) for log in logs) for unit in units}
    return {unit: most[unit] / (end_s * FS_PER_S) if end_s else None for unit in units}


def kv_use(served: Served, pools: Sequence[Pool]) -> Kv:
    """Size of the KV caches of some pools, and how full they were."""
    size = served.block_size
    blocks = sum(pool.kv_blocks(size) * pool.replicas for pool in pools)
    block_fs = blocks * served.end_s * FS_PER_S
    used = sum(log.twice_block_fs for pool in pools for log in logs_of(served, pool))
    return Kv(
        capacity_tokens=sum(pool.kv_tokens(size) * pool.replicas for pool in pools),
        mean_use=used / (2 * block_fs) if block_fs else None,
        peak_use=max(log.peak_blocks / pool.kv_blocks(size) for pool in pools for log in logs_of(served, pool)),
    )


def pools_use(served: Served, handovers: HandoverFigures, percentiles: Sequence[float]) -> PoolsUse:
    """Figures of each pool, and of what goes from one to the other, with these percentiles."""
    by_name = {pool.name: pool for pool in served.pools}
    busy_s = handovers.busy_fs / FS_PER_S
    return PoolsUse(
        prefill=_pool(served, by_name[PREFILL]),
        decode=_pool(served, by_name[DECODE]),
        handover=Handover(
            n=len(handovers.waits_ps),
            bytes=handovers.bytes,
            held=handovers.held,
            lost=handovers.lost,
            waiting_s=_distribution_ps(handovers.waits_ps, percentiles),
            transfer_s=_distribution_ps(handovers.transfers_ps, percentiles),
            link_busy_share={
                name: busy_s / (by_name[name].replicas * served.end_s) if served.end_s else None
                for name in (PREFILL, DECODE)
            },
            **({} if (ps := handovers.overlaps_ps) is None else {"overlapped_s": _distribution_ps(ps, percentiles)}),
        ),
        **({} if by_name[DECODE].conditional is None else {"conditional_disagg": _conditional(served.table)}),
    )


def _conditional(table: RequestTable) -> ConditionalDisagg:
    sent = table["local_prefill"][(table["arrival_ps"] != NEVER) & (table["reject_reason"] == SERVABLE)]
    return ConditionalDisagg(
        remote=int((sent == REMOTE).sum()),
        short_prompt=int((sent == SHORT_PROMPT).sum()),
        prefill_queue=int((sent == PREFILL_QUEUE).sum()),
    )


def _distribution_ps(times_ps: Sequence[int], percentiles: Sequence[float]) -> Distribution:
    return distribution(np.array(times_ps, np.int64) / PS_PER_S, percentiles)


def _pool(served: Served, pool: Pool) -> PoolUse:
    logs = logs_of(served, pool)
    active_pj = sum(sum(log.energy_pj.values()) for log in logs)
    joules, active, passive = _joules(active_pj, [passive_pj(logs, served.end_fs)])
    return PoolUse(
        replicas=len(logs),
        devices=pool.plan.devices * len(logs),
        busy_share=busy_share(logs, served.end_s),
        unit_busy_share=unit_shares(logs, served.end_s),
        unit_busy_share_of_busiest_device=busiest_shares(logs, served.end_s),
        steps=sum(log.steps for log in logs),
        mean_requests=_mean_requests(logs),
        output_tokens=sum(log.tokens for log in logs),
        kv=kv_use(served, [pool]),
        joules=joules,
        active_joules=active,
        passive_joules=passive,
    )
