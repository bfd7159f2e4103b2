"""Run a scenario in this process and write its results."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from pimserve import __version__
from pimserve.cluster.run.caveats import caveats, caveats_of_devices
from pimserve.cluster.run.checkpoint import COMMANDS_FILE, RESULTS, CheckpointFolder, target_of
from pimserve.cluster.run.results import (
    SCHEMA_VERSION,
    SpanFile,
    UnwrittenError,
    free_folder,
    load_summary,
    results_folder,
    write_json,
)
from pimserve.cluster.run.run_times import now
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.placement import Replica
from pimserve.cluster.scenario.pools import PlacedPool, energy_key, link_of
from pimserve.cluster.scenario.prepared import faults_of, max_model_len, prepare_pools
from pimserve.errors import InputError
from pimserve.loadgen.traces import trace_digest
from pimserve.loadgen.workload import generate
from pimserve.scheduler.clock import ShardPort
from pimserve.scheduler.control import Control
from pimserve.scheduler.fleet import Fleet, RowSink
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.simulation import Decode, Deployment, EnergyRangeError, Served, simulate
from pimserve.scheduler.stages import stage_figures
from pimserve.scheduler.summary import summarize

_BYTES_PER_MB, _BYTES_PER_GB = 10**6, 10**9
Progress = Callable[[int, int], None]


class Runtime(Protocol):
    """Where the parts of a run live."""

    window_wall_s: float | None  # how long a window should last, where nothing else says

    def shards(self, fleet: Fleet, table: RequestTable, on_rows: RowSink | None) -> Sequence[ShardPort]:
        """The shards of the run."""

    def facts(self) -> dict[str, Any]:
        """What the summary's simulator section tells of it."""


def serve(
    scenario: Scenario,
    *,
    span_file: SpanFile | None = None,
    progress: Progress | None = None,
    deployment: Deployment = Deployment(),  # noqa: B008 frozen
) -> tuple[dict[str, Any], Served]:
    """Run a scenario; returns its summary (without results folder and simulator figures) and the run itself.

    Args:
        scenario: what to run.
        span_file: takes the executed steps.
        progress: called now and then with (requests that have left, all requests).
        deployment: where and in which pieces it goes on.

    Raises:
        InputError: parts of the scenario do not go together.
    """
    model, pools, routing = prepare_pools(scenario)
    first = pools[0]
    decode = None
    if len(pools) > 1:
        last = pools[1]
        link = link_of(scenario, model, pools)
        decode = Decode(last.replica.plan, last.replica.kv_capacity_tokens, last.replicas, link)
    devices = sum(pool.devices for pool in pools)
    workload = generate(scenario.workload, scenario.run.seed)
    total = len(workload.input_tokens)
    try:
        served = simulate(
            first.replica.plan,
            workload,
            scenario.scheduler,
            kv_capacity_tokens=first.replica.kv_capacity_tokens,
            max_model_len=max_model_len(scenario, model, [pool.replica for pool in pools]),
            replicas=first.replicas,
            routing=routing,
            seed=scenario.run.seed,
            warmup_s=scenario.run.warmup_s,
            cooldown_s=scenario.run.cooldown_s,
            max_time_s=scenario.run.max_time_s,
            write_rows=None if span_file is None else lambda number, rows, _: span_file.write(number, rows),
            progress=(lambda left: progress(left, total)) if progress is not None else None,
            deployment=deployment,
            decode=decode,
            faults=faults_of(scenario),
        )
    except EnergyRangeError as error:
        key, value = energy_key(first.device)
        raise InputError(f"cluster.device.{key}", f"{value:g}: {error.message}; is its unit wrong?") from None
    summary = {
        "schema_version": SCHEMA_VERSION,
        "name": scenario.name,
        "model": model.name,
        "device": " + ".join(dict.fromkeys(pool.label for pool in pools)),
        "devices": devices,
        "replicas": sum(pool.replicas for pool in pools),
        "devices_per_replica": first.devices_per_replica,
        "parallelism": dict(first.replica.parallelism),
        "costs": dict(first.replica.costs),
        "traffic": _traffic(first.replica),
        "seed": scenario.run.seed,
        "workload": workload.description,
        "trace_rows": {"read": workload.rows_read, "dropped": workload.rows_dropped},
        "scenario_digest": scenario_digest(scenario),
        "plan_digest": first.replica.plan.digest(),
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
    summary["energy"]["passive_power"] = _passive_power(scenario, pools)
    if decode is not None:
        _tell_apart(summary, pools)
    warnings = dict.fromkeys(warning for pool in pools for warning in pool.replica.warnings)
    summary["warnings"] = [
        *caveats(summary, served.limits_tokens),
        *warnings,
        *workload.warnings,
        *caveats_of_devices(summary, pools),
    ]
    return summary, served


def run(
    scenario: Scenario,
    out: Path | None = None,
    *,
    progress: Progress | None = None,
    control: Control | None = None,
    checkpoints: Path | None = None,
    runtime: Runtime | None = None,
) -> dict[str, Any]:
    """Run a scenario, write its results folder and return the summary.

    Args:
        scenario: what to run.
        out: the results folder, which must not exist; None for the first free one of results/NAME, NAME-2, ...
        progress: called now and then with (requests that have left, all requests).
        control: watches and changes the run while it goes.
        checkpoints: folder that keeps the run's state, from which it goes on if it was interrupted; empty again when
            the run is done.
        runtime: where its shards and devices live; None: in this process, without devices of their own.

    Raises:
        InputError: parts of the scenario do not go together, or a folder cannot be written.
        UnwrittenError: the run is over, and the disk full.
        RunCancelledError: the control ended it.
    """
    with ExitStack() as stack:
        kept = None
        if checkpoints is not None:
            digest = scenario_digest(scenario)
            kept = stack.enter_context(CheckpointFolder(checkpoints, digest))
            before = kept.target()
            out = out or before
            if before is not None and (done := _finished(before, out, digest)) is not None:
                return done
        folder, target = stack.enter_context(
            results_folder(out, scenario.name, None if kept is None else kept.folder / RESULTS)
        )
        if kept is not None:
            kept.aim(target)
        deployment = Deployment(control=control, journal=kept, checkpoints=kept)
        if runtime is not None:
            deployment = replace(deployment, shards=runtime.shards, window_wall_s=runtime.window_wall_s)
        span_file = None
        if scenario.output.steps:
            span_file = SpanFile(folder / "steps.npy") if kept is None else kept.open_spans()
        try:
            summary, served = serve(scenario, span_file=span_file, progress=progress, deployment=deployment)
            summary["simulator"] = _simulator(summary, served)
            if runtime is not None:
                summary["simulator"]["spread"] = runtime.facts()
            if kept is not None:
                summary["simulator"]["continued"] = kept.continued
            try:
                if span_file is not None:
                    span_file.finish(folder / "steps.npy")
                _write(folder, scenario, served, {**summary, "results": str(target)})
                if kept is not None and (commands := kept.commands()):
                    (folder / COMMANDS_FILE).write_bytes(commands)
            except OSError as error:
                raise UnwrittenError(target, error, summary) from error
        finally:
            if span_file is not None:
                span_file.close()
    summary["results"] = str(target)
    return summary


def _write(folder: Path, scenario: Scenario, served: Served, summary: dict[str, Any]) -> None:
    np.save(folder / "requests.npy", served.table.structured())
    resolved = yaml.dump(scenario.resolved(), Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
    (folder / "scenario.yaml").write_text(resolved, encoding="utf-8")
    write_json(folder / "summary.json", summary)


def results_place(scenario: Scenario, out: Path | None, checkpoints: Path | None) -> Path:
    """Where a run that begins now will have its results, but for what others begin at the same time.

    Args:
        scenario: what runs.
        out: the folder that was asked for.
        checkpoints: of the run; it may be one that is continued, and has its folder already.
    """
    if out is None and checkpoints is not None:
        out = target_of(checkpoints, scenario_digest(scenario))
    return out or free_folder(scenario.name)


def scenario_digest(scenario: Scenario) -> str:
    """sha256 of the scenario with all defaults and catalogue entries written out, and of its trace's content.

    Raises:
        InputError: the trace cannot be read.
    """
    document = scenario.resolved()
    if scenario.workload.trace is not None:
        document["trace_sha256"] = trace_digest(scenario.workload.trace)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _finished(before: Path, out: Path | None, digest: str) -> dict[str, Any] | None:
    """The summary of a run whose process ended after its results were in place, and before it could say so."""
    if out is None or out.absolute() != before or not (before / "summary.json").is_file():
        return None
    summary = load_summary(before)
    return summary if summary.get("scenario_digest") == digest else None


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
            "plan_digest": pool.replica.plan.digest(),
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


def _passive_power(scenario: Scenario, pools: Sequence[PlacedPool]) -> str:
    """Whether the energy holds what devices draw without working."""
    if not scenario.costs.passive_power:
        return "left_out"
    known = [pool.replica.plan.passive is not None for pool in pools]
    return "counted" if all(known) else "partly_known" if any(known) else "not_known"


def _simulator(summary: dict[str, Any], served: Served) -> dict[str, Any]:
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
