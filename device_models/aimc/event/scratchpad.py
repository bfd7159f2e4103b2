"""Peak of live intermediate results, as the reference simulator counts its scratchpad (one byte per element)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.event.graph import TaskGraph
from pimserve.device_models.aimc.event.schedule import Schedule
from pimserve.device_models.aimc.network import Network

_SAMPLED = 512  # what the reference simulator takes for the size of a sampled token


def peak_bytes(graph: TaskGraph, timing: Schedule, network: Network, chip: Chip) -> int:
    """Largest sum of results that are made but not yet started on by all that need them.

    Sampled at each instant between what ends and what starts; inputs of running tasks, the KV cache and weights do not
    count. A result that goes to crossbars is cut into as many parts as it fills row blocks (see `_parts`), each of the
    size of the whole. That of attention is held part by part for each token; of any other only the last part is held,
    until the crossbars of that part and everything digital have started.
    """
    kinds = np.array([operation.kind for operation in graph.table.operations])
    sizes = np.array([_SAMPLED if op.kind == "sampler" else op.size for op in graph.table.operations])
    sizes[kinds == "attention"] = network.hidden
    operation = np.frombuffer(graph.operation, np.int32)
    is_mvm, attends, samples = (kinds[operation] == kind for kind in ("mvm", "attention", "sampler"))
    size = sizes[operation]

    maker, user = _uses(graph, kinds[operation] == "hop")
    to_crossbars = ~is_mvm[maker] & is_mvm[user]
    parts = -(-size[maker] // chip.tier_rows)
    token = np.where(attends[maker], np.frombuffer(graph.rank, np.int32)[user], -1)
    number = np.where(samples[maker], -1, np.frombuffer(graph.chunk, np.int32)[user])
    part = np.full(len(maker), -1)
    part[to_crossbars] = _parts(*(of[to_crossbars] for of in (maker, token, number, parts)))

    counts = attends[maker] | ~to_crossbars | (part == parts - 1)
    maker, user, token, part = (of[counts] for of in (maker, user, token, part))
    held = np.where(is_mvm[maker] & samples[user], 0, size[maker])  # logits are picked from as they come
    _, entry, group = np.unique(
        np.stack([maker, token, np.where(attends[maker], part, -1)]), axis=1, return_index=True, return_inverse=True
    )
    until = np.zeros(len(entry), np.int64)
    np.maximum.at(until, group, timing.start[user])
    # Twice the time, and one more for what is freed: at each instant what is made counts before anything is freed.
    instants = np.concatenate([2 * timing.finish[maker[entry]], 2 * until + 1])
    change = np.concatenate([held[entry], -held[entry]])
    when, at = np.unique(instants, return_inverse=True)
    return int(np.cumsum(np.bincount(at, change, minlength=len(when))).max())


def _uses(graph: TaskGraph, is_hop: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(maker, user) of every result, over the hop between them if there is one; users in the order of the graph."""
    src, dst = np.frombuffer(graph.src, np.int32), np.frombuffer(graph.dst, np.int32)
    onward = np.argsort(src, kind="stable")
    first = np.searchsorted(src[onward], np.arange(len(is_hop) + 1))
    made = onward[~is_hop[src[onward]]]
    fan_out = np.where(is_hop[dst[made]], np.diff(first)[dst[made]], 1)
    nth = np.arange(fan_out.sum()) - np.repeat(np.cumsum(fan_out) - fan_out, fan_out)
    maker, user = np.repeat(src[made], fan_out), np.repeat(dst[made], fan_out)
    over = is_hop[user]
    user[over] = dst[onward[first[user[over]] + nth[over]]]
    return maker, user


def _parts(
    maker: NDArray[np.int32], token: NDArray[np.int32], number: NDArray[np.int32], parts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Part of its input that each MVM waits for, all columns as long as there are such (maker, MVM) pairs.

    Row blocks are found there by sorting the MVMs of all matrices that a result goes to (of one token, if it is
    attention's) by their chunks' numbers as text, and cutting the list into equal parts. So with more than ten chunks,
    or with matrices of unlike grids, a part is not a row block. `number` -1 is for the reads of an embedding after a
    token was sampled: there they are numbered through over all tokens, and the first has a name without a number, which
    sorts last.
    """
    order = np.lexsort((token, maker))  # stable: within these in the order of the graph
    starts = np.flatnonzero(np.diff(maker[order], prepend=-1) | np.diff(token[order], prepend=-2))
    runs = np.diff(starts, append=len(order))
    nth = np.arange(len(order)) - np.repeat(starts, runs)
    text = _as_text(int(max(number.max(initial=0), nth.max(initial=0))) + 1)
    unnumbered = np.where(nth == 0, len(text), text[nth])
    key = np.where(number[order] < 0, unnumbered, text[number[order]])
    order = order[np.lexsort((key, np.repeat(np.arange(len(runs)), runs)))]
    part = np.empty(len(order), np.int64)
    part[order] = nth * parts[order] // np.repeat(runs, runs)
    return part


def _as_text(count: int) -> NDArray[np.int64]:
    """Place of each number below `count` among all, sorted as text."""
    place = np.empty(count, np.int64)
    place[sorted(range(count), key=str)] = np.arange(count)
    return place
