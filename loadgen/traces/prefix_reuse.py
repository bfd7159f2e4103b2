"""How much of prompts is the beginning of earlier ones, and how large a cache must be to hold it.

A hit is the leading run of a prompt's blocks that are in the cache. Under least-recently-used replacement a block is
there if no more distinct blocks were used since its last use than the cache holds (Mattson et al. 1970: stack
distance), so that one pass tells the hits of all capacities.
"""

from dataclasses import dataclass

import numpy as np

from pimserve.arrays import IntArray
from pimserve.loadgen.traces.ragged import Ragged


@dataclass(frozen=True, eq=False)
class PrefixReuse:
    """Prefixes shared by prompts in their order, from an empty cache on.

    `hit_blocks`, `hit_tokens`, `requests_with_hit`: with room for everything. `capacities` (hits,): ascending, in
    blocks, from which on one block more is hit; `tokens` (hits,): all that are hit with so much.
    """

    block_tokens: int
    hit_blocks: int
    hit_tokens: int
    requests_with_hit: int
    total_blocks: int
    total_tokens: int
    unique_blocks: int
    capacities: IntArray
    tokens: IntArray

    @property
    def token_hit_ratio(self) -> float:
        """Share of the prompts' tokens, with room for everything."""
        return self.hit_tokens / self.total_tokens

    def hit_ratio(self, capacity_blocks: int) -> float:
        """Share of the prompts' tokens that a cache of so many blocks has, the least recently used replaced."""
        hits = int(np.searchsorted(self.capacities, capacity_blocks, side="right"))
        return int(self.tokens[hits - 1]) / self.total_tokens if hits else 0.0


def prefix_reuse(blocks: Ragged, block_tokens: int, input_tokens: IntArray) -> PrefixReuse:
    """What n prompts share.

    Args:
        blocks: ids of each prompt's blocks.
        block_tokens: tokens of a block; a prompt's last may be partial, and counts as far as the prompt reaches.
        input_tokens: (n,) lengths of the prompts.
    """
    row = np.repeat(np.arange(len(blocks)), blocks.lengths)
    place = np.arange(len(row)) - blocks.offsets[row]
    tokens = np.clip(input_tokens[row] - place * block_tokens, 0, block_tokens)
    distances = stack_distances(blocks.values)
    never = len(row) + 1
    needed = np.where(distances > 0, distances, never)
    # A block counts if all before it in its prompt do: the largest distance so far, prompt by prompt.
    needed = np.maximum.accumulate(row * (never + 1) + needed) - row * (never + 1)
    hit = needed < never
    order = np.argsort(needed[hit], kind="stable")
    return PrefixReuse(
        block_tokens=block_tokens,
        hit_blocks=int(hit.sum()),
        hit_tokens=int(tokens[hit].sum()),
        requests_with_hit=int((hit & (place == 0)).sum()),
        total_blocks=len(row),
        total_tokens=int(input_tokens.sum()),
        unique_blocks=int((distances == 0).sum()),
        capacities=needed[hit][order],
        tokens=np.cumsum(tokens[hit][order]),
    )


def stack_distances(ids: IntArray) -> IntArray:
    """(n,): distinct ids from the last use of each one on, itself included; 0 at the first use.

    Of the uses since then, those do not count whose own last use lies after it: they are repeats. How many these are,
    for all at once, is a count of inversions among the last uses.
    """
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    last = np.full(len(ids), -1, np.int64)
    last[order[again + 1]] = order[again]
    used = np.flatnonzero(last >= 0)
    distances = np.zeros(len(ids), np.int64)
    distances[used] = used - last[used] - _larger_before(last[used])
    return distances


def _larger_before(values: IntArray) -> IntArray:
    """(n,) of distinct values: how many larger ones are before each; bit by bit, as a wavelet tree counts.

    Ranks are parted by their leading bits, in their order within each part, so that part p of 2^b ranks begins at
    p * 2^b. Two that first differ in bit b - 1 are in one part; the larger has a one there.
    """
    n = len(values)
    ranks = np.empty(n, np.int64)
    ranks[np.argsort(values)] = np.arange(n)
    before, at = np.zeros(n, np.int64), np.arange(n)
    for bit in reversed(range(n.bit_length())):
        rank = ranks[at]
        one = (rank >> bit) & 1
        begin = rank >> (bit + 1) << (bit + 1)
        ones = np.cumsum(one) - one
        ones -= ones[begin]
        before[at] += np.where(one == 0, ones, 0)
        parted = np.empty_like(at)
        parted[np.where(one == 1, begin + (1 << bit) + ones, np.arange(n) - ones)] = at
        at = parted
    return before
