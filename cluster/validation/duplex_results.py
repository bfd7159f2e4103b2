"""Results of the Duplex paper's systems, each worked out once: closed forms and engine runs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from pimserve.cluster.scenario.steady_state import ClosedLoop, SteadyState
from pimserve.cluster.validation.duplex_served import serve_closed, serve_open
from pimserve.cluster.validation.duplex_split import SplitState
from pimserve.cluster.validation.duplex_systems import Cluster, SystemName, build
from pimserve.errors import InputError
from pimserve.scheduler.summary_sections import Figures

LATENCIES = {"TBT": "itl", "T2FT": "ttft", "E2E": "e2e"}
STATISTICS = ("mean", "p50", "p90", "p99")


@cache
def fitting(model: str, cluster: Cluster, name: SystemName, loop: ClosedLoop, unlimited: bool = False) -> ClosedLoop:
    """The loop with as many of its requests as fit.

    Raises:
        InputError: not one fits.
    """
    fits = build(model, cluster, name).requests_that_fit(loop.input_tokens, loop.output_tokens)
    if unlimited or fits >= loop.requests:
        return loop
    if not fits:
        raise InputError(
            "", f"{name} on {cluster.nodes} x {cluster.devices_per_node} devices holds no request of this length"
        )
    return replace(loop, requests=fits)


@cache
def steady(
    model: str, cluster: Cluster, name: SystemName, loop: ClosedLoop, unlimited: bool = False
) -> SteadyState | SplitState:
    """Closed form of a closed loop, with the requests that fit."""
    system = build(model, cluster, name)
    kind = SplitState if name == "Duplex-Split" else SteadyState
    return kind(system.plan, system.pools, fitting(model, cluster, name, loop, unlimited))


def energy_per_token_j(
    model: str, cluster: Cluster, name: SystemName, loop: ClosedLoop, unlimited: bool = False
) -> dict[str, float]:
    """Energy of an output token of a closed loop, J, by category and kind.

    Raises:
        InputError: of Duplex-Split it is not worked out.
    """
    state = steady(model, cluster, name, loop, unlimited)
    if isinstance(state, SplitState):
        raise InputError("", f"energy is not worked out for {name}")
    return state.energy_per_token_j()


@cache
def served(model: str, cluster: Cluster, name: SystemName, loop: ClosedLoop, qps: float | None) -> Figures:
    """Figures of an engine run, closed loop or (with `qps`) open."""
    system = build(model, cluster, name)
    loop = fitting(model, cluster, name, loop)
    if qps is not None:
        return serve_open(system, loop, qps)
    expected = steady(model, cluster, name, loop)
    assert isinstance(expected, SteadyState)
    return serve_closed(system, loop, expected.mean_stage_s)


def statistic_of(figures: Figures, metric: str, statistic: str) -> float:
    """Mean or percentile of a latency, by the paper's name of that, s."""
    return float(getattr(getattr(figures.latency_s, LATENCIES[metric]), statistic))


def latency(model: str, cluster: Cluster, name: SystemName, loop: ClosedLoop, metric: str, statistic: str) -> float:
    """A latency of a closed loop, s: from the engine, or in closed form for Duplex-Split."""
    if name != "Duplex-Split":
        return statistic_of(served(model, cluster, name, loop, None), metric, statistic)
    state = steady(model, cluster, name, loop)
    if metric == "E2E" or statistic == "mean":
        if metric != "E2E":
            raise InputError("", f"{metric}_mean is not worked out for Duplex-Split (p50, p90 and p99 are)")
        if statistic not in ("mean", "p50"):
            raise InputError("", f"E2E_{statistic} is not worked out for Duplex-Split (E2E_mean and E2E_p50 are)")
        return state.mean_e2e_s()
    quantile = int(statistic[1:]) / 100
    return state.tbt_s(quantile) if metric == "TBT" else state.t2ft_s(quantile)
