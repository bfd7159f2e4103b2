"""Simulated faults with pools for prefill and decode: times by hand, and laws that hold whatever fails, and when."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.plan import FS_PER_PS
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.control import RunView
from pimserve.scheduler.faults import FaultSpec
from pimserve.scheduler.fleet import DECODE, PREFILL
from pimserve.scheduler.requests import FINISHED, NEVER, WAITING
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .pool_runs import LINK, SPEC, Pooled, hand_over, pool_rows, pooled
from .pools import Decode
from .strategies import FS_PER_MS
from .test_faults import down_times, event_of, spec, told
from .test_laws import Run
from .test_simulation import PLAN, seconds
from .test_windows import LENGTHS, Windows, cut_and_continued, spans, spread

TWO = Decode(PLAN, 1600, 2, LINK)


def fault(kind: str, at_s: float, replica: int, **more: float) -> dict[str, Any]:
    return {"kind": kind, "at_s": at_s, "replica": replica, **more}


def handover_of(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = summarize(served, Objectives(SloSpec()), Hardware(2)).document()["pools"]["handover"]
    return found


def test_a_decode_replica_that_fails_sends_its_requests_back_to_prefill() -> None:
    served = hand_over([(0.0, 10, 5)], faults=spec(fault("fail", 0.04, 1, for_s=0.05)))
    # Its cache is there at 25 ms; the step that is under way at 40 ms ends at 45, with the third token. 13 tokens are
    # computed from 45 to 55 ms, and wait until 90 ms for the decode replica; they are there at 90 + 5 + 13 = 108 ms.
    assert seconds(served, "finish_ps") == [0.118]
    assert seconds(served, "first_token_ps") == [0.01]
    assert served.table["replica"].tolist() == [1]
    found, handover = told(served, 2), handover_of(served)
    assert (found["requeued"], found["recomputed_tokens"]) == (1, 12)
    assert found["down_replica_s"] == pytest.approx(0.045)
    assert (handover["n"], handover["bytes"], handover["held"], handover["lost"]) == (2, 23 * 10**6, 1, 0)
    gaps = summarize(served, Objectives(SloSpec()), Hardware(2)).document()["latency_s"]["itl"]
    assert (gaps["n"], gaps["mean"]) == (4, pytest.approx((0.025 + 0.01 + 0.01 + 0.063) / 4))
    assert [log.computed_tokens for log in served.logs] == [10 + 13, 3]


def test_a_cache_on_its_way_to_a_decode_replica_that_fails_is_lost() -> None:
    served = hand_over([(0.0, 10, 3)], faults=spec(fault("fail", 0.02, 1, for_s=0.04)))
    # 11 tokens are computed again from 20 to 30 ms, and there at 60 + 5 + 11 = 76 ms.
    assert seconds(served, "finish_ps") == [0.086]
    found, handover = told(served, 2), handover_of(served)
    assert (found["requeued"], found["recomputed_tokens"]) == (1, 10)
    assert (handover["n"], handover["bytes"], handover["held"], handover["lost"]) == (1, 11 * 10**6, 1, 1)
    assert handover["transfer_s"]["n"] == handover["waiting_s"]["n"] == 1
    assert handover["link_busy_share"]["decode"] == pytest.approx(0.011 / 0.086)


@pytest.mark.parametrize(
    ("at_s", "finish_s", "requeued", "lost"),
    [(0.015, 0.051, 1, 1), (0.02, 0.045, 0, 0)],  # the cache leaves from 10 to 20 ms
)
def test_a_cache_that_has_not_left_a_prefill_replica_that_fails_is_lost(
    at_s: float, finish_s: float, requeued: int, lost: int
) -> None:
    served = hand_over([(0.0, 10, 3)], replicas=2, faults=spec(fault("fail", at_s, 0)))
    # It is computed again on the other one from 15 to 25 ms, and there at 25 + 5 + 11 = 41 ms.
    assert seconds(served, "finish_ps") == [finish_s]
    assert [told(served, 3)[name] for name in ("requeued", "recomputed_tokens")] == [requeued, 10 * requeued]
    assert (handover_of(served)["n"], handover_of(served)["lost"]) == (1, lost)


def test_a_cache_that_waits_on_a_prefill_replica_that_fails_is_lost_and_missed_after_the_detection_time() -> None:
    one_at_a_time = Decode(PLAN, 1600, 1, LINK)
    served = hand_over(
        [(0.0, 10, 9), (0.0, 10, 3)],
        replicas=2,
        decode=one_at_a_time,
        spec=SPEC.model_copy(update={"max_num_seqs": 1}),
        faults=spec(fault("fail", 0.05, 1), detection_s=0.02),
    )
    # The second one waits for its place from 10 ms on. It is missed at 70 ms, and computed on the first replica until
    # 80 ms; the place is free at 105 ms, which is told at 200 ms: there at 200 + 5 + 11 = 216 ms.
    assert seconds(served, "finish_ps") == [0.105, 0.226]
    assert handover_of(served)["lost"] == 0  # it had not begun


def test_requests_that_wait_or_run_on_a_prefill_replica_that_fails_go_to_another() -> None:
    one_at_a_time = SPEC.model_copy(update={"max_num_seqs": 1})
    served = hand_over([(0.0, 10, 1)] * 4, replicas=2, spec=one_at_a_time, faults=spec(fault("fail", 0, 0)))
    # Two of them come to replica 0, which stops at once.
    assert served.table["replica"].tolist() == [1, 1, 1, 1]
    assert sorted(seconds(served, "finish_ps")) == [0.01, 0.02, 0.03, 0.04]


def test_a_decode_replica_that_leaves_finishes_what_is_there_or_on_its_way() -> None:
    requests = [(0.0, 10, 9), (0.0, 10, 9), (0.04, 10, 9)]
    plain = hand_over(requests, decode=TWO)
    left = hand_over(requests, decode=TWO, faults=spec(fault("leave", 0.02, 1)))
    assert plain.table["replica"].tolist() == [2, 1, 2]
    assert left.table["replica"].tolist() == [2, 1, 2]
    assert seconds(left, "finish_ps") == seconds(plain, "finish_ps")
    assert told(left, 3)["requeued"] == 0
    both = hand_over(requests, decode=TWO, faults=spec(fault("leave", 0.02, 1), fault("leave", 0.03, 2, for_s=0.03)))
    # The third one waits from 50 ms to 60 ms for replica 2 to come back.
    assert both.table["replica"].tolist() == [2, 1, 2]
    assert handover_of(both)["held"] == 1
    assert handover_of(both)["waiting_s"]["mean"] == pytest.approx(0.02 / 3)  # that, and the second for the first


def test_a_prefill_replica_that_leaves_hands_over_what_runs() -> None:
    served = hand_over(
        [(0.0, 10, 3), (0.0, 10, 3)],
        replicas=1,
        spec=SPEC.model_copy(update={"max_num_seqs": 1}),
        faults=spec(fault("leave", 0.005, 0, for_s=0.095)),
    )
    # The second one waits until the replica is back at 100 ms.
    assert seconds(served, "first_token_ps") == [0.01, 0.11]
    assert told(served, 2)["requeued"] == 1
    assert handover_of(served)["n"] == 2


def test_slow_replicas_of_either_pool_slow_their_own_steps_only() -> None:
    served = hand_over([(0.0, 10, 3)], faults=spec(fault("slow", 0, 0, factor=2), fault("slow", 0, 1, factor=3)))
    # The prompt takes 20 ms, the cache is there at 20 + 5 + 10 = 35 ms, and steps of 30 ms follow.
    assert seconds(served, "first_token_ps") == [0.02]
    assert seconds(served, "finish_ps") == [0.095]


@pytest.mark.parametrize("kind", ["fail", "leave"])
@pytest.mark.parametrize("deployment", [Deployment(), Deployment(control=Windows([30 * FS_PER_MS]))])
def test_where_no_decode_replica_is_left_requests_remain_unfinished(kind: str, deployment: Deployment) -> None:
    served = hand_over(
        [(0.0, 20, 9), (0.3, 20, 1), (0.4, 20, 2), (0.5, 20, 2), (0.6, 20, 1)],
        kv_capacity_tokens=48,
        faults=spec(fault(kind, 0.1, 1)),
        deployment=deployment,
    )
    # The first one has its last token there, or, after a failure, where its prompt is computed again. The third one's
    # cache fills the prefill replica, so that nobody is admitted any more.
    assert served.table["emitted_tokens"].tolist() == [9, 1, 1, 0, 0]
    assert served.table["replica"].tolist()[0] == (0 if kind == "fail" else 1)
    assert served.end_s == 0.6
    assert told(served, 2)["replicas_left"] is False


def test_where_no_prefill_replica_is_left_decode_replicas_finish_what_they_have() -> None:
    served = hand_over([(0.0, 20, 9), (0.3, 20, 9)], faults=spec(fault("fail", 0.1, 0)))
    assert served.table["status"].tolist() == [FINISHED, WAITING]
    assert told(served, 2)["replicas_left"] is False


def test_failures_of_decode_replicas_that_are_never_all_up_are_refused() -> None:
    many = Decode(PLAN, 1600, 1, LINK)
    plan = Decode(replace(PLAN, devices=4000), 1600, 1, LINK)
    faults = FaultSpec(mtbf_s=10, repair_s=1)
    assert hand_over([(0.0, 10, 3)], decode=many, faults=faults).table["status"].tolist() == [FINISHED]
    with pytest.raises(InputError, match=r"^faults: with mtbf_s 10 .* of 4000 devices .* of the time; raise mtbf_s"):
        hand_over([(0.0, 10, 3)], decode=plan, faults=faults)


@dataclass
class Faulty:
    """A case on two pools, with what happens to their replicas."""

    pools: Pooled
    faults: FaultSpec

    @property
    def replicas(self) -> int:
        return self.pools.prefill + self.pools.decode.replicas

    def run(self, deployment: Deployment = Deployment()) -> Run:  # noqa: B008 frozen
        return self.pools.run(deployment, faults=self.faults)


_POOLS = pooled(max_time_fs=None)


@cache
def _events(replicas: int, *, ever: bool) -> st.SearchStrategy[list[dict[str, Any]]]:
    lasts = st.integers(1, 300)
    one = st.builds(
        event_of,
        st.sampled_from(["fail", "fail", "slow", "leave"]),
        st.integers(0, 500),
        st.integers(0, replicas - 1),
        st.none() | lasts if ever else lasts,
        st.sampled_from([1.001, 1.5, 2.0, 7.3]),
    )
    return st.lists(one, max_size=6)


@st.composite
def faulty(draw: st.DrawFn, *, ever: bool = True) -> Faulty:
    """Up to six faults within the first half second; with `ever`, of which some never end. Some are at random."""
    pools = draw(_POOLS)
    events = draw(_events(pools.prefill + pools.decode.replicas, ever=ever))
    more: dict[str, Any] = {"detection_s": draw(st.integers(0, 100)) / 1000}
    if draw(st.integers(0, 3)) == 3:
        more |= {"mtbf_s": draw(st.integers(5, 50)) / 10, "repair_s": draw(st.integers(1, 200)) / 1000}
    return Faulty(pools, FaultSpec.model_validate({"events": events, **more}))


class Watched(Windows):
    """Holds every replica to its KV cache at the end of each window, and requests to one place each."""

    def barrier(self, view: RunView) -> None:
        super().barrier(view)
        self._check(view)
        there = sum(state.running + state.waiting for state in view.replicas)
        assert there <= (view.table["status"] == WAITING).sum()

    def ended(self, view: RunView) -> None:
        self._check(view)
        if (view.table["status"] != WAITING).all():
            assert not any(state.kv_blocks_used for state in view.replicas if state.pool == DECODE)

    def _check(self, view: RunView) -> None:
        for state in view.replicas:
            assert 0 <= state.kv_blocks_used <= state.kv_blocks
            assert state.up or not (state.running or state.waiting or state.kv_blocks_used)


@pytest.mark.medium
@examples(40)
@given(faulty(ever=False), LENGTHS)
def test_requests_tokens_and_bytes_are_conserved(faulty: Faulty, lengths: list[int]) -> None:
    run = faulty.run(Deployment(control=Watched(lengths)))
    table, summary = run.table, run.summary()
    counts, handover = summary["requests"], summary["pools"]["handover"]
    assert counts["finished"] + counts["rejected"] == counts["total"] == len(faulty.pools.case.requests)
    done = table[table["status"] == FINISHED]
    assert (done["emitted_tokens"] == done["output_tokens"]).all()
    rows = run.all_rows()
    assert sum(row.steps * row.outputs for row in rows) == table["emitted_tokens"].sum()
    # Every gap between two tokens is a sample, those across hand-overs and failures too.
    logs = run.served.logs
    assert sum(log.itl.count for log in logs) == (done["output_tokens"] - 1).sum()
    lived = int((done["finish_ps"] - done["first_token_ps"]).sum()) * FS_PER_PS
    assert abs(sum(log.itl.state()["sum_fs"] for log in logs) - lived) <= 2 * FS_PER_PS * len(done)
    assert 0 <= handover["held"] <= handover["n"] == handover["transfer_s"]["n"] == handover["waiting_s"]["n"]
    assert handover["n"] >= (done["replica"] >= faulty.pools.prefill).sum()
    requeued = summary.get("faults", {"requeued": 0})["requeued"]
    assert handover["lost"] <= requeued
    if not table["preemptions"].any():
        assert not sum(row.chunks for row in pool_rows(run, DECODE))
    # Every prompt is computed once, and again for whoever came back; each time there is one token more.
    completed = sum(row.outputs for row in pool_rows(run, PREFILL))
    assert len(done) <= completed <= len(done) + requeued
    if not requeued:
        moved = done[done["output_tokens"] > 1]
        assert handover["bytes"] == sum(faulty.pools.decode.link.size(int(row["input_tokens"])) for row in moved)


@pytest.mark.medium
@examples(40)
@given(faulty(), LENGTHS)
def test_nobody_is_lost_where_replicas_do_not_come_back(faulty: Faulty, lengths: list[int]) -> None:
    run = faulty.run(Deployment(control=Watched(lengths)))
    counts = run.summary()["requests"]
    assert counts["finished"] + counts["rejected"] + counts["unfinished"] == counts["total"]
    assert sum(row.steps * row.outputs for row in run.all_rows()) == run.table["emitted_tokens"].sum()
    waiting = run.table[run.table["status"] == WAITING]
    assert (waiting["emitted_tokens"] < waiting["output_tokens"]).all()


@examples(40)
@given(faulty())
def test_time_is_monotone_and_no_effect_comes_before_its_cause(faulty: Faulty) -> None:
    run = faulty.run()
    for pool in run.served.pools:
        for replica in pool.numbers:
            end = 0
            for begin, row in run.rows(replica):
                assert begin >= end
                end = begin + row.duration_fs
                assert 0 < row.blocks_begin <= row.blocks_end <= pool.kv_blocks(run.served.block_size)
                assert row.context <= row.blocks_begin * run.served.block_size
            assert end == run.served.logs[replica].clock_fs
    for row in run.table:
        times = [row["arrival_ps"], row["first_scheduled_ps"], row["first_token_ps"], row["finish_ps"]]
        known = [time for time in times if time != NEVER]
        assert known == times[: len(known)] == sorted(known)
    figures = run.served.handovers
    assert figures is not None
    assert all(time >= 0 for time in (figures.bytes, figures.busy_fs, *figures.waits_ps))
    way_ps = faulty.pools.decode.link.latency_fs // FS_PER_PS
    assert all(time >= way_ps for time in figures.transfers_ps)
    for replica, since, until in down_times(run.served) if run.served.faults is not None else ():
        for begin, row in run.rows(replica):  # no step runs while its replica is down
            assert begin + row.duration_fs <= since or begin >= until


@pytest.mark.medium
@examples(40)
@given(faulty(), LENGTHS)
def test_windows_and_shards_do_not_matter(faulty: Faulty, lengths: list[int]) -> None:
    alone = faulty.run()
    found = (spans(alone), digest(alone.served), alone.summary())
    for shards, control in ((1, Windows(lengths)), (2, None), (3, Windows(lengths))):
        run = faulty.run(Deployment(shards=spread(min(shards, faulty.replicas)), control=control))
        assert (spans(run), digest(run.served), run.summary()) == found


@pytest.mark.medium
@examples(40)
@given(faulty(), LENGTHS, st.integers(0, 1000))
def test_an_interrupted_run_goes_on_to_the_same_bits(faulty: Faulty, lengths: list[int], at: int) -> None:
    alone = faulty.run()
    _, continued = cut_and_continued(faulty.run, lengths, at)
    assert digest(continued.served) == digest(alone.served)
    assert continued.summary() == alone.summary()
