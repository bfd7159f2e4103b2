"""A router at work: what it is shown of requests and replicas, what is kept in mind for it, and why it chose what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pimserve.arrays import IntArray
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.active_blocks import ActiveBlocks
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import Fleet
from pimserve.scheduler.known_blocks import KnownBlocks
from pimserve.scheduler.prefill_in_flight import PrefillInFlight
from pimserve.scheduler.prefix_index import KV_EVENTS, CachedBlocks, PrefixIndex, make_index
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.router import make_router
from pimserve.scheduler.router_protocol import (
    ReplicaView,
    RequestView,
    Router,
    ViewRouter,
    reason_of,
    restore_router,
    router_state,
)

Decisions = Counter[tuple[int, str]]  # by replica and reason


class RouterBooks:
    """A router, with its books.

    Args:
        fleet: what the run's replicas are.
        spec: settings of the scheduler, of which router it is.
        table: requests of the run.
        session_of: the session that a request is a turn of, if of any.
        decisions: counts how many requests went where, and why.
    """

    def __init__(
        self,
        fleet: Fleet,
        spec: SchedulerSpec,
        table: RequestTable,
        session_of: Callable[[int], int | None],
        decisions: Decisions,
    ) -> None:
        self.router: Router = make_router(spec.router, fleet.seed)
        self._table = table
        self._block_size = spec.block_size
        self.session_of = session_of
        self._blocks = KnownBlocks(table)
        prefixes = getattr(self.router, "prefixes", "")
        if prefixes and not spec.enable_prefix_caching:  # one of another package, which is known when it is made
            message = f"router {spec.router_name} goes by what replicas keep of prompts: set enable_prefix_caching"
            raise InputError("scheduler.router", message)
        self._record_blocks = getattr(self.router, "record_blocks", None) or fleet.pools[0].kv_blocks(spec.block_size)
        self.hears = prefixes == KV_EVENTS  # what replicas say of their blocks
        self._index: PrefixIndex | None = make_index(prefixes) if prefixes else None
        self._tier_credit: Callable[[ReplicaView], float] | None = getattr(self.router, "tier_credit", None)
        self.hears_tiers = self.hears and self._tier_credit is not None
        self._tiers = [CachedBlocks() for _ in spec.kv_tiers] if self.hears_tiers else []
        self._in_flight = PrefillInFlight(table)
        self._active = ActiveBlocks(table) if getattr(self.router, "counts_blocks", False) else None
        self._classes = fleet.classes
        self._decisions = decisions

    def route(
        self, router: ViewRouter, request: int, replicas: Sequence[ReplicaView], now_ps: int
    ) -> tuple[int, RequestView]:
        """The place in `replicas` of the one that a request goes to now, and what the router was shown of it."""
        seen = RequestView.of(self._table, request, self.session_of(request))
        index = self._index
        if index is None:
            place = router.route(seen, replicas)
        else:
            size = self._block_size
            full = seen.prompt_tokens // size
            blocks = self._blocks.ids(request, 0, full)
            limit_ps = self._classes[self._table.views["class_id"][request]].ttft_limit_ps
            limit_s = None if limit_ps is None else limit_ps / PS_PER_S
            seen = seen._replace(prefix_blocks=blocks, full_tokens=full * size, block_size=size, ttft_limit_s=limit_s)
            matched = index.matched(blocks, [view.replica for view in replicas])
            replicas = [self._told(index, view, hit * size, seen) for view, hit in zip(replicas, matched, strict=True)]
            place = router.route(seen, replicas)
            chosen = replicas[place]
            index.sent(chosen.replica, blocks, self._record_blocks)
            there = chosen.cached_tokens + (round(self._tier_credit(chosen)) if self._tier_credit is not None else 0)
            self._in_flight.sent(request, chosen.replica, seen.prompt_tokens - there, now_ps)
            if self._active is not None:
                self._active.sent(request, chosen.replica, blocks, -(-seen.prompt_tokens // size))
        self.chose(replicas[place].replica)
        return place, seen

    def _told(self, index: PrefixIndex, view: ReplicaView, cached_tokens: int, request: RequestView) -> ReplicaView:
        """What a router that goes by prefixes is told of a replica."""
        replica, flight, active = view.replica, self._in_flight, self._active
        blocks = 0
        if active is not None:
            prompt_blocks = -(-request.prompt_tokens // request.block_size)
            blocks = active.with_prompt(replica, request.prefix_blocks, prompt_blocks)
        return view._replace(
            cached_tokens=cached_tokens,
            known_blocks=index.size(replica),
            prefill_tokens=flight.on(replica),
            prefill_tokens_per_s=flight.tokens_per_s(replica),
            active_blocks=blocks,
            tier_tokens=self._in_tiers(replica, request, cached_tokens) if self._tiers else (),
        )

    def _in_tiers(self, replica: int, request: RequestView, cached_tokens: int) -> tuple[int, ...]:
        """Tokens of the prompt that each tier has, from where the devices', and then the tier's above, end on."""
        size, found = request.block_size, []
        rest = request.prefix_blocks[cached_tokens // size :]
        for tier in self._tiers:
            (blocks,) = tier.matched(rest, [replica])
            found.append(blocks * size)
            rest = rest[blocks:]
        return tuple(found)

    def chose(self, replica: int) -> None:
        """The router has picked that replica, just now."""
        self._decisions[replica, reason_of(self.router)] += 1

    def dealt(self, replicas: IntArray) -> None:
        """A router that sees nothing has dealt requests to these, (n,)."""
        reason = reason_of(self.router)
        for replica, count in Counter(replicas.tolist()).items():
            self._decisions[replica, reason] += count

    @property
    def follows(self) -> bool:
        """Whether it goes by first tokens of its requests, and by who has left, as whoever passes answers on sees."""
        return self._index is not None

    def heard(self, replica: int, tier: int, events: Iterable[int]) -> None:
        """What a replica says of its blocks, as `PrefixIndex.heard`: of those on devices, or in a tier from 1 on."""
        index = self._tiers[tier - 1] if tier else self._index
        if index is not None:
            index.heard(replica, events)

    def update(self, at_ps: int) -> None:
        """The router sees what has come of its requests by that time."""
        if self._index is not None:
            self._in_flight.update(at_ps)
            if self._active is not None:
                self._active.update(at_ps)

    def requests(self) -> set[int]:
        """Requests whose rows of the table it will look at."""
        return {*self._in_flight.requests(), *(() if self._active is None else self._active.requests())}

    def state(self) -> dict[str, Any]:
        """What must be kept, as JSON can hold it."""
        return {
            "router": router_state(self.router),
            "index": None if self._index is None else self._index.state(),
            "tiers": [tier.state() for tier in self._tiers],
            "in_flight": self._in_flight.state(),
            "active": None if self._active is None else self._active.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        restore_router(self.router, state["router"])
        if self._index is not None:
            self._index.restore(state["index"])
        for tier, tier_state in zip(self._tiers, state["tiers"], strict=True):
            tier.restore(tier_state)
        self._in_flight.restore(state["in_flight"])
        if self._active is not None:
            self._active.restore(state["active"])


def requests_of(state: Mapping[str, Any]) -> list[int]:
    """`RouterBooks.requests` of such a state."""
    active = state["active"] or ()
    return sorted({request for request, *_ in (*state["in_flight"]["waiting"], *active)})
