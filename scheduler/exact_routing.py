"""Where requests go as they arrive, by what their replicas really are at that moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pimserve.device_models.plan import FS_PER_PS
from pimserve.errors import InputError
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import ReplicaEngine
from pimserve.scheduler.router import make_router
from pimserve.scheduler.router_books import RouterBooks
from pimserve.scheduler.router_protocol import BlindRouter, CountRouter, ReplicaView, ViewRouter
from pimserve.scheduler.tier_turns import TierTurns


def check_shards(spec: SchedulerSpec, shards: int) -> None:
    """Refuse shards whose router looks at all replicas at each arrival, or whose replicas share a tier.

    Raises:
        InputError: there are several, and it does, or they do.
    """
    if shards > 1 and spec.shares_tier:
        raise InputError(
            "scheduler.kv_tiers",
            f"{spec.kv_tiers[-1].name} is shared by replicas, which look at it in order of time, for which they must "
            f"be in one shard (got {shards}); set --shards 1, or give each a tier of its own (shared: false)",
        )
    if shards > 1 and not spec.report_interval_s and not isinstance(make_router(spec.router), BlindRouter):
        raise InputError(
            "scheduler.report_interval_s",
            f"is 0, so router {spec.router_name!r} looks at all replicas at each arrival, for which they must be in "
            "one shard; give an interval above 0",
        )


class ExactRouting:
    """Advances engines to an arrival, as far as its router looks.

    Args:
        engines: of all replicas.
        quiet_fs: of each, a time before which no request leaves; kept so.
        outstanding: of each, how many requests have not left; likewise.
        books: of the router.
        turns: of those that share a tier; None, or of none: none do.
    """

    def __init__(
        self,
        engines: Sequence[ReplicaEngine],
        quiet_fs: list[int],
        outstanding: list[int],
        books: RouterBooks,
        turns: TierTurns | None,
    ) -> None:
        self._engines = engines
        self._turns = turns
        self._quiet_fs = quiet_fs
        self._outstanding = outstanding
        self._books = books

    def choice(self, targets: Sequence[int]) -> Callable[[int, int], int]:
        """What tells to which engine of `targets` a request goes, given it and the time, fs."""
        router = self._books.router
        assert not isinstance(router, BlindRouter)
        return self._by_views(router, targets) if isinstance(router, ViewRouter) else self._by_counts(router, targets)

    def _take_turns(self, now_fs: int) -> None:
        """Those that share a tier are advanced together, to the very time."""
        if self._turns:
            self._turns.advance(now_fs)
            self._outstanding[:] = [engine.outstanding(now_fs) for engine in self._engines]

    def _by_counts(self, router: CountRouter, targets: Sequence[int]) -> Callable[[int, int], int]:
        """Engines are advanced lazily, and only if somebody may have left."""
        engines, quiet, outstanding = tuple(enumerate(self._engines)), self._quiet_fs, self._outstanding
        pick, whole, chose = router.pick, len(targets) == len(outstanding), self._books.chose

        def choose(_: int, now_fs: int) -> int:
            self._take_turns(now_fs)
            for index, engine in engines:
                if quiet[index] <= now_fs:
                    quiet[index] = engine.advance(now_fs, lazily=True)  # pragma: no mutate (only rows are shorter)
                    outstanding[index] = engine.outstanding(now_fs)
            chosen = pick(outstanding) if whole else targets[pick([outstanding[index] for index in targets])]
            chose(self._engines[chosen].costs.replica)
            return chosen

        return choose

    def _by_views(self, router: ViewRouter, targets: Sequence[int]) -> Callable[[int, int], int]:
        """Tokens and KV blocks grow with every step, so engines are advanced to the very time."""
        engines, quiet, books = self._engines, self._quiet_fs, self._books

        def choose(request: int, now_fs: int) -> int:
            views = []
            self._take_turns(now_fs)
            for index in targets:
                engine = engines[index]
                if engine.clock < now_fs:
                    quiet[index] = engine.advance(now_fs)
                views.append(ReplicaView.reported(engine.seen_at(now_fs)))
                if books.hears:
                    for tier, events in enumerate(engine.take_events()):
                        books.heard(engine.costs.replica, tier, events)
            now_ps = now_fs // FS_PER_PS
            books.update(now_ps)
            return targets[books.route(router, request, views, now_ps)[0]]

        return choose
