"""Named random substreams of a workload: whoever draws has a stream of its own, and a change of one leaves the others.

A stream is numpy's SeedSequence of the seed with a spawn key that follows from the stream's name, so that it hangs on
nothing else: not on which other streams there are, nor on their order.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

# Names from before keys were hashes: their draws are those of all results so far.
_NUMBERED = {"arrivals": 0, "input lengths": 1, "output lengths": 2, "stagger": 3}


@dataclass(frozen=True)
class Streams:
    """The streams of a seed (>= 0), or those of them whose names begin with `prefix`."""

    seed: int
    prefix: str = ""

    def within(self, name: str) -> Self:
        """Streams of something of that name, which has its own ones of all names."""
        return replace(self, prefix=f"{self.prefix}{name}: ")

    def rng(self, name: str) -> np.random.Generator:
        """The stream of that name, from its beginning."""
        name = self.prefix + name
        key = _NUMBERED.get(name)
        if key is None:  # 64 bits, which no number of above is
            key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) | 1 << 63
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(key,)))
