"""How many copies of a routed token's vector pass inside nodes and between them in a dispatch; combine is its mirror.

The vector lies on all devices of the token's data-parallel group, of `tensor` devices that take turns in sending. It
has to come to every other device that holds one of the token's `top_k` experts, or a slice of one. Where the group has
members on that device's node, one of them sends it inside the node. To other nodes it goes

- `forward`: once, to the device that has the sender's place there, which passes it on to each device that needs it, as
  the kernels of DeepEP do; on the way back that device adds up what its node has computed;
- `direct`: once to each device;
- `per_pick`: once for each expert, also inside the node, whether or not experts share a device; other slices of an
  expert take no copy of their own. So the Duplex paper counts (arXiv 2409.01141), and so does an all-to-all of routed
  vectors.

Experts are taken to be alike, and copies of one to be experts of their own. Of E experts, k different ones are then
picked, and a unit (device or node) with e of them is hit with probability 1 - C(E - e, k) / C(E, k) (hypergeometric);
the expected copies of vectors are sums of these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import comb, lcm
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.operators import AllToAll, Parallelism

Transport = Literal["forward", "direct", "per_pick"]


def transport(split: Parallelism, wanted: Transport, *, measured: bool) -> Transport:
    """The way that is taken: inside one node, a measured all-to-all carries picks, as it knows nothing of experts."""
    return "per_pick" if measured and split.nodes == 1 else wanted


class Copies(NamedTuple):
    """Expected copies in one dispatch: what the busiest device sends for each token of its data-parallel group, where
    all groups have as many; and what all devices together send for each token."""

    intra_node: float
    inter_node: float
    intra_node_per_token: float
    inter_node_per_token: float


def hit_probability(experts: int, top_k: int, held: int) -> float:
    """That one of `held` experts is among the `top_k` of `experts` that a token picks."""
    return 1 - comb(experts - held, top_k) / comb(experts, top_k)


def copies(op: AllToAll, split: Parallelism, way: Transport) -> Copies:
    """Copies that pass inside nodes and between them."""
    per_node, tensor = split.devices_per_node, split.tensor
    at_device, at_node = _needed(op, split, way)
    # Devices after these are placed like them.
    device = np.arange(lcm(per_node, tensor, split.devices // split.expert_groups(op.experts)))
    node, group = device // per_node, device // tensor
    first = group * tensor  # of the group's devices
    members = np.minimum(first + tensor, (node + 1) * per_node) - np.maximum(first, node * per_node)
    intra = (per_node - members) * at_device / members
    upto = np.concatenate([[0.0], np.cumsum(at_node)])
    nodes_of_group = first // per_node, (first + tensor - 1) // per_node + 1
    inter = (upto[-1] - (upto[nodes_of_group[1]] - upto[nodes_of_group[0]])) / tensor
    if way == "forward":
        # Devices of the same place in other nodes, but for those whose group has members on this one.
        near = node * per_node // tensor * tensor, -(-(node + 1) * per_node // tensor) * tensor
        place = device % per_node
        before = [(end - 1 - place) // per_node for end in near]
        arriving = split.nodes - (before[1] - before[0])
        intra = intra + arriving * (per_node - 1) * at_device / tensor
    return Copies(float(intra.max()), float(inter.max()), float(intra.mean()) * tensor, float(inter.mean()) * tensor)


def routes(op: AllToAll, split: Parallelism, way: Transport) -> Mapping[tuple[int, int], float]:
    """Expected copies from device to device in one dispatch, for each token of the replica."""
    per_node, tensor = split.devices_per_node, split.tensor
    at_device, at_node = _needed(op, split, way)
    copies: defaultdict[tuple[int, int], float] = defaultdict(float)
    for sender in range(split.devices):
        group = range(sender // tensor * tensor, (sender // tensor + 1) * tensor)
        for node in range(split.nodes):
            there = range(node * per_node, (node + 1) * per_node)
            members = len(range(max(group.start, there.start), min(group.stop, there.stop)))
            if members and sender not in there:
                continue
            share = 1 / (members or tensor) / split.data  # of the tokens: those whose turn the sender has
            via = sender
            if not members and way == "forward":
                via = there[sender % per_node]
                copies[sender, via] += float(at_node[node]) * share
            for receiver in there:
                if receiver not in group and receiver != via:
                    copies[via, receiver] += at_device * share
    return copies


def _needed(op: AllToAll, split: Parallelism, way: Transport) -> tuple[float, NDArray[np.float64]]:
    """Copies of a token's vector that come to a device without it, and (nodes,) from elsewhere to a node."""
    per_node = split.devices_per_node
    groups, physical = split.expert_groups(op.experts), op.experts + split.redundant_experts
    if way == "per_pick":
        at_device = op.top_k / split.devices
    else:
        at_device = hit_probability(physical, op.top_k, physical // groups)
    if way != "forward":
        return at_device, np.full(split.nodes, per_node * at_device)
    slices = split.devices // groups
    held = [
        (((node + 1) * per_node - 1) // slices - node * per_node // slices + 1) * (physical // groups)
        for node in range(split.nodes)
    ]
    chances = {count: hit_probability(physical, op.top_k, count) for count in set(held)}
    return at_device, np.array([chances[count] for count in held])
