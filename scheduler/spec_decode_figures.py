"""What came of drafts that steps verified, by vLLM's names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass(slots=True)
class SpecDecodeFigures:
    """Of one replica: how often a decoding request had its `drafts` verified, the tokens of these, and those accepted.

    Accepted are those that became part of an output: in a request's last step, none beyond its end.
    """

    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0


def drafts_together(found: Iterable[SpecDecodeFigures]) -> SpecDecodeFigures:
    """Sums of several."""
    columns = zip(*map(astuple, found), strict=True)
    return SpecDecodeFigures(*(sum(column) for column in columns))
