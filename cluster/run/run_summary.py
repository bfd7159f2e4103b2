"""The summary of a run: the figures of the scheduler, and what it ran on."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pimserve import __version__
from pimserve.cluster.run.caveats import caveats, caveats_of_devices
from pimserve.cluster.run.results import SCHEMA_VERSION
from pimserve.cluster.run.run_times import now
from pimserve.cluster.scenario.placement import Replica
from pimserve.cluster.scenario.pools import PlacedPool
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.scheduler.simulation import Served
from pimserve.scheduler.stages import stage_figures
from pimserve.scheduler.summary import summarize

_BYTES_PER_MB, _BYTES_PER_GB = 10**6, 10**9


def summary_of(prepared: Prepared, served: Served) -> dict[str, Any]:
    """The summary, without results folder and simulator figures.

    Args:
        prepared: what ran.
        served: what came of it.
    """
    scenario, pools, workload = prepared.scenario, prepared.pools, served.workload
    first, devices = pools[0], sum(pool.devices for pool in pools)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "name": scenario.name,
        "model": prepared.model.name,
        "device": prepared.device,
        "devices": devices,
        "replicas": prepared.replicas,
        "devices_per_replica": first.devices_per_replica,
        "parallelism": dict(first.replica.parallelism),
        "costs": dict(first.replica.costs),
        "traffic": _traffic(first.replica),
        "seed": scenario.run.seed,
        "workload": workload.description,
        "trace_rows": {"read": workload.rows_read, "dropped": workload.rows_dropped},
        "scenario_digest": prepared.digest,
        "plan_digest": first.plan.digest(),
        "weights_gb_per_device": first.replica.weight_bytes_per_device / _BYTES_PER_GB,
        "reserved_gb_per_device": first.replica.reserved_bytes_per_device / _BYTES_PER_GB,
        "silicon_mm2": _total([pool.silicon_mm2 for pool in pools]),
        "tdp_w": _total([pool.tdp_w for pool in pools]),
        "precision": asdict(first.replica.precision),
        "device_facts": first.facts,
        **summarize(served, scenario.slo, devices),
        **stage_figures(served, scenario.slo),
    }
    _relate(summary)
    summary["energy"]["passive_power"] = _passive_power(prepared)
    if len(pools) > 1:
        _tell_apart(summary, pools)
    summary["warnings"] = [
        *caveats(summary, served.limits_tokens),
        *dict.fromkeys(warning for pool in pools for warning in pool.replica.warnings),
        *workload.warnings,
        *caveats_of_devices(summary, pools),
    ]
    return summary


def _total(values: Sequence[float | None]) -> float | None:
    """Their sum; None if one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _tell_apart(summary: dict[str, Any], pools: Sequence[PlacedPool]) -> None:
    """Add what the pools' devices are."""
    for pool in pools:
        summary["pools"][pool.name] = {
            "device": pool.label,
            "devices_per_replica": pool.devices_per_replica,
            "parallelism": dict(pool.replica.parallelism),
            "costs": dict(pool.replica.costs),
            "traffic": _traffic(pool.replica),
            "plan_digest": pool.plan.digest(),
            "weights_gb_per_device": pool.replica.weight_bytes_per_device / _BYTES_PER_GB,
            "reserved_gb_per_device": pool.replica.reserved_bytes_per_device / _BYTES_PER_GB,
            "silicon_mm2": pool.silicon_mm2,
            "tdp_w": pool.tdp_w,
            "precision": asdict(pool.replica.precision),
            "device_facts": pool.facts,
            **summary["pools"][pool.name],
        }


def _traffic(replica: Replica) -> list[dict[str, Any]]:
    """What the devices of a replica send each other, by operator and link: bytes for each token, or output."""
    return [
        {"operator": each.operator, "link": each.link, "per": each.rows.removesuffix("s"), "bytes": each.bytes_per_row}
        for each in replica.traffic
    ]


def _relate(summary: dict[str, Any]) -> None:
    """Add what relates throughput to silicon and to power: per mm2, and energy if the devices drew their TDP."""
    rate, silicon, tdp = summary["throughput"]["output_tokens_per_s"], summary["silicon_mm2"], summary["tdp_w"]
    tokens = summary["tokens"]["output"]
    summary["throughput"]["output_tokens_per_s_per_mm2"] = rate / silicon if rate is not None and silicon else None
    summary["energy"]["tdp_joules_per_output_token"] = tdp * summary["end_s"] / tokens if tdp and tokens else None


def _passive_power(prepared: Prepared) -> str:
    """Whether the energy holds what devices draw without working."""
    if not prepared.scenario.costs.passive_power:
        return "left_out"
    known = [pool.plan.passive is not None for pool in prepared.pools]
    return "counted" if all(known) else "partly_known" if any(known) else "not_known"


def simulator_of(summary: dict[str, Any], served: Served) -> dict[str, Any]:
    """Speed of the simulator itself; the only wall-clock figures of a run."""
    steps, requests = summary["batch"]["steps"], summary["requests"]["total"]
    loop = max(served.loop_s, 1e-9)
    return {
        "loop_s": served.loop_s,
        "process_s": _process_s(),
        "steps": steps,
        "requests": requests,
        "steps_per_s": steps / loop,
        "requests_per_s": requests / loop,
        "output_tokens_per_s": summary["tokens"]["output"] / loop,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / _BYTES_PER_MB,
        "version": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "ended_at": now(),
    }


def _process_s() -> float:
    """Wall-clock seconds since this process started."""
    try:
        started = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.process_time()  # not Linux: CPU time is the nearest figure at hand
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
