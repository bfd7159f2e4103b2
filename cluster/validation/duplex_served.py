"""Latencies of the Duplex paper's systems, from the serving engine with stage batching.

Request lengths spread around (Lin, Lout) by the law of the paper's released simulator: normal with a standard deviation
of 0.4 x (min(256, Lin, Lout) - 1) tokens, cut at 0.95 of that range. Without a spread a closed loop locks into a
pattern. In the open loop requests arrive evenly: the released scheduler draws the gaps from a Poisson law with a mean
of 10^9 / rate nanoseconds, which hardly vary.
"""

from __future__ import annotations

from typing import Any

from pimserve.cluster.scenario.steady_state import ClosedLoop
from pimserve.cluster.validation.duplex_systems import SEED, System
from pimserve.loadgen.workload import WorkloadSpec, generate
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import Pool
from pimserve.scheduler.simulation import simulate
from pimserve.scheduler.slo import SloSpec
from pimserve.scheduler.summary import summarize
from pimserve.scheduler.summary_sections import Figures
from pimserve.scheduler.usage import Hardware

_SPREAD = 0.4
_CUT = 0.95
_CLOSED_REQUESTS = 3000
_OPEN_REQUESTS = 2000
_WARM_UP_SHARE = 0.3


def serve_closed(system: System, loop: ClosedLoop, stage_s: float) -> Figures:
    """Summary of a closed loop.

    Args:
        system: the system.
        loop: the loop, whose requests must fit.
        stage_s: about how long a stage takes; the first Lout stages are not measured.
    """
    workload = {
        "mode": "closed",
        "concurrency": loop.requests,
        "num_requests": max(_CLOSED_REQUESTS, 12 * loop.requests),
        "lengths": _lengths(loop),
        "stagger": True,
    }
    return _serve(system, loop, workload, stage_s * loop.output_tokens)


def serve_open(system: System, loop: ClosedLoop, requests_per_s: float) -> Figures:
    """Summary of evenly arriving requests, of which at most `loop.requests` run at once."""
    workload = {
        "mode": "open",
        "num_requests": _OPEN_REQUESTS,
        "arrival": {"process": "constant", "rate_per_s": requests_per_s},
        "lengths": _lengths(loop),
    }
    return _serve(system, loop, workload, _WARM_UP_SHARE * _OPEN_REQUESTS / requests_per_s)


def _serve(system: System, loop: ClosedLoop, workload: dict[str, Any], warmup_s: float) -> Figures:
    served = simulate(
        [Pool("", system.plan, system.kv_capacity_tokens)],
        generate(WorkloadSpec.model_validate(workload), SEED),
        SchedulerSpec(batching="stage", max_num_seqs=loop.requests, kv_admission="oracle"),
        max_model_len=system.kv_capacity_tokens,
        seed=SEED,
        warmup_s=warmup_s,
    )
    return summarize(served, SloSpec(), Hardware(system.plan.devices))


def _lengths(loop: ClosedLoop) -> dict[str, dict[str, float | str]]:
    half = min(256, loop.input_tokens, loop.output_tokens) - 1
    return {"input": _spread(loop.input_tokens, half), "output": _spread(loop.output_tokens, half)}


def _spread(mean: int, half: int) -> dict[str, float | str]:
    if half < 1:
        return {"kind": "fixed", "tokens": mean}
    cut = int(_CUT * half)
    return {"kind": "normal", "mean": mean, "std": _SPREAD * half, "min": mean - cut, "max": mean + cut}
