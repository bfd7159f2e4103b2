"""Windows last about as long as is wanted, and do not become ever shorter where it is their number that costs."""

import random

import pytest

from pimserve.scheduler.window_length import WindowLength

S = 10**15
STEPS_PER_S = 100


def windows(length, wall_s, total_fs, most=2000):
    """How many windows a run takes whose windows last `wall_s(length in simulated seconds)`."""
    count, now_fs = 0, 0
    while now_fs < total_fs and count < most:
        steps = -(-now_fs * STEPS_PER_S // S)
        now_fs += length.length_fs
        length.lasted(wall_s(length.length_fs / S), -(-now_fs * STEPS_PER_S // S) - steps)
        count += 1
    return count


@pytest.mark.parametrize("per_s", [0.001, 0.1, 1.0])
def test_a_window_lasts_as_long_as_wanted(per_s):
    length = WindowLength(0.1, S, 1000, 10**6 * S)
    windows(length, lambda simulated_s: per_s * simulated_s, 10**9 * S, most=60)
    assert per_s * length.length_fs / S == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("each_s", [0.11, 0.25, 5.0])
def test_a_round_trip_that_takes_longer_than_a_window_should_does_not_make_windows_without_end(each_s):
    """A slow network between coordinator and shards: 2 simulated seconds took 2,700 s and went on, window by window."""
    length = WindowLength(0.1, S, 1000, 10**6 * S)
    assert windows(length, lambda simulated_s: each_s + 0.001 * simulated_s, 1000 * S) < 60


@pytest.mark.parametrize("seed", range(20))
def test_nor_do_some_windows_that_take_longer_than_others(seed):
    """Those at whose end devices are asked."""
    rng = random.Random(seed)
    length = WindowLength(0.1, S, 1000, 10**6 * S)
    assert windows(length, lambda _: rng.choice([0.2, 0.4, 1.0, 5.0, 10.0]), 1000 * S) < 100


def test_a_network_that_becomes_slow_and_quick_again():
    length = WindowLength(0.1, S, 1000, 10**6 * S)
    windows(length, lambda simulated_s: 0.001 + 0.1 * simulated_s, 20 * S)
    assert windows(length, lambda simulated_s: 0.5 + 0.1 * simulated_s, 100 * S) < 60


def test_it_keeps_to_its_range():
    length = WindowLength(0.1, S, S // 2, 2 * S)
    windows(length, lambda simulated_s: 1.0 * simulated_s, 10 * S)
    assert length.length_fs == S // 2
    windows(length, lambda simulated_s: 1e-9 * simulated_s, 10 * S)
    assert length.length_fs == 2 * S
