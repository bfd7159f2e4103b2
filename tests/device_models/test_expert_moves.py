"""Which experts come to devices without them: by hand, and as anyone would count them."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts, CrossbarUnit
from pimserve.device_models.expert_moves import moved, sent_and_received, slots_by_layer
from pimserve.device_models.experts import ExpertTerm, ExpertUnit

UNIT = ExpertUnit("xpu", (((1, 1),),), (1.0, 0.0), 7, 1, 1)


def fetched(layers: int, experts: int, groups: int) -> ExpertTerm:
    return ExpertTerm(layers, experts, 1, groups, 1, (UNIT,), "first")


def on_crossbars(layers: int, experts: int, groups: int, slots: tuple[tuple[int, ...], ...] = ()) -> CrossbarExperts:
    each, units = len(slots[0]) // groups if slots else experts // groups, (CrossbarUnit("tile"), CrossbarUnit("pool"))
    work = ((1,) * each,)
    return CrossbarExperts(layers, experts, 1, groups, 1, units, (1,) * each, (work,), work, 1, slots=slots)


def test_weights_that_cross_links_by_hand() -> None:
    # Three groups of two slots in four layers of one law, from experts in order: 1 and 2 change places, and 5 is copied
    # over 4, so that the first group gets 2, the second 1 and the third nothing.
    sent, received = sent_and_received(fetched(4, 6, 3), ((), ((0, 2, 1, 3, 5, 5),)))
    assert (sent.tolist(), received.tolist()) == ([4, 4, 0], [4, 4, 0])
    # A second copy in a group that has the expert crosses no link, but has crossbars of its own.
    assert moved(fetched(4, 6, 3), ((), ((0, 2, 1, 3, 5, 5),))) == 8
    assert moved(on_crossbars(4, 6, 3), ((), ((0, 2, 1, 3, 5, 5),))) == 12


def test_what_a_move_takes() -> None:
    assert fetched(1, 2, 1).move_pj == 2 * 7
    assert on_crossbars(1, 2, 1).move_pj == 0


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.data())
def test_whatever_comes_to_a_group_is_counted(layers: int, groups: int, each: int, data: st.DataObject) -> None:
    experts = groups * each
    row = st.lists(st.integers(0, experts - 1), min_size=experts, max_size=experts).map(tuple)
    everyone = st.permutations(range(experts)).map(tuple)
    before, after = (
        data.draw(st.sampled_from([1, layers]).flatmap(lambda n, each=each: st.tuples(*[each] * n)))
        for each in (everyone, row)
    )
    old, new = (slots_by_layer(fetched(layers, experts, groups), slots) for slots in (before, after))
    came: dict[Any, int] = {"copies": 0, "experts": 0}
    for layer, group in np.ndindex(layers, groups):
        here, there = old[layer, group].tolist(), new[layer, group].tolist()
        came["experts"] += len(set(there) - set(here))
        came["copies"] += sum(max(0, there.count(e) - here.count(e)) for e in set(there))
    assert moved(fetched(layers, experts, groups), (before, after)) == came["experts"]
    assert moved(on_crossbars(layers, experts, groups, before), (before, after)) == came["copies"]
    sent, received = sent_and_received(fetched(layers, experts, groups), (before, after))
    assert sent.sum() == received.sum()
