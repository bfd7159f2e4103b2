"""What prefix caches were asked for, and what they hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass(slots=True)
class PrefixFigures:
    """Of one cache: `queried_tokens` at admissions, `hit_tokens` of these; `evicted_blocks`; `cached_blocks` by now.

    Cached blocks are those that are found by their tokens, whether requests hold them or not.
    """

    queried_tokens: int = 0
    hit_tokens: int = 0
    evicted_blocks: int = 0
    cached_blocks: int = 0


def together(found: Iterable[PrefixFigures]) -> PrefixFigures:
    """Sums of several."""
    columns = zip(*map(astuple, found), strict=True)
    return PrefixFigures(*(sum(column) for column in columns))
