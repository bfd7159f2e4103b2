"""How long a step of the reference engine takes: its groups wait for the slowest, and for the experts of all tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from pimserve.device_models.plan import Chunk, CostPlan
from pimserve.device_models.routing import POOL_SIZE, ExpertPools
from tests.scheduler.reference_costs import dense_fs, fastest_attention_fs, of_one_group, shared_fs
from tests.scheduler.reference_mixed import mixed_fs


@dataclass(frozen=True)
class ReferenceCosts:
    """What steps of one replica cost; `verify_tokens` are computed of each decoding request."""

    plan: CostPlan
    pools: ExpertPools | None
    mode: Literal["pooled", "exact"]
    replica: int
    offset: int
    verify_tokens: int

    def duration_fs(
        self,
        step: int,
        now: int,
        decodes: Sequence[int],
        contexts: Sequence[int],
        chunks: Sequence[list[Chunk]],
        outputs: Sequence[int],
        sampled: Sequence[int],
    ) -> int:
        """Of a step at that time, by what each group computes in it: `sampled` are rows of the model's head."""
        plan, pools = self.plan, self.pools
        if plan.micro_batches is not None:
            assert pools is not None
            return mixed_fs(
                plan,
                pools.at(now),
                exact=self.mode == "exact",
                replica=self.replica,
                offset=self.offset,
                step=step,
                decodes=sum(decodes),
                context=sum(contexts),
                chunks=chunks[0],
                outputs=outputs[0],
                attention_fs=partial(fastest_attention_fs, plan),
            )
        tokens = self.verify_tokens * sum(decodes) + sum(chunk.tokens for mine in chunks for chunk in mine)
        own = zip(decodes, contexts, chunks, sampled, strict=True)
        duration = max(dense_fs(of_one_group(plan), *each) for each in own) + shared_fs(plan, tokens, sum(decodes))
        if pools is None:
            return duration
        if self.mode == "exact":
            return duration + int(pools.at(now).exact(tokens, self.replica, step)[0])
        index = (self.offset + step) % POOL_SIZE
        return duration + int(pools.at(now).features(np.array([tokens]), np.array([index]))[0, 0])
