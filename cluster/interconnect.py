"""Links between the devices of a replica, and the collectives that run over them.

Ring all-reduce over p devices: 2 (p - 1) hops of latency + bytes / p / bandwidth (Patarasuk and Yuan, 2009). Dispatch
and combine of routed tokens: bytes / bandwidth plus a fixed cost. The latency of a hop is first-order: at decode
sizes an all-reduce is nearly all latency (reference: arXiv 2409.01141, fig. 4a).

Where collectives were measured, each takes the fastest of the measured algorithms for its size; links between nodes
stay ideal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pimserve.device_models.kernels import FS_PER_US, CollectiveKernel, Collectives
from pimserve.device_models.operators import AllGather, AllReduce, AllToAll, Operator, Parallelism, Rows, Traffic
from pimserve.device_models.plan import FS_PER_S, LINK, RowTerm

_ALL_REDUCE, _ALL_TO_ALL, _ALL_GATHER = "all-reduce", "dispatch and combine", "all-gather of logits"
_Algorithms = Mapping[int, Sequence[CollectiveKernel]]


@dataclass(frozen=True, slots=True)
class Interconnect:
    """Links inside a node and between nodes; bandwidths one way per device, GB/s, latencies per hop, us.

    `dispatch_us` is the fixed cost of one dispatch or combine between nodes.
    """

    link_gb_per_s: float
    link_latency_us: float
    node_gb_per_s: float
    node_latency_us: float
    dispatch_us: float

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
        """Bytes of the same collectives: of all-reduces those of a ring, of dispatch and combine the routed copies."""
        found: list[Traffic] = []
        for op in operators:
            if isinstance(op, AllReduce):
                sent = 2 * (op.group - 1) * op.times * op.bytes_per_token
                found.append(Traffic(_ALL_REDUCE, "tokens", sent))
            elif isinstance(op, AllToAll):
                found.append(Traffic(_ALL_TO_ALL, "tokens", op.times * op.bytes_per_token * split.tensor))
            elif isinstance(op, AllGather) and measured is not None and op.group <= split.devices_per_node:
                found.append(Traffic(_ALL_GATHER, "outputs", (op.group - 1) * op.bytes_per_output))
        return tuple(found)

    def _all_reduce(self, op: AllReduce, split: Parallelism) -> RowTerm:
        inside = op.group <= split.devices_per_node
        latency = self.link_latency_us if inside else max(self.link_latency_us, self.node_latency_us)
        bandwidth = self.link_gb_per_s if inside else min(self.link_gb_per_s, self.node_gb_per_s)
        hops = 2 * (op.group - 1) * op.times
        return _term(_ALL_REDUCE, [(hops * latency, hops * op.bytes_per_token / op.group, bandwidth)])

    def _all_to_all(self, op: AllToAll, split: Parallelism) -> RowTerm:
        inside = split.nodes == 1
        fixed = self.link_latency_us if inside else self.dispatch_us
        bandwidth = self.link_gb_per_s if inside else self.node_gb_per_s
        return _term(_ALL_TO_ALL, [(op.times * fixed, op.times * op.bytes_per_token, bandwidth)])


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
    return _term(_ALL_REDUCE, [(op.times * each.latency_us, moved, each.bus_gb_per_s) for each in algorithms])


def _measured_all_gather(op: AllGather, measured: Collectives) -> RowTerm:
    """Logits of each device's part of the vocabulary, brought together: no part of the papers' ideal devices."""
    moved = op.bytes_per_output * (op.group - 1) / op.group
    algorithms = _for_group(measured.all_gather, op.group)
    costs = [(each.latency_us, moved, each.bus_gb_per_s) for each in algorithms]
    return _term(_ALL_GATHER, costs, rows="outputs")


def _measured_all_to_all(op: AllToAll, measured: Collectives, split: Parallelism) -> RowTerm:
    """Routed copies sent to where they are needed, or all vectors to all groups and sums back: what is faster."""
    sent = op.times * op.bytes_per_token  # what leaves a device: the share (n - 1) / n of a buffer is in it already
    costs = [
        (op.times * each.latency_us, sent, each.bus_gb_per_s) for each in _for_group(measured.all_to_all, split.devices)
    ]
    gathered = op.times / 2 * op.vector_bytes * (split.data - 1)
    for gather in _for_group(measured.all_gather, split.data):
        for scatter in _for_group(measured.reduce_scatter, split.data):
            fixed_us = op.times / 2 * (gather.latency_us + scatter.latency_us)
            # Both move the same bytes, one after the other.
            rate = 1 / (1 / gather.bus_gb_per_s + 1 / scatter.bus_gb_per_s)
            costs.append((fixed_us, gathered, rate))
    return _term(_ALL_TO_ALL, costs)


def _for_group(algorithms: _Algorithms, group: int) -> Sequence[CollectiveKernel]:
    """Those measured for the next larger group; of more GPUs than were ever measured, those of the largest."""
    return algorithms[min((size for size in algorithms if size >= group), default=max(algorithms))]


def _term(name: str, costs: Sequence[tuple[float, float, float]], rows: Rows = "tokens") -> RowTerm:
    """Term of the fastest of (fixed us, bytes per row, GB/s)."""
    ways = tuple(
        ((round(fixed_us * FS_PER_US), round(size / (gb_per_s * 1e9) * FS_PER_S)),)
        for fixed_us, size, gb_per_s in costs
    )
    return RowTerm(name, "communication", LINK, rows, ways[0], alternatives=ways[1:])
