"""The naive schedule of alternating parts against pipelines that were worked out by hand.

In the comments A is the attention station, D the link to the experts, E the experts, C the link back; p0 is the first
part, and 3-7 means from time 3 to time 7.
"""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.device_models.naive_schedule import naive_schedule


def alike(layers: int, parts: int, attention: int, dispatch: int, experts: int, combine: int) -> int:
    """Every part takes the same in every layer."""
    return naive_schedule(*(np.full((layers, parts), time) for time in (attention, dispatch, experts, combine)))


def unlike(*stations: Sequence[Sequence[int]], last: Sequence[int] | None = None) -> int:
    """Stations in the order A, D, E, C, each with a row of parts for each layer."""
    return naive_schedule(*map(np.array, stations), last=None if last is None else np.array(last))


def test_one_part_goes_through_all_stages_of_all_layers_in_turn() -> None:
    # 2 layers x 4 stages of 1. A schedule that forgets that a layer waits for the one before it gives 6.
    assert alike(layers=2, parts=1, attention=1, dispatch=1, experts=1, combine=1) == 8


def test_one_part_takes_the_plain_sum_with_what_follows_it() -> None:
    # 3 + 1 + 4 + 1 in the first layer, 5 + 9 + 2 + 6 in the second, then 7.
    assert unlike([[3], [5]], [[1], [9]], [[4], [2]], [[1], [6]], last=[7]) == 38


def test_two_parts_keep_both_stations_busy_where_these_are_equal_and_links_take_no_time() -> None:
    # A: p0 0-5, p1 5-10, p0 10-15, p1 15-20. E: p0 5-10, p1 10-15, p0 15-20, p1 20-25.
    assert alike(layers=2, parts=2, attention=5, dispatch=0, experts=5, combine=0) == 25


def test_three_parts_hide_links_that_take_half_as_long_as_the_stations() -> None:
    # p0: A 0-4, D 4-6, E 6-10, C 10-12; p1 and p2 are 4 and 8 later. At 12, A has just ended p2 and takes p0 again.
    # p2 comes to the second layer at 20, and leaves it 12 later.
    assert alike(layers=2, parts=3, attention=4, dispatch=2, experts=4, combine=2) == 32


def test_two_parts_do_not_hide_these_links() -> None:
    # As above, but A has ended p1 at 8 and waits until 12 for p0: p0 passes its second layer at 12-24, p1 at 16-28.
    assert alike(layers=2, parts=2, attention=4, dispatch=2, experts=4, combine=2) == 28


def test_a_slow_link_sets_the_pace() -> None:
    # First layer: A 0-1, 1-2, 2-3; D 1-6, 6-11, 11-16. p0: E 6-7, C 7-8, A 8-9, then it waits for D, which goes on
    # without a break: 16-21, 21-26, 26-31. p2: E 31-32, C 32-33.
    assert alike(layers=2, parts=3, attention=1, dispatch=5, experts=1, combine=1) == 33


def test_a_slow_way_back_sets_the_pace() -> None:
    # C: p0 3-7, p1 7-11. p0: A 7-8, D 8-9, E 9-10, C 11-15. p1: A 11-12, D 12-13, E 13-14, C 15-19.
    assert alike(layers=2, parts=2, attention=1, dispatch=1, experts=1, combine=4) == 19


def test_slow_experts_set_the_pace() -> None:
    # E: p0 2-8, p1 8-14. p0: C 8-9, A 9-10, D 10-11, E 14-20, C 20-21. p1: C 14-15, A 15-16, D 16-17, E 20-26, C 26-27.
    assert alike(layers=2, parts=2, attention=1, dispatch=1, experts=6, combine=1) == 27


def test_a_short_part_waits_behind_a_long_one() -> None:
    # p0: A 0-2, D 2-3, E 3-5, C 5-6. p1: A 2-8, D 8-9, E 9-13, C 13-14.
    # p0 waits for A from 6: A 8-10, D 10-11, waits for E: 13-15, C 15-16. p1: A 14-20, D 20-21, E 21-25, C 25-26.
    stations = [[2, 6]] * 2, [[1, 1]] * 2, [[2, 4]] * 2, [[1, 1]] * 2
    assert unlike(*stations) == 26


def test_layers_that_differ_move_the_bottleneck() -> None:
    # First layer, experts slow. p0: A 0-1, D 1-2, E 2-9, C 9-10. p1: A 1-2, D 2-3, E 9-13, C 13-14.
    # Second layer, attention slow. p0: A 10-18, D 18-19, E 19-20, C 20-21. p1: A 18-24, D 24-25, E 25-27, C 27-28.
    assert unlike([[1, 1], [8, 6]], [[1, 1], [1, 1]], [[7, 4], [1, 2]], [[1, 1], [1, 1]]) == 28


def test_the_head_competes_with_attention_of_parts_behind() -> None:
    # p0: A 0-1, D 1-2, E 2-3, C 3-4. p1: A 1-5, D 5-6, E 6-7, C 7-8. The head of p0 waits for A from 4: 5-15; that
    # of p1 waits from 8: 15-17.
    assert unlike([[1, 4]], [[1, 1]], [[1, 1]], [[1, 1]], last=[10, 2]) == 17


def test_a_part_without_tokens_takes_no_time() -> None:
    # p0 alone: 2 layers x (2 + 1 + 3 + 1). p1 follows it: after its last C at 14 nothing is left.
    assert unlike([[2, 0]] * 2, [[1, 0]] * 2, [[3, 0]] * 2, [[1, 0]] * 2) == 14


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7])
@given(
    layers=st.integers(1, 5),
    slower=st.integers(1, 30),
    faster=st.floats(0, 1),
    transfer=st.integers(0, 30),
)
def test_parts_that_are_alike(parts: int, layers: int, slower: int, faster: float, transfer: int) -> None:
    """Parts go round, at a pace of the slowest station or of the round trip; each is one pace behind the other."""
    other = int(faster * slower)
    pace = max(slower, transfer)
    trip = slower + other + 2 * transfer
    expected = trip + max(trip, parts * pace) * (layers - 1) + pace * (parts - 1)
    assert alike(layers, parts, slower, transfer, other, transfer) == expected
    assert alike(layers, parts, other, transfer, slower, transfer) == expected
