"""Times of steps by the compiled part of the package against those of Python, on random plans."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models import compiled
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.routing import POOL_SIZE, ExpertPools, Routing
from pimserve.device_models.slowdown import slow_plan
from pimserve.loadgen.workload import generate
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.mixed_costs import MixedCosts
from pimserve.scheduler.simulation import simulate
from pimserve.scheduler.summary import digest
from tests.examples import examples

from .plan_strategies import expert_terms, mixed_plans, serial_plans

pytestmark = pytest.mark.skipif(not compiled.COMPILED, reason="what is in C was not built")

EXAMPLES = Path(__file__).parents[2] / "examples"
T = TypeVar("T")
COUNTS = st.integers(1, 40) | st.sampled_from([64, 100, 1000])
SERIAL, MIXED = serial_plans(st.none() | expert_terms()), mixed_plans()


@st.composite
def pairs(draw: st.DrawFn, plans: st.SearchStrategy[CostPlan]) -> tuple[ReplicaCosts, ReplicaCosts]:
    """Costs of a replica, compiled and not."""
    plan = replace(draw(plans), verify_tokens=draw(st.sampled_from([1, 1, 3])))
    plan = slow_plan(plan, draw(st.sampled_from([1000, 1000, 10**7, 10**9])))  # so that times leave 64 bit
    # Where experts are much slower than all else, others hide behind them.
    slower, replica, exact = (
        draw(st.sampled_from([1000, 1701, 99_999, 10**11])),
        draw(st.integers(0, 9)),
        draw(st.integers(0, 9)),
    )
    pools = None if plan.experts is None else ExpertPools(plan.experts, Routing(), 0)
    kind = ReplicaCosts if plan.micro_batches is None else MixedCosts
    both = []
    for is_compiled in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiled, "COMPILED", is_compiled)
            both.append(kind(plan, pools, replica=replica, seed=1, exact=exact == 0).slowed(slower))
    return both[0], both[1]


@st.composite
def prompt_steps(draw: st.DrawFn) -> tuple[int, int, int, list[tuple[int, int]], int]:
    """Arguments of `ReplicaCosts.prompt_step`."""
    decodes = draw(st.just(0) | COUNTS)
    context = decodes * draw(st.integers(1, 400)) + (draw(st.integers(0, decodes - 1)) if decodes else 0)
    chunks = draw(st.lists(st.tuples(st.integers(1, 2) | COUNTS, st.integers(0, 900)), min_size=1, max_size=4))
    return draw(st.integers(0, 500)), decodes, context, chunks, decodes + draw(st.integers(0, len(chunks)))


def _told(ask: Callable[[], T]) -> T | None:
    """None: Python's columns have 64 bit, too."""
    try:
        return ask()
    except OverflowError:
        return None


@pytest.mark.medium
@examples(400)
@given(pairs(SERIAL | MIXED), st.lists(prompt_steps(), min_size=1, max_size=6))
def test_steps_with_prompts(pair: tuple[ReplicaCosts, ReplicaCosts], steps: list[tuple]) -> None:
    for step in steps:
        one, other = (_told(lambda costs=costs, step=step: costs.prompt_step(*step)) for costs in pair)
        assert one == other


@pytest.mark.medium
@examples(400)
@given(
    pairs(SERIAL | MIXED),
    st.integers(0, 500),
    COUNTS,
    st.integers(1, 400),
    st.integers(0, 40),
    st.integers(1, 200),
    st.lists(st.integers(0, 1000), max_size=5),
)
def test_spans_of_decode_steps(
    pair: tuple[ReplicaCosts, ReplicaCosts],
    step: int,
    decodes: int,
    mean: int,
    more: int,
    most: int,
    limits: list[int],
) -> None:
    context = decodes * mean + min(more, decodes - 1)
    one, other = (_told(lambda costs=costs: costs.decode_span(step, decodes, context, most)) for costs in pair)
    if one is None or other is None:
        assert one is other
        return
    assert (one.steps, one.busiest_tokens) == (other.steps, other.busiest_tokens)
    assert 1 <= one.steps <= min(most, POOL_SIZE if pair[0].pools is not None else most)
    times = [other.duration_fs(n) for n in range(1, one.steps + 1)]
    assert [one.duration_fs(n) for n in range(1, one.steps + 1)] == times
    for limit in limits:
        limit_fs = times[-1] * limit // 1001
        if limit_fs < times[-1]:
            reached = one.first_reaching(limit_fs, one.steps, times[-1])
            assert reached == other.first_reaching(limit_fs, one.steps, times[-1])
            assert times[reached[0] - 1] == reached[1] >= limit_fs


@pytest.mark.medium
@pytest.mark.parametrize(
    "example", ["mixtral_duplex", "mixtral_duplex_aimc", "deepseek_gpu_attention_aimc_experts", "deepseek_mtp"]
)
def test_a_run_has_the_same_bits_without_it(example: str) -> None:
    scenario = load_scenario(EXAMPLES / f"{example}.yaml", ["workload.num_requests=200"])
    found = []
    for is_compiled in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiled, "COMPILED", is_compiled)
            prepared = prepare(scenario)
            served = simulate(
                prepared.pools,
                generate(scenario.workload, 0),
                scenario.scheduler,
                max_model_len=prepared.max_model_len,
                routing=prepared.routing,
            )
            found.append((digest(served), [log.spans for log in served.logs]))
    assert found[0] == found[1]
