"""Gaps between tokens by stretches: nothing hangs on how they come, and no gap is lost."""

import json

import numpy as np
import pytest

from pimserve.scheduler.gap_batches import GapBatches
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.step_batches import StepBatches


def gaps_of(seed: int, n: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.sort(rng.integers(0, 20 * n, n)), rng.lognormal(28, 1, n).astype(np.int64), rng.integers(1, 64, n)


@pytest.mark.medium
@pytest.mark.parametrize(("n", "cut"), [(400, 1), (3000, 7), (3000, 250), (3000, 3000)])
def test_nothing_hangs_on_how_they_come(n: int, cut: int) -> None:
    columns = gaps_of(1, n)
    whole, parts = StepBatches(), StepBatches()
    whole.add_gaps(*columns)
    for start in range(0, len(columns[0]), cut):
        parts.add_gaps(*(column[start : start + cut] for column in columns))
        again = StepBatches()
        again.restore(json.loads(json.dumps(parts.state())))
        parts = again
    assert parts.state() == whole.state()
    counts, sums_ns = whole.gaps.totals()
    assert 16 <= len(counts) <= 32
    assert counts.sum() == columns[2].sum()
    assert sums_ns.sum() == (columns[1] // 10**6 * columns[2]).sum()


@pytest.mark.parametrize("percent", [0.1, 50, 99, 100])
def test_together_stretches_have_as_many_below_as_all_gaps(percent: float) -> None:
    first_steps, gaps_fs, counts = gaps_of(2)
    batches, whole = StepBatches(), DurationHistogram()
    batches.add_gaps(first_steps, gaps_fs, counts)
    whole.add(gaps_fs, counts)
    place = whole.bin_of_percentile(percent)
    up_to = batches.gaps.up_to(place, whole)
    assert (up_to <= batches.gaps.totals()[0] + 1e-9).all()
    limit_s = whole.percentile_s(percent)
    assert up_to.sum() == pytest.approx(counts[gaps_fs <= limit_s * 1e15 * (1 + 2**-11)].sum(), rel=0.01)
    assert up_to.sum() >= counts.sum() * percent / 100 * (1 - 1e-12)


def test_what_a_step_does_not_show_takes_its_place() -> None:
    gaps = GapBatches(4)
    stretch = np.array([0, 0, 2])
    gaps.add(stretch, np.array([10**12, 10**12, 10**13]), np.array([3, -1, 1]))
    n, sums_ns = gaps.totals()
    assert (n.tolist(), sums_ns.tolist()) == ([2, 1], [2 * 10**6, 10**7])
    gaps.join()
    assert gaps.totals()[0].tolist() == [2, 1]
    gaps.join()
    assert gaps.totals()[0].tolist() == [3]
