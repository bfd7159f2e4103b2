"""The evaluator on all kinds of plans: numbers and columns alike, spans in closed form against their single steps."""

from collections import Counter
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pimserve.device_models.evaluate import evaluate, shape_of, step_times, units_of
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.plan import Chunk, CostPlan
from pimserve.device_models.routing import ExpertPools, Routing
from pimserve.device_models.step import StepCosts, StepShape, each_step
from pimserve.scheduler.costs import GroupSpan
from pimserve.scheduler.mixed_costs import make_costs
from tests.examples import examples
from tests.scheduler.plan_strategies import expert_terms, plans, serial_plans
from tests.scheduler.reference_costs import dense_fs

CHUNKS = st.lists(st.tuples(st.integers(1, 90), st.sampled_from([0, 0, 7, 64])), max_size=4)


@st.composite
def shapes(draw: st.DrawFn, plan: CostPlan) -> StepShape[int]:
    """A step with prompts, decoding requests or both."""
    chunks = draw(CHUNKS)
    decodes = draw(st.integers(0 if chunks else 1, 9))
    context = decodes * draw(st.integers(1, 400)) + draw(st.integers(0, decodes))
    return shape_of(plan, decodes, context, chunks, decodes + draw(st.integers(0, len(chunks))))


@st.composite
def planned_shapes(draw: st.DrawFn) -> tuple[CostPlan, list[StepShape[int]]]:
    plan = draw(plans())
    return plan, draw(st.lists(shapes(plan), min_size=1, max_size=5))


def columns(some: list[StepShape[int]]) -> StepShape[np.ndarray]:
    return StepShape(*(np.array(column, np.int64) for column in zip(*some, strict=True)))


def totals(costs: StepCosts[Any]) -> list[Counter[Any]]:
    """By category, unit, kind of energy and device: what all of the rows come to."""
    found: list[Counter[Any]] = [Counter(), Counter(), Counter(), Counter()]
    for operator in costs.operators:
        found[0][operator.category] += int(np.sum(operator.time_fs))
    for counter, amounts in zip(found[1:], (costs.busy, costs.energy, costs.loads), strict=True):
        for key, coefficient, times in amounts:
            counter[key] += coefficient * int(np.sum(times))
    chain = 0 if costs.chain_fs is None else int(np.sum(costs.chain_fs))
    return [*found, Counter(chain=chain)]


@examples(100)
@given(planned_shapes())
def test_columns_say_what_numbers_say(planned: tuple[CostPlan, list[StepShape[int]]]) -> None:
    plan, some = planned
    single = [evaluate(plan, shape) for shape in some]
    together = evaluate(plan, columns(some))
    assert together.duration_fs.tolist() == [costs.duration_fs for costs in single]
    assert together.duration_fs.min() >= plan.least_step_fs
    for place, costs in enumerate(single):
        alone = evaluate(plan, columns(some[place : place + 1]))
        assert [+counter for counter in totals(alone)] == [+counter for counter in totals(costs)]
        assert all(isinstance(operator.time_fs, int) for operator in costs.operators)
        assert {unit for (_, unit), *_ in costs.busy} <= set(units_of(plan))
    added = [sum(counters, Counter()) for counters in zip(*(totals(costs) for costs in single), strict=True)]
    assert [+counter for counter in totals(together)] == added
    spans = columns(some)
    assert step_times(plan, spans, each_step(spans), None).tolist() == together.duration_fs.tolist()


@examples(100)
@given(plans(), CHUNKS, st.integers(0, 9), st.integers(1, 400), st.integers(0, 4))
def test_a_step_takes_what_the_naive_engine_says(
    plan: CostPlan, chunks: list[tuple[int, int]], decodes: int, mean: int, completed: int
) -> None:
    assume(plan.micro_batches is None)
    if not chunks:
        decodes += 1
    outputs = decodes + min(completed, len(chunks))
    shape = shape_of(plan, decodes, decodes * mean, chunks, outputs)
    whole = dense_fs(plan, decodes, decodes * mean, [Chunk(*chunk) for chunk in chunks], outputs)
    assert evaluate(plan, shape).duration_fs == whole >= plan.least_step_fs
    mixed = make_costs(plan, None, replica=0, seed=0, exact=False)
    if plan.experts is None and chunks:
        assert mixed.prompt_step(0, decodes, decodes * mean, chunks, outputs) == (shape, whole)


@pytest.mark.medium
@examples(120)
@given(plans(), st.integers(1, 12), st.integers(1, 400), st.integers(0, 11), st.integers(1, 60), st.integers(0, 300))
def test_a_span_in_closed_form_is_its_steps(
    plan: CostPlan, decodes: int, mean: int, extra: int, most: int, first_step: int
) -> None:
    context = decodes * mean + min(extra, decodes - 1)
    pools = ExpertPools(plan.experts, Routing(), 0) if plan.experts is not None else None
    replica = make_costs(plan, pools, replica=0, seed=0, exact=False)
    span = replica.decode_span(first_step, decodes, context, most)
    assert 1 <= span.steps <= most
    shape = shape_of(plan, decodes, context)
    assert shape.busiest_tokens == span.busiest_tokens

    # Step by step, in numbers.
    numbers = [shape_of(plan, decodes, context + k * decodes) for k in range(span.steps)]
    features = np.zeros((span.steps, len(FEATURES)), np.int64)
    if pools is not None:
        steps = each_step(StepShape(*np.array(shape._replace(steps=span.steps))[:, None]))
        features = replica.experts_features(steps, np.arange(first_step, first_step + span.steps))
    single = [evaluate(plan, each, row) for each, row in zip(numbers, features.tolist(), strict=True)]
    durations = [costs.duration_fs for costs in single]
    assert [span.duration_fs(n) for n in range(1, span.steps + 1)] == list(accumulate(durations))

    # The span as one row of columns, and its steps one by one.
    row = columns([shape._replace(steps=span.steps)])
    closed = evaluate(plan, row, list(features.sum(axis=0, keepdims=True).T))
    assert closed.duration_fs.tolist() == [sum(durations)]
    added = [sum(counters, Counter()) for counters in zip(*map(totals, single), strict=True)]
    assert [+counter for counter in totals(closed)] == added
    assert step_times(plan, row, each_step(row), features if pools is not None else None).tolist() == durations


GROUPS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 400)), min_size=2, max_size=4)


@pytest.mark.medium
@examples(100)
@given(serial_plans(st.none() | expert_terms()), GROUPS, st.integers(1, 60), st.integers(0, 300))
def test_a_span_of_groups_is_its_steps(
    plan: CostPlan, groups: list[tuple[int, int]], most: int, first_step: int
) -> None:
    """Wherever it is cut, the same group is the slowest in each step, and groups wait for as long."""
    plan = replace(plan, data_parallel=len(groups))
    loads = [(decodes, decodes * mean) for decodes, mean in [*groups[:-1], (groups[-1][0] or 1, groups[-1][1])]]
    pools = ExpertPools(plan.experts, Routing(), 0) if plan.experts is not None else None
    replica = make_costs(plan, pools, replica=0, seed=0, exact=False)

    def span_of(after: int, most: int) -> tuple[GroupSpan, StepShape[int]]:
        now = [(decodes, context + after * decodes) for decodes, context in loads]
        found = replica.groups_span(first_step + after, now, most)
        decodes, context = (sum(own) for own in zip(*now, strict=True))
        shape = shape_of(plan, decodes, context)
        paced = {"paced_decodes": found.decodes, "paced_context": found.context, "paced_outputs": found.decodes}
        return found, shape._replace(steps=found.span.steps, busiest_tokens=found.span.busiest_tokens, **paced)

    span, whole = span_of(0, most)
    steps = span.span.steps
    singles = [span_of(after, 1) for after in range(steps)]
    features = np.zeros((steps, len(FEATURES)), np.int64)
    if pools is not None:
        features = replica.experts_features(each_step(columns([whole])), np.arange(first_step, first_step + steps))
    single = [evaluate(plan, shape, row) for (_, shape), row in zip(singles, features.tolist(), strict=True)]
    durations = [costs.duration_fs for costs in single]
    assert durations == [one.span.duration_fs(1) for one, _ in singles]
    assert [span.span.duration_fs(n) for n in range(1, steps + 1)] == list(accumulate(durations))
    assert [span.waited_fs(n) for n in range(1, steps + 1)] == list(accumulate(one.waited_fs(1) for one, _ in singles))
    closed = evaluate(plan, columns([whole]), list(features.sum(axis=0, keepdims=True).T))
    added = [sum(counters, Counter()) for counters in zip(*map(totals, single), strict=True)]
    assert [+counter for counter in totals(closed)] == added
