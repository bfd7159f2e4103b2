"""Requests that are rejected as they arrive: by hand, and whatever the windows, shards and routers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.plan import FS_PER_PS
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.turns import Turns
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.faults import FaultEvent, FaultSpec
from pimserve.scheduler.requests import FINISHED, NEVER, PREDICTED_TTFT, QUEUE_FULL, REJECTED, WAITING
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .law_runs import BLIND, REPLICAS, ROUTERS, Run
from .plan_strategies import serial_plans
from .shedding_strategies import shedding_cases
from .strategies import Case, cases
from .test_kv_tiers import AGAIN, tier
from .test_prefix_cache import load
from .test_prefix_cache import run as cached
from .test_simulation import serve
from .test_windows import LENGTHS, Kept, Windows, spread

BY_PREFIXES = ["cache_aware", "dynamo", "llm_d", "prefix_affinity", "slo_aware", "weighted"]
CASES = shedding_cases(cases(serial_plans(st.none())))


def shed(requests: list[tuple[float, int, int]], run: dict[str, Any] | None = None, **spec: Any) -> Served:
    """One at a time, each step 10 ms, but for what `spec` says, and `run` of anything else."""
    return serve(requests, spec=SchedulerSpec.model_validate({"max_num_seqs": 1} | spec), **run or {})


def rejected(served: Served) -> list[int]:
    return np.flatnonzero(served.table["status"] == REJECTED).tolist()


def test_no_more_wait_than_may() -> None:
    """The first one runs for 0.1 s; of those that come meanwhile two may wait, and then one comes when one has left."""
    requests = [(0.0, 5, 10), (0.01, 5, 1), (0.02, 5, 1), (0.03, 5, 1), (0.04, 5, 1), (0.105, 5, 1)]
    served = shed(requests, max_queued_requests=2)
    assert rejected(served) == [3, 4]
    assert served.table["reject_reason"].tolist() == [0, 0, 0, QUEUE_FULL, QUEUE_FULL, 0]
    assert (served.table["finish_ps"][[3, 4]] == NEVER).all()


def test_of_those_that_come_together_the_first_ones_are_taken() -> None:
    assert rejected(shed([(0.0, 5, 10)] * 5, max_queued_requests=2)) == [2, 3, 4]


def test_who_would_be_late_by_the_declared_rate_is_rejected() -> None:
    """1,000 tokens/s, and 0.2 s: 200 tokens with one's own; the first one's 100 are computed at 0.01 s."""
    requests = [(0.0, 100, 50), (0.001, 100, 1), (0.002, 101, 1), (0.02, 101, 1), (0.021, 100, 1), (0.022, 1, 1)]
    early = {"early_rejection": True, "early_rejection_ttft_s": 0.2, "prefill_tokens_per_s": 1000}
    served = shed(requests, **early)
    assert rejected(served) == [2, 3, 5]
    assert (served.table["reject_reason"][[2, 3, 5]] == PREDICTED_TTFT).all()
    assert not rejected(shed(requests, **early | {"early_rejection_ttft_s": 0.5}))


def test_nothing_is_predicted_before_anything_was_seen_and_then_what_was() -> None:
    """100 tokens in 10 ms: 0.01 s for 100; until that step has ended all are taken."""
    requests = [(0.0, 100, 50), (0.005, 1000, 1), (0.009, 500, 1), (0.011, 10, 1)]
    served = shed(requests, early_rejection=True, early_rejection_ttft_s=0.1509)
    assert rejected(served) == [3]
    assert not rejected(shed(requests, early_rejection=True, early_rejection_ttft_s=0.1511))


def test_what_is_rejected_is_told_and_missed_its_limit() -> None:
    requests = [(0.0, 5, 10), (0.01, 5, 1), (0.02, 5, 1), (0.03, 5, 1)]
    served = shed(requests, max_queued_requests=1)
    figures = summarize(served, Objectives.of(SloSpec(ttft_s=1), ()), Hardware(1))
    assert (figures.requests.finished, figures.requests.rejected) == (2, 2)
    assert figures.requests.rejected_by_reason.queue_full == 2
    assert figures.slo.attainment == 0.5
    assert figures.tokens.prompt_rejected == 10


def test_a_rejected_prompt_that_is_too_long_takes_no_place() -> None:
    requests = [(0.0, 5, 10), (0.01, 5000, 1), (0.02, 5, 1), (0.03, 5, 1)]
    assert rejected(shed(requests, max_queued_requests=1)) == [1, 3]


def test_who_found_no_replica_is_judged_when_there_is_one() -> None:
    """The first one was taken, and has 8 tokens to compute again; the others come, as it does, at 125 ms."""
    failure = FaultEvent(at_s=0.025, replica=0, kind="fail", for_s=0.1)
    requests, run = [(0.0, 5, 4), (0.05, 5, 1), (0.06, 5, 1)], {"faults": FaultSpec(events=(failure,), detection_s=0)}
    assert rejected(shed(requests, run, max_queued_requests=1)) == [1, 2]
    assert rejected(shed(requests, run, max_queued_requests=2)) == [2]
    early = {"early_rejection": True, "prefill_tokens_per_s": 1000}  # 75 + 8 + 5 ms, and 65 + 8 + 5 without the second
    assert rejected(shed(requests, run, early_rejection_ttft_s=0.0881, **early)) == []
    assert rejected(shed(requests, run, early_rejection_ttft_s=0.0879, **early)) == [1]
    assert rejected(shed(requests, run, early_rejection_ttft_s=0.0779, **early)) == [1, 2]


def test_who_waits_for_blocks_waits() -> None:
    """The fourth one's blocks come from a tier until 3,100 ms; 10 tokens of its prompt are computed then."""
    rows = [*AGAIN, (3001, 3, 2), (3150, 4, 2)]
    tiers = {"kv_tiers": (tier(latency_ms=90),)}
    assert rejected(cached(load(rows), 26 * 4, **tiers, max_queued_requests=1)) == [4]
    early = {"early_rejection": True, "prefill_tokens_per_s": 1000, **tiers}
    assert rejected(cached(load(rows), 26 * 4, early_rejection_ttft_s=0.0601, **early)) == []
    assert rejected(cached(load(rows), 26 * 4, early_rejection_ttft_s=0.0599, **early)) == [4]


def test_what_a_tier_spares_counts_with_the_rest_of_its_prompt() -> None:
    """Each prompt of 50 tokens takes 10 ms; the fourth decodes while the fifth one's blocks come from a tier."""
    rows = [(0, 0, 2), (1000, 1, 2), (2000, 2, 2), (2990, 3, 15), (3000, 0, 2), (3500, 4, 1)]
    how = {"kv_tiers": (tier(latency_ms=90),), "early_rejection": True}
    assert rejected(cached(load(rows), 30 * 4, early_rejection_ttft_s=0.0101, **how)) == []
    assert rejected(cached(load(rows), 30 * 4, early_rejection_ttft_s=0.0099, **how)) == [1, 2, 3, 4, 5]


@pytest.mark.medium
@pytest.mark.parametrize("router", ["least_tokens", "least_kv", "session_affinity", *BY_PREFIXES])
def test_a_limit_that_never_bites_changes_no_bit(router: str) -> None:
    """Three come in each step of 10 ms, so that the router has to see those that came while it was under way."""
    requests = [(0.0033 * i, 5 + 37 * i % 300, 1 + i % 4) for i in range(60)]
    how = {"router": router, "enable_prefix_caching": router in BY_PREFIXES}
    plain = shed(requests, {"replicas": 3}, **how)
    limited = how | {"max_queued_requests": 1_000_000}
    assert digest(shed(requests, {"replicas": 3}, **limited)) == digest(plain)
    kept = Kept()
    for _ in range(2):  # and from a checkpoint on
        deployment = Deployment(control=Windows([7 * 10**12, 3 * 10**12]), checkpoints=kept)
        assert digest(shed(requests, {"replicas": 3, "deployment": deployment}, **limited)) == digest(plain)
        kept.first = 5


@pytest.mark.medium
@examples(60)
@given(CASES, REPLICAS, ROUTERS, LENGTHS, st.integers(0, 100))
def test_windows_shards_and_interruptions_do_not_matter(
    case: Case, replicas: int, router: str, lengths: list[int], cut: int
) -> None:
    case = in_ps(case)
    plain = Run(case, replicas, router)
    shards = spread(min(2, replicas)) if router in BLIND else None
    kept = Kept()
    for _ in range(2):  # and from one of the checkpoints on
        deployment = Deployment(control=Windows(lengths), shards=shards, checkpoints=kept)
        assert digest(Run(case, replicas, router, deployment=deployment).served) == digest(plain.served)
        kept.first = cut


@examples(60)
@given(CASES, REPLICAS, ROUTERS)
def test_every_request_is_finished_rejected_or_left_and_no_more_wait_than_may(
    case: Case, replicas: int, router: str
) -> None:
    case = in_ps(case)
    table = Run(case, replicas, router).table
    if case.max_time_fs is None:
        assert np.isin(table["status"], [FINISHED, REJECTED]).all()
    gone = table["status"] == REJECTED
    assert (table["first_scheduled_ps"][gone] == NEVER).all()
    assert (table["reject_reason"][gone] > 0).all()
    assert not table["reject_reason"][table["status"] == FINISHED].any()
    if case.max_queued_requests is None or table["preemptions"].any():
        return
    for replica in range(replicas):
        mine = table[(table["replica"] == replica) & ~gone & (table["status"] != WAITING)]
        for at in mine["arrival_ps"].tolist():
            waits = (mine["arrival_ps"] <= at) & (mine["first_scheduled_ps"] > at)
            assert waits.sum() <= case.max_queued_requests


@examples(60)
@given(CASES, st.lists(st.integers(0, 60), min_size=25, max_size=25))
def test_who_is_rejected_hangs_on_no_output_to_come(case: Case, longer: list[int]) -> None:
    case = replace(in_ps(case), kv_admission="prompt", policy="fcfs")
    table = Run(case).table
    requests = [
        replace(asked, output_tokens=asked.output_tokens + more)
        for asked, more in zip(case.requests, longer, strict=False)
    ]
    other = Run(replace(case, requests=requests)).table
    ended = table["finish_ps"][(table["output_tokens"] != other["output_tokens"]) & (table["finish_ps"] != NEVER)]
    before = table["arrival_ps"] < ended.min(initial=2**62)
    assert ((table["status"] == REJECTED) == (other["status"] == REJECTED))[before].all()


@pytest.mark.parametrize(
    "how", [{"concurrency": 1}, {"max_concurrency": 1}, {"turns": Turns.chains(*np.array([[-1, 0], [0, 0], [0, 0]]))}]
)
def test_clients_that_wait_for_ends_are_not_rejected(how: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"scheduler.max_queued_requests: is not modelled where requests wait"):
        serve([(0.0, 5, 5), (0.0, 5, 5)], spec=SchedulerSpec(max_queued_requests=1), **how)


def test_there_must_be_a_limit() -> None:
    with pytest.raises(InputError, match=r"scheduler.early_rejection: needs a limit of TTFT"):
        serve([(0.0, 5, 5)], spec=SchedulerSpec(early_rejection=True))
    with pytest.raises(ValueError, match="prefill_tokens_per_s has no effect without early_rejection"):
        SchedulerSpec(prefill_tokens_per_s=5)


def in_ps(case: Case) -> Case:
    """With arrivals that the request table can hold, before the run stops."""
    requests = [replace(each, arrival_fs=(each.arrival_fs or 0) // FS_PER_PS * FS_PER_PS) for each in case.requests]
    return replace(case, requests=requests, max_time_fs=None)
