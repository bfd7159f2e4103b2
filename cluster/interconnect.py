"""Links between the devices of a replica, and the collectives that run over them.

Ring all-reduce over p devices: 2 (p - 1) hops of latency + bytes / p / bandwidth (Patarasuk and Yuan, 2009). Dispatch
and combine of routed tokens: bytes / bandwidth plus a fixed cost. The latency of a hop is first-order: at decode
sizes an all-reduce is nearly all latency (reference: arXiv 2409.01141, fig. 4a).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pimserve.device_models.operators import AllReduce, AllToAll, Operator, Parallelism
from pimserve.device_models.plan import FS_PER_S, LINK, RowTerm


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

    def compile(self, operators: Sequence[Operator], split: Parallelism) -> tuple[RowTerm, ...]:
        """Cost terms of the collectives among `operators`."""
        terms = []
        for op in operators:
            if isinstance(op, AllReduce):
                terms.append(self._all_reduce(op, split))
            elif isinstance(op, AllToAll):
                terms.append(self._all_to_all(op, split))
        return tuple(terms)

    def _all_reduce(self, op: AllReduce, split: Parallelism) -> RowTerm:
        inside = op.group <= split.devices_per_node
        latency = self.link_latency_us if inside else max(self.link_latency_us, self.node_latency_us)
        bandwidth = self.link_gb_per_s if inside else min(self.link_gb_per_s, self.node_gb_per_s)
        hops = 2 * (op.group - 1) * op.times
        return self._term("all-reduce", hops * latency, hops * op.bytes_per_token / op.group, bandwidth)

    def _all_to_all(self, op: AllToAll, split: Parallelism) -> RowTerm:
        inside = split.nodes == 1
        fixed = self.link_latency_us if inside else self.dispatch_us
        bandwidth = self.link_gb_per_s if inside else self.node_gb_per_s
        return self._term("dispatch and combine", op.times * fixed, op.times * op.bytes_per_token, bandwidth)

    @staticmethod
    def _term(name: str, fixed_us: float, bytes_per_token: float, gb_per_s: float) -> RowTerm:
        per_token = bytes_per_token / (gb_per_s * 1e9) * FS_PER_S
        return RowTerm(name, "communication", LINK, "tokens", ((round(fixed_us * 1e9), round(per_token)),))
