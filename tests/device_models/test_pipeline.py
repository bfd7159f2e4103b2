"""Pipelines by hand: who waits for whom, and where one rule gives way to another."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.pipeline import Load, PassivePower, PipelineTerm, Station, undominated
from pimserve.device_models.step import N, StepShape

STATION = Station("memory", "attention_decode", 2, 3, 5, (7,), visit=1, visit_per_context=1, rest=12, slack=30)
TERM = PipelineTerm(
    windows=(None,),
    chain=(("fc", 100), ("moe", 50)),
    chain_per_context=(4,),
    stations=(STATION,),
    per_prompt_token=6,
    per_second_prompt_token=1,
    prompt_category="moe",
    loads=(),
)


def layers_fs(term: PipelineTerm, requests: N, context: N, outputs: N, queued: N, anchor: N, prefill_fs: N) -> N:
    zero = 0 * requests
    return term.layers_fs(
        StepShape(zero + 1, requests, context, zero, zero, outputs, queued, anchor, prefill_fs, *(6 * [zero]))
    )


def test_one_request_takes_its_chain() -> None:
    assert TERM.fixed_fs == 150
    assert TERM.decode_span(1, 10, 1)[0] == 150 + 4 * 10


def test_requests_go_round_in_turns_while_all_are_served_before_the_first_is_back() -> None:
    # Two requests of 10 tokens: a visit takes 1 + 10, work is 2 + 3 + 5 + 7 x 10 = 80, of which 30 hide in the rests.
    assert TERM.decode_span(2, 20, 1)[0] == 150 + 40 + (80 - 30)
    # Much slack leaves what one visit takes.
    assert replace(TERM, stations=(replace(STATION, slack=75),)).decode_span(2, 20, 1)[0] == 150 + 40 + 11
    # Three: one visit of 11 fits into the rest of 12; four: two do not, and all work is waited for.
    assert TERM.decode_span(3, 30, 1)[0] == 150 + 40 + (2 * 80 - 30)
    assert TERM.decode_span(4, 40, 1)[0] == 150 + 40 + 3 * 80


def test_a_span_ends_where_a_longer_context_changes_the_rule() -> None:
    # A visit of three requests fits while it is at most 12, that is up to a mean context of 11: steps 0 and 1.
    first, growth, steps = TERM.decode_span(3, 30, 100)
    assert steps == 2
    assert [TERM.decode_span(3, 30 + 3 * k, 1)[0] for k in range(2)] == [first + k * growth for k in range(2)]
    assert TERM.decode_span(3, 36, 1)[0] != first + 2 * growth


@given(st.integers(1, 9), st.integers(0, 300), st.integers(1, 60))
def test_steps_of_a_span_are_the_same_one_by_one(requests: int, extra: int, most: int) -> None:
    context = requests + extra
    other = Station("tiles", "fc", 40, 0, 0, (0,), visit=9, rest=40, slack=3)
    term = replace(TERM, windows=(None, 16), chain_per_context=(4, 2), stations=(
        replace(STATION, per_context=(7, 1)), replace(other, per_context=(0, 0)),
    ))  # fmt: skip
    first, growth, steps = term.decode_span(requests, context, most)
    assert 1 <= steps <= most
    single = [term.decode_span(requests, context + k * requests, 1)[0] for k in range(steps)]
    assert single == [first + k * growth for k in range(steps)]
    zeros = np.zeros(steps, np.int64)
    alike = zeros + requests
    columns = layers_fs(term, alike, context + requests * np.arange(steps), alike, alike, zeros, zeros)
    assert columns.tolist() == single
    assert [
        layers_fs(term, requests, at, requests, requests, 0, 0)
        for at in (context + requests * np.arange(steps)).tolist()
    ] == single


def test_a_prompt_adds_its_tokens_and_its_attention() -> None:
    assert TERM.prefill(0, [(20, 0)], [11]) == (0, 20, 11)
    assert layers_fs(TERM, 0, 0, 1, queued=0, anchor=20, prefill_fs=11) == 150 + 6 * 19 + 11


def test_of_several_prompts_the_longest_goes_ahead() -> None:
    # The second of 12 tokens meets it in 12 x 1 / 2 tokens' work; the third of 8 queues. Attention of 4 + 2 hides.
    assert TERM.prefill(0, [(12, 0), (20, 0), (8, 0)], [4, 11, 2]) == (6 + 8, 20, 11)
    assert layers_fs(TERM, 0, 0, 3, queued=14, anchor=20, prefill_fs=11) == 150 + 6 * 19 + 11 + 2 * 14 + 3 * 2
    # Attention that does not hide behind their work is waited for.
    assert TERM.prefill(0, [(20, 0), (8, 0)], [200, 50]) == (4, 20, 200 + 50 - 2 * 4)


def test_decoding_requests_queue_behind_a_prompt() -> None:
    queued, anchor, prefill = TERM.prefill(5, [(20, 0)], [11])
    assert (queued, anchor, prefill) == (5, 20, 11)
    # Work of five tokens and six outputs but the prompt's own, five requests, 40 context tokens.
    wait = 2 * 5 + 3 * 5 + 5 * 5 + 7 * 40
    assert layers_fs(TERM, 5, 40, 6, queued=5, anchor=20, prefill_fs=11) == 150 + 6 * 19 + 11 + wait


@given(st.integers(1, 8), st.integers(1, 500), st.integers(1, 500), st.integers(1, 50))
def test_more_requests_or_longer_contexts_never_take_less(requests: int, mean: int, more: int, joined: int) -> None:
    now = TERM.decode_span(requests, requests * mean, 1)[0]
    assert TERM.decode_span(requests, requests * (mean + more), 1)[0] >= now
    assert TERM.decode_span(requests + joined, (requests + joined) * mean, 1)[0] >= now


def test_passive_power_by_hand() -> None:
    power = PassivePower(idle_uw=2_000_000, step_uw=8_000_000, chain_uw=5_000_000)
    ns = 10**6  # in fs; 1 W for 1 ns is 1000 pJ
    assert power.energy_pj(3 * ns, 4 * ns, 2 * ns) == (2 * 3 + 8 * 4 - 5 * 2) * 1000


@pytest.mark.parametrize("requests", [1, 2, 7])
def test_columns_count_what_the_engine_counts_in_mixed_steps(requests: int) -> None:
    def column(value: int) -> np.ndarray:
        return np.array([value], np.int64)

    queued, anchor, prefill = TERM.prefill(requests, [(20, 0), (9, 0)], [11, 3])
    whole = layers_fs(TERM, requests, 50, requests + 2, queued=queued, anchor=anchor, prefill_fs=prefill)
    columns = layers_fs(TERM, *(column(each) for each in (requests, 50, requests + 2, queued, anchor, prefill)))
    assert columns.tolist() == [whole]


@given(
    st.lists(
        st.builds(
            Load,
            st.just("tiles"),
            *[st.integers(0, 3)] * 3,
            st.tuples(st.integers(0, 3)),
            st.sampled_from([(0, 1), (1, 2), (2, 4), (1, 1)]),
        ),
        min_size=1,
        max_size=12,
    ),
    st.tuples(*[st.integers(0, 9)] * 5),
)
def test_the_busiest_device_is_never_left_out(loads: list[Load], work: tuple[int, int, int, int, int]) -> None:
    def most(some: Iterable[Load]) -> int:
        tokens, outputs, requests, seen, prefill_fs = work
        return max(
            sum(coefficient * times for coefficient, times in load.amounts(tokens, outputs, requests, [seen]))
            + load.prefill_fs(4 * prefill_fs)
            for load in some
        )

    kept = undominated(loads)
    assert set(kept) <= set(loads)
    assert most(kept) == most(loads)
