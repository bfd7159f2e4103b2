"""Steady state of a closed loop under stage batching, in closed form.

Each of B users has one request in the system: Lin prompt tokens, Lout output tokens. A request takes Lout stages, the
first of which computes its whole prompt. So the number m of new prompts in a stage is binomial in (B, 1 / Lout), beside
B - m decoding requests with a mean context of Lin + Lout / 2 tokens (arXiv 2409.01141 simulates such loops; its
fig. 5(a) shows (1 - 1/Lout)^B). Stages differ further by how tokens fall on experts: a pool of outcomes stands for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pimserve.arrays import FloatArray, IntArray
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.experts import FEATURES, LINK_FS
from pimserve.device_models.operators import CATEGORIES, Category
from pimserve.device_models.plan import FS_PER_S, PJ_PER_J, Chunk, CostPlan
from pimserve.device_models.routing import POOL_SIZE, ExpertPools
from pimserve.device_models.step import StepShape
from pimserve.scheduler.mixed_costs import make_costs

_ENERGY_OF: Mapping[Category, str] = {  # links are missing: what they take is not known
    "fc": "fc",
    "attention_prefill": "attention",
    "attention_decode": "attention",
    "moe": "moe",
    "step": "step",
}
ENERGY_PARTS = tuple(f"{part}_{kind}" for part in dict.fromkeys(_ENERGY_OF.values()) for kind in ("dram", "compute"))

_UNLIKELY = 1e-6  # stages with more new prompts than all but this share are left out


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`requests` users who each send their next request when their last one is done."""

    requests: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """Stages of one composition, on one replica.

    `duration_s` has one entry per MoE outcome; the others are means over the outcomes. Decode attention that runs
    side by side with prefill attention counts only as far as it outlasts it.
    """

    prompts: int
    decodes: int
    duration_s: FloatArray
    category_s: Mapping[Category, float]
    energy_j: Mapping[str, float]

    @property
    def mean_s(self) -> float:
        """Mean duration."""
        return float(self.duration_s.mean())


def stage(
    plan: CostPlan, pools: ExpertPools | None, *, decodes: int, mean_context: float, prompts: int, prompt_tokens: int
) -> Stage:
    """Cost of stages with `decodes` decoding requests of `mean_context` tokens and `prompts` whole prompts."""
    # A token of every decoding request and the first one of every prompt are sampled.
    shape = shape_of(
        plan, decodes, round(decodes * mean_context), [Chunk(prompt_tokens, 0)] * prompts, decodes + prompts
    )
    costs = evaluate(plan, shape)
    category: dict[Category, float] = dict.fromkeys(CATEGORIES, 0.0)
    energy: dict[str, float] = dict.fromkeys(ENERGY_PARTS, 0.0)
    for operator in costs.operators:
        category[operator.category] += operator.time_fs
    for (name, kind), coefficient, times in costs.energy:
        if name in _ENERGY_OF:
            energy[f"{_ENERGY_OF[name]}_{kind}"] += coefficient * times
    experts_fs = np.zeros(1)
    if pools is not None and plan.tokens_of(shape):
        features = _outcomes(plan, pools, shape)
        experts_fs = features[:, FEATURES.index("time_fs")].astype(float)
        category["moe"] += float(experts_fs.mean())
        if plan.micro_batches is not None:
            links_fs = features[:, LINK_FS].astype(float)
            category["communication"] += float(links_fs.mean())
            experts_fs = experts_fs + links_fs
        energy["moe_dram"] += float(features[:, FEATURES.index("dram_pj")].mean())
        energy["moe_compute"] += float(features[:, FEATURES.index("compute_pj")].mean())
    return Stage(
        prompts=prompts,
        decodes=decodes,
        duration_s=(costs.duration_fs + experts_fs) / FS_PER_S,
        category_s={name: value / FS_PER_S for name, value in category.items()},
        energy_j={name: value / PJ_PER_J for name, value in energy.items()},
    )


def _outcomes(plan: CostPlan, pools: ExpertPools, shape: StepShape[int]) -> IntArray:
    """(POOL_SIZE, features): routed experts of such a stage, and what it waits for where they have devices of their
    own."""
    numbers = np.arange(POOL_SIZE)
    if plan.micro_batches is None:
        return pools.features(np.full(POOL_SIZE, plan.tokens_of(shape)), numbers)
    steps = StepShape(*(np.full(POOL_SIZE, count) for count in shape))
    return make_costs(plan, pools, replica=0, seed=0, exact=False).experts_features(steps, numbers)


class SteadyState:
    """What a closed loop does on one replica in the long run."""

    def __init__(self, plan: CostPlan, pools: ExpertPools | None, loop: ClosedLoop) -> None:
        self.plan = plan
        self.pools = pools
        self.loop = loop
        self._stages: dict[int, Stage] = {}

    def stage(self, prompts: int) -> Stage:
        """Stages with that many new prompts, all other requests decoding."""
        known = self._stages.get(prompts)
        if known is None:
            loop = self.loop
            known = self._stages[prompts] = stage(
                self.plan,
                self.pools,
                decodes=loop.requests - prompts,
                mean_context=loop.input_tokens + loop.output_tokens / 2,
                prompts=prompts,
                prompt_tokens=loop.input_tokens,
            )
        return known

    @cached_property
    def mix(self) -> FloatArray:
        """(most prompts + 1,): share of stages with 0, 1, ... new prompts."""
        return _binomial(self.loop.requests, 1 / self.loop.output_tokens)

    @property
    def decoding_only_share(self) -> float:
        """Share of stages without a new prompt."""
        return float((1 - 1 / self.loop.output_tokens) ** self.loop.requests)

    @property
    def mean_stage_s(self) -> float:
        """Mean duration of a stage."""
        return math.fsum(share * self.stage(m).mean_s for m, share in enumerate(self.mix))

    @property
    def throughput_tokens_per_s(self) -> float:
        """Output tokens per second: every request gets one in every stage."""
        return self.loop.requests / self.mean_stage_s

    def mixed_category_s(self) -> dict[Category, float]:
        """Mean time by category of stages with at least one new prompt."""
        shares = self.mix[1:] / self.mix[1:].sum()
        stages = [self.stage(m) for m in range(1, len(self.mix))]
        return {
            name: math.fsum(share * stage.category_s[name] for share, stage in zip(shares, stages, strict=True))
            for name in CATEGORIES
        }

    def energy_per_token_j(self) -> dict[str, float]:
        """Energy of the whole replica per output token, by part; prefill included."""
        return {
            name: math.fsum(share * self.stage(m).energy_j[name] for m, share in enumerate(self.mix))
            / self.loop.requests
            for name in ENERGY_PARTS
        }

    def tbt_s(self, quantile: float) -> float:
        """Quantile of the time between a request's tokens; a stage gives one sample per decoding request."""
        weights = [share * self.stage(m).decodes for m, share in enumerate(self.mix)]
        return _quantile([self.stage(m).duration_s for m in range(len(weights))], weights, quantile)

    def t2ft_s(self, quantile: float) -> float:
        """Quantile of the time to first token: the stage of a request's prompt, with others' prompts beside it."""
        others = _binomial(self.loop.requests - 1, 1 / self.loop.output_tokens)
        return _quantile([self.stage(m + 1).duration_s for m in range(len(others))], others, quantile)

    def mean_e2e_s(self) -> float:
        """Mean time from a request's arrival to its last token.

        Over hundreds of stages this is near its median, if output lengths spread evenly around Lout.
        """
        others = _binomial(self.loop.requests - 1, 1 / self.loop.output_tokens)
        first = math.fsum(share * self.stage(m + 1).mean_s for m, share in enumerate(others))
        later = math.fsum(share * self.stage(m).mean_s for m, share in enumerate(others))
        return first + (self.loop.output_tokens - 1) * later


def _binomial(trials: int, chance: float) -> FloatArray:
    """Binomial probabilities of 0, 1, ... up to where all but `_UNLIKELY` is covered, of the mean too, normalised."""
    shares: list[float] = []
    while len(shares) <= trials and (
        math.fsum(shares) < 1 - _UNLIKELY
        or math.fsum(number * share for number, share in enumerate(shares)) < (1 - _UNLIKELY) * trials * chance
    ):
        hits = len(shares)
        shares.append(math.comb(trials, hits) * chance**hits * (1 - chance) ** (trials - hits))
    return np.asarray(shares) / math.fsum(shares)


def _quantile(samples: list[FloatArray], weights: list[float] | FloatArray, quantile: float) -> float:
    """Smallest sample that at least `quantile` of the weight does not exceed; a weight is spread over its array."""
    values = np.concatenate(samples)
    spread = np.concatenate([np.full(len(s), w / len(s)) for s, w in zip(samples, weights, strict=True)])
    order = np.argsort(values, kind="stable")
    covered = np.cumsum(spread[order])
    return float(values[order][np.searchsorted(covered, quantile * covered[-1])])
