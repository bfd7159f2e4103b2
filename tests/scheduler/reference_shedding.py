"""Which requests are rejected as they arrive: the reference for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from tests.scheduler.reference_request import ServedRequest

SHEDDING = ("max_queued_requests", "early_rejection", "early_rejection_ttft_s", "prefill_tokens_per_s")


@dataclass
class ReferenceShedding:
    """What a replica rejects, and what it has seen.

    `most`: requests that may wait; None: any number. `limits_fs`: of each request, the TTFT above which it is rejected;
    None: it is not. `frontend_fs`: of these, what it spends in front of the scheduler. `fs_per_token`: in which a token
    of a prompt is computed; None: the mean of steps with prompts that have ended when a request arrives.
    """

    most: int | None
    limits_fs: Sequence[int | None]
    frontend_fs: int
    fs_per_token: int | None
    steps: list[tuple[int, int, int]] = field(default_factory=list)  # (end, duration, tokens) of those with prompts
    hits: int = 0

    @classmethod
    def of(cls, case: Any, limits_ps: list[int | None]) -> ReferenceShedding | None:
        """What a case rejects, where requests have such limits of the TTFT; None: nothing."""
        if not (case.early_rejection or case.max_queued_requests is not None):
            return None
        rate, bound_s = case.prefill_tokens_per_s, case.early_rejection_ttft_s
        limits = [None if limit is None else limit * FS_PER_PS for limit in limits_ps]
        if bound_s is not None:
            limits = [round(bound_s * FS_PER_S)] * len(limits)
        return cls(
            case.max_queued_requests,
            limits if case.early_rejection else [None] * len(limits),
            case.plan.frontend_ps * FS_PER_PS,
            None if rate is None else round(FS_PER_S / rate),
        )

    def saw(self, end: int, duration: int, prefill_tokens: int, hits: int) -> None:
        """A step ended; so many tokens were found in the prefix cache so far.

        Those found by a request that waits for its blocks count in the next step with prompts.
        """
        if prefill_tokens:
            self.steps.append((end, duration, prefill_tokens + hits - self.hits))
            self.hits = hits

    def rejects(
        self,
        request: ServedRequest,
        waiting: Sequence[Sequence[ServedRequest]],
        running: Sequence[Sequence[ServedRequest]],
        loading: Sequence[tuple[int, ServedRequest, int]],
    ) -> bool:
        """Whether a request is rejected as it arrives, by who waits and what is computed before it."""
        (queue,), (served,) = waiting, running  # of several groups it is refused
        ahead = sum(one.input + one.emitted for one in queue)
        ahead += sum(one.prefill_len - one.kv for one in served if not one.decoding)
        ahead += sum(one.prefill_len - there for _, one, there in loading)
        if self.most is not None and len(queue) + len(loading) >= self.most:
            return True
        limit, tokens = self.limits_fs[request.number], request.input
        if limit is None:
            return False
        if self.fs_per_token is not None:
            return self.frontend_fs + (ahead + tokens) * self.fs_per_token > limit
        seen = [(duration, computed) for end, duration, computed in self.steps if end <= request.arrival]
        if not seen:
            return False
        took, computed = (sum(column) for column in zip(*seen, strict=True))
        return self.frontend_fs + (ahead + tokens) * took // computed > limit
