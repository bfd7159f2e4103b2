"""What the devices of a replica send each other where attention and experts have groups of their own.

Inside a group it is what its collectives, or its chips, pass. Between them tokens go from attention's devices, which
share them evenly, to those of the experts (dispatch), and come back (combine): picks, as they are drawn or expected,
and bytes, as the link between the groups costs them. Devices of experts dispatch nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pimserve.cluster.distributed.devices.flows import (
    ACTIVATIONS,
    COMBINE,
    DISPATCH,
    Dispatch,
    Flow,
    Traffic,
    fraction_of_bytes,
)
from pimserve.cluster.scenario.group_link import Passing
from pimserve.device_models.experts import AlikeGroups


def traffic_of_groups(
    inside: Sequence[tuple[Traffic, int]], passing: Sequence[Passing], experts: AlikeGroups, share: Sequence[float]
) -> Traffic:
    """All flows of a replica.

    Args:
        inside: of attention's devices, and of the experts', each with how many there are.
        passing: between them.
        experts: of the plan.
        share: picks of a token that fall on each slot of routed experts, in the mean over layers.
    """
    (attention, senders), (others, receivers) = inside
    flows = [*attention.flows, *(_moved(flow, senders) for flow in others.flows)]
    for direction, rows, sender, receiver, size in passing:
        there = sender, senders + receiver
        ends, kind = (there, DISPATCH) if direction == "dispatch" else (there[::-1], COMBINE)
        flows.append(Flow(*ends, kind, 0, fraction_of_bytes(size), sender, senders, of_outputs=rows == "outputs"))
    return Traffic(flows, _dispatch(experts, share, senders, receivers))


def _moved(flow: Flow, by: int) -> Flow:
    """Between devices that come after so many others; what chips pass on of routed tokens is nobody's dispatch."""
    kind = ACTIVATIONS if flow.kind in {DISPATCH, COMBINE} else flow.kind
    return replace(flow, sender=flow.sender + by, receiver=flow.receiver + by, kind=kind)


def _dispatch(experts: AlikeGroups, share: Sequence[float], senders: int, receivers: int) -> Dispatch:
    """From each device of attention to each of the experts'; those of an expert group share its picks."""
    sender, receiver = (grid.ravel() for grid in np.meshgrid(np.arange(senders), np.arange(receivers), indexing="ij"))
    slices = receivers // experts.groups
    of_group = np.asarray(share).reshape(experts.groups, -1).sum(axis=1)
    return Dispatch(
        picks_per_token=experts.top_k * experts.layers,
        groups=experts.groups,
        sender=sender,
        receiver=senders + receiver,
        weight=of_group[receiver // slices] / (slices * senders),
        experts_of=receiver // slices,
        first=senders,
        shared_by=slices,
    )
