"""The reference engine itself: tiny cases worked out by hand, and what must hold in every case."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from pimserve.device_models.experts import ExpertTerm, ExpertUnit
from pimserve.device_models.plan import CostPlan, DecodeAttentionTerm, PrefillAttentionTerm, RowTerm
from pimserve.device_models.routing import POOL_SIZE, ExpertPools, Routing
from tests.examples import examples

from .reference_engine import ReferenceRequest
from .reference_result import ReferenceResult
from .reference_runs import run_reference
from .reference_swap import ReferenceSwap
from .strategies import Case, cases

PS = 1000
# A step takes 100 + 10 per token + 1 per output + 2 per context token + 3 per prompt token, ps.
PLAN = CostPlan(
    devices=1,
    data_parallel=1,
    units=("xpu",),
    rows=(
        RowTerm("layers", "fc", "xpu", "tokens", ((100 * PS, 10 * PS),)),
        RowTerm("head", "fc", "xpu", "outputs", ((0, 1 * PS),)),
    ),
    decode=(DecodeAttentionTerm("xpu", None, 2 * PS, 0, 0),),
    prefill=(PrefillAttentionTerm("xpu", None, True, ((3 * PS, 0, 0),), (0, 0, 0), 0),),
    experts=None,
)


def serve(*requests: tuple[int | None, int, int], plan: CostPlan = PLAN, **changes: Any) -> ReferenceResult:
    """Serve (arrival ps, input, output) with room for all, whole prompts and blocks of 2, unless told otherwise."""
    asked = [ReferenceRequest(None if at is None else at * PS, *tokens) for at, *tokens in requests]
    arguments = {
        "pools": None,
        "mode": "pooled",
        "seed": 0,
        "replica": 0,
        "offset": 0,
        "max_num_seqs": 8,
        "max_num_batched_tokens": None,
        "block_size": 2,
        "kv_capacity_blocks": 100,
        "max_model_len": 100,
        "kv_admission": "prompt",
        "requests": asked,
        "concurrency": None,
        "max_time_fs": None,
    }
    return run_reference(plan, **(arguments | changes))


def steps_ps(result: ReferenceResult) -> list[tuple[int, ...]]:
    return [(start // PS, duration // PS, *shape) for start, duration, *shape in result.steps]


def itl_ps(result: ReferenceResult) -> list[tuple[int, int]]:
    return [(duration // PS, weight) for duration, weight in result.itl]


def test_one_request_in_chunks() -> None:
    result = serve((50, 6, 3), max_num_batched_tokens=4, block_size=4, replica=5)
    assert steps_ps(result) == [
        (50, 100 + 40 + 12, 0, 0, 4, 1, 0, 2),
        (202, 100 + 20 + 1 + 6, 0, 0, 2, 1, 1, 2),
        (329, 100 + 10 + 1 + 2 * 7, 1, 7, 0, 0, 1, 2),
        (454, 100 + 10 + 1 + 2 * 8, 1, 8, 0, 0, 1, 2),
    ]
    assert result.requests == [(50, 50, 329, 581, 6, 3, 3, 0, 5, "finished")]
    assert itl_ps(result) == [(125, 1), (127, 1)]


def test_a_later_chunk_attends_to_the_earlier_ones() -> None:
    per_attended = replace(PLAN.prefill[0], pieces=((0, 5 * PS, 0),))
    result = serve((0, 6, 1), plan=replace(PLAN, prefill=(per_attended,)), max_num_batched_tokens=4)
    assert [step.duration_fs // PS for step in result.steps] == [100 + 40 + 5 * 4, 100 + 20 + 1 + 5 * 6]


def test_decode_and_the_rest_of_a_prompt_share_the_budget() -> None:
    result = serve((0, 3, 2), (0, 4, 1), (0, 4, 1), max_num_batched_tokens=5, block_size=4)
    assert steps_ps(result) == [
        (0, 100 + 50 + 1 + 15, 0, 0, 5, 2, 1, 2),  # 3 of the first, 2 of the second
        (166, 100 + 50 + 2 + 8 + 12, 1, 4, 4, 2, 2, 3),  # one decodes, 2 of the second, 2 of the third
        (338, 100 + 20 + 1 + 6, 0, 0, 2, 1, 1, 1),
    ]
    assert [row.finish_ps for row in result.requests] == [338, 338, 465]


def test_a_budget_that_decoding_uses_up_leaves_a_prompt_waiting() -> None:
    result = serve((0, 1, 2), (0, 3, 1), max_num_batched_tokens=2, block_size=4)
    # Tokens of the second prompt: 1, then 1 beside the decoding request, then the last one alone.
    assert [(step.decode_requests, step.prefill_tokens, step.chunks) for step in result.steps] == [
        (0, 2, 2),
        (1, 1, 1),
        (0, 1, 1),
    ]
    result = serve((0, 1, 3), (150, 3, 1), max_num_batched_tokens=1, block_size=4)
    # While the first decodes nothing is left of a budget of 1, and nobody is admitted.
    assert [(step.decode_requests, step.prefill_tokens) for step in result.steps] == [
        (0, 1), (1, 0), (1, 0), (0, 1), (0, 1), (0, 1),
    ]  # fmt: skip
    assert result.requests[1].first_scheduled_ps == result.requests[0].finish_ps


def test_a_prompt_in_progress_stands_still_when_decoding_uses_up_the_budget() -> None:
    result = serve((0, 1, 3), (0, 1, 3), (0, 4, 1), max_num_batched_tokens=3, block_size=8)
    assert [(step.decode_requests, step.prefill_tokens, step.chunks) for step in result.steps] == [
        (0, 3, 3),
        (2, 1, 1),
        (2, 1, 1),
        (0, 1, 1),
    ]
    result = serve((0, 1, 3), (0, 1, 3), (0, 1, 3), (0, 4, 1), max_num_batched_tokens=3, block_size=8)
    assert [(step.decode_requests, step.prefill_tokens, step.chunks) for step in result.steps] == [
        (0, 3, 3),
        (3, 0, 0),
        (3, 0, 0),
        (0, 3, 1),
        (0, 1, 1),
    ]


def test_preemption_recomputes_and_holds_up_the_queue() -> None:
    result = serve((0, 2, 4), (0, 3, 3), (200, 1, 1), kv_capacity_blocks=4, max_model_len=8)
    assert steps_ps(result) == [
        (0, 100 + 50 + 2 + 15, 0, 0, 5, 2, 2, 3),
        (167, 100 + 20 + 2 + 2 * 7, 2, 7, 0, 0, 2, 4),  # the first grows into the last block
        (303, 100 + 10 + 1 + 2 * 4, 1, 4, 0, 0, 1, 2),  # the second needs one: it is preempted, nobody is admitted
        (422, 100 + 10 + 1 + 2 * 5, 1, 5, 0, 0, 1, 3),  # it would need 3 blocks of 1; the third waits behind it
        (543, 100 + 60 + 2 + 18, 0, 0, 6, 2, 2, 4),  # its 3 + 2 known tokens, and the third
    ]
    assert result.requests == [
        (0, 0, 167, 543, 2, 4, 4, 0, 0, "finished"),
        (0, 0, 167, 723, 3, 3, 3, 1, 0, "finished"),
        (200, 543, 723, 723, 1, 1, 1, 0, 0, "finished"),
    ]
    assert itl_ps(result) == [(136, 2), (119, 1), (121, 1), (723 - 303, 1)]


def test_of_several_victims_the_earliest_admitted_comes_back_first() -> None:
    result = serve(
        (0, 3, 2), (0, 1, 4), (0, 1, 2), (0, 1, 2), block_size=1, kv_capacity_blocks=6, max_model_len=6
    )  # fmt: skip
    assert steps_ps(result) == [
        (0, 100 + 60 + 4 + 18, 0, 0, 6, 4, 4, 6),
        (182, 100 + 20 + 2 + 2 * 6, 2, 6, 0, 0, 2, 6),  # 4 blocks needed, none free: the last two go
        (316, 100 + 30 + 2 + 2 * 3 + 6, 1, 3, 2, 1, 2, 5),  # the third fits, the fourth does not
        (460, 100 + 30 + 2 + 2 * 4 + 6, 1, 4, 2, 1, 2, 6),
    ]
    assert [row.finish_ps for row in result.requests] == [316, 606, 460, 606]
    assert [row.preemptions for row in result.requests] == [0, 0, 1, 1]
    assert itl_ps(result) == [(134, 2), (144, 1), (460 - 182, 1), (146, 1), (606 - 182, 1)]


def test_a_partially_prefilled_request_can_be_the_victim() -> None:
    result = serve(
        (0, 2, 3), (0, 4, 1), block_size=1, kv_capacity_blocks=6, max_model_len=6, max_num_batched_tokens=3
    )  # fmt: skip
    assert steps_ps(result) == [
        (0, 100 + 30 + 1 + 9, 0, 0, 3, 2, 1, 6),
        (140, 100 + 10 + 1 + 2 * 3, 1, 3, 0, 0, 1, 3),
        (257, 100 + 10 + 1 + 2 * 4, 1, 4, 0, 0, 1, 4),
        (376, 100 + 30 + 9, 0, 0, 3, 1, 0, 4),
        (515, 100 + 10 + 1 + 3, 0, 0, 1, 1, 1, 4),
    ]
    assert result.requests[1] == (0, 0, 629, 629, 4, 1, 1, 1, 0, "finished")
    assert itl_ps(result) == [(117, 1), (119, 1)]


def test_oracle_admission_waits_instead_of_preempting() -> None:
    result = serve(
        (0, 2, 4), (0, 3, 3), (0, 5, 4), (0, 1, 1), kv_capacity_blocks=4, max_model_len=100, kv_admission="oracle"
    )
    assert [row.status for row in result.requests] == ["finished", "finished", "rejected", "finished"]
    assert [row.preemptions for row in result.requests] == [0, 0, 0, 0]
    # 3 + 3 blocks do not fit into 4; then 3 + 1 do.
    assert [step.decode_requests for step in result.steps] == [0, 1, 1, 1, 0, 1, 1]
    first = (100 + 20 + 1 + 6) + (111 + 2 * 3) + (111 + 2 * 4) + (111 + 2 * 5)
    assert [row.first_scheduled_ps for row in result.requests] == [0, first, -1, first]


def test_length_limits() -> None:
    result = serve((0, 10, 5), (0, 9, 5), (0, 4, 6), (0, 4, 7), max_model_len=10)
    assert [row.status for row in result.requests] == ["rejected", "finished", "finished", "finished"]
    assert [row.output_tokens for row in result.requests] == [5, 1, 6, 6]
    assert [row.emitted_tokens for row in result.requests] == [0, 1, 6, 6]
    assert result.requests[0][1:4] == (-1, -1, -1)


def test_max_num_seqs_and_idle_time() -> None:
    result = serve((5, 1, 1), (5, 1, 1), (500, 1, 1), max_num_seqs=1)
    assert [step.start_fs // PS for step in result.steps] == [5, 119, 500]


def test_an_arrival_at_a_step_end_is_seen_and_one_just_after_is_not() -> None:
    first = 100 + 10 + 1 + 3
    result = serve((0, 1, 2), (first, 1, 1), (first + 1, 1, 1))
    assert [row.first_scheduled_ps for row in result.requests] == [0, first, result.requests[0].finish_ps]


def test_closed_loop_sends_the_next_when_one_leaves() -> None:
    requests = [(None, 1, 1), (None, 50, 1), (None, 1, 2), (None, 1, 1), (None, 1, 1)]
    result = serve(*requests, concurrency=2, max_model_len=10)
    # The second is refused at once and sends the third; the first ends with the first step and sends the fourth.
    both = 100 + 20 + 2 + 6
    then = 100 + 20 + 2 + 2 * 2 + 3
    assert [row.arrival_ps for row in result.requests] == [0, 0, 0, both, both + then]
    assert [row.status for row in result.requests] == ["finished", "rejected", "finished", "finished", "finished"]
    assert [step.duration_fs // PS for step in result.steps] == [both, then, 100 + 10 + 1 + 3]


def test_no_step_starts_at_max_time() -> None:
    ends = [114, 114 + 115, 114 + 115 + 117]
    for max_time, steps in ((1, 1), (114, 1), (115, 2), (229, 2), (10**6, 3)):
        result = serve((0, 1, 3), max_time_fs=max_time * PS)
        assert len(result.steps) == steps
        assert result.requests[0].emitted_tokens == steps
        assert result.requests[0].finish_ps == (ends[2] if steps == 3 else -1)
        assert result.requests[0].status == ("finished" if steps == 3 else "unfinished")
    assert serve((70, 1, 3), max_time_fs=70 * PS).steps == []


@pytest.mark.parametrize(("overlap", "attention"), [(False, 24 + 9), (True, 24)])
def test_data_parallel_groups_and_overlap(overlap: bool, attention: int) -> None:
    plan = replace(PLAN, data_parallel=2, overlap_attention=overlap)
    result = serve((0, 5, 2), (0, 3, 1), (10, 3, 1), plan=plan)
    # Each of two groups has a prompt, and the slower that of 5 tokens, and its output.
    assert result.steps[0].duration_fs == (100 + 50 + 1 + 15) * PS
    # The third one comes while both have one running, and joins the first, which decodes with half of the devices.
    assert result.steps[1].duration_fs == (100 + 40 + 2 + attention) * PS


def test_each_data_parallel_group_has_limits_and_a_queue_of_its_own() -> None:
    plan = replace(PLAN, data_parallel=2)
    result = serve((0, 6, 1), (0, 2, 3), (0, 2, 1), (1, 2, 1), plan=plan, max_num_batched_tokens=2, block_size=2)
    # To 0 and 1 in turns, and the last one to 1, as one waits in 0 when it comes. The long prompt takes all of the
    # budget of its own group for three steps.
    assert [(step.decode_requests, step.prefill_tokens, step.chunks) for step in result.steps[:3]] == [
        (0, 2 + 2, 2),
        (1, 2 + 1, 2),
        (1, 2 + 1, 2),
    ]
    scheduled = [row.first_scheduled_ps for row in result.requests]
    assert scheduled[2:] == [result.steps[at].start_fs // PS for at in (3, 1)]
    # A group is full while another has room: the second of its requests is not let in before the first has left.
    full = serve((0, 4, 2), (0, 3, 3), (0, 4, 1), plan=plan, kv_capacity_blocks=3, max_model_len=6)
    assert full.requests[2].first_scheduled_ps == full.requests[0].finish_ps < full.requests[1].finish_ps


def experts(top_k: int) -> ExpertTerm:
    """Two experts on one device each, 7 ps per token, 3 layers."""
    unit = ExpertUnit("xpu", (((0, 7 * PS),),), (0.0, 1.0), 0, 0, 0)
    return ExpertTerm(3, 2, top_k, 2, 1, (unit,), "first")


@pytest.mark.parametrize("mode", ["pooled", "exact"])
def test_experts_add_their_layers(mode: str) -> None:
    term = experts(top_k=2)  # both experts get every token, whatever is drawn
    result = serve((0, 3, 2), plan=replace(PLAN, experts=term), pools=ExpertPools(term, Routing(), 0), mode=mode)
    dense = serve((0, 3, 2))
    extra = [step.duration_fs - plain.duration_fs for step, plain in zip(result.steps, dense.steps, strict=True)]
    assert extra == [3 * 7 * 3 * PS, 3 * 7 * 1 * PS]


@pytest.mark.parametrize("mode", ["pooled", "exact"])
def test_experts_follow_the_step_index(mode: str) -> None:
    term = experts(top_k=1)
    pools = ExpertPools(term, Routing(), 4)
    requests = [(0, 1, 20)] * 6
    result = serve(
        *requests, plan=replace(PLAN, experts=term), pools=pools, mode=mode, seed=4, replica=2, offset=POOL_SIZE - 3
    )
    dense = serve(*requests)
    extra = [step.duration_fs - plain.duration_fs for step, plain in zip(result.steps, dense.steps, strict=True)]
    if mode == "exact":
        assert extra == [pools.exact(6, 2, step)[0] for step in range(20)]
    else:
        wrapped = [*range(POOL_SIZE - 3, POOL_SIZE), *range(17)]
        assert extra == [pools.time_fs(6, index) for index in wrapped]
    assert len(set(extra)) > 1


@pytest.mark.medium
@examples(120)
@given(cases())
def test_laws(case: Case) -> None:
    result = case.run()
    rows = result.requests
    check_requests(case, result)
    check_steps(case, result)
    if case.max_time_fs is None:
        assert all(row.status in ("finished", "rejected") for row in rows)
        # The times between a request's tokens add up to the time from its first to its last.
        gaps = sum(duration * weight for duration, weight in result.itl)
        finished = [row for row in rows if row.status == "finished"]
        assert abs(gaps // PS - sum(row.finish_ps - row.first_token_ps for row in finished)) <= len(rows)


def check_requests(case: Case, result: ReferenceResult) -> None:
    """Every request comes out once, with all its tokens if it finished, and was let in when the policy says so."""
    assert len(result.requests) == len(case.requests)
    for asked, row in zip(case.requests, result.requests, strict=True):
        assert row.input_tokens == asked.input_tokens
        assert row.output_tokens <= asked.output_tokens
        assert (row.emitted_tokens == row.output_tokens) == (row.status == "finished")
        assert (row.status == "rejected") <= (row.input_tokens >= case.max_model_len)
        known = [time for time in row[:4] if time >= 0]
        assert known == sorted(known)
        assert [time >= 0 for time in row[:4]] == sorted((time >= 0 for time in row[:4]), reverse=True)
        if case.kv_admission != "prompt":
            assert row.preemptions == 0
        if row.first_scheduled_ps >= 0:
            assert row.input_tokens + row.output_tokens <= case.max_model_len
    by_arrival = sorted(
        (row.arrival_ps, index) for index, row in enumerate(result.requests) if row.first_scheduled_ps >= 0
    )
    if case.policy == "fcfs" and case.groups == 1:
        scheduled = [result.requests[index].first_scheduled_ps for _, index in by_arrival]
        assert scheduled == sorted(scheduled)
    if case.concurrency is not None:
        gone = sum(row.status in ("finished", "rejected") for row in result.requests)
        arrived = sum(row.arrival_ps >= 0 for row in result.requests)
        assert arrived == min(len(result.requests), gone + case.concurrency)


def check_steps(case: Case, result: ReferenceResult) -> None:
    """Time moves on, limits hold in every step, and tokens that steps computed are those that requests got."""
    rows = result.requests
    end = 0
    for step in result.steps:
        assert step.start_fs >= end
        assert step.duration_fs > 0
        end = step.start_fs + step.duration_fs
        assert 0 < step.blocks_used <= case.kv_blocks
        assert 0 < step.decode_requests + step.chunks <= case.groups * case.max_num_seqs
        assert step.decode_requests <= step.outputs <= step.decode_requests + step.chunks
        assert step.context_tokens <= step.blocks_used * case.block_size
        assert step.prefill_tokens >= step.chunks
        if case.max_num_batched_tokens is None:
            assert step.outputs == step.decode_requests + step.chunks
        else:
            assert step.decode_requests + step.prefill_tokens <= case.groups * case.max_num_batched_tokens
        if case.max_time_fs is not None:
            assert step.start_fs < case.max_time_fs
    assert max((row.finish_ps for row in rows), default=-1) <= end // PS
    assert sum(step.outputs for step in result.steps) == sum(row.emitted_tokens for row in rows)
    assert sum(weight for _, weight in result.itl) == sum(max(0, row.emitted_tokens - 1) for row in rows)
    prompts = sum(row.input_tokens for row in rows if row.emitted_tokens)
    computed = sum(step.prefill_tokens for step in result.steps)
    recomputed = any(row.preemptions for row in rows)
    if case.max_time_fs is None:  # else some prompts are not done
        assert computed > prompts if recomputed else computed == prompts


def test_who_comes_back_from_host_memory_is_the_one_admitted_last() -> None:
    """Steps of 100 ps, copies of 10 ps a block: the first request, of "b", needs a fourth block in the fifth step.

    "b" has had 11 by then, and "a" 18 at its end, that of the eighth. "b" decodes on in the ninth, and has 13 after it.
    "c" comes in that step, when nobody waits: with 13, not 18. So it has 16 as its second request begins, before "a".
    """
    steady = replace(
        PLAN,
        rows=(RowTerm("layers", "fc", "xpu", "tokens", ((100 * PS, 0),)),),
        decode=(replace(PLAN.decode[0], slope=0),),
        prefill=(replace(PLAN.prefill[0], pieces=((0, 0, 0),)),),
    )
    result = serve(
        *[(0, 3, 8), (0, 2, 8), (900, 1, 1), (900, 1, 1), (901, 1, 1)],
        plan=steady,
        policy="vtc",
        tenants="bacca",
        swap=ReferenceSwap(3, 10 * PS),
        kv_capacity_blocks=6,
        max_model_len=12,
        max_num_seqs=2,
    )
    assert result.swaps == [(1, 6), (0, 0), (0, 0), (0, 0), (0, 0)]
    assert [row.first_scheduled_ps for row in result.requests] == [0, 0, 960, 1060, 1160]
    assert [row.finish_ps for row in result.requests] == [1260, 830, 1060, 1160, 1260]
