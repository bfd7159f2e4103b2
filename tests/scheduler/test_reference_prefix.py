"""The reference with a prefix cache: blocks followed by hand, and what must hold in every case."""

from dataclasses import replace

import pytest
from hypothesis import given

from pimserve.scheduler.speculative_spec import SpeculativeSpec
from tests.examples import examples

from .prefix_strategies import prefix_cases
from .strategies import Case
from .test_reference_engine import PLAN, PS, check_requests, serve, steps_ps


def test_hits_of_those_who_run_and_of_those_who_left() -> None:
    result = serve((0, 5, 1), (0, 6, 1), (50, 4, 1), prefixes=[[1, 2, 3], [1, 2, 4], [1, 2]])
    assert steps_ps(result) == [
        (0, 100 + 70 + 2 + 21, 0, 0, 7, 2, 2, 4),  # the second has two blocks of the first, and one of its own
        (193, 100 + 20 + 1 + 6, 0, 0, 2, 1, 1, 2),  # the third computes its last token, and with it that block
    ]
    assert (result.queries, result.hit_tokens, result.hits, result.evictions) == (5 + 6 + 4, [0, 4, 2], 6, 0)


def test_the_block_that_was_given_back_first_is_evicted_first() -> None:
    result = serve(
        (0, 4, 1),  # blocks 0 and 1, ids 1 and 2; the queue is then 2 3 1 0
        (1000, 3, 1),  # 2 and 3, of which 2 is full, id 3; 1 0 3 2
        (2000, 5, 1),  # hits 0; takes 1, which was id 2 and becomes 4, and 3; 2 3 1 0
        (3000, 4, 1),  # hits 0; takes 2, which was id 3 and becomes 2; 3 1 2 0
        (4000, 3, 1),  # 3, which becomes id 3, and 1, which was 4; 2 0 1 3
        (5000, 5, 1),  # hits 0 and 2; takes 1
        kv_capacity_blocks=4,
        max_model_len=8,
        prefixes=[[1, 2], [3], [1, 4], [1, 2], [3], [1, 2]],
    )
    assert [step.prefill_tokens for step in result.steps] == [4, 3, 3, 2, 3, 1]
    assert (result.queries, result.hit_tokens, result.evictions) == (24, [0, 0, 2, 2, 0, 4], 3)


def test_blocks_that_others_hold_need_no_room() -> None:
    shared = {"kv_capacity_blocks": 4, "max_model_len": 8}
    result = serve((0, 4, 2), (0, 5, 1), prefixes=[[1, 2], [1, 2]], **shared)
    assert steps_ps(result)[0] == (0, 100 + 50 + 2 + 15, 0, 0, 5, 2, 2, 3)
    assert serve((0, 4, 2), (0, 5, 1), **shared).steps[0].chunks == 1  # 2 + 3 blocks


def test_blocks_that_nobody_holds_need_room_though_they_are_hit() -> None:
    result = serve(
        (0, 4, 1), (10, 4, 3), (20, 5, 1), kv_capacity_blocks=4, max_model_len=8, prefixes=[[1, 2], [], [1, 2]]
    )  # fmt: skip
    assert steps_ps(result) == [
        (0, 153, 0, 0, 4, 1, 1, 2),
        (153, 153, 0, 0, 4, 1, 1, 2),  # blocks 2 and 3; the third would hit 1 and 0, and need one more
        (306, 100 + 10 + 1 + 2 * 5, 1, 5, 0, 0, 1, 3),  # grows into 1, which was id 2
        (427, 100 + 10 + 1 + 2 * 6, 1, 6, 0, 0, 1, 3),
        (550, 100 + 30 + 1 + 9, 0, 0, 3, 1, 1, 3),  # is looked up anew: only 0 is left
    ]
    assert (result.queries, result.hit_tokens, result.evictions) == (13, [0, 0, 2], 1)


@pytest.mark.parametrize(("emits", "found"), [(4, 6), (3, 4)])
def test_the_next_turn_finds_what_was_decoded(emits: int, found: int) -> None:
    """The last token is never stored."""
    result = serve((0, 3, emits), (5000, 8, 1), prefixes=[[1, 2, 3], [1, 2, 3, 4]])
    assert result.hit_tokens == [0, found]
    assert result.steps[-1].prefill_tokens == 8 - found


@pytest.mark.parametrize(("method", "emits", "found"), [("ngram", 5, 6), ("ngram", 4, 4), ("mtp", 5, 4), ("mtp", 4, 2)])
def test_what_the_last_step_accepted_is_not_found(method: str, emits: int, found: int) -> None:
    """A step of two drafts, both accepted, stores three tokens, of which the first alone was sure when it began.

    A layer that drafts has the last block of what is found computed again.
    """
    drafts = SpeculativeSpec.model_validate({"method": method, "num_speculative_tokens": 2, "acceptance": 1})
    rows = [[1, 2, 3], [1, 2, 3, 4]]  # of 3 + 5 tokens all but the last are stored, of 3 + 4 two blocks are sure
    plan = replace(PLAN, verify_tokens=3)
    result = serve((0, 3, emits), (5000, 8, 1), prefixes=rows, speculative=drafts, plan=plan)
    assert [step.outputs for step in result.steps] == ([1, 3, 1, 1] if emits == 5 else [1, 3, 1])
    assert result.hit_tokens == [0, found]


def test_what_is_decoded_is_found_when_its_request_has_left_and_once_only() -> None:
    result = serve(
        (0, 3, 4),  # blocks 0 and 1, id 1 in 0
        (
            100,
            8,
            1,
        ),  # hits 0; takes 2, 3 and 4, ids 2 to 4; the queue is then 5 6 7 4 3 2, from which the first takes 5
        (5000, 11, 1),  # the first's 1 and 5 stayed uncached, of 6 7 4 3 2 5 1 0 six are taken
        kv_capacity_blocks=8,
        max_model_len=16,
        prefixes=[[1, 2, 3], [1, 2, 3, 4], [9, 10, 11, 12, 13]],
    )
    assert (result.hit_tokens, result.evictions) == ([0, 2, 0], 3)


def test_what_stayed_uncached_beside_another_is_not_found_when_that_is_gone() -> None:
    result = serve(
        (0, 4, 1),  # blocks 0 and 1, ids 1 and 2
        (0, 4, 4),  # hits 0; computes id 2 again in 2, then takes 3, which becomes 5, and 1, which was 2
        (5000, 7, 1),
        kv_capacity_blocks=4,
        max_model_len=8,
        prefixes=[[1, 2], [1, 2, 5, 6], [1, 2, 5]],
    )
    assert result.hit_tokens == [0, 2, 2]
    result = serve(
        (0, 4, 4),  # blocks 0 and 1, then 5, then 3 of the third
        (0, 4, 1),  # 2 and 3, ids 1 and 2
        (0, 4, 4),  # hits 2; computes id 2 again in 4, then takes 3, which was 2; is preempted, and hits 2 again
        kv_capacity_blocks=6,
        max_model_len=8,
        prefixes=[[], [1, 2], [1, 2]],
    )
    assert [step.prefill_tokens for step in result.steps] == [10, 0, 0, 0, 5]
    assert (result.queries, result.hit_tokens, result.evictions) == (4 + 4 + 4 + 7, [0, 0, 2 + 2], 1)


def test_who_was_preempted_finds_its_own_blocks() -> None:
    result = serve(
        (0, 2, 4),
        (0, 3, 3),
        (200, 1, 1),
        kv_capacity_blocks=4,
        max_model_len=8,
        prefixes=[[1, 2, 3], [11, 12, 13], [21]],
    )
    assert steps_ps(result) == [
        (0, 100 + 50 + 2 + 15, 0, 0, 5, 2, 2, 3),  # block 0; 1 and 2
        (167, 100 + 20 + 2 + 2 * 7, 2, 7, 0, 0, 2, 4),  # the first takes 3
        (303, 100 + 10 + 1 + 2 * 4, 1, 4, 0, 0, 1, 2),  # the second gives back 2, now id 12, and 1, id 11
        (422, 100 + 10 + 1 + 2 * 5, 1, 5, 0, 0, 1, 3),  # the first takes 2
        (543, 100 + 40 + 2 + 12, 0, 0, 4, 2, 2, 4),  # of 1 2 3 0 it hits 1, takes 2, and 3, which was id 2; then goes 0
    ]
    assert (result.queries, result.hit_tokens, result.evictions) == (2 + 3 + 5 + 1, [0, 2, 0], 3)
    assert [row.preemptions for row in result.requests] == [0, 1, 0]


def test_chunks_make_blocks_known_and_begin_behind_hits() -> None:
    per_attended = replace(PLAN.prefill[0], pieces=((0, 5 * PS, 0),))
    plan = replace(PLAN, prefill=(per_attended,))
    result = serve((0, 7, 1), (0, 7, 1), plan=plan, max_num_batched_tokens=4, prefixes=[[1, 2, 3]] * 2)
    assert steps_ps(result) == [
        (0, 100 + 40 + 5 * 4, 0, 0, 4, 1, 0, 4),
        (160, 100 + 40 + 2 + 2 * 5 * 7, 0, 0, 4, 2, 2, 5),  # 3 tokens of the first, and the last of the second
    ]
    assert result.hit_tokens == [0, 6]


def test_an_oracle_reserves_what_is_hit() -> None:
    result = serve((0, 4, 2), (0, 4, 2), kv_capacity_blocks=4, kv_admission="oracle", prefixes=[[1, 2]] * 2)
    assert result.requests[1].first_scheduled_ps == result.requests[0].finish_ps
    assert result.hit_tokens == [0, 2]


@pytest.mark.medium
@examples(100)
@given(prefix_cases())
def test_laws(case: Case) -> None:
    result = case.run()
    check_requests(case, result)
    assert all(0 < step.blocks_used <= case.kv_blocks for step in result.steps)
    assert all(tokens % case.block_size == 0 for tokens in result.hit_tokens)
    computed = sum(step.prefill_tokens for step in result.steps)
    assert computed <= result.queries - result.hits
    if not any(row.preemptions for row in result.requests):
        for row, tokens in zip(result.requests, result.hit_tokens, strict=True):
            assert tokens <= row.input_tokens - 1
        if case.max_time_fs is None:
            assert computed == result.queries - result.hits
            assert result.queries == sum(row.input_tokens for row in result.requests if row.emitted_tokens)


@pytest.mark.medium
@examples(60)
@given(prefix_cases())
def test_one_at_a_time_with_room_for_all_finds_all_that_was_before(case: Case) -> None:
    requests = case.requests[:6]
    assert case.prefixes is not None
    most = case.max_model_len + sum(request.input_tokens + request.output_tokens for request in requests)
    room = -(-most // case.block_size) + len(requests)
    prefixes = case.prefixes[:6]
    plan = replace(case.plan, data_parallel=1)
    case = replace(case, plan=plan, requests=requests, prefixes=prefixes, max_tokens=case.max_tokens[:6])
    case = replace(case, max_num_seqs=1, kv_capacity_blocks=room)
    result = case.run()
    assert result.evictions == 0
    served = [number for number, row in enumerate(result.requests) if row.status == "finished"]
    known: set[int] = set()
    for number in sorted(served, key=lambda each: result.requests[each].first_scheduled_ps):
        row, ids = result.requests[number], prefixes[number]
        looked_up = ids[: (row.input_tokens - 1) // case.block_size]
        found = next((place for place, block in enumerate(looked_up) if block not in known), len(looked_up))
        assert result.hit_tokens[number] == found * case.block_size
        known.update(ids[: (row.input_tokens + row.output_tokens - 1) // case.block_size])


@pytest.mark.medium
@examples(60)
@given(prefix_cases())
def test_without_ids_nothing_changes(case: Case) -> None:
    result = replace(case, prefixes=[[] for _ in case.requests]).run()
    plain = replace(case, prefixes=None).run()
    assert (result.hits, result.evictions) == (0, 0)
    assert replace(result, queries=0, queries_again=0, hit_tokens=[]) == plain


@pytest.mark.medium
@examples(60)
@given(prefix_cases(shared=False))
def test_what_nobody_shares_changes_no_steps(case: Case) -> None:
    """Unless requests are preempted, which find what they had."""
    plain = replace(case, prefixes=None).run()
    if any(row.preemptions for row in plain.requests):
        case = replace(case, kv_admission="oracle")
        plain = replace(case, prefixes=None).run()
    result = case.run()
    assert result.hits == 0
    assert result.queries == sum(row.input_tokens for row in result.requests if row.first_scheduled_ps >= 0)
    assert (result.steps, result.requests) == (plain.steps, plain.requests)
