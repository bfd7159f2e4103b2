"""Which queue a replica has, and who counts and admits beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pimserve.scheduler.acceptance import Acceptance
from pimserve.scheduler.admission import Admission
from pimserve.scheduler.config import VTC, SchedulerSpec
from pimserve.scheduler.decoding import Decoding
from pimserve.scheduler.fair_queue import FairQueue
from pimserve.scheduler.fair_steps import FairAdmission, FairDecoding, FairSpeculativeDecoding
from pimserve.scheduler.falling_decoding import FairFallingDecoding, FallingDecoding
from pimserve.scheduler.following_queue import FollowingQueue
from pimserve.scheduler.kv_cache import KvCache
from pimserve.scheduler.policy import make_policy
from pimserve.scheduler.policy_queue import PolicyQueue
from pimserve.scheduler.queue import FcfsQueue
from pimserve.scheduler.queue_classes import QueueClass
from pimserve.scheduler.request_queue import RequestQueue
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.sessions import Sessions
from pimserve.scheduler.speculative_decoding import SpeculativeDecoding
from pimserve.scheduler.token_counters import TokenCounters
from pimserve.scheduler.windowed_prefix_cache import WindowedPrefixKvCache


def make_queue(
    spec: SchedulerSpec,
    table: RequestTable,
    reject: Callable[[int], None],
    sessions: Sessions | None,
    classes: Sequence[QueueClass],
) -> RequestQueue[Any]:
    """The empty queue of these settings.

    Args:
        spec: names the policy.
        table: requests of the run.
        reject: takes requests that cannot be served.
        sessions: told of ends here; if they are not routed, first come, first served only, all turns are served here.
        classes: of requests, as `queue_classes` has them.

    Raises:
        InputError: there is no such policy.
    """
    policy = make_policy(spec, classes)
    if policy is not None:
        return PolicyQueue(table, reject, policy, classes)
    if spec.policy == VTC:
        return FairQueue(table, reject, classes, TokenCounters(spec, classes))
    if sessions is None or sessions.routed_here:
        return FcfsQueue(table, reject)
    return FollowingQueue(table, reject, sessions)


def make_admission(
    queue: RequestQueue[Any],
    kv: KvCache,
    running: dict[int, int],
    replica: int,
    takes_over: bool,
    acceptance: Acceptance | None = None,
) -> tuple[Decoding, Admission]:
    """The decoding requests of a replica, none yet, and who admits them from this queue.

    Args:
        queue: who waits.
        kv: where admitted requests have their blocks.
        running: all running requests in order of admission.
        replica: number of the replica.
        takes_over: whether requests bring their KV cache, and decode at once.
        acceptance: of drafts that their steps verify; None: there are none.
    """
    windowed = isinstance(kv, WindowedPrefixKvCache)
    if isinstance(queue, FairQueue):
        if acceptance is None:
            decoding: Decoding = (FairFallingDecoding if windowed else FairDecoding)(queue, running, kv)
        else:
            decoding = FairSpeculativeDecoding(queue, running, kv, acceptance)
        admission: Admission = FairAdmission(queue, kv, decoding, running, replica, takes_over)
    else:
        if acceptance is None:
            make = FallingDecoding if windowed else Decoding
            decoding = make(running, kv.block_size, kv.groups, in_order=kv.prefixes)
        else:
            decoding = SpeculativeDecoding(running, kv, acceptance)
        admission = Admission(queue, kv, decoding, running, replica, takes_over)
    if isinstance(kv, WindowedPrefixKvCache) and isinstance(decoding, FallingDecoding):
        decoding.follow(kv)
    return decoding, admission
