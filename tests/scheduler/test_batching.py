"""Steps of prompts alone, before decodes or after them: tiny cases worked out by hand, which the engine repeats."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.routing import ExpertPools, Routing
from tests.examples import examples

from .batching_strategies import batching_cases
from .engine_runs import assert_equal
from .reference_engine import ReferenceRequest
from .reference_result import ReferenceResult
from .strategies import Case
from .test_reference_engine import PLAN, PS, check_requests, experts, itl_ps, steps_ps

BUDGET = 1000  # tokens; more than any step here has, unless told otherwise


def serve(batching: str, *requests: tuple[int, int, int], **changes: Any) -> ReferenceResult:
    """Serve (arrival ps, input, output) with room for all and blocks of 2, unless told otherwise.

    A step takes 100 + 10 per token + 1 per output + 2 per context token + 3 per prompt token, ps.
    """
    apart = batching in {"prefill_first", "decode_first"}
    arguments = {
        "plan": PLAN,
        "routing": Routing(),
        "seed": 0,
        "replica": 0,
        "offset": 0,
        "max_num_seqs": 8,
        "max_num_batched_tokens": BUDGET if batching in {"chunked", "prefill_first"} else None,
        "block_size": 2,
        "kv_capacity_blocks": 100,
        "max_model_len": 100,
        "kv_admission": "prompt",
        "requests": [ReferenceRequest(at * PS, *tokens) for at, *tokens in requests],
        "concurrency": None,
        "max_time_fs": None,
        "batching": batching if apart else None,
    }
    case = Case(**arguments | changes)
    assert_equal(case)
    return case.run()


THIRD_COMES = (0, 2, 3), (0, 3, 3), (200, 5, 2)  # while the first two decode


def test_prefill_first_holds_up_those_that_decode_for_the_prompts_step() -> None:
    result = serve("prefill_first", *THIRD_COMES)
    assert steps_ps(result) == [
        (0, 100 + 50 + 2 + 15, 0, 0, 5, 2, 2, 3),
        (167, 100 + 20 + 2 + 2 * 7, 2, 7, 0, 0, 2, 4),
        (303, 100 + 50 + 1 + 15, 0, 0, 5, 1, 1, 7),  # the third's prompt; the others take no blocks
        (469, 100 + 30 + 3 + 2 * 15, 3, 15, 0, 0, 3, 8),
    ]
    assert [row.first_token_ps - row.arrival_ps for row in result.requests] == [167, 167, 469 - 200]
    assert itl_ps(result) == [(136, 2), (166 + 163, 2), (163, 1)]
    assert [gap // PS for gap in result.longest_gaps_fs] == [329, 329, 163]


def test_decode_first_holds_up_a_prompt_until_all_that_decode_have_ended() -> None:
    result = serve("decode_first", *THIRD_COMES)
    assert steps_ps(result) == [
        (0, 100 + 50 + 2 + 15, 0, 0, 5, 2, 2, 3),
        (167, 100 + 20 + 2 + 2 * 7, 2, 7, 0, 0, 2, 4),
        (303, 100 + 20 + 2 + 2 * 9, 2, 9, 0, 0, 2, 5),
        (443, 100 + 50 + 1 + 15, 0, 0, 5, 1, 1, 3),
        (609, 100 + 10 + 1 + 2 * 6, 1, 6, 0, 0, 1, 3),
    ]
    assert [row.first_scheduled_ps for row in result.requests] == [0, 0, 443]
    assert [row.first_token_ps - row.arrival_ps for row in result.requests] == [167, 167, 609 - 200]
    assert itl_ps(result) == [(136, 2), (140, 2), (123, 1)]


def test_between_the_two_a_prompt_shares_a_step_with_decodes() -> None:
    for batching in ("chunked", "stage"):
        result = serve(batching, *THIRD_COMES)
        assert result.requests[2].first_token_ps == 303 + 100 + 10 * (2 + 5) + 3 + 2 * 9 + 15
        assert itl_ps(result) == [(136, 2), (206, 2), (123, 1)]


@pytest.mark.medium
@examples(100)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(2, 30)), min_size=1, max_size=6),
    st.integers(1, 2000),
    st.integers(1, 40),
)
def test_who_comes_has_a_token_first_where_prompts_are_first(
    decoding: list[tuple[int, int]], at: int, prompt: int
) -> None:
    """Costs of a step are no more than those of two that share its work."""
    ends = {}
    for batching in ("prefill_first", "chunked", "decode_first"):
        result = serve(batching, *((0, *tokens) for tokens in decoding), (at, prompt, 1))
        ends[batching] = result.requests[-1].first_token_ps
    assert ends["prefill_first"] <= ends["chunked"] <= ends["decode_first"]


def test_prefill_first_has_the_whole_budget_for_prompts() -> None:
    result = serve("prefill_first", (0, 1, 3), (50, 6, 2), max_num_batched_tokens=4)
    assert steps_ps(result) == [
        (0, 100 + 10 + 1 + 3, 0, 0, 1, 1, 1, 1),
        (114, 100 + 40 + 12, 0, 0, 4, 1, 0, 4),  # nothing of it is for the one that decodes
        (266, 100 + 20 + 1 + 6, 0, 0, 2, 1, 1, 4),  # which waits for the rest, too
        (393, 100 + 20 + 2 + 2 * 9, 2, 9, 0, 0, 2, 5),
        (533, 100 + 10 + 1 + 2 * 3, 1, 3, 0, 0, 1, 2),
    ]
    assert itl_ps(result) == [(533 - 114, 1), (140, 1), (117, 1)]


def test_prefill_first_cuts_long_prompts_for_those_behind_them() -> None:
    result = serve("prefill_first", (0, 5, 1), (0, 2, 1), max_num_batched_tokens=4, long_prefill_token_threshold=3)
    assert [(step.prefill_tokens, step.chunks, step.outputs) for step in result.steps] == [(4, 2, 0), (3, 2, 2)]


def test_prefill_first_decodes_while_nobody_who_waits_fits() -> None:
    result = serve("prefill_first", (0, 1, 3), (0, 1, 1), max_num_seqs=1)
    assert [(step.decode_requests, step.chunks) for step in result.steps] == [(0, 1), (1, 0), (1, 0), (0, 1)]
    result = serve("prefill_first", (0, 3, 3), (0, 6, 1), kv_capacity_blocks=4, max_model_len=8)
    assert [(step.decode_requests, step.chunks) for step in result.steps] == [(0, 1), (1, 0), (1, 0), (0, 1)]


def test_prefill_first_preempts_nobody_in_a_step_of_prompts() -> None:
    result = serve("prefill_first", (0, 2, 4), (0, 3, 3), (160, 1, 1), kv_capacity_blocks=4, max_model_len=8)
    assert steps_ps(result) == [
        (0, 100 + 50 + 2 + 15, 0, 0, 5, 2, 2, 3),
        (167, 100 + 10 + 1 + 3, 0, 0, 1, 1, 1, 4),  # takes the last block, into which the first was to grow
        (281, 100 + 20 + 2 + 2 * 7, 2, 7, 0, 0, 2, 4),
        (417, 100 + 10 + 1 + 2 * 4, 1, 4, 0, 0, 1, 2),  # the second needs one more: it is preempted
        (536, 100 + 10 + 1 + 2 * 5, 1, 5, 0, 0, 1, 3),  # it would need 3 blocks of 2
        (657, 100 + 50 + 1 + 15, 0, 0, 5, 1, 1, 3),
    ]
    assert [row.preemptions for row in result.requests] == [0, 1, 0]
    assert itl_ps(result) == [(281 + 136 - 167, 2), (119, 1), (121, 1), (823 - 417, 1)]


def test_decode_first_has_who_was_preempted_wait_for_the_end_of_the_batch() -> None:
    result = serve(
        "decode_first",
        (0, 3, 2), (0, 1, 4), (0, 1, 2), (0, 1, 2), block_size=1, kv_capacity_blocks=6, max_model_len=6,
    )  # fmt: skip
    assert steps_ps(result) == [
        (0, 100 + 60 + 4 + 18, 0, 0, 6, 4, 4, 6),
        (182, 100 + 20 + 2 + 2 * 6, 2, 6, 0, 0, 2, 6),  # 4 blocks needed, none free: the last two go
        (316, 100 + 10 + 1 + 2 * 3, 1, 3, 0, 0, 1, 3),  # there is room for either, but one decodes
        (433, 100 + 10 + 1 + 2 * 4, 1, 4, 0, 0, 1, 4),
        (552, 100 + 40 + 2 + 12, 0, 0, 4, 2, 2, 4),
    ]
    assert [row.preemptions for row in result.requests] == [0, 0, 1, 1]
    assert itl_ps(result) == [(134, 2), (117, 1), (119, 1), (706 - 182, 2)]


def test_decode_first_fills_no_place_before_the_batch_has_ended() -> None:
    result = serve("decode_first", (0, 1, 2), (0, 1, 4), (0, 1, 1), max_num_seqs=2)
    rows = result.requests
    assert rows[0].finish_ps < rows[1].finish_ps == rows[2].first_scheduled_ps


def test_decode_first_lets_a_batch_in_after_one_of_single_tokens() -> None:
    """Whose requests have left with their prompts, so that nobody decodes."""
    result = serve("decode_first", (0, 3, 1), (10, 60, 1), (10, 50, 1))
    assert [(step.start_fs // PS, step.prefill_tokens) for step in result.steps] == [(0, 3), (140, 110)]


@pytest.mark.parametrize("mode", ["pooled", "exact"])
@pytest.mark.parametrize("batching", ["prefill_first", "decode_first"])
def test_experts_follow_the_number_of_all_steps(batching: str, mode: str) -> None:
    term, routing = experts(top_k=1), Routing(mode=mode)
    pools = ExpertPools(term, routing, 4)
    requests = [*((0, 1, 12) for _ in range(6)), *((at, 9, 3) for at in (300, 800, 1900))]
    result = serve(batching, *requests, plan=replace(PLAN, experts=term), routing=routing, seed=4, replica=2, offset=5)
    assert sum(step.chunks > 0 for step in result.steps) > 1
    for number, step in enumerate(result.steps):
        tokens = step.decode_requests + step.prefill_tokens
        dense = (100 + 10 * tokens + step.outputs + 2 * step.context_tokens + 3 * step.prefill_tokens) * PS
        drawn = pools.exact(tokens, 2, number)[0] if mode == "exact" else pools.time_fs(tokens, 5 + number)
        assert step.duration_fs - dense == drawn


@pytest.mark.medium
@examples(100)
@given(batching_cases())
def test_prompts_and_decodes_share_no_step(case: Case) -> None:
    result = case.run()
    check_requests(case, result)
    budget = case.max_num_batched_tokens
    for step in result.steps:
        assert (step.chunks > 0) != (step.decode_requests > 0)
        assert budget is None or step.prefill_tokens <= budget
        assert max(step.chunks, step.decode_requests) <= case.max_num_seqs
        if case.batching == "decode_first" or step.decode_requests:
            assert step.outputs == step.chunks + step.decode_requests
    assert sum(step.outputs for step in result.steps) == sum(row.emitted_tokens for row in result.requests)
    assert sum(weight for _, weight in result.itl) == sum(max(0, row.emitted_tokens - 1) for row in result.requests)
