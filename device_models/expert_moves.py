"""Which routed experts come to devices without them when a layout of experts follows another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts
from pimserve.device_models.expert_layout import Slots
from pimserve.device_models.experts import ExpertTerm

Layouts = tuple[Sequence[Slots], Sequence[Slots]]  # of experts, before and after


def moved(term: ExpertTerm | CrossbarExperts, layouts: Layouts) -> int:
    """Experts, of all layers, that come to a group of devices without them: whose weights are sent there, or written
    to its crossbars."""
    if isinstance(term, ExpertTerm):
        return int(sent_and_received(term, layouts)[1].sum())
    shape = term.layers * term.groups, term.physical_experts // term.groups
    before, after = (slots_by_layer(term, slots).reshape(shape).tolist() for slots in layouts)
    return sum((Counter(new) - Counter(old)).total() for old, new in zip(before, after, strict=True))


def sent_and_received(term: ExpertTerm, layouts: Layouts) -> tuple[IntArray, IntArray]:
    """(groups,) experts of all layers that each group sends, and that each gets; of copies the first one is sent."""
    sent, received = np.zeros(term.groups, np.int64), np.zeros(term.groups, np.int64)
    before, after = layouts
    rows = max(len(before), len(after))
    in_order = (tuple(range(term.experts)),)
    for row in range(rows):
        old, new = ((slots or in_order)[row % len(slots or in_order)] for slots in (before, after))
        held = np.reshape(old, (term.groups, -1)).tolist()
        home = {expert: group for group in reversed(range(term.groups)) for expert in held[group]}
        for group, wanted in enumerate(np.reshape(new, (term.groups, -1)).tolist()):
            for expert in set(wanted) - set(held[group]):
                sent[home[expert]] += term.layers // rows
                received[group] += term.layers // rows
    return sent, received


def slots_by_layer(term: ExpertTerm | CrossbarExperts, slots: Sequence[Slots]) -> IntArray:
    """(layers, groups, slots of a group): the expert in each; `slots` as the term has them."""
    rows = np.array(slots or (tuple(range(term.experts)),), np.int64)
    return np.repeat(rows, term.layers // len(rows), axis=0).reshape(term.layers, term.groups, -1)
