"""Routed experts of a replica of which every layer of every step is drawn: copies go to the devices that hold each one,
and what these take comes back.

Where hot experts are on devices of another kind, these and the cold ones' get the copies for their own, and a layer
waits for the slower of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.cluster.distributed.devices.exact_side import ExactSide, SideDraw
from pimserve.cluster.distributed.devices.expert_work import Matrix, Pair, Work, shared_evenly
from pimserve.cluster.distributed.devices.flows import Dispatch
from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts
from pimserve.device_models.evaluate import parts_of
from pimserve.device_models.experts import FEATURES, GROUP_FEATURES, ExpertTerm
from pimserve.device_models.routing import ExpertPools
from pimserve.device_models.split_experts import SplitExperts, sides_of
from pimserve.device_models.step import StepShape
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.exact import exact_sum

_TIME = GROUP_FEATURES.index("time_fs")
_ENERGIES = [GROUP_FEATURES.index(name) for name in ("dram_pj", "compute_pj")]


class ExactExperts:
    """Experts of a replica of which every layer of every step is drawn.

    Args:
        costs: the replica's costs, at some speed.
        dispatch: what passes between its devices.
        devices: those that are on this host.
    """

    def __init__(self, costs: ReplicaCosts, dispatch: Dispatch, devices: Sequence[int]) -> None:
        assert costs.pools is not None
        self.pools: ExpertPools = costs.pools
        term = costs.pools.term
        assert isinstance(term, ExpertTerm | CrossbarExperts | SplitExperts)
        self.term = term
        self.costs = costs
        self.dispatch = dispatch
        self.devices = devices
        self.sides: list[ExactSide] = []
        group = slot = 0
        for side, holders in zip(sides_of(term), dispatch.holders, strict=True):
            self.sides.append(ExactSide(side, holders, group, slot))
            group, slot = group + side.groups, slot + side.physical_experts
        self.parts = 1 if costs.plan.micro_batches is None else costs.plan.micro_batches.parts

    def sent_width(self, receiver: int) -> int:
        """Numbers that are dispatched to a device, in each row; 0 where it has no experts."""
        return sum(self.parts * side.sent_width for side in self.sides if receiver in side.holders.numbers)

    def result_width(self, sender: int) -> int:
        """Numbers that come back from a device, in each row; likewise."""
        return sum(self.parts * side.result_width for side in self.sides if sender in side.holders.numbers)

    def result_rows(self, span_steps: NDArray[np.integer[Any]]) -> int:
        """Rows of what comes back for spans of so many steps."""
        return len(span_steps)

    def senders(self, devices: Sequence[int]) -> list[int]:
        """Those of these devices that dispatch."""
        return self.dispatch.of_senders(devices)

    def receivers(self, devices: Sequence[int]) -> list[int]:
        """Of these devices, those to which something is sent: the first of each group, as the others get the same."""
        return sorted(first for side in self.sides for first in side.groups_of(devices).values())

    def layer_picks(self, sent: Mapping[Pair, Matrix], steps: IntArray) -> dict[Pair, IntArray]:
        """Between groups of devices, picks by MoE layer, (layers,), to the first device of each expert group."""
        if not self.dispatch.over_link:
            return {}
        return {
            pair: matrix.reshape(-1, side.term.layers, side.per_group).sum(axis=(0, 2), dtype=np.int64)
            for pair, matrix in sent.items()
            for side in self.sides
            if pair[1] in side.holders.firsts
        }

    def draw(self, spans: StepShape[IntArray], first_steps: IntArray) -> ExactTurn:
        """The gate's draw for single steps, (n,) each; `first_steps`: their numbers."""
        return ExactTurn(self, spans, first_steps)

    def side_of(self, device: int) -> int:
        """The number of the side that has this device."""
        return next(number for number, side in enumerate(self.sides) if device in side.holders.numbers)

    def named(self, part: int, layer: int) -> str:
        """A MoE layer, of a micro-batch where a step has several."""
        return f"MoE layer {layer}" + (f", micro-batch {part}" if self.parts > 1 else "")


class ExactTurn:
    """Steps of which copies are dispatched, computed and sent back."""

    def __init__(self, experts: ExactExperts, steps: StepShape[IntArray], numbers: IntArray) -> None:
        self._experts = experts
        self._steps = steps
        dispatch = experts.dispatch
        plan = experts.costs.plan
        tokens = np.stack([plan.tokens_of(part) for part in parts_of(plan, steps)], axis=1)
        self._draws = tokens.shape  # steps and micro-batches
        self._sides = [SideDraw(side, dispatch, experts.devices, tokens.size) for side in experts.sides]
        begins = [side.slot(group, 0) for side in experts.sides for group in range(side.term.groups)]
        self.picks: IntArray | None = np.zeros(len(dispatch.sender), np.int64)
        for place, t in enumerate(tokens.ravel().tolist()):
            step, part = divmod(place, tokens.shape[1])
            counts = experts.pools.exact_counts(t, experts.costs.replica, int(numbers[step]), part)
            copies = dispatch.copies(counts)
            self.picks += dispatch.of_cells(np.add.reduceat(copies.sum(axis=1), begins, axis=1))
            for side in self._sides:
                side.put(place, counts, copies)
        for side in self._sides:
            side.work_out()

    def sent(self, sender: int, receiver: int) -> Matrix:
        """(n, micro-batches x layers x experts of the receiver): copies, layer by layer."""
        return self._side(receiver).sent(sender, receiver).reshape(self._draws[0], -1)

    def sent_name(self, receiver: int, column: int) -> str:
        """What a column of `sent` is."""
        experts = self._experts
        side = experts.sides[experts.side_of(receiver)]
        which, place = divmod(column, side.per_group)
        part, layer = divmod(which, side.term.layers)
        slot, slots = side.slot(side.group_of(receiver), place), experts.term.slots
        expert = slots[layer % len(slots)][slot] if slots else slot
        return f"copies for expert {expert} in {experts.named(part, layer)}"

    def compute(self, came: Mapping[Pair, Matrix]) -> None:
        """Work out the experts here from the copies that came for them."""
        for side in self._sides:
            side.compute(came)

    def result(self, sender: int) -> Matrix:
        """(n, micro-batches x layers x ways x group features) of the experts of a device's group."""
        return self._side(sender).result(sender).reshape(self._draws[0], -1)

    def result_name(self, sender: int, column: int) -> str:
        """What a column of `result` is."""
        experts = self._experts
        side = experts.sides[experts.side_of(sender)]
        which, rest = divmod(column, side.term.ways * len(GROUP_FEATURES))
        part, layer = divmod(which, side.term.layers)
        group, feature = side.first_group + side.group_of(sender), GROUP_FEATURES[rest % len(GROUP_FEATURES)]
        return f"{feature} of expert group {group} in {experts.named(part, layer)}"

    def work(self, results: Mapping[int, Matrix]) -> Work:
        """What the replica's experts take: in each layer what the slowest group says.

        Devices to which results do not come back have those of others from the draw.
        """
        experts, of_sides = self._experts, [side.taken(results) for side in self._sides]
        own_fs, own_pj = dict.fromkeys(experts.devices, 0), {}
        for side, (_, of_groups) in zip(experts.sides, of_sides, strict=True):
            # Rounded and shared out step by step, so that it does not hang on which steps come together.
            of_steps = of_groups.reshape(self._draws[0], -1, *of_groups.shape[2:]).sum(axis=1)
            for device in side.holders.of(experts.devices):
                group, place = divmod(device - side.holders.first, side.holders.slices)
                own_fs[device] = self._scaled_fs(of_steps[:, group, _TIME])
                own_pj[device] = shared_evenly(of_steps[:, group, _ENERGIES], place, side.holders.slices)
        features = [layers for layers, _ in of_sides]
        merged = features[0]
        if isinstance(experts.term, SplitExperts):
            merged = experts.term.merged(*(layers.reshape(-1, len(FEATURES)) for layers in features))
        layers = merged.reshape(*self._draws, experts.term.layers, -1)
        return Work(experts.costs.features_of_layers(self._steps, layers), own_fs, own_pj)

    def _scaled_fs(self, times: IntArray) -> int:
        """The sum of times of steps, (n,), at the replica's speed."""
        alone = np.zeros((len(times), len(self._experts.term.features)), np.int64)
        alone[:, FEATURES.index("time_fs")] = times
        return exact_sum(self._experts.pools.scaled(alone)[:, FEATURES.index("time_fs")])

    def _side(self, device: int) -> SideDraw:
        return self._sides[self._experts.side_of(device)]
