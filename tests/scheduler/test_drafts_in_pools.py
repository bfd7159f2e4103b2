"""Drafts that decode pools verify: times by hand, and that no token is lost and windows change no bit."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.kv_groups import NO_WINDOWS
from pimserve.scheduler.fleet import DECODE, PREFILL
from pimserve.scheduler.requests import NEVER, WAITING
from pimserve.scheduler.simulation import Deployment
from pimserve.scheduler.spec_decode_figures import SpecDecodeFigures
from pimserve.scheduler.speculative_spec import SpeculativeSpec
from pimserve.scheduler.summary import digest
from tests.examples import examples

from .plan_strategies import expert_terms, serial_plans
from .pool_runs import LINK, SPEC, Pooled, hand_over, pool_rows, pooled
from .pools import Decode
from .speculative_strategies import speculations
from .test_simulation import PLAN, seconds
from .test_windows import LENGTHS, Windows, cut_and_continued, spread


def drafts_of(**given: Any) -> SpeculativeSpec:
    return SpeculativeSpec.model_validate({"method": "mtp", "num_speculative_tokens": 2, "acceptance": 1, **given})


def test_who_decodes_verifies_drafts_from_the_first_step_on() -> None:
    spec = SPEC.model_copy(update={"speculative": drafts_of()})
    plan = replace(PLAN, verify_tokens=3)
    served = hand_over([(0.0, 10, 5)], plan=plan, decode=Decode(plan, 1600, 1, LINK), spec=spec)
    # Its cache is there at 10 + 5 + 10 = 25 ms; a step gives it three tokens, another one the last.
    assert seconds(served, "first_token_ps") == [0.01]
    assert seconds(served, "finish_ps") == [0.045]
    assert served.spec_decode == SpecDecodeFigures(drafts=2, draft_tokens=4, accepted_tokens=2)
    assert [log.itl.count for log in served.logs] == [0, 2]


@pytest.mark.parametrize(("method", "kept"), [("ngram", 48 - 2), ("mtp", 48 - 4)])
def test_room_for_drafts_is_asked_for_where_they_are_verified(method: str, kept: int) -> None:
    """A decode cache of 48 tokens; one for prefill has no slots for drafts."""
    plan = replace(PLAN, verify_tokens=3)
    spec = SPEC.model_copy(update={"speculative": drafts_of(method=method)})
    pools = {"plan": plan, "kv_capacity_tokens": 48, "decode": Decode(plan, 48, 1, LINK), "spec": spec}
    assert hand_over([(0.0, 90, 90)], **pools).max_model_len == kept
    # The cache of 14 tokens needs a block with the next one, and two with slots for drafts.
    served = hand_over([(0.0, 14, 20), (0.0, 14, 2)], **pools)
    first, second = served.table["finish_ps"].tolist()
    assert first == (10 + 5 + 14 + 7 * 10) * 10**9  # three tokens a step
    assert second == (100 + 5 + 14 + 10) * 10**9  # sent when the next report tells of room


@st.composite
def drafting(draw: st.DrawFn) -> Pooled:
    """Pools of which that for decode verifies drafts, in one to three data-parallel groups."""
    full: dict[str, Any] = {"full_groups": 1, "windowed_groups": 0, "window_tokens": 0}
    plain = draw(pooled(serial_plans(st.none() | expert_terms()), policy="fcfs", max_queued_requests=None, **full))
    case, spec = plain.case, draw(speculations())
    slots = -(-spec.lookahead_tokens // case.block_size)
    budget = case.max_num_batched_tokens
    case = replace(
        case,
        plan=replace(case.plan, verify_tokens=spec.verify_tokens),
        speculative=spec,
        kv_capacity_blocks=-(-case.max_model_len // case.block_size) + slots,
        max_num_batched_tokens=None if budget is None else max(budget, spec.verify_tokens),
    )
    decode = replace(
        plain.decode,
        plan=replace(plain.decode.plan, verify_tokens=spec.verify_tokens),
        kv_capacity_tokens=plain.decode.kv_capacity_tokens + plain.decode.plan.data_parallel * slots * case.block_size,
        kv_groups=NO_WINDOWS,
    )
    return replace(plain, case=case, decode=decode)


@pytest.mark.medium
@examples(40)
@given(drafting(), LENGTHS, st.integers(0, 1000))
def test_drafts_in_pools_lose_no_token_and_change_no_bit_by_windows(pools: Pooled, lengths: list[int], at: int) -> None:
    alone = pools.run()
    table, served = alone.table, alone.served
    assert sum(row.steps * row.outputs for row in alone.all_rows()) == table["emitted_tokens"].sum()
    first = sum(row.outputs for row in pool_rows(alone, PREFILL))
    told = served.spec_decode
    assert first == (table["first_token_ps"] != NEVER).sum()
    assert told is not None
    if not table["preemptions"].any():
        assert told.drafts + told.accepted_tokens == sum(row.outputs for row in pool_rows(alone, DECODE))
        assert told.drafts == sum(row.decodes for row in alone.all_rows()) == sum(log.itl.count for log in served.logs)
    if pools.case.max_time_fs is None:
        assert (table["status"] != WAITING).all()
    shards = spread(pools.prefill + pools.decode.replicas)
    cut = pools.run(Deployment(shards=shards, control=Windows(lengths)))
    _, continued = cut_and_continued(pools.run, lengths, at)
    for other in (cut, continued):
        assert (digest(other.served), other.summary()) == (digest(served), alone.summary())
