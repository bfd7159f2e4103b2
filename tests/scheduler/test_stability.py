"""Saturated, steady or too short to tell: on queues and batches whose capacity is known."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from pimserve.device_models.plan import CostPlan, Energy, RowTerm
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import Pool
from pimserve.scheduler.requests import FINISHED, REJECTED, RequestTable
from pimserve.scheduler.simulation import simulate
from pimserve.scheduler.stability import SATURATED, STATES, STEADY, TOO_SHORT, Stability, _regression, stability
from pimserve.scheduler.summary import summarize
from pimserve.scheduler.usage import Hardware
from pimserve.scheduler.window import MeasuredWindow
from tests.examples import SHARE

SEEDS = range(6 if SHARE >= 1 else 3)


def plan(step_ms: float, token_ms: float) -> CostPlan:
    """Steps that take so long, and longer for each token."""
    pieces = ((round(step_ms * 1e12), round(token_ms * 1e12)),)
    return CostPlan(1, 1, ("xpu",), (RowTerm("layers", "fc", "xpu", "tokens", pieces, Energy(0, 0, 0)),), (), (), None)


# Capacity in requests/s: (4 at once, 20 steps of 10 ms), and (64 at once, 100 tokens in steps of 11.4 ms, and prompts).
SYSTEMS: dict[str, dict[str, Any]] = {
    "four servers": {"plan": plan(10, 0), "seqs": 4, "output": 20, "capacity": 20.0},
    "a batch": {"plan": plan(5, 0.1), "seqs": 64, "output": 100, "capacity": 53.0},
}


def arrivals(rate: float, n: int, seed: int, process: str = "poisson") -> np.ndarray:
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, n) if process == "poisson" else rng.gamma(0.25, 4 / rate, n)
    return np.cumsum(gaps)


def summary(
    at_s: np.ndarray, system: str, seed: int = 0, *, concurrency: int | None = None, **changes: Any
) -> dict[str, Any]:
    given = SYSTEMS[system]
    n = len(at_s)
    outputs = np.random.default_rng([seed, 1]).geometric(1 / given["output"], n)
    workload = Workload(
        np.rint((at_s - at_s[0]) * 1e12).astype(np.int64), np.full(n, 10), outputs, concurrency, None, "", 0, {}
    )
    spec = SchedulerSpec(max_num_seqs=given["seqs"])
    served = simulate([Pool("", given["plan"], 10**6)], workload, spec, max_model_len=10**5, **changes)
    return summarize(served, Objectives(SloSpec()), Hardware(1)).document()


def states(system: str, load: float, n: int, process: str = "poisson") -> Counter[str]:
    rate = load * SYSTEMS[system]["capacity"]
    return Counter(summary(arrivals(rate, n, seed, process), system, seed)["stability"] for seed in SEEDS)


@pytest.mark.medium
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("load", [0.5, 0.7, 0.9])
def test_long_runs_below_the_capacity_are_steady(system: str, load: float) -> None:
    found = states(system, load, 4000)
    assert found[SATURATED] == 0
    assert found[STEADY] >= len(SEEDS) - 1


@pytest.mark.medium
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("load", [1.1, 1.3, 2.5])
def test_long_runs_above_the_capacity_are_saturated(system: str, load: float) -> None:
    found = states(system, load, 4000)
    assert found[STEADY] == 0
    assert found[SATURATED] >= len(SEEDS) - 1


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("n", [600, 2000])
@pytest.mark.parametrize("load", [2.4, 4.7, 20])
def test_the_more_overloaded_the_sooner_it_is_saturated(system: str, n: int, load: float) -> None:
    """All have arrived before the first batch is served four times over, but it has long been full."""
    assert states(system, load, n)[SATURATED] == len(SEEDS)


@pytest.mark.medium
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("n", [600, 2000, 4000])
@pytest.mark.parametrize("load", [1.04, 1.06])
def test_a_queue_that_grows_and_never_runs_dry_is_not_steady(system: str, n: int, load: float) -> None:
    assert states(system, load, n)[STEADY] == 0


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("n", "load"), [(250, 1.5), (250, 2.5), (250, 10), (600, 1.3), (600, 2.5)])
def test_short_runs_above_the_capacity_are_never_steady(system: str, n: int, load: float) -> None:
    assert states(system, load, n)[STEADY] == 0


@pytest.mark.medium
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("n", [1, 20, 100, 250, 600, 2000])
def test_short_runs_below_the_capacity_are_hardly_ever_saturated(system: str, n: int) -> None:
    found = sum((states(system, load, n) for load in (0.3, 0.6, 0.8)), Counter())
    assert found[SATURATED] <= 1
    assert set(found) <= set(STATES)


def test_a_backlog_among_the_running_requests_is_one() -> None:
    """Nobody waits for long, as the batch takes them all in; the run is over before it is full."""
    found = summary(arrivals(2.5 * 53, 64, 0), "a batch")
    assert found["in_system"]["waiting_at_last_arrival"] <= 2  # for the next step
    assert found["in_system"]["at_last_arrival"] > 40
    assert found["stability"] == TOO_SHORT


@pytest.mark.medium
@pytest.mark.parametrize("load", [0.5, 2.5])
def test_bursty_arrivals(load: float) -> None:
    found = states("four servers", load, 8000, "gamma")
    assert found[SATURATED if load > 1 else STEADY] == len(SEEDS)


def test_a_run_of_a_few_latencies_is_too_short() -> None:
    at_s = np.linspace(0, 4, 400)  # of a second or more each
    found = summary(at_s, "a batch")
    mean_s = found["latency_s"]["e2e"]["mean"]
    assert at_s[-1] < 5 * mean_s
    assert found["stability"] != STEADY
    assert summary(np.zeros(500), "four servers")["stability"] == TOO_SHORT
    assert summary(np.array([0.0]), "four servers")["stability"] == TOO_SHORT


def test_a_burst_that_drains_is_not_saturation() -> None:
    at_s = np.concatenate([np.zeros(60), 10.0 + np.arange(100)])
    found = summary(at_s, "four servers")
    assert found["stability"] == STEADY
    assert found["in_system"]["at_last_arrival"] == 1
    assert found["in_system"]["growth_per_arrival"] == 0


def test_a_system_that_drains_for_most_of_the_run_is_not_steady() -> None:
    at_s = np.concatenate([np.linspace(0, 10, 1000), np.linspace(10.05, 60, 1000)])  # 100, then 20 a second
    assert summary(at_s, "four servers")["stability"] != STEADY


def test_a_stop_during_overload_is_saturation() -> None:
    found = summary(np.arange(500) * 0.01, "four servers", max_time_s=3.0)
    assert found["stability"] == SATURATED
    assert found["in_system"]["waiting_at_last_arrival"] == pytest.approx(300 - 60, abs=20)
    assert found["in_system"]["growth_per_arrival"] == pytest.approx(0.8, abs=0.1)


def test_a_rate_that_moves_below_the_capacity_is_steady() -> None:
    rate = np.concatenate([np.linspace(4, 16, 2000), np.linspace(16, 4, 2000)])
    at_s = np.cumsum(np.random.default_rng(0).exponential(1, 4000) / rate)
    assert summary(at_s, "four servers")["stability"] == STEADY


@pytest.mark.parametrize(("n", "state"), [(16, TOO_SHORT), (40, TOO_SHORT), (400, STEADY)])
@pytest.mark.parametrize("warmup_s", [0.0, 0.05])
def test_a_closed_loop_is_steady_or_too_short(n: int, state: str, warmup_s: float) -> None:
    found = summary(np.zeros(n), "four servers", concurrency=12, warmup_s=warmup_s)
    assert found["stability"] == state
    assert found["in_system"]["growth_per_arrival"] is None


def test_a_warm_up_of_the_run_is_left_out() -> None:
    """In which it was above capacity, and after which it is not."""
    at_s = np.concatenate([np.linspace(0, 10, 1000), np.linspace(80, 800, 7200)])
    found = summary(at_s, "four servers", warmup_s=70.0)
    assert found["stability"] == STEADY


def test_the_slope_of_a_line_has_no_error() -> None:
    assert _regression(np.arange(10.0) * 3 + 1) == pytest.approx((3, 0))
    slope, error = _regression(np.array([0.0, 1, 0, 1, 0, 1, 0, 1, 0, 1]))
    assert (slope, error) == pytest.approx((0.0303, 0.0606), abs=5e-4)


def test_where_all_are_rejected_none_is_in_the_system() -> None:
    ones = np.ones(3, np.int64)
    table = RequestTable(np.arange(3) * 10**12, ones, ones, 100)
    table["status"][:] = REJECTED
    assert stability(table.columns, MeasuredWindow(), 10**13) == Stability(TOO_SHORT, 0, 0, None, None)


def test_the_order_of_rows_does_not_matter() -> None:
    """Turns that follow on others are behind these in the table, whenever they arrive."""
    rng = np.random.default_rng(5)
    n = 4000
    arrival = np.sort(rng.integers(0, 10**15, n))
    table = RequestTable(arrival, np.ones(n, np.int64), np.ones(n, np.int64), 10)
    table["first_scheduled_ps"][:] = arrival + 10**9
    table["finish_ps"][:] = arrival + rng.integers(2 * 10**9, 10**12, n)
    table["status"][:] = FINISHED
    mixed = RequestTable.of_rows(table.structured()[rng.permutation(n)])
    end_ps = int(table["finish_ps"].max())
    found = stability(table.columns, MeasuredWindow(), end_ps)
    assert stability(mixed.columns, MeasuredWindow(), end_ps) == found
    assert found.state == STEADY
