"""The summary of a run: the figures of the scheduler, and what it ran on."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pimserve import __version__
from pimserve.cluster.run.caveats import (
    caveats,
    caveats_of_devices,
    caveats_of_drafts,
    caveats_of_host_memory,
    caveats_of_policy,
    caveats_of_prefixes,
    caveats_of_reserves,
)
from pimserve.cluster.run.group_figures import groups_of
from pimserve.cluster.run.rebalancing_figures import rebalancing_caveats, rebalancing_facts
from pimserve.cluster.run.run_times import now
from pimserve.cluster.run.summary_schema import (
    SCHEMA_VERSION,
    Holding,
    PoolFigures,
    Pools,
    Precision,
    ServedSummary,
    Sharing,
    Simulator,
    TraceRows,
    Traffic,
)
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.scheduler.simulation import Served
from pimserve.scheduler.summary import summarize
from pimserve.scheduler.summary_sections import PoolsUse
from pimserve.scheduler.usage import Hardware, logs_of

_BYTES_PER_MB, _BYTES_PER_GB = 10**6, 10**9


def summary_of(prepared: Prepared, served: Served) -> ServedSummary:
    """The summary, without results folder and simulator figures.

    Args:
        prepared: what ran.
        served: what came of it.
    """
    scenario, pools, workload = prepared.scenario, prepared.pools, served.workload
    hardware = Hardware(
        devices=sum(pool.devices for pool in pools),
        silicon_mm2=_total([pool.silicon_mm2 for pool in pools]),
        tdp_w=_total([pool.tdp_w for pool in pools]),
        passive_power=scenario.costs.passive_power,
    )
    figures = summarize(served, prepared.objectives, hardware, scenario.output.percentiles)
    layouts = {pool.name: max(log.layouts for log in logs_of(served, pool)) for pool in pools}
    rebalancing = {pool.name: rebalancing_facts(prepared, pool, layouts[pool.name]) for pool in pools}
    held = {pool.name: _holding(prepared, served, pool, rebalancing[pool.name]) for pool in pools}
    of_all = {"silicon_mm2": hardware.silicon_mm2, "tdp_w": hardware.tdp_w}
    most_tokens = min(served.limits_tokens.values())
    parts = figures.set_parts()
    if figures.pools is not None:
        parts["pools"] = _pools(figures.pools, pools, held)
    return ServedSummary(
        schema_version=SCHEMA_VERSION,
        name=scenario.name,
        model=prepared.model.name,
        device=prepared.device,
        devices=hardware.devices,
        replicas=prepared.replicas,
        policy=scenario.scheduler.policy,
        seed=scenario.run.seed,
        workload=workload.description,
        trace_rows=TraceRows(read=workload.rows_read, dropped=dict(workload.rows_dropped)),
        scenario_digest=prepared.digest,
        **_sharing(pools[0]).set_parts(),
        **held[pools[0].name].model_copy(update=of_all).set_parts(),
        **parts,
        warnings=[
            *caveats(figures, served.limits_tokens),
            *dict.fromkeys(warning for pool in pools for warning in pool.replica.warnings),
            *workload.warnings,
            *caveats_of_prefixes(scenario.scheduler, workload, pools),
            *caveats_of_drafts(scenario.scheduler, pools),
            *caveats_of_reserves(scenario.scheduler, workload, pools, most_tokens),
            *dict.fromkeys(caveats_of_host_memory(scenario.scheduler, pools, most_tokens)),
            *caveats_of_policy(scenario),
            *(caveat for facts in rebalancing.values() for caveat in rebalancing_caveats(facts)),
            *caveats_of_devices(figures, hardware.tdp_w, pools),
        ],
    )


def simulator_of(summary: ServedSummary, served: Served, **more: Any) -> Simulator:  # noqa: ANN401 spread, continued
    """Speed of the simulator itself; the only wall-clock figures of a run. `more` are the fields that may be absent."""
    steps, requests = summary.batch.steps, summary.requests.total
    loop = max(served.loop_s, 1e-9)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Simulator(
        loop_s=served.loop_s,
        process_s=_process_s(),
        steps=steps,
        requests=requests,
        steps_per_s=steps / loop,
        requests_per_s=requests / loop,
        output_tokens_per_s=summary.tokens.output / loop,
        peak_memory_mb=resident / _BYTES_PER_MB,
        version=__version__,
        python=platform.python_version(),
        numpy=np.__version__,
        ended_at=now(),
        **more,
    )


def _total(values: Sequence[float | None]) -> float | None:
    """Their sum; None if one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _pools(use: PoolsUse, pools: Sequence[PlacedPool], held: Mapping[str, Holding]) -> Pools:
    """What the pools did, and what their devices are."""
    figures = {
        pool.name: PoolFigures(
            device=pool.label,
            **_sharing(pool).set_parts(),
            **held[pool.name].set_parts(),
            **getattr(use, pool.name).set_parts(),
        )
        for pool in pools
    }
    return Pools(**{**use.set_parts(), **figures})


def _sharing(pool: PlacedPool) -> Sharing:
    replica = pool.replica
    return Sharing(
        devices_per_replica=pool.devices_per_replica,
        parallelism=dict(replica.parallelism),
        costs=dict(replica.costs),
        traffic=[
            Traffic(operator=sent.operator, link=sent.link, per=sent.rows.removesuffix("s"), bytes=sent.bytes_per_row)
            for sent in replica.traffic
        ],
    )


def _holding(prepared: Prepared, served: Served, pool: PlacedPool, rebalancing: Mapping[str, Any]) -> Holding:
    """Of a pool; `rebalancing`: what that of its experts took."""
    replica = pool.replica
    moves = {"expert_rebalancing": rebalancing} if rebalancing else {}
    groups = groups_of(pool, prepared.model, logs_of(served, pool), served.end_fs, moves)
    return Holding(
        plan_digest=pool.plan.digest(),
        weights_gb_per_device=replica.weight_bytes_per_device / _BYTES_PER_GB,
        reserved_gb_per_device=replica.reserved_bytes_per_device / _BYTES_PER_GB,
        silicon_mm2=pool.silicon_mm2,
        tdp_w=pool.tdp_w,
        precision=Precision(**asdict(replica.precision)),
        device_facts={**pool.facts, **({} if groups else moves)},
        **({"groups": groups} if groups else {}),
    )


def _process_s() -> float:
    """Wall-clock seconds since this process started."""
    try:
        started = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.process_time()  # not Linux: CPU time is the nearest figure at hand
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
