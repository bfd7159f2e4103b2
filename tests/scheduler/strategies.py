"""Random small cases for the engine: scheduler settings and requests that make trouble often.

Arrivals often fall on whole ms, as the ends of steps do, so that they coincide.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st

from pimserve.device_models.experts import RoutedExperts
from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.device_models.mixed_plan import plan_at
from pimserve.device_models.plan import (
    CostPlan,
)
from pimserve.device_models.popularity_walk import Drift
from pimserve.device_models.routing import POOL_SIZE, ExpertPools, Routing
from pimserve.loadgen.request_classes import ClassSpec
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.attention_dp_spec import AttentionDpBalanceSpec
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.kv_tier_spec import KvTierSpec
from pimserve.scheduler.length_predictor import LengthPredictor
from pimserve.scheduler.speculative_spec import SpeculativeSpec
from tests.examples import SHARE

from .plan_strategies import plans
from .reference_balance import ReferenceBalance
from .reference_engine import ReferenceRequest
from .reference_result import ReferenceResult
from .reference_runs import run_reference
from .reference_shedding import SHEDDING, ReferenceShedding
from .reference_swap import ReferenceSwap
from .reference_tiers import ReferenceTier
from .request_strategies import FS_PER_MS, request_lists

POLICIES = st.sampled_from(["fcfs", "fcfs", "sjf", "priority", "edf", "vtc", "vtc"])
# Of each interval outcomes are drawn and the log is cut: seldom shorter than most steps are, as that is dear.
_DRIFT_PS = st.sampled_from((20 * 10**9, 90 * 10**9 + 1, 400 * 10**9, *([10**9] if SHARE == 1 else ())))


# Made once: hypothesis looks into each new strategy before it draws.
_CROWDED_LEN = st.integers(24, 80)
_LEN = st.integers(2, 64) | st.integers(30, 260)
_BUDGET = st.one_of(st.none(), st.integers(1, 24), st.integers(8, 256))
_TIMES = st.integers(1, 1000 * FS_PER_MS) | st.integers(1, 300).map(FS_PER_MS.__mul__)
_DRIFT = st.none() | st.builds(Drift, _DRIFT_PS, st.just(0.5))
_MOST_TOKENS = st.just(0) | st.integers(1, 60)
_AGEING_S = st.none() | st.integers(1, 50).map(lambda ms: ms / 1000)
_THRESHOLD = st.just(0) | st.integers(1, 40)


@dataclass
class Case:
    """All arguments of `run_reference`, with the routing in place of mode and pools."""

    plan: CostPlan
    routing: Routing
    seed: int
    replica: int
    offset: int
    max_num_seqs: int
    max_num_batched_tokens: int | None
    block_size: int
    kv_capacity_blocks: int
    max_model_len: int
    kv_admission: Literal["prompt", "no_evict", "oracle"]
    requests: list[ReferenceRequest]
    concurrency: int | None
    max_time_fs: int | None
    full_groups: int = 1
    windowed_groups: int = 0
    window_tokens: int = 0
    policy: str = "fcfs"
    prediction_error: float | None = None
    ageing_s: float | None = None
    classes: tuple[ClassSpec, ...] = ()
    prefixes: list[list[int]] | None = None
    retention: int | None = None
    tiers: tuple[KvTierSpec, ...] = ()
    block_bytes: int = 1
    token_weights: tuple[int, int] = (1, 2)
    long_prefill_token_threshold: int = 0
    max_tokens: tuple[int, ...] = ()
    speculative: SpeculativeSpec | None = None
    balance: AttentionDpBalanceSpec | None = None
    received: tuple[int | None, ...] = ()  # when requests had their first token elsewhere, fs; None: they have it here
    swap: tuple[int, int] | None = None  # blocks of host memory, fs in which one is copied
    batching: Literal["prefill_first", "decode_first"] | None = None  # None: chunked, or stage without a token budget
    max_queued_requests: int | None = None
    early_rejection_ttft_s: float | None = None
    early_rejection: bool = False
    prefill_tokens_per_s: float | None = None

    @property
    def batching_setting(self) -> str:
        """`scheduler.batching`."""
        return self.batching or ("stage" if self.max_num_batched_tokens is None else "chunked")

    @property
    def class_ids(self) -> list[int]:
        """The class of each request, in turns; 0: none."""
        return [number % (len(self.classes) + 1) for number in range(len(self.requests))]

    @property
    def kv_groups(self) -> KvGroups:
        """How layers share the KV cache."""
        return KvGroups(self.full_groups, self.windowed_groups, self.window_tokens)

    @property
    def groups(self) -> int:
        """Data-parallel groups that have limits, a queue and a KV cache of their own."""
        return self.plan.data_parallel if self.plan.micro_batches is None else 1

    @property
    def kv_blocks(self) -> int:
        """Blocks of all KV caches of a replica."""
        return self.groups * self.kv_capacity_blocks

    @property
    def kv_tokens(self) -> int:
        """Tokens that full groups of layers can keep in these."""
        return self.kv_blocks * self.block_size // self.full_groups

    def pools(self) -> ExpertPools | None:
        """Pools for the plan's experts, if it has any."""
        return _pools(self.plan.experts, self.routing, self.seed) if self.plan.experts else None

    def predicted(self) -> list[int]:
        """What is predicted of the outputs."""
        outputs = np.array([request.output_tokens for request in self.requests], np.int64)
        return LengthPredictor(self.prediction_error, self.seed).predict(outputs).tolist()

    def spec(self, **more: Any) -> SchedulerSpec:
        """Settings of the scheduler, not held to a token budget for every decode; and more of them."""
        same = ("max_num_seqs", "long_prefill_token_threshold", "block_size", "kv_admission", "policy", "ageing_s")
        return SchedulerSpec.model_construct(
            **{name: getattr(self, name) for name in (*same, "prediction_error", "speculative", *SHEDDING)},
            batching=self.batching_setting,
            max_num_batched_tokens=self.max_num_batched_tokens or 1,
            input_token_weight=self.token_weights[0],
            output_token_weight=self.token_weights[1],
            attention_dp_balance=self.balance,
            **more,
        )

    def reference_tiers(self) -> list[ReferenceTier]:
        """Its tiers, with nothing in them."""
        return [
            ReferenceTier(
                None if tier.capacity_gb is None else round(tier.capacity_gb * 10**9) // self.block_bytes,
                self.block_bytes,
                None if tier.gb_per_s is None else round(tier.gb_per_s * 10**9),
                round(tier.latency_us * 10**9),
                tier.write,
                self.full_groups,
                self.windowed_groups,
                tier.shared,
            )
            for tier in self.tiers
        ]

    def run(self) -> ReferenceResult:
        """The case, run by the reference."""
        return run_reference(**self.arguments())

    def arguments(self) -> dict[str, Any]:
        """The case, as the reference takes it."""
        limits_s = [None, *(each.slo and each.slo.ttft_s for each in self.classes)]
        limits_ps = [None if limit is None else round(limit * PS_PER_S) for limit in limits_s]
        priorities = [0, *(each.priority for each in self.classes)]
        tenants = ["", *(each.owner for each in self.classes)]
        more = {
            "pools": self.pools(),
            "mode": self.routing.mode,
            "predicted": self.predicted(),
            "priorities": [priorities[number] for number in self.class_ids],
            "limits_ps": [limits_ps[number] for number in self.class_ids],
            "tenants": [tenants[number] for number in self.class_ids],
            "tenant_weights": {each.owner: each.tenant_weight for each in self.classes},
            "tiers": self.reference_tiers(),
            "ageing_ps": None if self.ageing_s is None else round(self.ageing_s * PS_PER_S),
            "swap": None if self.swap is None else ReferenceSwap(*self.swap),
            "balance": None if self.balance is None else ReferenceBalance(**dict(self.balance)),
            "shedding": ReferenceShedding.of(self, [limits_ps[number] for number in self.class_ids]),
        }
        arguments: dict[str, Any] = vars(self) | more
        for name in ("routing", "prediction_error", "ageing_s", "classes", "block_bytes", *SHEDDING):
            del arguments[name]
        return arguments


@lru_cache(maxsize=4)
def _pools(experts: RoutedExperts, routing: Routing, seed: int) -> ExpertPools:
    """Whoever asks for pools of a case has the same: they remember what they have drawn, and nothing else."""
    return ExpertPools(experts, routing, seed)


def windows(most: int = 60) -> st.SearchStrategy[KvGroups]:
    """Groups of layers, some of which have a window of at most so many tokens."""
    return st.builds(KvGroups, st.integers(1, 2), st.integers(1, 3), st.integers(1, most))


def balances() -> st.SearchStrategy[AttentionDpBalanceSpec]:
    """When data-parallel groups wait for each other with prompts."""
    return st.builds(
        AttentionDpBalanceSpec, timeout_iters=st.integers(1, 12), batching_wait_iters=st.sampled_from([0, 0, 1, 4])
    )


def two_classes() -> st.SearchStrategy[tuple[ClassSpec, ...]]:
    """Two classes, earlier and later than those without one, which have no limit."""
    slo = st.builds(SloSpec, ttft_s=st.integers(1, 100).map(lambda ms: ms / 1000))
    weights = st.sampled_from([1, 1, 2, 3])
    late = st.builds(ClassSpec, name=st.just("late"), priority=st.integers(1, 3), slo=slo, tenant_weight=weights)
    return st.tuples(st.builds(ClassSpec, name=st.just("early"), priority=st.integers(-3, -1), slo=slo), late)


_PLANS, _CLASSES, _GROUPS = plans(), two_classes(), st.just(NO_WINDOWS) | windows()


@st.composite
def cases(draw: st.DrawFn, of: st.SearchStrategy[CostPlan] | None = None, *, least: int = 0) -> Case:
    """Whole cases, half of them crowded: many requests that grow long share little KV cache, and preempt each other.

    They have `least` requests or more. The cache always holds at least one request of the longest length.
    """
    crowded = draw(st.booleans())
    closed_loop = draw(st.booleans())
    block_size = draw(st.integers(1, 16))
    max_model_len = draw(_CROWDED_LEN if crowded else _LEN)
    budget = draw(_BUDGET)
    groups = draw(_GROUPS)
    blocks = groups.blocks(max_model_len, block_size, budget or max_model_len)
    spare = draw(st.integers(0, blocks // 4 if crowded else blocks))
    modes: list[Literal["pooled", "exact"]] = ["pooled", "exact"]
    admissions: list[Literal["prompt", "no_evict", "oracle"]] = ["prompt", "prompt", "no_evict"]
    if not crowded:
        admissions += ["oracle", "oracle"]
    plan, seed = draw(_PLANS if of is None else of), draw(st.integers(0, 3))
    routing = Routing(
        "zipf",
        draw(st.sampled_from([0.0, 1.0])),
        mode=draw(st.sampled_from(modes)),
        drift=draw(_DRIFT),
    )
    if plan.experts is not None:
        plan = plan_at(plan, routing.expert_weights(plan.experts.experts, seed).tolist(), plan.experts.slots)
    return Case(
        plan=plan,
        routing=routing,
        seed=seed,
        replica=draw(st.integers(0, 3)),
        offset=draw(st.integers(0, POOL_SIZE - 1)),
        max_num_seqs=draw(st.integers(4, 16) if crowded else st.integers(1, 16)),
        max_num_batched_tokens=budget,
        block_size=block_size,
        kv_capacity_blocks=-(-(blocks + spare) // groups.full) * groups.full,
        max_model_len=max_model_len,
        kv_admission=draw(st.sampled_from(admissions)),
        requests=(requests := draw(request_lists(closed_loop, crowded, max_model_len, least))),
        max_tokens=tuple(draw(_MOST_TOKENS) for _ in requests) if draw(st.booleans()) else (),
        concurrency=draw(st.integers(4 if crowded else 1, 8)) if closed_loop else None,
        max_time_fs=draw(_TIMES) if draw(st.integers(0, 3)) == 3 else None,
        full_groups=groups.full,
        windowed_groups=groups.windowed,
        window_tokens=groups.window_tokens,
        policy=(policy := draw(POLICIES)),
        ageing_s=draw(_AGEING_S),
        classes=draw(_CLASSES) if policy in {"priority", "edf", "vtc"} else (),
        prediction_error=draw(st.sampled_from([0.0, 0.3, 2.0])),
        token_weights=draw(st.sampled_from([(1, 2), (3, 1)])),
        long_prefill_token_threshold=draw(_THRESHOLD) if budget else 0,
    )
