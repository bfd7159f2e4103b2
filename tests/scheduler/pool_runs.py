"""Runs on pools for prefill and decode: given ones, and random small ones whose caches fill up."""

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from pimserve.device_models.plan import FS_PER_PS, CostPlan
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.handover import Link
from pimserve.scheduler.simulation import Deployment, Served

from .law_runs import ROUTERS, Run
from .plan_strategies import plans
from .pools import Decode
from .reference_engine import UNLIMITED
from .strategies import FS_PER_MS, Case, cases
from .test_simulation import PLAN, serve

LINK = Link(bytes_per_s=10**9, latency_fs=5 * FS_PER_MS, bytes_per_token=10**6)  # a token takes a millisecond
SPEC = SchedulerSpec(report_interval_s=0.1)


def hand_over(requests: list[tuple[float, int, int]], **changes: Any) -> Served:
    """Serve (arrival s, input, output) with steps of 10 ms in both pools."""
    return serve(requests, **{"decode": Decode(PLAN, 1600, 1, LINK), "spec": SPEC, **changes})


_CASES, _PLANS = cases(), plans()
_LATENCY_FS = st.just(0) | st.integers(0, 20 * FS_PER_MS)
_RATES = st.sampled_from([10**5, 10**6, 10**8, 10**15])
_LAYERS = st.sampled_from([0, 0, 1, 7])


@dataclass
class Pooled:
    """A case whose plan is that of prefill, and a decode pool."""

    case: Case
    prefill: int
    decode: Decode
    interval_s: float
    router: str

    def run(self, deployment: Deployment = Deployment(), **changes: Any) -> Run:  # noqa: B008 frozen
        return Run(
            self.case,
            self.prefill + self.decode.replicas,
            self.router,
            prefill=self.prefill,
            decode=self.decode,
            report_interval_s=self.interval_s,
            deployment=deployment,
            **changes,
        )


@st.composite
def pooled(draw: st.DrawFn, of: st.SearchStrategy[CostPlan] | None = None, **changes: Any) -> Pooled:
    """One or two replicas in each pool, with links that take nothing up to tens of ms, and caches that fill up."""
    case = replace(draw(_CASES if of is None else cases(of)), concurrency=None, **changes)
    case.requests = [replace(r, arrival_fs=r.arrival_fs or 0) for r in case.requests]
    if case.max_time_fs is not None:
        case.max_time_fs = max(case.max_time_fs, min((r.arrival_fs for r in case.requests), default=0) + FS_PER_PS)
        case.max_time_fs += -case.max_time_fs % FS_PER_PS
    most = case.kv_groups.blocks(case.max_model_len, case.block_size, case.max_num_batched_tokens or UNLIMITED)
    blocks = most + draw(st.integers(0, 4))
    kv_tokens = -(-blocks // case.full_groups) * case.block_size  # whole blocks, that none is lost to rounding
    taking = replace(case, plan=draw(_PLANS if of is None else of))
    link = Link(
        bytes_per_s=draw(_RATES),
        latency_fs=draw(_LATENCY_FS),
        bytes_per_token=draw(st.integers(1, 100)),
        window_bytes_per_token=draw(st.integers(0, 100)),
        window_tokens=draw(st.integers(0, 40)),
        layers=draw(_LAYERS),
    )
    return Pooled(
        case=case,
        prefill=draw(st.integers(1, 2)),
        decode=Decode(taking.plan, taking.groups * kv_tokens, draw(st.integers(1, 2)), link, case.kv_groups),
        interval_s=draw(st.integers(1, 300)) / 1000,
        router=draw(ROUTERS),
    )


def pool_rows(run: Run, name: str) -> list[Any]:
    (numbers,) = (pool.numbers for pool in run.served.pools if pool.name == name)
    return [row for replica in numbers for _, row in run.rows(replica)]
