"""The graph of requests that depend on others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.turns import Turns, by_arrival


@st.composite
def graphs(draw: st.DrawFn) -> Turns:
    """Up to 12 requests, each with up to three parents before it."""
    n = draw(st.integers(1, 12))
    parents = [sorted(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else [] for i in range(n)]
    think_ps = draw(st.lists(st.integers(0, 10), min_size=n, max_size=n))
    return Turns.of(parents, np.array(think_ps), np.arange(n))


def edges(turns: Turns) -> set[tuple[int, int]]:
    return set(zip(turns.parents.tolist(), turns.followers_by_edge.tolist(), strict=True))


@given(graphs())
def test_children_are_the_same_edges(turns: Turns) -> None:
    begins, followers = turns.children()
    parents = np.repeat(np.arange(len(turns)), np.diff(begins))
    assert set(zip(parents.tolist(), followers.tolist(), strict=True)) == edges(turns)
    assert len(followers) == len(turns.parents)


@given(graphs(), st.data())
def test_a_workload_has_roots_first(turns: Turns, data: st.DataObject) -> None:
    arrival = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(turns), max_size=len(turns))))
    order = by_arrival(arrival, turns)
    taken = turns.taken(order)
    roots = int((~turns.followers).sum())
    assert not taken.followers[:roots].any()
    assert taken.followers[roots:].all()
    assert (np.diff(arrival[order[:roots]]) >= 0).all()
    assert {(int(order[parent]), int(order[child])) for parent, child in edges(taken)} == edges(turns)
    assert np.array_equal(taken.think_ps, turns.think_ps[order])


@given(graphs(), st.data())
def test_who_has_lost_an_ancestor_goes_too(turns: Turns, data: st.DataObject) -> None:
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=len(turns), max_size=len(turns))))
    kept = turns.complete(wanted)
    for request in range(len(turns)):
        mine = turns.parents[turns.begins[request] : turns.begins[request + 1]]
        assert kept[request] == (wanted[request] and kept[mine].all())


def test_chains() -> None:
    turns = Turns.chains(np.array([-1, 0, -1, 1]), np.array([0, 5, 0, 7]), np.array([0, 0, 1, 0]))
    assert turns.followers.tolist() == [False, True, False, True]
    assert edges(turns) == {(0, 1), (1, 3)}


@pytest.mark.parametrize("parents", [[[0]], [[], [2], []], [[], [-1]]])
def test_parents_are_before_their_followers(parents: list[list[int]]) -> None:
    n = len(parents)
    with pytest.raises(ValueError, match="must be before it"):
        Turns.of(parents, np.zeros(n, np.int64), np.arange(n))
