"""Preemption by swap: by hand, and whatever the windows, shards and interruptions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.requests import preemptions_by_cause
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.swap_space import SwapSpace
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .law_runs import REPLICAS, Run
from .plan_strategies import serial_plans
from .strategies import Case, cases
from .swapping_strategies import swapping_cases
from .test_load_shedding import in_ps
from .test_simulation import serve
from .test_windows import LENGTHS, Kept, Windows, spread

TWO = [(0.0, 30, 40), (0.0, 30, 40)]
SWAP = {"preemption": "swap", "swap_gb_per_s": 1, "swap_space_gb": 1}


def on(requests: list[tuple[float, int, int]], **spec: Any) -> Served:
    """In 6 blocks of 16 tokens of 1 MB, 16 ms on the link each; steps take 10 ms."""
    settings = SchedulerSpec.model_validate(spec)
    return serve(requests, spec=settings, kv_capacity_tokens=96, max_model_len=96, device_kv_bytes_per_token=1e6)


def test_who_is_preempted_goes_to_host_memory_and_comes_back() -> None:
    """Both need a fourth block in the step of their 49th token, their 20th of output, and there is none.

    The second one's three are copied out in 48 ms; the first one ends after 40 tokens, and then they are copied in.
    """
    served = on(TWO, **SWAP)
    table = served.table
    assert (table["swaps"].tolist(), table["preemptions"].tolist()) == ([0, 1], [0, 1])
    assert table["swapped_blocks"].tolist() == [0, 6]
    first_ends = 40 * 0.01 + 3 * 0.016
    gained = 19  # tokens that the second one had
    seconds = table["finish_ps"] / 1e12
    assert seconds.tolist() == pytest.approx([first_ends, first_ends + 3 * 0.016 + (40 - gained) * 0.01])
    assert sum(log.steps for log in served.logs) == 40 + 40 - gained  # and nothing is computed again
    figures = summarize(served, Objectives(SloSpec()), Hardware(1))
    assert figures.requests.swaps == figures.requests.preemptions_by_cause.swap == 1
    assert figures.swap is not None
    assert figures.swap.waited_s == pytest.approx(6 * 0.016)
    assert figures.swap.moved_bytes == 6 * 16e6
    itl = figures.latency_s.itl
    assert itl.n == 2 * 39
    assert itl.mean * itl.n == pytest.approx(((table["finish_ps"] - table["first_token_ps"]) / 1e12).sum())


def test_without_room_in_the_space_all_is_computed_again() -> None:
    served = on(TWO, **SWAP | {"swap_space_gb": 0.047})  # two blocks
    by_cause = preemptions_by_cause(served.table.columns)
    assert {cause: counted.sum() for cause, counted in by_cause.items()} == {
        "recompute": 0,
        "swap": 0,
        "swap_space_full": 1,
    }
    plain = on(TWO)
    assert (served.table["finish_ps"] == plain.table["finish_ps"]).all()
    assert plain.table["finish_ps"][1] == 10**10 * (40 + 1 + 40 - 19 - 1)  # the prompt again, with a token


@pytest.mark.medium
@examples(40)
@given(swapping_cases(cases(serial_plans(st.none()))), REPLICAS, LENGTHS, st.integers(0, 100))
def test_windows_shards_and_interruptions_do_not_matter(
    case: Case, replicas: int, lengths: list[int], cut: int
) -> None:
    case = in_ps(replace(case, concurrency=None))
    plain = Run(case, replicas)
    kept = Kept()
    for _ in range(2):  # and from one of the checkpoints on
        deployment = Deployment(control=Windows(lengths), shards=spread(min(2, replicas)), checkpoints=kept)
        assert digest(Run(case, replicas, deployment=deployment).served) == digest(plain.served)
        kept.first = cut


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=40), st.integers(0, 20))
def test_blocks_are_never_lost_nor_over_capacity(moves: list[tuple[int, int]], size: int) -> None:
    space, held, copied = SwapSpace(size, 7), dict[int, int](), 0
    for request, blocks in moves:
        if request in held:
            assert space.give_back(request) == held[request]
            copied += held.pop(request)
        elif space.take(request, blocks):
            held[request] = blocks
            copied += blocks
        else:
            assert sum(held.values()) + blocks > size
        assert (space.held, space.used) == (held, sum(held.values()))
        assert space.used <= size
    assert space.wait_fs() == 7 * copied
    assert space.wait_fs() == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"enable_prefix_caching": True}, "swap does not go together with enable_prefix_caching"),
        ({"kv_admission": "no_evict"}, "swap does not go together with kv_admission: no_evict, by which nothing"),
    ],
)
def test_what_does_not_go_together_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        on(TWO, **SWAP | spec)


@pytest.mark.parametrize(
    "spec", [{"preemption": "swap"}, {"swap_gb_per_s": 5}, {"preemption": "swap", "swap_gb_per_s": 5}]
)
def test_link_and_space_are_stated_with_swap_alone(spec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="swap_gb_per_s and swap_space_gb"):
        SchedulerSpec.model_validate(spec)


def test_a_longest_gap_holds_the_time_of_copies() -> None:
    gaps = on(TWO, **SWAP).table
    served = serve(
        TWO, spec=SchedulerSpec.model_validate(SWAP), kv_capacity_tokens=96, max_model_len=96, longest_gaps=True,
        device_kv_bytes_per_token=1e6,
    )  # fmt: skip
    assert served.longest_gaps_fs is not None
    away = int(gaps["finish_ps"][0]) - 19 * 10**10 + 48 * 10**9 + 10**10
    assert (served.longest_gaps_fs // 1000).tolist() == [48 * 10**9 + 10**10, away]
    assert np.array_equal(served.table["finish_ps"], gaps["finish_ps"])
