"""What it took to program routed experts anew during a run: crossbars written, their time, energy and wear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pimserve.arrays import BoolArray
from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts
from pimserve.device_models.expert_layout import Slots
from pimserve.device_models.expert_moves import Layouts, slots_by_layer
from pimserve.device_models.expert_programming import ExpertProgramming
from pimserve.device_models.plan import PJ_PER_J


def programming_facts(
    term: CrossbarExperts, layouts: Sequence[Layouts], programming: Callable[[], ExpertProgramming | None] | None
) -> dict[str, Any]:
    """Of a replica whose experts went through those layouts.

    `experts_moved`: weights of an expert of a layer that were written to a chip without them, in place of one that left
    it; what stays on its chip is not written. `longest_programming_s`: of one layout, all tiles side by side, and of
    each one tier after the other. `joules`: of all layouts, part of the energy of the run. `most_pulses_per_device`: of
    the crossbars that were written most often, which stand against `endurance_pulses`. None of that where it is not
    known.
    """
    chips = _Chips(term, layouts[0][0])
    written = [chips.take(after) for _, after in layouts]
    facts: dict[str, Any] = {"experts_moved": sum(int(slots.sum()) for slots in written)}
    known = None if programming is None else programming()
    if known is None:
        return facts
    pulses = known.pulses * int(np.sum(written, axis=0).max())
    return {
        **facts,
        "longest_programming_s": max(known.time_s(slots) for slots in written),
        "joules": facts["experts_moved"] * term.move_pj / PJ_PER_J,
        "most_pulses_per_device": pulses,
        "endurance_pulses": known.endurance_pulses,
        "endurance_used": pulses / known.endurance_pulses,
    }


def programming_caveats(facts: Mapping[str, Any]) -> Iterator[str]:
    """What must be read beside the figures of a run, in sentences; `facts` as `programming_facts` gives them."""
    moved = f"rebalancing experts programmed {facts['experts_moved']:,} experts of layers anew in each replica"
    if "joules" not in facts:
        yield f"{moved}; what that takes is not known of these chips, and not in the energy"
        return
    longest, interval = facts["longest_programming_s"], facts["interval_s"]
    yield (
        f"{moved}, up to {longest:.3g} s for one layout, in which real chips would not serve from the tiles that are "
        f"written, or need others; steps do not wait for it, and the energy has its {facts['joules']:.3g} J"
    )
    if longest > interval:
        yield (
            f"a new layout of experts takes up to {longest:.3g} s to program, longer than "
            f"cluster.expert_placement.rebalance.interval_s, {interval:g} s: real ones would come later"
        )


class _Chips:
    """Which expert each slot of the chips holds, of each layer: those that stay on a chip stay where they are there."""

    def __init__(self, term: CrossbarExperts, slots: Sequence[Slots]) -> None:
        self._term = term
        self._held = slots_by_layer(term, slots)

    def take(self, slots: Sequence[Slots]) -> BoolArray:
        """(layers, chips, slots of a chip): which slots are written for a layout that comes next."""
        written, wanted = np.zeros(self._held.shape, bool), slots_by_layer(self._term, slots)
        for layer, chip in np.ndindex(written.shape[:2]):
            held, coming = self._held[layer, chip], Counter(wanted[layer, chip].tolist())
            for place, expert in enumerate(held.tolist()):
                written[layer, chip, place] = not coming[expert]
                coming[expert] -= coming[expert] > 0
            held[written[layer, chip]] = list(coming.elements())
        return written
