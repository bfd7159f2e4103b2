"""The engine as a queue whose theory is known.

A replica that serves one request at a time, each in a single step, is a single server: its service time is that of the
step, and so has the distribution of prompts. Waits are held against Pollaczek and Khinchine's mean, W = rate E[S^2] /
(2 (1 - load)), within 2 %; runs are so long that this is two standard errors or more. Clients who think between their
requests are the machines of the machine-repair model, and the server who repairs them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pimserve.device_models.plan import CostPlan, Energy, RowTerm
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import Pool
from pimserve.scheduler.simulation import Served, simulate
from pimserve.scheduler.summary import summarize
from pimserve.scheduler.usage import Hardware

PS_PER_S = 10**12
MEAN_TOKENS = 10_000  # of a prompt, each of which takes 100 us: 1 s
MOST_TOKENS = 10**7

Draw = Callable[[np.random.Generator, int], np.ndarray]
# Service times with a mean of 1, and the mean of their squares.
SERVICES: dict[str, tuple[Draw, float]] = {
    "M/D/1": (lambda rng, n: np.ones(n), 1.0),
    "M/M/1": (lambda rng, n: rng.standard_exponential(n), 2.0),
    "M/G/1, uniform": (lambda rng, n: rng.uniform(0, 2, n), 4 / 3),
    "M/G/1, hyperexponential": (lambda rng, n: rng.choice([0.4, 1.6], n) * rng.standard_exponential(n), 2.72),
}
# Load, and requests after which the mean wait's standard error is 1 % or less.
LONG = [(0.3, 400_000), (0.5, 10**6), (0.7, 2 * 10**6), (0.9, 4 * 10**6)]


def plan(step_ms: float, token_ms: float) -> CostPlan:
    """Steps that take so long, and longer for each token that they compute."""
    pieces = ((round(step_ms * 1e12), round(token_ms * 1e12)),)
    return CostPlan(1, 1, ("xpu",), (RowTerm("layers", "fc", "xpu", "tokens", pieces, Energy(0, 0, 0)),), (), (), None)


def serve(
    plan: CostPlan, at_s: np.ndarray, prompts: np.ndarray, outputs: np.ndarray, seqs: int = 1, **closed: Any
) -> Served:
    at_ps = np.rint(at_s * PS_PER_S).astype(np.int64)
    workload = Workload(
        at_ps, prompts, outputs, closed.get("concurrency"), None, "", 0, {}, think_ps=closed.get("think_ps")
    )
    spec = SchedulerSpec(max_num_seqs=seqs, max_num_batched_tokens=MOST_TOKENS)
    return simulate([Pool("", plan, MOST_TOKENS)], workload, spec, max_model_len=MOST_TOKENS)


def queue(kind: str, load: float, n: int, seed: int = 1) -> tuple[Served, np.ndarray, np.ndarray]:
    """A run, and when its requests arrived and how long each was served, ps."""
    arrivals, services = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    at_s = np.cumsum(arrivals.exponential(1 / load, n))
    prompts = np.maximum(1, np.rint(SERVICES[kind][0](services, n) * MEAN_TOKENS)).astype(np.int64)
    served = serve(plan(0, 0.1), at_s, prompts, np.ones(n, np.int64))
    return served, served.table["arrival_ps"], prompts * (PS_PER_S // MEAN_TOKENS)


def waits_ps(arrival_ps: np.ndarray, service_ps: np.ndarray) -> np.ndarray:
    """Of a single server, first come, first served (Lindley): the wait before, and its service, less the gap."""
    walk = np.concatenate([[0], np.cumsum(service_ps[:-1] - np.diff(arrival_ps))])
    return walk - np.minimum.accumulate(walk)


@pytest.mark.parametrize("kind", SERVICES)
def test_each_request_waits_as_in_a_single_server(kind: str) -> None:
    served, arrival_ps, service_ps = queue(kind, 0.9, 20_000)
    waited_ps = served.table["first_scheduled_ps"] - arrival_ps
    assert (waited_ps == waits_ps(arrival_ps, service_ps)).all()
    assert (served.table["finish_ps"] - served.table["first_scheduled_ps"] == service_ps).all()


@pytest.mark.medium
@pytest.mark.parametrize(
    ("kind", "load", "n"),
    [
        ("M/D/1", 0.3, 100_000),  # of which waits scatter least
        pytest.param("M/D/1", *LONG[1], marks=pytest.mark.slow),
        *(
            pytest.param(kind, *long, marks=pytest.mark.deep)
            for kind in SERVICES
            for long in LONG
            if (kind, long) != ("M/D/1", LONG[1])
        ),
    ],
)
def test_mean_waits_are_those_of_pollaczek_and_khinchine(kind: str, load: float, n: int) -> None:
    served, *_ = queue(kind, load, n)
    figures = summarize(served, Objectives(SloSpec()), Hardware(1))
    expected_s = load * SERVICES[kind][1] / (2 * (1 - load))
    assert figures.latency_s.queue.mean == pytest.approx(expected_s, rel=0.02)
    assert figures.latency_s.e2e.mean == pytest.approx(1 + expected_s, rel=0.02)
    assert figures.busy_share == pytest.approx(load, rel=0.01)
    width_s = figures.ci95.latency_s.queue.mean
    assert width_s is not None
    assert abs(figures.latency_s.queue.mean - expected_s) < 2 * width_s


@pytest.mark.medium
@pytest.mark.parametrize(("clients", "servers"), [(1, 1), (7, 1), (3, 4), (4, 4), (20, 4)])
def test_a_closed_loop_is_the_machine_repair_model(clients: int, servers: int) -> None:
    """Each client sends its next request when the last one ends: of `servers` at work, none rests while one waits.

    So requests leave at min(clients, servers) times the rate of one, and each is in the system for as long as a
    client's round takes, clients over that rate.
    """
    n, steps_s, mean_outputs = 40_000, 0.01, 20
    outputs = np.random.default_rng([3, clients, servers]).geometric(1 / mean_outputs, n)
    served = serve(plan(10, 0), np.zeros(n), np.ones(n, np.int64), outputs, servers, concurrency=clients)
    figures = summarize(served, Objectives(SloSpec()), Hardware(1))
    rate = min(clients, servers) / (steps_s * outputs.mean())
    assert figures.throughput.requests_per_s == pytest.approx(rate, rel=2e-3)
    assert figures.latency_s.e2e.mean == pytest.approx(clients / rate, rel=2e-3)
    assert figures.latency_s.queue.mean == pytest.approx(max(0, clients - servers) / rate, rel=5e-3, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("thinks", ["exponential", "constant"])
@pytest.mark.parametrize(("clients", "think_s"), [(3, 5.0), (10, 10.0), (20, 10.0)])
def test_clients_who_think_are_the_machine_repair_model(clients: int, think_s: float, thinks: str) -> None:
    """One server with exponential service, and clients who think by whatever law.

    Of n clients that think for a mean of z, i are with a server of mean s in a share of time p_i in proportion to
    n! / (n - i)! (s / z)^i (Kleinrock, Queueing Systems I, 1975, 3.8). So requests leave at (1 - p_0) / s, and a
    client's round takes n over that rate.
    """
    n = 60_000
    rng = np.random.default_rng([4, clients])
    prompts = np.maximum(1, np.rint(rng.standard_exponential(n) * MEAN_TOKENS)).astype(np.int64)
    seconds = think_s * (rng.standard_exponential(n) if thinks == "exponential" else np.ones(n))
    think_ps = np.rint(seconds * PS_PER_S).astype(np.int64)
    served = serve(plan(0, 0.1), np.zeros(n), prompts, np.ones(n, np.int64), concurrency=clients, think_ps=think_ps)
    figures = summarize(served, Objectives(), Hardware(1))
    weights = np.cumprod([1.0, *((clients - number) / think_s for number in range(clients))])
    rate = 1 - weights[0] / weights.sum()
    assert figures.throughput.requests_per_s == pytest.approx(rate, rel=0.01)
    assert figures.latency_s.e2e.mean == pytest.approx(clients / rate - think_s, rel=0.02)
    assert figures.busy_share == pytest.approx(rate, rel=0.01)
