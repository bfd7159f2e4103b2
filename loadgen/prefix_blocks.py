"""What requests begin with, as a prefix cache sees it: ids of blocks, of which equal ones mean equal beginnings.

The tokens of a request are parts one behind the other. A part has a name, which stands for all tokens from the first
one to the part's end, or to where the request has no more of it; so a block is named by the part that it ends in, and
by its place among those that do. Of tokens behind the last part it is not known who else has them: their blocks have no
id.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np

from pimserve.arrays import IntArray
from pimserve.loadgen.prefix import Prompts
from pimserve.loadgen.spec import MAX_TOKENS
from pimserve.loadgen.traces.ragged import Ragged


class PrefixBlocks(ABC):
    """The beginnings of n requests, of which ids of blocks of any size follow."""

    @abstractmethod
    def take(self, rows: IntArray) -> Self:
        """Those requests, in that order."""

    @abstractmethod
    def parts(self) -> tuple[Ragged, IntArray]:
        """Names >= 0 of each request's parts; and of each of these the tokens of the request up to its end, ascending.

        Where a name is there for several requests, its part begins at the same token for all of them.
        """

    def ids(self, block_size: int) -> Ragged:
        """Ids of each request's full blocks of `block_size` tokens from its first token on, as far as they are known.

        They are all numbers from 0 to m - 1 for some m. Two are equal where all tokens up to the ends of their blocks
        are known to be.
        """
        names, ends = self.parts()
        full = ends // block_size
        before = np.zeros_like(full)
        before[1:] = full[:-1]
        before[names.offsets[:-1][names.lengths > 0]] = 0
        blocks = full - before
        most = np.zeros(names.values.max(initial=-1) + 1, np.int64)
        np.maximum.at(most, names.values, blocks)
        first_id = np.cumsum(most) - most
        offsets = np.concatenate([[0], np.cumsum(blocks)])
        ids = np.arange(offsets[-1]) + np.repeat(first_id[names.values] - offsets[:-1], blocks)
        return Ragged(offsets[names.offsets], ids)


@dataclass(frozen=True, eq=False)
class TracePrefixes(PrefixBlocks):
    """As a trace names them: `blocks` of `block_tokens` tokens of prompts of (n,) `tokens`, the last maybe partial.

    Its ids name whole prefixes, as those of Mooncake and Bailian do: one that is there at another place too, which no
    prefix is, counts as another one there. A block of another size is that of the trace which it ends in, and how far:
    where prompts part within one, all of it counts as different. A prompt with fewer ids than its tokens take is known
    so far.
    """

    blocks: Ragged
    block_tokens: int
    tokens: IntArray

    def take(self, rows: IntArray) -> Self:
        """Those requests, in that order."""
        return type(self)(self.blocks.take(rows), self.block_tokens, self.tokens[rows])

    def parts(self) -> tuple[Ragged, IntArray]:
        """Blocks of the trace."""
        ids, offsets = self.blocks.values, self.blocks.offsets
        row = np.repeat(np.arange(len(self.blocks)), self.blocks.lengths)
        place = np.arange(len(ids)) - offsets[row]
        ends = np.minimum((place + 1) * min(self.block_tokens, MAX_TOKENS), self.tokens[row])
        numbers = np.unique(ids, return_inverse=True)[1]
        at_place = numbers * (1 + place.max(initial=0)) + place
        return Ragged(offsets, np.unique(at_place, return_inverse=True)[1]), ends


@dataclass(frozen=True, eq=False)
class PromptPrefixes(PrefixBlocks):
    """Of `prompts` with (n,) `tokens`: a system prompt, what the group shares, and the prompt's own."""

    prompts: Prompts
    tokens: IntArray

    def take(self, rows: IntArray) -> Self:
        """Those requests, in that order."""
        return type(self)(self.prompts.take(rows), self.tokens[rows])

    def parts(self) -> tuple[Ragged, IntArray]:
        """Three of each request, some of which may be empty."""
        prompts, n = self.prompts, len(self.tokens)
        first_prompt = 1 + int(prompts.group.max(initial=0)) + 1
        names, ends = np.zeros((n, 3), np.int64), np.empty((n, 3), np.int64)
        names[:, 1] = 1 + prompts.group
        names[:, 2] = first_prompt + prompts.prompt
        ends[:, 0] = prompts.system_tokens
        ends[:, 1] = prompts.system_tokens + prompts.shared_tokens
        ends[:, 2] = self.tokens
        return Ragged(3 * np.arange(n + 1), names.ravel()), ends.ravel()


@dataclass(frozen=True, eq=False)
class SessionPrefixes(PrefixBlocks):
    """Of turns that have all that was said before them in their `session`, (n,): the first (n,) `tokens` of it.

    A turn's output is said in its session too, so these are the tokens of its prompt and its output. Of a turn whose
    prompt leaves out the oldest tokens none are: it begins where no other does, and shares nothing.
    """

    session: IntArray
    tokens: IntArray

    def take(self, rows: IntArray) -> Self:
        """Those requests, in that order."""
        return type(self)(self.session[rows], self.tokens[rows])

    def parts(self) -> tuple[Ragged, IntArray]:
        """One of each request."""
        return Ragged(np.arange(len(self.session) + 1), self.session), self.tokens
