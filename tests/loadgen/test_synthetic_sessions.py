"""Sessions as a scenario asks for them: their turns, prompts and think times, and users who think."""

from typing import Any

import numpy as np
import pytest

from pimserve.errors import InputError
from pimserve.loadgen.turns import NOT_YET_PS
from pimserve.loadgen.workload import Workload, WorkloadSpec, generate

LENGTHS = {"input": {"kind": "uniform", "low": 10, "high": 90}, "output": {"kind": "fixed", "tokens": 7}}


def workload(sessions: dict[str, Any], **more: Any) -> Workload:
    document = {"arrival": {"process": "poisson", "rate_per_s": 5}, "lengths": LENGTHS, "sessions": sessions, **more}
    return generate(WorkloadSpec.model_validate(document), 3)


def test_turns_follow_one_another_in_their_session() -> None:
    load = workload({"turns": {"kind": "geometric", "mean": 4}, "num_sessions": 2000, "think_time_s": 2})
    turns = load.turns
    assert turns is not None
    followers = turns.followers
    assert not followers[:2000].any()
    assert followers[2000:].all()
    assert (load.arrival_ps[followers] == NOT_YET_PS).all()
    assert (np.diff(load.arrival_ps[:2000]) >= 0).all()
    assert (turns.think_ps[followers] == 2 * 10**12).all()
    assert (turns.session[turns.parents] == turns.session[followers]).all()
    assert len(set(turns.parents.tolist())) == len(turns.parents)  # nobody is followed by two
    assert np.bincount(turns.session).mean() == pytest.approx(4, rel=0.1)
    assert load.offered_rate_per_s is None


def test_a_document_is_a_part_of_first_turns_and_of_what_came_before() -> None:
    for context in ("fresh", "accumulate"):
        without = workload({"turns": 3, "num_sessions": 50, "context": context})
        with_one = workload({"turns": 3, "num_sessions": 50, "context": context, "document_tokens": 1000})
        assert without.turns is not None
        more = with_one.input_tokens - without.input_tokens
        assert more.tolist() == np.where(without.turns.followers & (context == "fresh"), 0, 1000).tolist()


def test_what_came_before_is_part_of_a_prompt() -> None:
    fresh = workload({"turns": 3, "num_sessions": 50, "context": "fresh"})
    kept = workload({"turns": 3, "num_sessions": 50})
    cut = workload({"turns": 3, "num_sessions": 50, "context_tokens": 100})
    new, turns = fresh.input_tokens, kept.turns
    assert turns is not None
    expected = new.copy()
    for request, parent in zip(turns.followers_by_edge.tolist(), turns.parents.tolist(), strict=True):
        expected[request] += expected[parent] + 7
    assert kept.input_tokens.tolist() == expected.tolist()
    assert cut.input_tokens.tolist() == np.minimum(expected, 100).tolist()
    assert (expected > 100).any()


def test_a_cap_on_active_sessions_leaves_what_they_are() -> None:
    """And without arrivals, nothing is planned: all are there from the beginning."""
    sessions = {"turns": {"kind": "geometric", "mean": 4}, "num_sessions": 30}
    free, capped = workload(sessions), workload({**sessions, "max_active": 4})
    at_once = workload({**sessions, "max_active": 4}, arrival=None)
    assert (capped.max_active_sessions, at_once.max_active_sessions, free.max_active_sessions) == (4, 4, None)
    assert capped.arrival_ps.tolist() == free.arrival_ps.tolist()
    assert (free.closed, capped.closed, at_once.closed) == (False, False, True)
    assert at_once.arrival_ps[:30].tolist() == [0] * 30
    for same in (capped, at_once):
        assert same.input_tokens.tolist() == free.input_tokens.tolist()
        assert same.turns is not None
        assert free.turns is not None
        assert same.turns.parents.tolist() == free.turns.parents.tolist()
    spec = WorkloadSpec.model_validate({"sessions": {**sessions, "max_active": 4}})
    assert WorkloadSpec.model_validate(spec.model_dump()) == spec  # lengths of the preset, and no arrivals of it
    assert generate(spec, 3).arrival_ps[:30].tolist() == [0] * 30


@pytest.mark.parametrize(
    ("law", "mean", "cv"),
    [
        ({"kind": "exponential", "mean_s": 3}, 3.0, 1.0),
        ({"kind": "uniform", "low_s": 1, "high_s": 3}, 2.0, 12**-0.5),
        ({"kind": "lognormal", "median_s": 2, "sigma": 0.5}, 2 * np.exp(0.125), (np.exp(0.25) - 1) ** 0.5),
        (1.5, 1.5, 0.0),
        ("1500 ms", 1.5, 0.0),
    ],
)
def test_laws_of_think_times(law: object, mean: float, cv: float) -> None:
    n = 20_000
    document = {"mode": "closed", "concurrency": 2, "num_requests": n, "think_time_s": law, "lengths": LENGTHS}
    think_ps = generate(WorkloadSpec.model_validate(document), 1).think_ps
    assert think_ps is not None
    seconds = think_ps / 1e12
    assert seconds.mean() == pytest.approx(mean, rel=4 * cv / n**0.5 + 1e-12)
    assert seconds.std() / seconds.mean() == pytest.approx(cv, rel=0.04, abs=1e-12)


def test_a_knob_of_sessions_leaves_the_draws_of_others() -> None:
    one = workload({"turns": 2, "num_sessions": 40, "think_time_s": 1, "context": "fresh"})
    other = workload({"turns": 2, "num_sessions": 40, "think_time_s": {"kind": "exponential", "mean_s": 9}})
    assert one.turns is not None
    assert other.turns is not None
    assert one.arrival_ps.tolist() == other.arrival_ps.tolist()
    assert one.output_tokens.tolist() == other.output_tokens.tolist()
    assert one.turns.parents.tolist() == other.turns.parents.tolist()
    assert one.turns.think_ps.tolist() != other.turns.think_ps.tolist()


def test_sessions_that_are_too_many_or_too_long() -> None:
    with pytest.raises(InputError, match=r"^workload.sessions: have .* turns together; at most 20000000"):
        workload({"turns": 100_000, "num_sessions": 201})
    many = {"input": {"kind": "fixed", "tokens": 6_000_000}, "output": {"kind": "fixed", "tokens": 7}}
    with pytest.raises(InputError, match=r"^workload.sessions.context_tokens: a prompt has 12000007 tokens"):
        workload({"turns": 2, "num_sessions": 1}, lengths=many)
