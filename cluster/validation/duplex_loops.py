"""The Duplex paper's systems in closed loops: steady state in closed form, latencies from the engine's stage batching.

Request lengths spread around (Lin, Lout) by the law of the paper's released simulator: normal with a standard deviation
of 0.4 x (min(256, Lin, Lout) - 1) tokens, cut at 0.95 of that range. Without a spread a closed loop locks into a
pattern. In the open loop requests arrive evenly: the released scheduler draws the gaps from a Poisson law with a mean
of 10^9 / rate nanoseconds, which hardly vary.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Literal

from pimserve.cluster.scenario.steady_state import ClosedLoop, SteadyState
from pimserve.cluster.validation.duplex_split import SplitState
from pimserve.cluster.validation.duplex_systems import SEED, Cluster, System, SystemName, build
from pimserve.errors import InputError
from pimserve.loadgen.workload import WorkloadSpec, generate
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import Pool
from pimserve.scheduler.simulation import simulate
from pimserve.scheduler.slo import SloSpec
from pimserve.scheduler.summary import summarize
from pimserve.scheduler.summary_sections import Figures
from pimserve.scheduler.usage import Hardware

LatencyName = Literal["TBT", "T2FT", "E2E"]
LatencyStatistic = Literal["mean", "p50", "p90", "p99"]
LATENCIES: dict[LatencyName, str] = {"TBT": "itl", "T2FT": "ttft", "E2E": "e2e"}

_SPREAD = 0.4
_CUT = 0.95
_CLOSED_REQUESTS = 3000
_OPEN_REQUESTS = 2000
_WARM_UP_SHARE = 0.3


class ServedLoop:
    """A system that serves a closed loop, all of whose requests fit; `state` is its closed form."""

    def __init__(self, system: System, loop: ClosedLoop) -> None:
        self.system = system
        self.loop = loop
        kind = SplitState if system.name == "Duplex-Split" else SteadyState
        self.state = kind(system.plan, system.pools, loop)

    def energy_per_token_j(self) -> dict[str, float]:
        """Energy of an output token, by category and kind.

        Raises:
            InputError: of Duplex-Split it is not worked out.
        """
        if isinstance(self.state, SplitState):
            raise InputError("", f"energy is not worked out for {self.system.name}")
        return self.state.energy_per_token_j()

    def latency_s(self, latency: LatencyName, statistic: LatencyStatistic) -> float:
        """A latency of the closed loop: from the engine, or in closed form for Duplex-Split."""
        if not isinstance(self.state, SplitState):
            return latency_s(figures(self), latency, statistic)
        if latency == "E2E":
            if statistic not in ("mean", "p50"):
                raise InputError("", f"E2E_{statistic} is not worked out for Duplex-Split (E2E_mean and E2E_p50 are)")
            return self.state.mean_e2e_s()
        if statistic == "mean":
            raise InputError("", f"{latency}_mean is not worked out for Duplex-Split (p50, p90 and p99 are)")
        quantile = int(statistic[1:]) / 100
        return self.state.tbt_s(quantile) if latency == "TBT" else self.state.t2ft_s(quantile)


@cache
def served_loop(
    model: str, cluster: Cluster, name: SystemName, loop: ClosedLoop, *, unlimited: bool = False
) -> ServedLoop:
    """A system in a loop, with as many of its requests as fit (`unlimited`: all); one for each setting.

    Raises:
        InputError: not one fits.
    """
    system = build(model, cluster, name)
    fits = system.requests_that_fit(loop.input_tokens, loop.output_tokens)
    if unlimited or fits >= loop.requests:
        return ServedLoop(system, loop)
    if not fits:
        raise InputError(
            "", f"{name} on {cluster.nodes} x {cluster.devices_per_node} devices holds no request of this length"
        )
    return ServedLoop(system, replace(loop, requests=fits))


@cache
def figures(served: ServedLoop, requests_per_s: float | None = None) -> Figures:
    """Summary of an engine run, worked out once.

    Args:
        served: a closed loop, whose first Lout stages are not measured.
        requests_per_s: of evenly arriving requests in place of the loop's, of which at most as many run at once.
    """
    loop, system = served.loop, served.system
    half = min(256, loop.input_tokens, loop.output_tokens) - 1
    workload: dict[str, Any] = {
        "lengths": {"input": _spread(loop.input_tokens, half), "output": _spread(loop.output_tokens, half)}
    }
    if requests_per_s is None:
        requests = max(_CLOSED_REQUESTS, 12 * loop.requests)
        workload |= {"mode": "closed", "concurrency": loop.requests, "num_requests": requests, "stagger": True}
        assert isinstance(served.state, SteadyState)
        warmup_s = served.state.mean_stage_s * loop.output_tokens
    else:
        arrival = {"process": "constant", "rate_per_s": requests_per_s}
        workload |= {"mode": "open", "num_requests": _OPEN_REQUESTS, "arrival": arrival}
        warmup_s = _WARM_UP_SHARE * _OPEN_REQUESTS / requests_per_s
    run = simulate(
        [Pool("", system.plan, system.kv_capacity_tokens)],
        generate(WorkloadSpec.model_validate(workload), SEED),
        SchedulerSpec(batching="stage", max_num_seqs=loop.requests, kv_admission="oracle"),
        max_model_len=system.kv_capacity_tokens,
        seed=SEED,
        warmup_s=warmup_s,
    )
    return summarize(run, SloSpec(), Hardware(system.plan.devices))


def latency_s(summary: Figures, latency: LatencyName, statistic: LatencyStatistic) -> float:
    """Mean or percentile of a latency, by the paper's name of that."""
    return float(getattr(getattr(summary.latency_s, LATENCIES[latency]), statistic))


def _spread(mean: int, half: int) -> dict[str, float | str]:
    if half < 1:
        return {"kind": "fixed", "tokens": mean}
    cut = int(_CUT * half)
    return {"kind": "normal", "mean": mean, "std": _SPREAD * half, "min": mean - cut, "max": mean + cut}
