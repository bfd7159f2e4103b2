"""Runs of the study of mixed replicas: what a replica does at a rate, and the highest rate at which it keeps an SLO."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from mixed_systems import (
    ATTAINMENT,
    CONVERSATION,
    LENGTHS,
    LOAD_SHARES,
    RELAXED,
    SHAPES,
    SLOS,
    STRICT,
    Knob,
    Shape,
    Slo,
)

from pimserve.cluster.run.run import serve
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.device_models.routing import Routing
from pimserve.errors import InputError
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.workload import WorkloadSpec
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.stability import SATURATED

Figures = dict[str, Any]

SPAN_S, LEAST_S, WARMUP_SHARE = 180.0, 90.0, 0.25  # of arrivals; at least, whatever their number; of it, unmeasured
FEWEST, ENOUGH = 300, 7500  # requests of a run
_FLOOD_REQUESTS, _FLOOD_PER_S = 600, 1e5
_STEP, _SMALL_STEP, CLOSE = (
    1.5,
    1.2,
    1.08,
)  # of rates, while bracketing, also near a known goodput; between the highest kept rate and the lowest missed one
_LOWEST_PER_S = 0.02
TRACE_SHARES = (1.0, 0.7)  # of the goodput, at which traces are replayed


class _Drawn(PlacedPool):
    """A pool whose outcomes of experts are drawn once for all runs on it; they hang on the seed alone."""

    @cache  # noqa: B019 lives as long as the study's search
    def costs(self, routing: Routing, seed: int) -> ReplicaCosts:
        """As of the pool."""
        return PlacedPool.costs(self, routing, seed)

    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Bench:
    """A replica that is ready to run at any rate of one kind of traffic."""

    prepared: Prepared
    traffic: str

    @classmethod
    def of(
        cls, model: str, shape: Shape, traffic: str, *, measured: bool = False, more: Mapping[str, Any] | None = None
    ) -> Bench:
        """Fit a model on a replica; `more`: further keys of the scenario."""
        keys = {"model": model, **shape.keys, **({"costs.setting": "measured"} if measured else {}), **(more or {})}
        prepared = prepare(load_scenario(None, [f"{key}={json.dumps(value)}" for key, value in keys.items()]))
        pools = tuple(
            _Drawn(**{each.name: getattr(pool, each.name) for each in fields(pool)}) for pool in prepared.pools
        )
        return cls(replace(prepared, pools=pools), traffic)

    def at(
        self, rate_per_s: float, slo: Slo, *, requests: int | None = None, replicas: int = 1, trace: Path | None = None
    ) -> Figures:
        """What comes of a run at a rate, requests/s; `trace`: whose arrivals and lengths count, at that rate."""
        enough = min(rate_per_s * SPAN_S, max(ENOUGH, rate_per_s * LEAST_S))
        number = requests or max(FEWEST, round(enough))
        workload: Figures = {
            "arrival": {"process": "poisson", "rate_per_s": rate_per_s},
            "num_requests": number,
            **LENGTHS[self.traffic],
        }
        if trace is not None:
            replayed = {"format": "azure", "path": str(trace), "max_requests": number, "target_rate_per_s": rate_per_s}
            workload = {"trace": replayed}
        scenario = self.prepared.scenario
        warmup_s = 0.0 if requests else WARMUP_SHARE * number / rate_per_s
        scenario = scenario.model_copy(
            update={
                "workload": WorkloadSpec.model_validate(workload),
                "slo": SloSpec(ttft_s=slo.ttft_s, tpot_s=slo.tpot_s),
                "run": scenario.run.model_copy(update={"warmup_s": warmup_s}),
                "cluster": scenario.cluster.model_copy(update={"replicas": replicas}),
            }
        )
        pools = (
            tuple(replace(pool, replicas=replicas) for pool in self.prepared.pools)
            if replicas > 1
            else self.prepared.pools
        )
        return _figures(rate_per_s, *serve(replace(self.prepared, scenario=scenario, pools=pools)))

    @property
    def facts(self) -> Figures:
        """Devices, silicon and what is written of the replica."""
        pool = self.prepared.pools[0]
        groups = [{"device": each.label, "devices": each.devices_per_replica} for each in pool.members]
        found: Figures = {
            "groups": groups,
            "devices": pool.devices_per_replica,
            "mm2": pool.silicon_mm2,
            "kv_tokens": pool.kv_tokens(self.prepared.scenario.scheduler.block_size),
            "tensor": pool.replica.parallelism.get("tensor"),
            "budget": self.prepared.scenario.scheduler.max_num_batched_tokens,
        }
        placement = pool.replica.facts.get("placement")
        if placement:
            found["micro_batches"] = placement["micro_batches"]
        return found


def _figures(rate_per_s: float, summary: Any, served: Any) -> Figures:  # noqa: ANN401 of serve
    told = summary.model_dump()
    energy, slo, latency = told["energy"], told["slo"], told["latency_s"]
    log = served.logs[0]
    busy = told["unit_busy_share_of_busiest_device"] or told["unit_busy_share"]
    return {
        "rate_per_s": rate_per_s,
        "requests": told["requests"]["total"],
        "rejected": told["requests"]["rejected"],
        "attainment": slo["attainment"] or 0.0,
        "met": {name: slo["met"][name] or 0.0 for name in ("ttft", "tpot")},
        "stability": told["stability"],
        "requests_per_s": told["throughput"]["requests_per_s"],
        "tokens_per_s": told["throughput"]["output_tokens_per_s"],
        **{
            f"{name}_{rank}_s": latency[name][rank]
            for name, ranks in (("ttft", ("p50", "p99")), ("tpot", ("p50", "p99")))
            for rank in ranks
        },
        "joules_per_token": energy["joules_per_output_token"],
        "active_joules_per_token": energy["active_joules_per_output_token"],
        "passive_joules_per_token": energy["passive_joules_per_output_token"],
        "watts": energy["joules"] / told["end_s"],
        "batch": told["batch"]["mean_requests"],
        "kv_peak": told["kv"]["peak_use"],
        "busy": {unit: share for unit, share in busy.items() if share > 0},
        "waits": {stage: time / log.busy_fs for stage, time in log.stage_fs.items()} if log.busy_fs else {},
    }


def keeps(figures: Figures) -> bool:
    """Whether a run keeps its SLO and the system keeps up."""
    return figures["attainment"] >= ATTAINMENT and figures["stability"] != SATURATED


def search(
    bench: Bench, slo: Slo, start_per_s: float | None = None, step: float = _STEP
) -> tuple[Figures | None, Figures | None]:
    """(the run at the highest rate that keeps the SLO, that at the lowest one tried that misses it), within `CLOSE`.

    None in place of the first: none of `_LOWEST_PER_S` or more keeps it.
    """
    rate = start_per_s or 0.8 * flood(bench, slo)
    kept = missed = None
    while True:
        figures = bench.at(rate, slo)
        if keeps(figures):
            kept = figures
        else:
            missed = figures
        if kept is None:
            rate /= step
            if rate < _LOWEST_PER_S:
                return None, missed
        elif missed is None:
            rate *= step
        else:
            low, high = kept["rate_per_s"], missed["rate_per_s"]
            if high / low <= CLOSE:
                return kept, missed
            rate = (low * high) ** 0.5


def flood(bench: Bench, slo: Slo) -> float:
    """Requests/s that leave when all are there at once: where a search begins."""
    return float(bench.at(_FLOOD_PER_S, slo, requests=_FLOOD_REQUESTS)["requests_per_s"])


def cell(model: str, system: str, number: int, traffic: str) -> Figures:
    """One shape of one system under one traffic: at the goodput under each SLO, and at lower loads."""
    told: Figures = {"model": model, "system": system, "shape": number, "traffic": traffic}
    try:
        bench = Bench.of(model, SHAPES[model][system][number], traffic, measured=system == "gpu-measured")
    except InputError as error:
        return {**told, "refused": str(error)}
    told |= bench.facts
    kept, missed = search(bench, SLOS[RELAXED])
    told[RELAXED] = {"goodput": kept, "missed": _reason(missed)}
    if kept is None:
        return told
    told["loads"] = {
        str(share): bench.at(share * kept["rate_per_s"], SLOS[RELAXED], requests=FEWEST) for share in LOAD_SHARES
    }
    if traffic == CONVERSATION:
        strict = SLOS[STRICT]
        if kept["ttft_p99_s"] > strict.ttft_s or kept["tpot_p99_s"] > strict.tpot_s:  # else it keeps that too
            kept, missed = search(bench, strict, kept["rate_per_s"])
        told[STRICT] = {"goodput": kept, "missed": _reason(missed)}
    return told


def sensitivity(model: str, number: int, start_per_s: float, knob: Knob | None, end: str) -> Figures:
    """Goodput and energy of Duplex with AIMC with one assumption at one end; no knob: the base."""
    more = None if knob is None else getattr(knob, end)
    told: Figures = {"model": model, "knob": None if knob is None else knob.name, "end": end}
    try:
        bench = Bench.of(model, SHAPES[model]["duplex+aimc"][number], CONVERSATION, more=more)
    except InputError as error:
        return {**told, "refused": str(error)}
    slo = SLOS[RELAXED]
    if knob is not None and knob.power_only:
        kept, missed = bench.at(start_per_s, slo), None
    else:
        kept, missed = search(bench, slo, start_per_s, _SMALL_STEP)
    same_load = bench.at(0.5 * start_per_s, slo)
    return {**told, **bench.facts, "goodput": kept, "missed": _reason(missed), "half_load": same_load}


def _reason(missed: Figures | None) -> Figures | None:
    """What of a run says why it does not keep its SLO."""
    wanted = ("rate_per_s", "attainment", "met", "stability", "rejected")
    return None if missed is None else {key: missed[key] for key in wanted}


def copies(model: str, system: str, number: int, traffic: str, rate_per_s: float, replicas: int) -> Figures:
    """Several replicas behind a router at as many times the rate."""
    bench = Bench.of(model, SHAPES[model][system][number], traffic)
    one = bench.at(rate_per_s, SLOS[RELAXED])
    several = bench.at(replicas * rate_per_s, SLOS[RELAXED], requests=replicas * one["requests"], replicas=replicas)
    return {"model": model, "system": system, "replicas": replicas, "one": one, "several": several}


def traced(model: str, system: str, number: int, traffic: str, rate_per_s: float, trace: Path) -> Figures:
    """A replica at its goodput with the trace itself, and with Poisson arrivals, of as many requests."""
    bench, slo = Bench.of(model, SHAPES[model][system][number], traffic), SLOS[RELAXED]
    told: Figures = {"model": model, "system": system, "shape": number, "traffic": traffic, **bench.facts}
    at = {str(share): bench.at(share * rate_per_s, slo, trace=trace) for share in TRACE_SHARES}
    return {**told, "poisson": bench.at(rate_per_s, slo), "trace": at}
