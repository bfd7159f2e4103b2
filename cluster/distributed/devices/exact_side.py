"""Routed experts on devices of one kind, of which every layer of every step is drawn: what comes for each, and what it
takes.

A replica has one such side, or where hot experts are on devices of another kind two, which know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.distributed.devices.expert_work import SENT, Matrix, Pair
from pimserve.cluster.distributed.devices.flows import Dispatch, Holders
from pimserve.device_models.experts import GROUP_FEATURES
from pimserve.device_models.split_experts import Side


@dataclass(frozen=True, slots=True)
class ExactSide:
    """The experts of one kind of devices.

    `first_group`, `first_slot`: of its expert groups, and of its slots of a layer, among those of all kinds.
    """

    term: Side
    holders: Holders
    first_group: int
    first_slot: int

    @property
    def per_group(self) -> int:
        """Slots of an expert group."""
        return self.term.physical_experts // self.term.groups

    @property
    def sent_width(self) -> int:
        """Numbers that are dispatched to one of its devices, of a micro-batch."""
        return self.term.layers * self.per_group

    @property
    def result_width(self) -> int:
        """Numbers that come back from one of them, of a micro-batch."""
        return self.term.layers * self.term.ways * len(GROUP_FEATURES)

    def group_of(self, device: int) -> int:
        """The expert group of one of its devices, among its own."""
        return (device - self.holders.first) // self.holders.slices

    def groups_of(self, devices: Sequence[int]) -> dict[int, int]:
        """Its expert groups that have some of these devices, and the first such device of each."""
        return {self.group_of(device): device for device in reversed(self.holders.of(devices))}

    def slot(self, group: int, place: int) -> int:
        """A slot of one of its expert groups, among all slots of a layer."""
        return self.first_slot + group * self.per_group + place


class SideDraw:
    """What the gate draws for a side in so many micro-batches, and what its devices make of it.

    Args:
        side: which.
        dispatch: of the replica.
        devices: those that are on this host.
        draws: micro-batches of all steps.
    """

    def __init__(self, side: ExactSide, dispatch: Dispatch, devices: Sequence[int], draws: int) -> None:
        self._side = side
        term = side.term
        self._slots = slice(side.first_slot, side.first_slot + term.physical_experts)
        self._shape = term.layers, term.groups, side.per_group
        self._counts = np.empty((draws, *self._shape), np.int64)
        self._outgoing = {device: np.empty((draws, *self._shape), SENT) for device in dispatch.of_senders(devices)}
        incoming = draws, dispatch.senders, term.layers, side.per_group
        self._incoming = {group: np.empty(incoming, SENT) for group in side.groups_of(devices)}
        self._results: IntArray  # (ways, draws x layers, groups, group features), by the draw
        self._own: dict[int, IntArray]  # the same of groups here, by what came

    def put(self, place: int, counts: IntArray, copies: IntArray) -> None:
        """Take the draw of a micro-batch: (layers, slots) of all sides, and (senders, layers, slots) who sends what."""
        self._counts[place] = counts[:, self._slots].reshape(self._shape)
        mine = copies[:, :, self._slots].reshape(-1, *self._shape)
        for device, block in self._outgoing.items():
            block[place] = mine[device]
        for group, block in self._incoming.items():
            block[place] = mine[:, :, group]

    def work_out(self) -> None:
        """All micro-batches were put."""
        self._results = self._side.term.group_features(self._counts.reshape(-1, *self._shape[1:]))
        self._own = {group: self._results[:, :, group] for group in self._incoming}

    def sent(self, sender: int, receiver: int) -> Matrix:
        """(draws, layers, experts of the receiver): copies."""
        group = self._side.group_of(receiver)
        outgoing = self._outgoing.get(sender)
        return self._incoming[group][:, sender] if outgoing is None else outgoing[:, :, group]

    def compute(self, came: Mapping[Pair, Matrix]) -> None:
        """Work out the experts here from the copies that came for them."""
        for group, first in self._side.groups_of([to for _, to in sorted(came)]).items():
            blocks = [matrix for (_, to), matrix in came.items() if to == first]
            tokens = np.sum(blocks, axis=0, dtype=np.int64).reshape(-1, 1, self._side.per_group)
            self._own[group] = self._side.term.group_features(tokens)[:, :, 0]

    def result(self, sender: int) -> Matrix:
        """(draws, layers, ways, group features) of the experts of a device's group."""
        group = self._side.group_of(sender)
        features = self._own[group] if group in self._own else self._results[:, :, group]
        by_draw = features.reshape(self._side.term.ways, len(self._counts), -1, len(GROUP_FEATURES))
        return np.ascontiguousarray(by_draw.transpose(1, 2, 0, 3))

    def taken(self, results: Mapping[int, Matrix]) -> tuple[IntArray, IntArray]:
        """((draws, layers, features), (draws, layers, groups, group features)): what the side takes in each layer, and
        each of its groups.

        Args:
            results: of devices of all sides; groups of which none comes back have those of the draw.
        """
        side, term, layers = self._side, self._side.term, len(self._counts) * self._side.term.layers
        of_group = {side.group_of(device): results[device] for device in side.holders.of([*results])}
        blocks = [
            of_group[group] if group in of_group else self.result(first)
            for group, first in enumerate(side.holders.firsts)
        ]
        stacked = np.stack([block.reshape(layers, term.ways, len(GROUP_FEATURES)) for block in blocks])
        shaped = stacked.transpose(2, 1, 0, 3)
        ends = len(self._counts), term.layers
        return term.merged(shaped).reshape(*ends, -1), term.taken(shaped).reshape(*ends, term.groups, -1)
