"""What the devices of a replica send each other in a step: how many vectors, and how many bytes.

Everything follows from the collectives that the links cost (`interconnect`), split over the devices:

- all-reduce of a tensor-parallel group, as a ring: each device sends 2 (p - 1) / p of the vectors to the next one;
- all-gather of logits, as a ring: (p - 1) / p of them;
- dispatch and combine: the picks of a step (tokens x top_k x MoE layers) are dealt evenly to the devices, each of which
  sends its own to the devices that hold the experts; where an expert is sliced, to the slice of its rank. Bytes are
  those of the copies of vectors that the transport makes (`cluster.dispatch`), on the links that they take: several
  picks may share a copy, and a copy may pass a device that none of its picks is for. Combine goes the way back.
- where vectors pass from device to device outside of collectives, as their kind says (`PointToPoint`).

Counts are whole in every step. Data-parallel groups share a step's tokens evenly. Which experts are picked is the exact
draw of the step where the scenario asks for that; else each expert gets its expected share. Whole numbers come from
shares by largest remainder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from pimserve.arrays import FloatArray, IntArray
from pimserve.cluster.scenario.dispatch import Transport, routes
from pimserve.device_models.device import PointToPoint
from pimserve.device_models.operators import AllGather, AllReduce, AllToAll, Experts, Operator, Parallelism
from pimserve.v1.device_pb2 import FlowKind

DISPATCH, COMBINE = FlowKind.FLOW_KIND_DISPATCH, FlowKind.FLOW_KIND_COMBINE
ALL_REDUCE, ALL_GATHER = FlowKind.FLOW_KIND_ALL_REDUCE, FlowKind.FLOW_KIND_ALL_GATHER
ACTIVATIONS, KV = FlowKind.FLOW_KIND_ACTIVATIONS, FlowKind.FLOW_KIND_KV
KINDS = (DISPATCH, COMBINE, ALL_REDUCE, ALL_GATHER, ACTIVATIONS, KV)
_WEIGHT_BITS = 32  # of a share
_CELLS_AT_ONCE = 2**18


def kind_name(kind: int) -> str:
    """What a kind of flows is called."""
    try:
        return FlowKind.Name(kind).removeprefix("FLOW_KIND_").lower()  # type: ignore[arg-type]
    except ValueError:
        return f"kind {kind}"


class Cells(NamedTuple):
    """Who sends to whom: (cells,) each. Several cells may have the same devices and kind."""

    sender: IntArray
    receiver: IntArray
    kind: IntArray


@dataclass(frozen=True, slots=True)
class Flow:
    """What one device sends another for each row (token, or sampled output) of a data-parallel group's share.

    `group`: which of the `groups` that share the rows; `times` vectors and `bytes_per_row` bytes per row.
    """

    sender: int
    receiver: int
    kind: int
    times: int
    bytes_per_row: Fraction
    group: int = 0
    groups: int = 1
    of_outputs: bool = False


@dataclass(frozen=True, slots=True)
class Holders:
    """Devices of one kind that hold routed experts: so many from the first one on, in alike groups."""

    first: int
    devices: int
    groups: int

    @property
    def slices(self) -> int:
        """Devices of an expert group."""
        return self.devices // self.groups

    @property
    def numbers(self) -> range:
        """All of them."""
        return range(self.first, self.first + self.devices)

    @property
    def firsts(self) -> range:
        """The first device of each group."""
        return self.numbers[:: self.slices]

    def of(self, devices: Sequence[int]) -> list[int]:
        """Those of these devices."""
        return [device for device in devices if device in self.numbers]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Picks of experts, on their way from device to device.

    `sender`, `receiver` and `weight`: (cells,), the latter the share of all picks. `experts_of`: (cells,), the expert
    group that a cell leads to. Cells of which several share the picks of a sender for a group evenly: (cells,) how many
    `ranks` there are, and the `rank` of each. Their bytes are flows, as picks may share a vector. `holders`: of the
    experts, by kind of device; their groups are numbered one after the other.
    """

    picks_per_token: int
    holders: tuple[Holders, ...]
    sender: IntArray
    receiver: IntArray
    weight: FloatArray
    experts_of: IntArray
    rank: IntArray
    ranks: IntArray

    def expected(self, tokens: IntArray) -> IntArray:
        """(n, cells): picks of steps with those tokens, by expected shares."""
        return apportion(tokens * self.picks_per_token, self.weight)

    @property
    def senders(self) -> int:
        """Devices that send."""
        return int(self.sender.max()) + 1

    def of_senders(self, devices: Sequence[int]) -> list[int]:
        """Those of these devices that dispatch."""
        return [device for device in devices if device < self.senders]

    @property
    def over_link(self) -> bool:
        """Whether experts are on devices of their own."""
        return self.holders[0].first > 0

    def weights_of_holders(self) -> FloatArray:
        """(kinds of devices with experts,): shares of all picks."""
        return np.array([self.weight[np.isin(self.receiver, each.numbers)].sum() for each in self.holders])

    def copies(self, counts: IntArray) -> IntArray:
        """(senders, layers, slots): of the tokens (layers, slots) that picked each expert, or copy of one, in a step,
        those of each sender: picks are numbered, layer by layer, and dealt in turns.
        """
        picks = counts.ravel()
        end = np.cumsum(picks)
        number = np.arange(self.senders)[:, None]
        # Of the picks before a number, every one that is this sender's turn.
        until, before = (-((number - bound) // self.senders) for bound in (end, end - picks))
        return np.asarray((until - before).reshape(self.senders, *counts.shape))

    def of_cells(self, copies: IntArray) -> IntArray:
        """(cells,): picks in each cell, given those that each sender has for each expert group, (senders, groups)."""
        of_all = copies[self.sender, self.experts_of]
        return np.asarray(of_all // self.ranks + (self.rank < of_all % self.ranks))


class Traffic:
    """All flows of a replica.

    Args:
        flows: what goes by tokens or outputs.
        dispatch: picks of experts; None without any.
    """

    def __init__(self, flows: Sequence[Flow], dispatch: Dispatch | None = None) -> None:
        self.flows = flows
        self.dispatch = dispatch
        cells = [(flow.sender, flow.receiver, flow.kind) for flow in flows]
        if dispatch is not None:
            pairs = list(zip(dispatch.sender.tolist(), dispatch.receiver.tolist(), strict=True))
            cells += [(sender, receiver, DISPATCH) for sender, receiver in pairs]
            cells += [(receiver, sender, COMBINE) for sender, receiver in pairs]
        table = np.array(cells, np.int64).reshape(-1, 3)
        self.cells = Cells(*table.T)
        keys, of_cell = np.unique(table, axis=0, return_inverse=True)
        self.keys: IntArray = keys  # (keys, 3): sender, receiver and kind, each once
        self._key_of_cell = of_cell.reshape(-1)

    def by_key(self, traffic: IntArray) -> IntArray:
        """(keys, 2): what passes between devices by kind, given what passes through the cells, (cells, 2)."""
        summed = np.zeros((len(self.keys), 2), np.int64)
        np.add.at(summed, self._key_of_cell, traffic)
        return summed

    def of_steps(self, tokens: IntArray, outputs: IntArray, steps: IntArray, drawn: IntArray | None = None) -> IntArray:
        """What passes through each cell.

        Args:
            tokens: (n,), of a step.
            outputs: (n,), sampled in a step.
            steps: (n,), how many steps of each kind there are.
            drawn: picks (cells of the dispatch,) in all of the steps; None: their expected shares.

        Returns:
            (cells, 2): counts and bytes.
        """
        by_tokens, by_outputs = _histogram(tokens, steps), _histogram(outputs, steps)
        counts: list[int] = []
        sizes: list[int] = []
        for flow in self.flows:
            rows, weights = by_outputs if flow.of_outputs else by_tokens
            share = rows // flow.groups + (flow.group < rows % flow.groups)
            size = flow.bytes_per_row
            counts.append(int((weights * share).sum()) * flow.times)
            sizes.append(int((weights * (share * size.numerator // size.denominator)).sum()))
        collectives = np.array([counts, sizes], np.int64).T
        if self.dispatch is None:
            return collectives
        if drawn is None:
            distinct, weights = by_tokens
            picks = np.zeros(len(self.dispatch.sender), np.int64)
            at_once = max(1, _CELLS_AT_ONCE // len(picks))
            for first in range(0, len(distinct), at_once):
                some = slice(first, first + at_once)
                picks += weights[some] @ self.dispatch.expected(distinct[some])
        else:
            picks = drawn
        routed = np.column_stack([picks, np.zeros_like(picks)])
        return np.concatenate([collectives, routed, routed])


def _histogram(values: IntArray, weights: IntArray) -> tuple[IntArray, IntArray]:
    """Distinct values, and the sum of the weights of each."""
    distinct, which = np.unique(values, return_inverse=True)
    summed = np.zeros(len(distinct), np.int64)
    np.add.at(summed, which, weights)
    return distinct, summed


def traffic_of_operators(
    operators: Sequence[Operator], split: Parallelism, share: Sequence[float], way: Transport
) -> Traffic:
    """Flows between devices that run a model operator by operator.

    Args:
        operators: what one device of the replica runs.
        split: how devices share the model.
        share: picks of a token that fall on each slot of routed experts, in the mean over layers.
        way: how vectors get to the devices that need them.
    """
    flows: list[Flow] = []
    for op in operators:
        if isinstance(op, AllReduce):
            sent = op.times * Fraction(op.bytes_per_token) * 2 * (op.group - 1) / op.group
            flows += _ring(ALL_REDUCE, split, op.group, op.times, sent)
        elif isinstance(op, AllGather):
            sent = Fraction(op.bytes_per_output) * (op.group - 1) / op.group
            flows += _ring(ALL_GATHER, split, op.group, 1, sent, of_outputs=True)
        elif isinstance(op, AllToAll):
            for (sender, receiver), copies in routes(op, split, way).items():
                size = fraction_of_bytes(copies * op.vector_bytes * op.times / 2)
                flows.append(Flow(sender, receiver, DISPATCH, 0, size))
                flows.append(Flow(receiver, sender, COMBINE, 0, size))
    experts = next((op for op in operators if isinstance(op, Experts)), None)
    if experts is None:
        return Traffic(flows)
    return Traffic(flows, _dispatch(experts, split, share))


def traffic_of_point_to_point(sent: PointToPoint, devices: int) -> Traffic:
    """Flows between `devices` devices of a kind that says itself what they send each other."""
    flows = [
        Flow(*pair, ACTIVATIONS, vectors, size, of_outputs=of_outputs)
        for of_outputs, vectors_of in ((False, sent.tokens), (True, sent.outputs))
        for pair, (vectors, size) in vectors_of.items()
    ]
    for kind, routed in ((DISPATCH, sent.dispatch), (COMBINE, sent.combine)):
        flows += [Flow(*pair, kind, 0, fraction_of_bytes(size)) for pair, size in routed.items()]
    if not sent.picks:
        return Traffic(flows)
    pairs = sorted(sent.picks)
    sender, receiver = np.array(pairs, np.int64).T
    return Traffic(
        flows,
        Dispatch(
            picks_per_token=sent.picks_per_token,
            holders=(Holders(0, devices, devices),),
            sender=sender,
            receiver=receiver,
            weight=np.array([sent.picks[pair] for pair in pairs]),
            experts_of=receiver,
            rank=np.zeros_like(receiver),
            ranks=np.ones_like(receiver),
        ),
    )


def fraction_of_bytes(size: float) -> Fraction:
    """To a 1,024th, so that products with counts of rows stay in 64 bit."""
    return Fraction(round(size * 1024), 1024)


def _ring(
    kind: int, split: Parallelism, group: int, times: int, sent: Fraction, *, of_outputs: bool = False
) -> list[Flow]:
    """Each device of a tensor-parallel group to the next one."""
    return [
        Flow(first + rank, first + (rank + 1) % group, kind, times, sent, first // group, split.data, of_outputs)
        for first in range(0, split.devices, group)
        for rank in range(group)
    ]


def _dispatch(op: Experts, split: Parallelism, share: Sequence[float]) -> Dispatch:
    devices = np.arange(split.devices)
    sender, group = (grid.ravel() for grid in np.meshgrid(devices, np.arange(op.groups), indexing="ij"))
    receiver = group * op.slices + sender % split.tensor % op.slices
    of_group = np.asarray(share).reshape(op.groups, -1).sum(axis=1)
    return Dispatch(
        picks_per_token=op.top_k * op.layers,
        holders=(Holders(0, split.devices, op.groups),),
        sender=sender,
        receiver=receiver,
        weight=of_group[group] / split.devices,
        experts_of=group,
        rank=np.zeros_like(group),
        ranks=np.ones_like(group),
    )


def share(total: int, part: int, parts: int) -> int:
    """The share of part number `part` of `parts` alike ones; shares add up to the total."""
    return total // parts + (part < total % parts)


def apportion(totals: IntArray, weights: FloatArray) -> IntArray:
    """(n, cells): each of `totals` (n,), below 2**31, split over cells by their weights, in whole numbers by largest
    remainder; of equal remainders the first cells win.
    """
    whole = np.rint(weights / weights.sum() * 2**_WEIGHT_BITS).astype(np.int64)
    shares, remainders = np.divmod(totals[:, None] * whole, int(whole.sum()))
    left = totals - shares.sum(axis=1)
    rank = np.argsort(np.argsort(-remainders, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray(shares + (rank < left[:, None]))
