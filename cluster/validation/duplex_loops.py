"""The systems of arXiv 2409.01141 in closed loops: steady state in closed form, latencies from the serving engine.

Request lengths spread around (Lin, Lout) by the law of the paper's released simulator: normal with a standard deviation
of 0.4 x (min(256, Lin, Lout) - 1) tokens, cut at 0.95 of that range. Without a spread a closed loop locks into a
pattern. In the open loop requests arrive evenly: the released scheduler draws the gaps from a Poisson law with a mean
of 10^9 / rate nanoseconds, which hardly vary.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np

from pimserve.cluster.scenario.steady_state import ClosedLoop, Stage, SteadyState, stage
from pimserve.cluster.validation.duplex_systems import SEED, Cluster, System, SystemName, build
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.routing import ExpertPools
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.workload import WorkloadSpec, generate
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import Pool
from pimserve.scheduler.simulation import simulate
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
_ITERATIONS = 8


class SplitState:
    """Duplex-Split in the long run (fig. 16): half of the devices prefill, half decode, each with all weights.

    Two stations in closed form, of which `plan` is one: a prompt takes a stage of its own on the first half, then its
    request decodes in stages without prompts on the second. Handing over the KV cache costs nothing; prompts do not
    queue for each other.
    """

    def __init__(self, plan: CostPlan, pools: ExpertPools | None, loop: ClosedLoop) -> None:
        self.plan = plan
        self.pools = pools
        self.loop = loop

    @cached_property
    def prefill(self) -> Stage:
        """A stage of the prefill half: one prompt."""
        return stage(self.plan, self.pools, decodes=0, mean_context=0, prompts=1, prompt_tokens=self.loop.input_tokens)

    @cached_property
    def decode(self) -> Stage:
        """A stage of the decode half, which holds all requests but those in prefill.

        Little's law on both stations: requests in prefill = B x prefill time / (prefill time + decode time).
        """
        loop = self.loop
        decodes = loop.requests
        decoding = self._decode_stage(decodes)
        for _ in range(_ITERATIONS):
            first = self.prefill.mean_s
            share = first / (first + (loop.output_tokens - 1) * decoding.mean_s)
            fewer = max(1, round(loop.requests * (1 - share)))
            if fewer == decodes:
                break
            decodes = fewer
            decoding = self._decode_stage(decodes)
        return decoding

    @property
    def throughput_tokens_per_s(self) -> float:
        """Output tokens per second of both halves."""
        return self.loop.requests * self.loop.output_tokens / self.mean_e2e_s()

    def tbt_s(self, quantile: float) -> float:
        """Quantile of the time between tokens."""
        return float(np.quantile(self.decode.duration_s, quantile, method="inverted_cdf"))

    def t2ft_s(self, quantile: float) -> float:
        """Quantile of the time to first token."""
        return float(np.quantile(self.prefill.duration_s, quantile, method="inverted_cdf"))

    def mean_e2e_s(self) -> float:
        """Mean time from a request's arrival to its last token."""
        return self.prefill.mean_s + (self.loop.output_tokens - 1) * self.decode.mean_s

    def _decode_stage(self, decodes: int) -> Stage:
        loop = self.loop
        return stage(
            self.plan,
            self.pools,
            decodes=decodes,
            mean_context=loop.input_tokens + loop.output_tokens / 2,
            prompts=0,
            prompt_tokens=loop.input_tokens,
        )


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
    return summarize(run, Objectives(), Hardware(system.plan.devices))


def latency_s(summary: Figures, latency: LatencyName, statistic: LatencyStatistic) -> float:
    """Mean or percentile of a latency, by the paper's name of that."""
    return float(getattr(getattr(summary.latency_s, LATENCIES[latency]), statistic))


def _spread(mean: int, half: int) -> dict[str, float | str]:
    if half < 1:
        return {"kind": "fixed", "tokens": mean}
    cut = int(_CUT * half)
    return {"kind": "normal", "mean": mean, "std": _SPREAD * half, "min": mean - cut, "max": mean + cut}
