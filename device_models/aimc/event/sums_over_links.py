"""Partial sums of an expert that is cut over chips, event by event: every block's way over a link, and every sum."""

from __future__ import annotations

from collections.abc import Sequence

from pimserve.device_models.aimc.event.graph import NO_RESOURCE, TaskGraph
from pimserve.device_models.aimc.event.linear import ChipOperations
from pimserve.device_models.aimc.reduction import Reduction


def add_up(
    graph: TaskGraph,
    operations: ChipOperations,
    reduction: Reduction,
    parts: Sequence[tuple[int, Sequence[int]]],
    rank: int,
    *,
    to: int | None = None,
    communication: bool = True,
) -> list[int]:
    """Tasks that end with the blocks of the result.

    Args:
        graph: to which they are added.
        operations: what they do.
        reduction: who sums up what.
        parts: of each chip its number, and the tasks that end with its partial sums, one for each column block.
        rank: of the token.
        to: chip that gets the result; None: each block stays where it is summed up.
        communication: whether hops are operations.
    """
    chip, results = reduction.chip, []
    cols = min(reduction.cols, chip.tier_cols)
    add = operations.add(cols)

    def hop(size: int, after: int) -> int:
        if not communication:
            return after
        return graph.add(operations.hop(size, crossing=True), NO_RESOURCE, rank, [after])

    for number, (here, own) in enumerate(parts):
        pool = graph.resources.digital + here if chip.partial_sums == "pool" else NO_RESOURCE
        for block in reduction.own(number):
            total = own[block]
            for there, others in parts:
                if there != here:
                    total = graph.add(add, pool, rank, [total, hop(reduction.block_bytes, others[block])])
            results.append(total if to is None or here == to else hop(cols, total))
    return results
