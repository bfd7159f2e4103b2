"""Peak of live intermediate results, as the reference simulator counts its scratchpad (one byte per element)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.graph import TaskGraph
from pimserve.device_models.aimc.network import Network
from pimserve.device_models.aimc.schedule import Schedule

_SAMPLED = 512  # what the reference simulator takes for the size of a sampled token


def peak_bytes(graph: TaskGraph, timing: Schedule, network: Network, chip: Chip) -> int:
    """Largest sum of results that are made but not yet started on by all that need them.

    Sampled at each instant between what ends and what starts; inputs of running tasks, the KV cache and weights do not
    count. A result that goes to crossbars is freed by the MVMs of the last row block; that of attention is held once
    for each token and row block.
    """
    kinds = np.array([line.kind for line in graph.ledger.lines])
    sizes = np.array([_SAMPLED if line.kind == "sampler" else line.size for line in graph.ledger.lines])
    line = np.frombuffer(graph.line, np.int32)
    src, dst = np.frombuffer(graph.src, np.int32), np.frombuffer(graph.dst, np.int32)
    matrix, chunk = np.frombuffer(graph.matrix, np.int32), np.frombuffer(graph.chunk, np.int32)
    task_kind = kinds[line]
    is_hop, is_mvm = task_kind == "hop", task_kind == "mvm"
    attends, samples = task_kind == "attention", task_kind == "sampler"

    # From maker to user, over the hop between them if there is one.
    user = np.arange(len(line))
    user[src[is_hop[src]]] = dst[is_hop[src]]
    maker, user = src[~is_hop[src]], user[dst[~is_hop[src]]]

    block = np.full(len(line), -1)
    last = np.zeros(len(line), bool)
    for m in np.unique(matrix[is_mvm]):
        mine = np.flatnonzero((matrix == m) & is_mvm)
        rows, columns = network.matrices[m].grid(chip.tier_rows, chip.tier_cols)
        # Row blocks are cut from chunk numbers sorted as text there: wrong for more than ten chunks.
        block[mine] = _as_text(rows * columns)[chunk[mine]] // columns
        last[mine] = block[mine] == rows - 1
    # A sampled token is a vector of 512 elements there, whose row blocks are looked for in the embedding's columns.
    reads = np.flatnonzero(matrix == network.token_embedding)
    columns = network.matrices[network.token_embedding].grid(chip.tier_rows, chip.tier_cols)[1]
    groups = -(-_SAMPLED // chip.tier_rows)
    last[reads] = _as_text(columns)[chunk[reads]] * groups // columns == groups - 1
    frees = attends[maker] | ~is_mvm[user] | last[user]
    maker, user = maker[frees], user[frees]

    size = np.where(is_mvm[maker] & samples[user], 0, sizes[line[maker]])
    size[attends[maker]] = network.hidden
    rank = np.frombuffer(graph.rank, np.int32)
    held = attends[maker]
    key = np.stack([maker, np.where(held, rank[user], -1), np.where(held, block[user], -1)])
    _, entry, group = np.unique(key, axis=1, return_index=True, return_inverse=True)
    until = np.zeros(len(entry), np.int64)
    np.maximum.at(until, group, timing.start[user])
    # Twice the time, and one more for what is freed: at each instant what is made counts before anything is freed.
    instants = np.concatenate([2 * timing.finish[maker[entry]], 2 * until + 1])
    change = np.concatenate([size[entry], -size[entry]])
    when, at = np.unique(instants, return_inverse=True)
    return int(np.cumsum(np.bincount(at, change, minlength=len(when))).max())


def _as_text(chunks: int) -> NDArray[np.int64]:
    """Place of each chunk number among all, sorted as text."""
    place = np.empty(chunks, np.int64)
    place[sorted(range(chunks), key=str)] = np.arange(chunks)
    return place
