"""Which requests a replica takes into its queue: a bound of the queue, and early rejection by the predicted TTFT.

As servers answer with HTTP 429 when they are overloaded: at its arrival a request is taken, or rejected for good, by
what is known of the replica then. The prediction is Mooncake's (Qin et al., arXiv 2407.00079, sections 6 and 7), for a
queue in which prompts are computed one after the other: prompt tokens ahead of it and its own, over the rate at which
prompts are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.errors import InputError
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.queue_classes import QueueClass
from pimserve.scheduler.requests import PREDICTED_TTFT, QUEUE_FULL, SERVABLE


class PrefillRate:
    """How fast prompts are computed, as it was declared, or seen in steps with prompts so far.

    Tokens that a prefix cache spares count as computed.

    Args:
        tokens_per_s: declared; None: as it is seen.
    """

    def __init__(self, tokens_per_s: float | None) -> None:
        self._fs_per_token = None if tokens_per_s is None else round(FS_PER_S / tokens_per_s)
        self.seen = [0, 0]  # tokens, and the fs that they took, with
        self.last = [0, 0]  # those of the last step among them

    def step(self, tokens: int, duration_fs: int) -> None:
        """A step, or several without prompts, computed so many tokens of prompts."""
        self.last = [tokens, duration_fs] if tokens else [0, 0]
        self.seen = [self.seen[0] + self.last[0], self.seen[1] + self.last[1]]

    def time_fs(self, tokens: int, *, under_way: bool) -> int | None:
        """How long so many tokens take; None: nobody knows yet. Of a step that is `under_way` nothing was seen."""
        if self._fs_per_token is not None:
            return tokens * self._fs_per_token
        seen, took_fs = self.seen
        if under_way:
            seen, took_fs = seen - self.last[0], took_fs - self.last[1]
        return tokens * took_fs // seen if seen else None


class LoadShedding:
    """Judges requests as they arrive.

    Args:
        spec: scheduler settings.
        classes: of requests, as queues know them.
        frontend_fs: of the TTFT, what a request spends in front of the scheduler.
    """

    def __init__(self, spec: SchedulerSpec, classes: Sequence[QueueClass], frontend_fs: int) -> None:
        self._most = spec.max_queued_requests
        self._frontend_fs = frontend_fs
        self.rate = PrefillRate(spec.prefill_tokens_per_s)
        self._limits_fs = [_limit_fs(spec, each) for each in classes]

    def judge(self, class_id: int, tokens: int, waiting: int, ahead: int, *, waited_fs: int, under_way: bool) -> int:
        """Why a request is rejected; `SERVABLE`: it is not.

        Args:
            class_id: its class.
            tokens: of its prompt.
            waiting: requests in the queue, or for blocks that are being loaded.
            ahead: tokens of these, and of prompts, that are not computed yet.
            waited_fs: since it arrived, for a replica that takes requests.
            under_way: whether a step is.
        """
        if self._most is not None and waiting >= self._most:
            return QUEUE_FULL
        limit_fs = self._limits_fs[class_id]
        if limit_fs is not None:
            time_fs = self.rate.time_fs(ahead + tokens, under_way=under_way)
            if time_fs is not None and self._frontend_fs + waited_fs + time_fs > limit_fs:
                return PREDICTED_TTFT
        return SERVABLE


def check_shedding(spec: SchedulerSpec, classes: Sequence[QueueClass], *, dependent: bool) -> None:
    """Refuse load shedding that has no limits, or where clients wait for ends before they send.

    Args:
        spec: scheduler settings.
        classes: of requests, as queues know them.
        dependent: whether requests are sent when others have ended.

    Raises:
        InputError: says what.
    """
    if not spec.sheds:
        return
    where = "scheduler.early_rejection" if spec.early_rejection else "scheduler.max_queued_requests"
    if dependent:
        raise InputError(
            where,
            "is not modelled where requests wait for others to end (closed loops, sessions, max_concurrency): "
            "what a client does that is rejected is not known",
        )
    if spec.early_rejection and all(_limit_fs(spec, each) is None for each in classes):
        raise InputError(
            where, "needs a limit of TTFT: slo.ttft_s, in slo of a class, or scheduler.early_rejection_ttft_s"
        )


def _limit_fs(spec: SchedulerSpec, of_class: QueueClass) -> int | None:
    """The TTFT above which a request of a class is rejected; None: it is not."""
    if not spec.early_rejection:
        return None
    if spec.early_rejection_ttft_s is not None:
        return round(spec.early_rejection_ttft_s * FS_PER_S)
    return None if of_class.ttft_limit_ps is None else of_class.ttft_limit_ps * FS_PER_PS
