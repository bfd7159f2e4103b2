"""What is remembered of a plan with micro-batches: times of row terms, and of steps without routed experts."""

from __future__ import annotations

from pimserve.device_models.evaluate import once_fs, shape_of
from pimserve.device_models.memo import Memo
from pimserve.device_models.micro_batches import MicroBatches
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.routed_link import LinkKey
from pimserve.scheduler.row_times import RowTimes

LINK_SCALE = 2**30  # parts of a byte, or of a token, in which sums are kept


class PlanTables:
    """Of all replicas of a plan, while popularities of experts are those of the plan's link.

    Attributes:
        rows: times of row terms of a micro-batch.
        decoding: by requests, those of one that only decodes.
        alone_fs: likewise, what it takes without attention and routed experts, as the only one.
        once_fs: likewise, what runs once for all micro-batches.
        link_more: 1 / LINK_SCALE bytes and tokens over the link for each token, beyond those at the beginning.

    Args:
        plan: of which steps are.
        first: the same at the beginning.
        micro: of both.
    """

    def __init__(self, plan: CostPlan, first: CostPlan, micro: MicroBatches) -> None:
        self.plan = plan
        self.link_more: dict[LinkKey, int] = {}
        if plan.link is not None and first.link is not None:
            sent, before = plan.link.sent(), first.link.sent()
            self.link_more = {key: round((sent[key] - before[key]) * LINK_SCALE) for key in sent}
        self.rows = RowTimes(plan, micro)
        self.decoding: Memo[int, list[int]] = Memo(lambda requests: self.rows.of(shape_of(plan, requests, 0)))
        none = [0] * micro.counts[2]
        self.alone_fs: Memo[int, int] = Memo(lambda requests: micro.part(self.decoding[requests], 0, none).whole_fs)
        self.once_fs: Memo[int, int] = Memo(lambda requests: once_fs(plan, shape_of(plan, requests, 0)))
