"""What the service says of preemptions, of drafts and of the router's decisions, as plain Python."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PreemptionsByCause:
    """Preemptions on a replica so far, by what was done."""

    recompute: int
    swap: int
    swap_space_full: int


@dataclass(frozen=True, slots=True)
class SpecDecodeState:
    """What came of a replica's drafts so far."""

    drafts_requests: int
    draft_tokens: int
    accepted_tokens: int

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the drafted tokens that were accepted; None: nothing was drafted."""
        return self.accepted_tokens / self.draft_tokens if self.draft_tokens else None

    @property
    def mean_acceptance_length_tokens(self) -> float | None:
        """Tokens that a step gave a decoding request, its own one with them; None: nothing was drafted."""
        return 1 + self.accepted_tokens / self.drafts_requests if self.drafts_requests else None


@dataclass(frozen=True, slots=True)
class RoutedTo:
    """Requests that the router sent to a replica so far, and of these how many for which reason."""

    replica: int
    requests: int
    by_reason_requests: dict[str, int]


@dataclass(frozen=True, slots=True)
class RouterState:
    """Requests that the router sent so far, in all, by reason, and by replica."""

    requests: int
    by_reason_requests: dict[str, int]
    replicas: tuple[RoutedTo, ...]
