"""Schedules of micro-batches, as the plan works them out, against the naive one, event by event."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models import round_trips
from pimserve.device_models.round_trips import PartTimes, lack_fs, schedule_fs, slack_fs
from tests.examples import examples

from .naive_schedule import naive_schedule

STAGES = ("attention", "dispatch", "experts", "combine")


class Times(NamedTuple):
    """Of micro-batches of some steps: attention and links (steps, rounds, parts), experts (steps, visits, parts), and
    what attention's devices do last (steps, parts)."""

    visits: list[int]
    attention: np.ndarray
    dispatch: np.ndarray
    experts: np.ndarray
    combine: np.ndarray
    closing: np.ndarray

    def naive_fs(self) -> list[int]:
        """By step."""
        each = np.repeat(np.arange(len(self.visits)), self.visits)
        rows = zip(self.attention, self.dispatch, self.experts, self.combine, self.closing, strict=True)
        return [naive_schedule(a[each], d[each], e, c[each], last) for a, d, e, c, last in rows]

    def columns(self) -> list[PartTimes[np.ndarray]]:
        """Of all steps together."""
        return [
            PartTimes(
                self.visits,
                list(self.attention[:, :, part].T),
                list(self.dispatch[:, :, part].T),
                np.ascontiguousarray(self.experts[:, :, part].T),
                list(self.combine[:, :, part].T),
                self.closing[:, part],
            )
            for part in range(self.closing.shape[1])
        ]

    def numbers(self, step: int) -> list[PartTimes[int]]:
        """Of one step."""
        stages = (self.attention, self.dispatch, self.experts, self.combine)
        return [
            PartTimes(self.visits, *(stage[step, :, part].tolist() for stage in stages), int(self.closing[step, part]))
            for part in range(self.closing.shape[1])
        ]


def drawn(
    rng: np.random.Generator, least: dict[str, int], spread: int, steps: int, visits: list[int], parts: int, last: int
) -> Times:
    """Each stage takes `least` or up to `spread` more, and attention's devices last of all less than `last`."""
    rows = {stage: sum(visits) if stage == "experts" else len(visits) for stage in STAGES}
    shape = {stage: least[stage] + rng.integers(0, spread + 1, (steps, rows[stage], parts)) for stage in STAGES}
    return Times(visits, **shape, closing=rng.integers(0, last, (steps, parts)))


@st.composite
def times(draw: st.DrawFn) -> Times:
    least = {stage: draw(st.integers(0, 30)) for stage in STAGES}
    visits = draw(st.lists(st.integers(1, 6), min_size=1, max_size=2))
    steps, parts, last = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return drawn(rng, least, draw(st.integers(0, 30)), steps, visits, parts, last)


@examples(200)
@given(times())
def test_numbers_and_columns_take_what_the_naive_schedule_says(some: Times) -> None:
    naive = some.naive_fs()
    assert schedule_fs(some.columns()).tolist() == naive
    assert [schedule_fs(some.numbers(step)) for step in range(len(naive))] == naive


@pytest.mark.medium
@pytest.mark.parametrize("slow", STAGES)
def test_a_stage_that_just_sets_the_pace(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that differ a little, of which one is about as slow as it must be to work without a break: to take as long
    as the slowest other one, and as what the other micro-batches leave of the round trip, or as all others together."""
    skipped = counted(monkeypatch, "skip")
    rng = np.random.default_rng(2)
    for _ in range(1200):
        parts, spread = int(rng.integers(2, 6)), int(rng.integers(1, 4))
        visits = [*rng.integers(1, 3, int(rng.integers(0, 3))).tolist(), int(rng.integers(1, 12))]
        least = {stage: int(rng.integers(0, 12)) for stage in STAGES}
        others = [time for stage, time in least.items() if stage != slow]
        left = -(-(sum(others) + 3 * spread) // int(rng.choice([1, parts - 1])))
        least[slow] = max(0, left - int(rng.integers(0, 3)), max(others) + int(rng.integers(0, spread + 3)))
        some = drawn(rng, least, spread, 1, visits, parts, int(rng.choice([1, 3, 40])))
        for stage in STAGES:  # the first visits are of layers of another kind
            if stage != "experts" and len(visits) > 1:
                getattr(some, stage)[:, 0] += int(rng.choice([0, 5, 60]))
        naive = some.naive_fs()
        assert schedule_fs(some.columns()).tolist() == naive
        assert [schedule_fs(some.numbers(0))] == naive
    assert sum(visits > 0 for visits, _ in skipped) > 200


def counted(monkeypatch: pytest.MonkeyPatch, method: str) -> list[tuple[int, int]]:
    """What a method of the stages is called with from now on."""
    calls: list[tuple[int, int]] = []
    original = getattr(round_trips._Stages, method)

    def call(self: object, *given: int) -> None:
        calls.append(given)  # type: ignore[arg-type]
        original(self, *given)

    monkeypatch.setattr(round_trips._Stages, method, call)
    return calls


@pytest.mark.medium
@pytest.mark.parametrize("slow", ["attention", "experts"])
def test_what_hides_behind_a_group_takes_no_time(slow: str) -> None:
    """Attention that takes longer, within what is left to it, lengthens a step by as much at its first visit, where all
    else is hidden behind the experts, and at all visits, where it is hidden behind attention."""
    rng = np.random.default_rng(3)
    hidden = 0
    for _ in range(1500):
        parts, visits, spread = int(rng.integers(2, 6)), int(rng.integers(1, 8)), int(rng.integers(1, 4))
        least = {stage: int(rng.integers(0, 12)) for stage in STAGES}
        others = sum(time for stage, time in least.items() if stage != slow) + 3 * spread
        least[slow] = max(0, others + int(rng.integers(-3, 20)))
        some = drawn(rng, least, spread, 1, [visits], parts, int(rng.choice([1, 3, 40])))
        numbers, (naive,) = some.numbers(0), some.naive_fs()
        longest = slack_fs(numbers) if slow == "experts" else 9
        if longest < 0 or (slow == "attention" and lack_fs(numbers) > 0):
            continue
        more = rng.integers(0, longest + 1, parts)
        longer = some._replace(attention=some.attention + more).naive_fs()
        assert longer == [naive + (more[0] if slow == "experts" else visits * more.sum())]
        hidden += 1
    assert hidden > 400


@given(times(), st.integers(0, 2**20))
def test_times_that_floating_point_cannot_hold(some: Times, odd: int) -> None:
    """Above 2**53 fs, nine seconds, not all whole numbers are."""
    scale = 2**53 + 2 * odd + 1
    numbers = [
        PartTimes(part.visits, *([scale * time for time in stage] for stage in part[1:5]), scale * part.closing)
        for part in some.numbers(0)
    ]
    assert schedule_fs(numbers) == scale * some.naive_fs()[0]


@pytest.mark.parametrize("parts", [2, 3, 4, 5])
@pytest.mark.parametrize("stage", [*STAGES])
def test_a_stage_at_its_limit(parts: int, stage: str) -> None:
    """One femtosecond more or less of each stage around the time from which it sets the pace of all others."""
    others = dict.fromkeys(STAGES, 12)
    for limit in (36, -(-36 // (parts - 1)), 12):
        found = []
        for time in range(limit - 2, limit + 3):
            shape = {name: np.full((1, 7 if name == "experts" else 1, parts), other) for name, other in others.items()}
            shape[stage][:] = time
            some = Times([7], **shape, closing=np.zeros((1, parts), np.int64))
            assert schedule_fs(some.columns()).tolist() == some.naive_fs()
            found.append(schedule_fs(some.numbers(0)))
        assert found == sorted(found)
        assert all(later > before for before, later in pairwise(found))


@pytest.mark.parametrize("parts", [2, 3, 4, 5])
def test_the_way_back_sets_the_pace(parts: int) -> None:
    """Also where attention, which takes a little less, has more micro-batches than it gets done before the first is
    back again, and where the first ones on their way there come late to it."""
    rng = np.random.default_rng(parts)
    for _ in range(300):
        least = {stage: int(rng.integers(0, high)) for stage, high in zip(STAGES, (14, 6, 6, 1), strict=True)}
        others = sum(least.values()) + 3
        least["combine"] = max(least["attention"] + int(rng.integers(0, 4)), -(-others // (parts - 1)))
        visits, last = int(rng.integers(1, 6)), int(rng.choice([1, 40]))
        some = drawn(rng, least, int(rng.integers(0, 4)), 1, [visits], parts, last)
        assert [schedule_fs(some.numbers(0))] == schedule_fs(some.columns()).tolist() == some.naive_fs()
