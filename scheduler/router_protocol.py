"""What routers are: what each kind of them sees, and how what one remembers is kept.

One that remembers anything has `state()`, plain data as JSON can hold it, and `restore(state)` too. `reason` is why
the last request went where it did. One by views may say how it knows what replicas have cached: `prefixes` is "sent",
by a record of what was sent where, of which `record_blocks` says how much is kept of each replica (None: as many blocks
as it has), or "kv_events", by what replicas say of their caches. With a method `tier_credit` it hears of tiers below
these, too: how many tokens of a prompt it takes to be cached on a replica, given its view, for what tiers have of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from pimserve.arrays import IntArray
from pimserve.scheduler.control import ReplicaState
from pimserve.scheduler.requests import RequestTable


class RequestView(NamedTuple):
    """What a router knows of a request.

    Args:
        prompt_tokens: that have to be computed; of one that comes again, as its KV cache was lost, with its output.
        session: number of the session that it is a turn of; None: it is of none.
        prefix_blocks: ids of the prompt's full KV blocks, from the first one on as far as they are known; equal ids
            mean that all tokens up to the end of the block are equal. Only for routers with `prefixes`, as the next.
        full_tokens: tokens of all full blocks of the prompt, known or not.
        block_size: tokens of a block.
        ttft_limit_s: in which time its first token should come; None: there is no limit.
    """

    prompt_tokens: int
    session: int | None = None
    prefix_blocks: Sequence[int] = ()
    full_tokens: int = 0
    block_size: int = 1
    ttft_limit_s: float | None = None

    @classmethod
    def of(cls, table: RequestTable, request: int, session: int | None) -> RequestView:
        """Of a request in the table."""
        return cls(table.views["input_tokens"][request] + table.views["emitted_tokens"][request], session)


class ReplicaView(NamedTuple):
    """What a router knows of a replica: what was reported, and of what it has sent there since, its own record.

    With exact state the report is of the very moment, and nothing was sent since.

    Args:
        replica: its number.
        outstanding: requests that have not left it, with those sent since the report.
        tokens_in_flight: their prompts, and their outputs as far as they have come, with the prompts sent since.
        waiting: requests in its queue, as reported.
        kv_usage: share of its KV blocks in use, from 0 to 1, as reported.
        sent: requests sent since the report.
        sent_tokens: their prompts.
        cached_tokens: of the request's prompt, those that the router takes to be cached there; 0 without `prefixes`.
        known_blocks: all blocks that it takes to be cached there; likewise, as what follows.
        prefill_tokens: of prompts sent there that have no first token yet, those that were not taken to be cached.
        prefill_tokens_per_s: of requests that had their first token there, such tokens at the time when they were sent,
            with their own, over the time from then until it came; 0 without any.
        active_blocks: KV blocks of prompts sent there that have not left, and of this one, shared ones once; 0 for
            routers without `counts_blocks`.
        tier_tokens: of the prompt's tokens behind `cached_tokens`, those that each tier below the devices has, from the
            first on, each from where the one above ends; for routers with `tier_credit` that hear of caches.
    """

    replica: int
    outstanding: int = 0
    tokens_in_flight: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    sent: int = 0
    sent_tokens: int = 0
    cached_tokens: int = 0
    known_blocks: int = 0
    prefill_tokens: int = 0
    prefill_tokens_per_s: float = 0.0
    active_blocks: int = 0
    tier_tokens: Sequence[int] = ()

    @classmethod
    def reported(cls, state: ReplicaState) -> ReplicaView:
        """As its report has it."""
        return cls(state.replica, state.outstanding, state.tokens_in_flight, state.waiting, state.kv_usage)

    def after(self, prompt_tokens: int) -> ReplicaView:
        """With one more request, of so many tokens, sent there."""
        return self._replace(
            outstanding=self.outstanding + 1,
            tokens_in_flight=self.tokens_in_flight + prompt_tokens,
            sent=self.sent + 1,
            sent_tokens=self.sent_tokens + prompt_tokens,
        )


@runtime_checkable
class BlindRouter(Protocol):
    """Sees nothing of the replicas, which can then run on their own."""

    def deal(self, count: int, replicas: int) -> IntArray:
        """(count,) where the next requests go, one after the other, each from 0 to `replicas` - 1."""


@runtime_checkable
class CountRouter(Protocol):
    """Sees how many requests each replica has outstanding."""

    def pick(self, outstanding: Sequence[int]) -> int:
        """Where the next request goes, from 0 to `len(outstanding)` - 1, given the requests outstanding on each."""


@runtime_checkable
class ViewRouter(Protocol):
    """Sees what there is to know of the replicas, and of the request."""

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """Where it goes, from 0 to `len(replicas)` - 1, which are those that may take it."""


Router = BlindRouter | CountRouter | ViewRouter
TURN, RANDOM, LOAD, SESSION = "turn", "random", "load", "session"
PREFIX, SPREAD, OVERLOAD, EXPLORE, OTHER = "prefix", "spread", "overload", "explore", "other"
REASONS = {
    TURN: "it was the replica's turn",
    RANDOM: "it was drawn",
    LOAD: "it had the least load",
    SESSION: "the session was there before",
    PREFIX: "it has, as far as is known, the beginning of the prompt",
    SPREAD: "nobody has it, and it had such a prompt least recently, or has least in its cache",
    OVERLOAD: "others have it, and too much to do",
    EXPLORE: "others have it, and the router tries another now and then",
    OTHER: "the router does not say",
}
"""Why requests go where they do."""


def reason_of(router: Router) -> str:
    """Why the last request went where it did; of routers that do not say it, `OTHER`."""
    reason: str = getattr(router, "reason", OTHER)
    return reason


def router_state(router: Router) -> object:
    """What a router remembers, as JSON can hold it."""
    return router.state() if hasattr(router, "state") else None


def restore_router(router: Router, state: object) -> None:
    """Let a router go on from what it remembered."""
    if state is not None and hasattr(router, "restore"):
        router.restore(state)
