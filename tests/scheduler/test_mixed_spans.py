"""Spans of decode steps on devices of attention and of experts against single ones, and their event schedules."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.evaluate import shape_of
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.round_trips import schedule_fs
from pimserve.device_models.routing import ExpertPools, Routing
from pimserve.device_models.slowdown import NORMAL, SlowPools
from pimserve.scheduler.mixed_costs import MixedCosts
from tests.examples import examples

from .mixed_strategies import FS_PER_MS, mixed
from .plan_strategies import expert_terms, plans


@st.composite
def mixed_plans(draw: st.DrawFn) -> CostPlan:
    """Plans with micro-batches; in half of them tokens pick all experts, which then take the same in all steps."""
    experts = draw(expert_terms())
    if draw(st.booleans()):
        experts = replace(experts, top_k=experts.experts)
    plan = draw(plans())
    slopes = st.integers(
        0, FS_PER_MS // 5
    )  # so that attention becomes what all wait for, or the busiest, in some spans
    decode = tuple(replace(term, slope=draw(slopes)) for term in plan.decode)
    return draw(mixed(replace(plan, decode=decode, experts=experts, micro_batches=None)))


@pytest.mark.medium
@examples(150)
@given(
    mixed_plans(),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(0, 11),
    st.integers(1, 128),
    st.sampled_from([1, 100]),
)
def test_spans_take_what_their_steps_take(
    plan: CostPlan, decodes: int, mean: int, extra: int, most: int, slower: int
) -> None:
    """With experts that take much longer, all else hides behind them."""
    pools = SlowPools(ExpertPools(plan.experts, Routing(), 0), NORMAL * slower)
    costs = MixedCosts(plan, pools, replica=decodes, seed=0, exact=False)
    context = decodes * mean + min(extra, decodes - 1)
    span = costs.decode_span(5, decodes, context, most)
    assert 1 <= span.steps <= most
    total = 0
    for number in range(span.steps):
        here = context + number * decodes
        once, parts = costs.parts_of_step(shape_of(plan, decodes, here), 5 + number)
        alone = costs.decode_span(5 + number, decodes, here, 1)
        assert alone.duration_fs(1) == once + schedule_fs(parts)
        total += alone.duration_fs(1)
        assert span.duration_fs(number + 1) == total
