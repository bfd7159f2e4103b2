"""Links between the devices of a replica, and the collectives that run over them.

All-reduce over p devices, what is faster for the size: as a ring, 2 (p - 1) hops of latency + bytes / p / bandwidth
(Patarasuk and Yuan, 2009); inside a node in one shot, latency + (p - 1) bytes / bandwidth, as every device sends its
whole vectors to all others at once; or in two, each device adding up a p-th, 2 (latency + (p - 1) bytes / p /
bandwidth), as kernels do for larger sizes. Latency is first-order: at decode sizes an all-reduce is nearly nothing else
(reference: arXiv 2409.01141, fig. 4a, whose rings take 2 (p - 1) hops of 3 us; real one-shot kernels over 8 GPUs take
5 us). Shots were measured inside nodes only, so that groups over several nodes go round a ring.

Dispatch and combine of routed tokens: a fixed cost + what the busiest device sends (`dispatch`) / bandwidth. Copies
inside nodes and between them are under way at the same time, chunk by chunk, and the slower link counts: DeepEP's
kernels reach 43 to 58 GB/s of 50 between nodes with forwarding over NVLink (its README, H800; the node's own share is
counted in), which they could not if one leg waited for the other.

Where collectives were measured, each takes the fastest of the measured algorithms for its size; links between nodes
stay ideal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pimserve.cluster.scenario.dispatch import Transport, copies, transport
from pimserve.device_models.kernels import FS_PER_US, CollectiveKernel, Collectives
from pimserve.device_models.operators import (
    AllGather,
    AllReduce,
    AllToAll,
    Operator,
    Parallelism,
    RowKind,
    Runs,
    Traffic,
)
from pimserve.device_models.plan import FS_PER_S, RowTerm
from pimserve.device_models.step import LINK

ALL_REDUCE, ALL_TO_ALL, _ALL_GATHER = "all-reduce", "dispatch and combine", "all-gather of logits"
RING = "all-reduce, as a ring"  # whose bytes per token are one figure; which way is the fastest hangs on the step
_RUNS: Mapping[str, Runs] = {ALL_TO_ALL: "moe_layers", _ALL_GATHER: "last"}
_Algorithms = Mapping[int, Sequence[CollectiveKernel]]


@dataclass(frozen=True, slots=True)
class Interconnect:
    """Links inside a node and between nodes; bandwidths one way per device, GB/s, latencies per hop, us.

    `dispatch_us` is the fixed cost of one dispatch or combine between nodes, `dispatch` the way that copies take.
    `one_shot_latency_us`: of an all-reduce in one shot; None: there are rings only.
    """

    link_gb_per_s: float
    link_latency_us: float
    node_gb_per_s: float
    node_latency_us: float
    dispatch_us: float
    one_shot_latency_us: float | None = None
    dispatch: Transport = "forward"

    def compile(
        self, operators: Sequence[Operator], split: Parallelism, measured: Collectives | None = None
    ) -> tuple[RowTerm, ...]:
        """Cost terms of the collectives among `operators`, inside a node as `measured` where that is given."""
        terms: list[RowTerm] = []
        for op in operators:
            if isinstance(op, AllReduce):
                inside = measured is not None and op.group <= split.devices_per_node
                terms.append(_measured_all_reduce(op, measured) if measured and inside else self._all_reduce(op, split))
            elif isinstance(op, AllToAll):
                inside = measured is not None and split.nodes == 1
                terms.append(
                    _measured_all_to_all(op, measured, split) if measured and inside else self._all_to_all(op, split)
                )
            elif isinstance(op, AllGather) and measured is not None and op.group <= split.devices_per_node:
                terms.append(_measured_all_gather(op, measured))
        return tuple(terms)

    def traffic(
        self, operators: Sequence[Operator], split: Parallelism, measured: Collectives | None = None
    ) -> tuple[Traffic, ...]:
        """Bytes of the same collectives: of all-reduces those of a ring, of dispatch and combine the copies."""
        traffic: list[Traffic] = []
        for op in operators:
            if isinstance(op, AllReduce):
                sent = 2 * (op.group - 1) * op.times * op.bytes_per_token
                across = _ring_between_nodes(op.group, split)
                traffic += _of_links(RING, sent * (1 - across), sent * across)
            elif isinstance(op, AllToAll):
                every = copies(op, split, transport(split, self.dispatch, measured=measured is not None))
                sent = op.times * op.vector_bytes
                traffic += _of_links(ALL_TO_ALL, sent * every.intra_node_per_token, sent * every.inter_node_per_token)
            elif isinstance(op, AllGather) and measured is not None and op.group <= split.devices_per_node:
                traffic.append(Traffic(_ALL_GATHER, "outputs", (op.group - 1) * op.bytes_per_output))
        return tuple(traffic)

    def _all_reduce(self, op: AllReduce, split: Parallelism) -> RowTerm:
        inside = op.group <= split.devices_per_node
        latency = self.link_latency_us if inside else max(self.link_latency_us, self.node_latency_us)
        bandwidth = self.link_gb_per_s if inside else min(self.link_gb_per_s, self.node_gb_per_s)
        hops = 2 * (op.group - 1) * op.times
        ways = [(hops * latency, hops * op.bytes_per_token / op.group, bandwidth)]
        if inside and self.one_shot_latency_us is not None:
            shot_us, sent = op.times * self.one_shot_latency_us, op.times * (op.group - 1) * op.bytes_per_token
            ways += [(shot_us, sent, bandwidth), (2 * shot_us, 2 * sent / op.group, bandwidth)]
        return _term(ALL_REDUCE, ways)

    def _all_to_all(self, op: AllToAll, split: Parallelism) -> RowTerm:
        fixed_us = op.times * (self.link_latency_us if split.nodes == 1 else self.dispatch_us)
        every = copies(op, split, self.dispatch)
        legs = (every.intra_node, self.link_gb_per_s), (every.inter_node, self.node_gb_per_s)
        sent, bandwidth = max(legs, key=lambda leg: leg[0] / leg[1])
        return _term(ALL_TO_ALL, [(fixed_us, op.times * op.vector_bytes * sent, bandwidth)])


def beyond_measured(operators: Sequence[Operator], split: Parallelism, measured: Collectives) -> tuple[str, ...]:
    """Collectives inside a node over more devices than were ever measured: sentences."""
    groups: dict[str, tuple[int, _Algorithms]] = {}
    for op in operators:
        if isinstance(op, AllReduce) and op.group <= split.devices_per_node:
            groups["all-reduces"] = op.group, measured.all_reduce
        elif isinstance(op, AllGather) and op.group <= split.devices_per_node:
            groups["all-gathers"] = op.group, measured.all_gather
        elif isinstance(op, AllToAll) and split.nodes == 1:
            groups["dispatch and combine"] = split.devices, measured.all_to_all
    return tuple(
        f"{name} of {group} devices take the figures measured for {max(algorithms)}"
        for name, (group, algorithms) in groups.items()
        if group > max(algorithms)
    )


def _measured_all_reduce(op: AllReduce, measured: Collectives) -> RowTerm:
    moved = op.times * op.bytes_per_token * 2 * (op.group - 1) / op.group
    algorithms = _for_group(measured.all_reduce, op.group)
    return _term(
        ALL_REDUCE, [(op.times * algorithm.latency_us, moved, algorithm.bus_gb_per_s) for algorithm in algorithms]
    )


def _measured_all_gather(op: AllGather, measured: Collectives) -> RowTerm:
    """Logits of each device's part of the vocabulary, brought together: no part of the papers' ideal devices."""
    moved = op.bytes_per_output * (op.group - 1) / op.group
    algorithms = _for_group(measured.all_gather, op.group)
    costs = [(algorithm.latency_us, moved, algorithm.bus_gb_per_s) for algorithm in algorithms]
    return _term(_ALL_GATHER, costs, rows="outputs")


def _measured_all_to_all(op: AllToAll, measured: Collectives, split: Parallelism) -> RowTerm:
    """Routed copies sent to where they are needed, or all vectors to all groups and sums back: what is faster."""
    # What leaves a device: the share (n - 1) / n of a buffer is in it already.
    sent = op.times * op.vector_bytes * copies(op, split, "per_pick").intra_node
    costs = [
        (op.times * algorithm.latency_us, sent, algorithm.bus_gb_per_s)
        for algorithm in _for_group(measured.all_to_all, split.devices)
    ]
    gathered = op.times / 2 * op.vector_bytes * (split.data - 1)
    for gather in _for_group(measured.all_gather, split.data):
        for scatter in _for_group(measured.reduce_scatter, split.data):
            fixed_us = op.times / 2 * (gather.latency_us + scatter.latency_us)
            # Both move the same bytes, one after the other.
            rate = 1 / (1 / gather.bus_gb_per_s + 1 / scatter.bus_gb_per_s)
            costs.append((fixed_us, gathered, rate))
    return _term(ALL_TO_ALL, costs)


def _ring_between_nodes(group: int, split: Parallelism) -> float:
    """Share of a ring's bytes that goes from node to node, mean over the rings; each goes through a node once."""
    if split.nodes == 1:
        return 0.0
    per_node = split.devices_per_node
    rings = [
        (first // per_node, (first + group - 1) // per_node) for first in range(0, math.lcm(group, per_node), group)
    ]
    hops = sum(last - first + 1 for first, last in rings if last > first)
    return hops / (len(rings) * group)


def _of_links(operator: str, intra_node: float, inter_node: float) -> list[Traffic]:
    """Bytes per token inside nodes and between them, where there are any."""
    both = Traffic(operator, "tokens", intra_node), Traffic(operator, "tokens", inter_node, "inter_node")
    return [traffic for traffic in both if traffic.bytes_per_row]


def _for_group(algorithms: _Algorithms, group: int) -> Sequence[CollectiveKernel]:
    """Those measured for the next larger group; of more GPUs than were ever measured, those of the largest."""
    return algorithms[min((size for size in algorithms if size >= group), default=max(algorithms))]


def _term(name: str, costs: Sequence[tuple[float, float, float]], rows: RowKind = "tokens") -> RowTerm:
    """Term of the fastest of (fixed us, bytes per row, GB/s)."""
    ways = tuple(
        ((round(fixed_us * FS_PER_US), round(size / (gb_per_s * 1e9) * FS_PER_S)),)
        for fixed_us, size, gb_per_s in costs
    )
    return RowTerm(name, "communication", LINK, rows, ways[0], alternatives=ways[1:], runs=_RUNS.get(name, "layers"))
