"""What prefix caches were asked for, and what they hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass(slots=True)
class PrefixFigures:
    """Of one cache: `queried_tokens` at admissions, `hit_tokens` of these; `evicted_blocks`; `cached_blocks` by now.

    Cached blocks are those that are found by their tokens, whether requests hold them or not. Requests that come back
    after a preemption, and find what they had themselves, are counted apart (`preempted_*`), as in vLLM's
    `PrefixCacheStats`.
    """

    queried_tokens: int = 0
    hit_tokens: int = 0
    evicted_blocks: int = 0
    cached_blocks: int = 0
    preempted_queried_tokens: int = 0
    preempted_hit_tokens: int = 0

    def count(self, tokens: int, hit_tokens: int, *, preempted: bool) -> None:
        """A request is admitted with so many tokens, of which so many are cached."""
        if preempted:
            self.preempted_queried_tokens += tokens
            self.preempted_hit_tokens += hit_tokens
        else:
            self.queried_tokens += tokens
            self.hit_tokens += hit_tokens


def together(found: Iterable[PrefixFigures]) -> PrefixFigures:
    """Sums of several."""
    columns = zip(*map(astuple, found), strict=True)
    return PrefixFigures(*(sum(column) for column in columns))
