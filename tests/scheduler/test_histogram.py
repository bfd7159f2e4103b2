"""The histogram of durations against exact samples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.scheduler.histogram import DurationHistogram

DURATION = st.just(0) | st.integers(2**10 + 1, 2**62)
DURATIONS = st.lists(st.tuples(DURATION, st.integers(1, 300)), min_size=1, max_size=30)


def filled(samples: list[tuple[int, int]]) -> DurationHistogram:
    histogram = DurationHistogram()
    durations, weights = zip(*samples, strict=True)
    histogram.add(np.array(durations, np.int64), np.array(weights, np.int64))
    return histogram


@given(DURATIONS, st.sampled_from([1, 50, 90, 99, 99.9, 100]))
def test_percentiles_are_nearest_rank_within_the_resolution(samples: list[tuple[int, int]], percent: float) -> None:
    exact = sorted(duration for duration, weight in samples for _ in range(weight))
    expected = exact[math.ceil(percent / 100 * len(exact)) - 1]
    found = filled(samples).percentile_s(percent) * 1e15
    assert abs(found - expected) <= expected * 2**-12 * (1 + 1e-6)


@given(DURATIONS)
def test_count_and_mean(samples: list[tuple[int, int]]) -> None:
    small = [(duration % 10**15 + 10**6, weight) for duration, weight in samples]
    histogram = filled(small)
    count = sum(weight for _, weight in small)
    assert histogram.count == count
    assert histogram.mean_s() == pytest.approx(sum(d * w for d, w in small) / count * 1e-15, rel=1e-3)


@given(DURATIONS, st.integers(0, 30))
def test_merged_is_the_same_as_filled_at_once(samples: list[tuple[int, int]], at: int) -> None:
    samples = [(duration % 10**15 + 2**10, weight) for duration, weight in samples]
    parts = [filled(part) for part in (samples[:at], samples[at:]) if part]
    merged, whole = DurationHistogram.merged(parts), filled(samples)
    assert merged.count == whole.count
    assert merged.mean_s() == whole.mean_s()
    assert [merged.percentile_s(p) for p in (1, 50, 99)] == [whole.percentile_s(p) for p in (1, 50, 99)]


def test_without_samples_there_is_no_figure() -> None:
    empty = DurationHistogram()
    empty.add(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert (empty.count, empty.mean_s(), empty.percentile_s(50)) == (0, None, None)


def test_weights_of_zero_count_for_nothing() -> None:
    histogram = filled([(10**12, 0), (10**13, 4)])
    assert histogram.count == 4
    assert histogram.percentile_s(1) == pytest.approx(0.01, rel=2**-12)


@given(DURATIONS, DURATIONS)
def test_what_a_state_says_replaces_all_that_was_held(
    samples: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    kept, other = filled(samples), filled(others)
    other.restore(kept.state())
    assert other.state() == kept.state() == DurationHistogram.of_state(kept.state()).state()
    assert other.count == kept.count
    assert [other.percentile_s(p) for p in (1, 50, 99)] == [kept.percentile_s(p) for p in (1, 50, 99)]
