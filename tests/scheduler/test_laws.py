"""What must hold in every run, whatever the costs, the settings and the requests: the laws of the simulator.

Random cases go through `simulate`, as the command line does, so that routing, the step log and the request table are
held to the laws together.
"""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.errors import InputError
from pimserve.scheduler import fleet, steplog
from pimserve.scheduler.data_parallel import DataParallelEngine
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.fleet import ReplicaEngine
from pimserve.scheduler.length_predictor import LengthPredictor
from pimserve.scheduler.outcomes import cut_off
from pimserve.scheduler.requests import FINISHED, FOREVER, NEVER, REJECTED, WAITING
from pimserve.scheduler.summary import digest
from tests.examples import examples
from tests.scheduler.law_runs import REPLICAS, ROUTERS, Run, head_of, runs

from .reference_engine import UNLIMITED
from .strategies import Case, cases


@examples(40)
@given(runs())
def test_requests_are_conserved(run: Run) -> None:
    counts = run.summary()["requests"]
    assert counts["total"] == counts["finished"] + counts["rejected"] + counts["unfinished"]
    if run.case.max_time_fs is None:
        assert counts["unfinished"] == 0
        assert counts["total"] == len(run.case.requests)
    elif run.case.concurrency is None:
        seen = [r for r in run.case.requests if r.arrival_fs // FS_PER_PS < run.case.max_time_fs // FS_PER_PS]
        assert counts["total"] == len(seen)
    finished = run.table[run.table["status"] == FINISHED]
    assert (finished["emitted_tokens"] == finished["output_tokens"]).all()
    assert (finished["output_tokens"] >= 1).all()
    rejected = run.table[run.table["status"] == REJECTED]
    assert (rejected["input_tokens"] >= run.served.max_model_len).all()
    assert (rejected["first_scheduled_ps"] == NEVER).all()
    waiting = run.table[run.table["status"] == WAITING]
    assert (waiting["emitted_tokens"] < waiting["output_tokens"]).all()


@examples(40)
@given(runs())
def test_tokens_are_conserved(run: Run) -> None:
    rows, table = run.all_rows(), run.table
    assert sum(row.steps * row.outputs for row in rows) == table["emitted_tokens"].sum()
    samples = sum(log.itl.count for log in run.served.logs)
    later_tokens = np.maximum(table["emitted_tokens"] - 1, 0).sum()
    in_preemption = ((table["status"] == WAITING) & (table["preemptions"] > 0)).sum()
    assert later_tokens - in_preemption <= samples <= later_tokens
    if run.case.max_time_fs is None:
        prompts = table["input_tokens"][table["status"] == FINISHED].sum()
        prefilled = sum(row.prefill_tokens for row in rows)
        preemptions = int(table["preemptions"].sum())
        assert prompts + preemptions <= prefilled <= prompts + preemptions * run.served.max_model_len


@examples(40)
@given(runs())
def test_kv_blocks_stay_within_capacity(run: Run) -> None:
    size = run.case.block_size
    assert [pool.kv_blocks(run.served.block_size) for pool in run.served.pools] == [run.case.kv_blocks]
    for row in run.all_rows():
        assert 0 < row.blocks_begin <= row.blocks_end <= run.case.kv_blocks
        # Every token that is attended to has its place, the one that is computed now too.
        assert row.context <= row.blocks_begin * size
        assert row.context + (row.steps - 1) * row.decodes <= row.blocks_end * size
    use = run.summary()["kv"]
    if run.all_rows():
        assert use["peak_use"] == max(row.blocks_end for row in run.all_rows()) / run.case.kv_blocks
        assert 0 <= use["mean_use"] <= use["peak_use"] + 1e-12


@pytest.mark.medium
@examples(40)
@given(runs())
def test_time_is_monotone_and_adds_up(run: Run) -> None:
    for replica, log in enumerate(run.served.logs):
        end = 0
        for begin, row in run.rows(replica):
            assert begin >= end
            assert row.steps > 0
            assert row.duration_fs > 0
            end = begin + row.duration_fs
        assert end == log.clock_fs
        single = run.steps(replica)
        assert len(single) == log.steps
        assert sum(step[1] for step in single) == log.busy_fs == sum(row.duration_fs for _, row in run.rows(replica))
        if run.case.max_time_fs is not None:
            assert all(step[0] < run.case.max_time_fs for step in single)
    end_fs = max(log.clock_fs for log in run.served.logs)
    if len(cut_off(run.served.table.columns)):  # who is left waits until the run is stopped
        assert run.case.max_time_fs is not None
        end_fs = max(end_fs, run.case.max_time_fs)
    assert run.served.end_s == end_fs / FS_PER_S


@pytest.mark.medium
@examples(40)
@given(runs())
def test_no_effect_before_its_cause(run: Run) -> None:
    boundaries = [
        ({begin // FS_PER_PS for begin, *_ in steps}, {(begin + lasts) // FS_PER_PS for begin, lasts, *_ in steps})
        for steps in map(run.steps, range(len(run.blocks)))
    ]
    for row in run.table:
        times = [row["arrival_ps"], row["first_scheduled_ps"], row["first_token_ps"], row["finish_ps"]]
        known = [time for time in times if time != NEVER]
        assert known == times[: len(known)]  # nothing happens without what comes before
        assert known == sorted(known)
        if row["first_scheduled_ps"] != NEVER:
            begins, ends = boundaries[row["replica"]]
            assert row["first_scheduled_ps"] in begins
            assert {row["first_token_ps"], row["finish_ps"]} <= ends | {NEVER}
        if row["first_token_ps"] != NEVER:
            assert row["first_token_ps"] > row["first_scheduled_ps"]


@examples(40)
@given(runs())
def test_no_replica_idles_while_a_request_waits(run: Run) -> None:
    for replica in range(len(run.blocks)):
        mine = run.table[(run.table["replica"] == replica) & (run.table["first_scheduled_ps"] != NEVER)]
        end = 0
        for begin, row in run.rows(replica):
            idle_from, idle_to = end / FS_PER_PS, begin / FS_PER_PS
            end = begin + row.duration_fs
            if idle_to > idle_from:
                unfinished = (mine["finish_ps"] == NEVER) | (mine["finish_ps"] > idle_from)
                assert not ((mine["arrival_ps"] < idle_to) & unfinished).any()


@pytest.mark.medium
@examples(60)
@given(runs())
def test_littles_law(run: Run) -> None:
    """The mean number in the system is the rate of arrivals times the mean time in it, by integrals over events."""
    table, end_ps = run.table, run.served.end_fs // FS_PER_PS
    came = (table["arrival_ps"] != NEVER) & (table["arrival_ps"] <= end_ps)  # none that is in front of the scheduler
    here = table[came & (table["status"] != REJECTED)]
    arrived, left = np.sort(here["arrival_ps"]), np.sort(here["finish_ps"][here["finish_ps"] != NEVER])
    events = np.unique(np.concatenate([arrived, left, [end_ps]]))
    number = np.searchsorted(arrived, events, "right") - np.searchsorted(left, events, "right")
    assert (number >= 0).all()
    assert number[-1] == (here["finish_ps"] == NEVER).sum()
    integral = sum(int(n) * int(length) for n, length in zip(number[:-1], np.diff(events), strict=True))
    times = np.where(here["finish_ps"] == NEVER, end_ps, here["finish_ps"]) - here["arrival_ps"]
    assert integral == times.sum()


@pytest.mark.medium
@examples(60)
@given(runs(max_time_fs=None))
def test_littles_law_of_the_batch(run: Run) -> None:
    """Steps know how many requests decode, requests how long they did: both come to the same."""
    if run.table["preemptions"].any():
        return  # who was preempted did not decode all the time
    for replica in range(len(run.blocks)):
        mine = run.table[(run.table["replica"] == replica) & (run.table["status"] == FINISHED)]
        integral_fs = sum(decodes * duration for _, duration, decodes, *_ in run.steps(replica))
        decoded_fs = int((mine["finish_ps"] - mine["first_token_ps"]).sum()) * FS_PER_PS
        assert abs(integral_fs - decoded_fs) < max(1, len(mine)) * FS_PER_PS  # times are cut to whole ps


@examples(50)
@given(runs(max_time_fs=None, kv_admission="prompt"))
def test_the_head_of_the_queue_waits_only_for_something_that_is_full(run: Run) -> None:
    if run.table["preemptions"].any() or run.case.policy == "vtc" or run.case.groups > 1:
        return  # then who was preempted is at the head, or whose tenant had little until then, or of each group
    case = run.case
    for replica in range(len(run.blocks)):
        mine = run.table[(run.table["replica"] == replica) & (run.table["first_scheduled_ps"] != NEVER)]
        begins = [step[0] for step in run.steps(replica)]
        done = 0
        for _, row in run.rows(replica):
            first, last = begins[done], begins[done + row.steps - 1]
            done += row.steps
            for at_fs, used_blocks in ((first, row.blocks_begin), (last, row.blocks_end)):
                at = at_fs // FS_PER_PS
                waiting = mine[(mine["arrival_ps"] <= at) & (mine["first_scheduled_ps"] > at)]
                if len(waiting):
                    chunk_tokens = case.max_num_batched_tokens or UNLIMITED
                    tokens = int(head_of(run, waiting)["input_tokens"])
                    blocks = case.kv_groups.blocks(tokens, case.block_size, chunk_tokens)
                    running = ((mine["first_scheduled_ps"] <= at) & (mine["finish_ps"] > at)).sum()
                    assert (
                        case.kv_capacity_blocks - used_blocks < blocks
                        or running >= case.max_num_seqs
                        or row.decodes + row.prefill_tokens >= run.spec.max_num_batched_tokens
                    )


@examples(40)
@given(st.integers(1, 8).flatmap(lambda clients: runs(concurrency=clients)))
def test_a_closed_loop_keeps_its_concurrency(run: Run) -> None:
    replicas = min(len(run.blocks), run.case.concurrency)
    for replica in range(replicas):
        mine = run.table[replica::replicas]
        clients = len(range(replica, run.case.concurrency, replicas))
        issued = mine[(mine["arrival_ps"] != NEVER) & (mine["status"] != REJECTED)]
        left = np.where(issued["finish_ps"] == NEVER, np.iinfo(np.int64).max, issued["finish_ps"])
        sent = issued["arrival_ps"] - run.case.plan.frontend_ps
        for at in sent:
            in_flight = int(((sent <= at) & (left > at)).sum())
            more_to_come = (mine["arrival_ps"] == NEVER).any() or (sent > at).any()
            assert in_flight <= clients
            assert in_flight == clients or not more_to_come


@pytest.mark.medium
@examples(40)
@given(cases(), REPLICAS, ROUTERS, st.integers(1, 5))
def test_where_the_log_is_cut_does_not_matter(case: Case, replicas: int, router: str, rows_per_flush: int) -> None:
    case = replace(case, max_time_fs=None, routing=replace(case.routing, drift=None))  # which cuts it too
    window = {}
    if case.concurrency is not None:
        router = "round_robin"
    elif case.requests:
        last = case.requests[-1].arrival_fs / FS_PER_S
        window = {"warmup_s": last / 4, "cooldown_s": last / 4}
    try:
        whole = Run(case, replicas, router, **window)
    except InputError:  # all arrive within a picosecond, or none can be served: there is no window
        reject()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steplog, "_ROWS_PER_FLUSH", rows_per_flush)
        cut = Run(case, replicas, router, **window)
    for replica in range(replicas):
        assert cut.rows(replica) == whole.rows(replica)
        assert len(cut.blocks[replica]) == -(-len(cut.rows(replica)) // rows_per_flush)
    assert digest(cut.served) == digest(whole.served)
    assert cut.summary() == whole.summary()


@pytest.mark.medium
@examples(40)
@given(runs(max_time_fs=None), st.integers(2, 7))
def test_the_order_in_which_replicas_run_does_not_matter(run: Run, slices: int) -> None:
    kind: type[Engine] = Engine if run.case.groups == 1 else DataParallelEngine

    class Interleaved(kind):
        """Runs all replicas, the last one first, slice by slice, when one is asked to run to the end."""

        all: ClassVar[list[ReplicaEngine]] = []

        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self.all.append(self)

        def advance(self, until_fs: int = FOREVER, **how: bool) -> int:
            if until_fs == FOREVER:
                end = max(log.clock_fs for log in run.served.logs)
                for part in range(1, slices):
                    for engine in reversed(self.all):
                        kind.advance(engine, end * part // slices)
            return super().advance(until_fs, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, kind.__name__, Interleaved)
        other = Run(run.case, len(run.blocks), run.spec.router)
    assert digest(other.served) == digest(run.served)
    assert len(Interleaved.all) == len(run.blocks)


@examples(50)
@given(
    st.sampled_from(["prompt", "no_evict"]).flatmap(lambda admission: runs(kv_admission=admission)),
    st.lists(st.integers(0, 60), min_size=25, max_size=25),
)
def test_no_decision_looks_at_a_true_output_length(run: Run, longer: list[int]) -> None:
    room = run.served.max_model_len
    requests = [
        replace(
            asked, output_tokens=max(asked.output_tokens, min(asked.output_tokens + more, room - asked.input_tokens))
        )
        for asked, more in zip(run.case.requests, longer, strict=False)
    ]
    predicted = np.array(run.case.predicted(), np.int64)
    with pytest.MonkeyPatch.context() as patch:  # all that a policy sees of outputs
        patch.setattr(LengthPredictor, "predict", lambda *_: predicted)
        other = Run(replace(run.case, requests=requests), len(run.blocks), run.spec.router)
    table, same = run.table, other.table
    # Until the first request ends that now goes on, the two runs are one and the same.
    ended = table["finish_ps"][(table["output_tokens"] != same["output_tokens"]) & (table["finish_ps"] != NEVER)]
    until = int(ended.min(initial=2**62))
    for replica in range(len(run.blocks)):
        before = [step for step in run.steps(replica) if step[0] < until * FS_PER_PS]
        assert other.steps(replica)[: len(before)] == before
    for name in ("first_scheduled_ps", "first_token_ps", "finish_ps"):
        known = (table[name] != NEVER) & (table[name] < until)
        assert (same[name][known] == table[name][known]).all()
    routed = (table["first_scheduled_ps"] != NEVER) & (table["first_scheduled_ps"] < until)
    assert (same["replica"][routed] == table["replica"][routed]).all()


SCRIPT = """
import sys
from pimserve.cluster.run.run import serve
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
print(serve(prepare(load_scenario(None, sys.argv[1:])))[0].digest)
"""


@pytest.mark.medium
def test_the_same_seed_gives_the_same_bits_in_any_process() -> None:
    from pimserve.cluster.scenario.document import load_scenario  # noqa: PLC0415
    from pimserve.cluster.scenario.prepared import prepare  # noqa: PLC0415
    from tests.cluster.documents import serve  # noqa: PLC0415 scheduler tests do not know the cluster otherwise

    overrides = ["workload.num_requests=12", "cluster.replicas=2", "scheduler.router=least_outstanding"]
    environment = {"PYTHONHASHSEED": "4711", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run([sys.executable, "-c", SCRIPT, *overrides], env=environment, capture_output=True, check=True)
    here = serve(prepare(load_scenario(None, overrides)))[0]["digest"]
    assert there.stdout.decode().strip() == here
    assert serve(prepare(load_scenario(None, overrides)))[0]["digest"] == here
    assert serve(prepare(load_scenario(None, [*overrides, "run.seed=1"])))[0]["digest"] != here
    assert serve(prepare(load_scenario(None, [*overrides, "routing.mode=exact"])))[0]["digest"] != here
