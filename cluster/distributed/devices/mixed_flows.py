"""What the devices of a replica send each other where attention and experts have groups of their own.

Inside a group it is what its collectives, or its chips, pass. Between them tokens go from attention's devices, which
share them evenly, to those of the experts, hot ones before cold ones where these are of different kinds (dispatch), and
come back (combine): picks, as they are drawn or expected, and bytes, as the link between the groups costs them. Devices
of experts dispatch nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from pimserve.cluster.distributed.devices.flows import (
    ACTIVATIONS,
    COMBINE,
    DISPATCH,
    Dispatch,
    Flow,
    Holders,
    Traffic,
    fraction_of_bytes,
)
from pimserve.cluster.scenario.group_link import Passing
from pimserve.device_models.experts import AlikeGroups


def traffic_of_groups(
    inside: Sequence[tuple[Sequence[Flow], int]],
    passing: Sequence[Passing],
    experts: Sequence[AlikeGroups],
    top_k: int,
    share: Sequence[float],
) -> Traffic:
    """All flows of a replica.

    Args:
        inside: of attention's devices, and of each kind with experts, each with how many there are.
        passing: between them.
        experts: routed ones of each kind.
        top_k: experts that a token picks, of all kinds.
        share: picks of a token that fall on each slot of routed experts, kind by kind, in the mean over layers.
    """
    sizes = [devices for _, devices in inside]
    begins = list(accumulate(sizes, initial=0))
    flows = [*inside[0][0]]
    for (others, _), begin in zip(inside[1:], begins[1:], strict=False):
        flows += [_moved(flow, begin) for flow in others]
    senders = sizes[0]
    for direction, rows, sender, receiver, size in passing:
        there = sender, senders + receiver
        ends, kind = (there, DISPATCH) if direction == "dispatch" else (there[::-1], COMBINE)
        # Evenly in each step, as its time has it: whole rows would leave odd ones to the first devices.
        flows.append(Flow(*ends, kind, 0, fraction_of_bytes(size / senders), of_outputs=rows == "outputs"))
    holders = tuple(
        Holders(begin, devices, term.groups)
        for begin, devices, term in zip(begins[1:], sizes[1:], experts, strict=False)
    )
    slots = [term.physical_experts for term in experts]
    picks = top_k * experts[0].layers
    return Traffic(flows, _dispatch(holders, slots, picks, share, senders))


def _moved(flow: Flow, by: int) -> Flow:
    """Between devices that come after so many others; what chips pass on of routed tokens is nobody's dispatch."""
    kind = ACTIVATIONS if flow.kind in {DISPATCH, COMBINE} else flow.kind
    return replace(flow, sender=flow.sender + by, receiver=flow.receiver + by, kind=kind)


def _dispatch(
    holders: tuple[Holders, ...], slots: Sequence[int], picks_per_token: int, share: Sequence[float], senders: int
) -> Dispatch:
    """From each device of attention to each that has experts; those of an expert group share its picks.

    Args:
        holders: by kind.
        slots: of each kind, in a layer.
        picks_per_token: in all layers.
        share: picks of a token that fall on each slot.
        senders: devices of attention.
    """
    of_kinds = np.split(np.asarray(share), np.cumsum(slots)[:-1])
    of_group = [kind.reshape(each.groups, -1).sum(axis=1) for kind, each in zip(of_kinds, holders, strict=True)]
    ranks = np.concatenate([np.full(each.devices, each.slices) for each in holders])
    rank = np.concatenate([np.arange(each.devices) % each.slices for each in holders])
    group = np.cumsum(rank == 0) - 1
    weight = np.concatenate(of_group)[group] / (ranks * senders)
    receiver = np.concatenate([np.array(each.numbers) for each in holders])
    return Dispatch(
        picks_per_token=picks_per_token,
        holders=holders,
        sender=np.repeat(np.arange(senders), len(receiver)),
        receiver=np.tile(receiver, senders),
        weight=np.tile(weight, senders),
        experts_of=np.tile(group, senders),
        rank=np.tile(rank, senders),
        ranks=np.tile(ranks, senders),
    )
