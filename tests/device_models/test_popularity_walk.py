"""Popularities that walk at random, and the outcomes of experts while they do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.experts import ExpertTerm, ExpertUnit
from pimserve.device_models.popularity_walk import MOST_SKEW, Drift
from pimserve.device_models.routing import TABLES_KEPT, ExpertPools, Routing
from pimserve.device_models.slowdown import SlowPools

INTERVAL_PS = 10**9
DRIFT = Drift(INTERVAL_PS, 0.3)
UNIT = ExpertUnit("xpu", (((10**6, 10**4),),), (1.0, 0.0), 1, 1, 1)
TERM = ExpertTerm(3, 8, 2, 4, 1, (UNIT,), "first")


def pools(drift: Drift | None = DRIFT) -> ExpertPools:
    return ExpertPools(TERM, Routing("zipf", 1.0, drift=drift), 0)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 5))
def test_a_law_does_not_hang_on_which_were_asked_for_before(epochs: list[int], seed: int) -> None:
    first = np.ones((2, 4))
    log = np.zeros((2, 4))
    laws = [first]
    for step in range(1, 41):
        log = log + np.random.default_rng([seed, 6, step]).standard_normal((2, 4))
        laws.append(np.exp(0.3 * log))
    for epoch in epochs:
        found = DRIFT.weights(first, seed, epoch)
        np.testing.assert_allclose(
            found / found.max(axis=1, keepdims=True), laws[epoch] / laws[epoch].max(axis=1)[:, None]
        )


def test_steps_are_normal_and_independent_of_each_other() -> None:
    first = np.ones((1, 500))
    logs = np.array([np.log(DRIFT.weights(first, 3, epoch))[0] for epoch in range(60)])
    steps = np.diff(logs - logs.mean(axis=1, keepdims=True), axis=0)
    assert steps.std() == pytest.approx(0.3, rel=0.02)
    assert abs(np.corrcoef(steps[:-1].ravel(), steps[1:].ravel())[0, 1]) < 0.02


def test_weights_stay_within_what_can_be_drawn_from() -> None:
    wild = Drift(INTERVAL_PS, 10.0).weights(np.array([[1.0, 2.0, 0.0, 5.0]]), 0, 500)
    assert wild[0, 2] == 0
    assert wild.max() == 1
    assert wild[wild > 0].min() == pytest.approx(1 / MOST_SKEW)


def test_the_law_is_that_of_the_interval_in_which_a_step_begins() -> None:
    first = pools()
    assert first.ends_fs == INTERVAL_PS * 1000
    assert first.at(INTERVAL_PS * 1000 - 1) is first
    second = first.at(INTERVAL_PS * 1000)
    assert second.epoch == 1
    assert second.ends_fs == 2 * INTERVAL_PS * 1000
    assert second.at(INTERVAL_PS * 1000 * 3 // 2) is second
    assert second.at(0).times_fs(40) == first.times_fs(40) != second.times_fs(40)
    np.testing.assert_array_equal(Routing(drift=DRIFT).epochs(np.array([0, INTERVAL_PS - 1, INTERVAL_PS])), [0, 0, 1])


def test_the_beginning_is_as_without_drift_and_without_drift_nothing_ends() -> None:
    plain = pools(None)
    assert plain.times_fs(40) == pools().times_fs(40)
    assert plain.at(10**30) is plain
    assert plain.ends_fs > 10**30
    np.testing.assert_array_equal(Routing().epochs(np.array([5, INTERVAL_PS * 7])), [0, 0])


def test_slow_replicas_drift_alike() -> None:
    slow = SlowPools(pools(), 2000)
    assert slow.at(5) is slow
    later = slow.at(3 * INTERVAL_PS * 1000)
    assert later.times_fs(40) == [2 * time for time in pools().at(3 * INTERVAL_PS * 1000).times_fs(40)]
    assert later.at(0).times_fs(40) == slow.times_fs(40)


@pytest.mark.medium
def test_slow_replicas_keep_no_more_tables_than_others() -> None:
    normal = pools()
    for each in (normal, SlowPools(normal, 2000)):
        for tokens in range(1, 2 * TABLES_KEPT):
            each.layers_fs[tokens]
        assert len(each.layers_fs) <= TABLES_KEPT
