"""Simulated faults: times by hand, and laws that hold whatever fails, slows down or leaves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.experts import FEATURES
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.device_models.step import each_step
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.faults import Faults, FaultSpec
from pimserve.scheduler.mixed_costs import make_costs
from pimserve.scheduler.requests import FINISHED, NEVER, WAITING
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.steplog import SpanColumns, expand
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .batching_strategies import batching_cases
from .law_runs import BLIND, ROUTERS, Run
from .strategies import Case, cases
from .test_simulation import seconds, serve
from .test_windows import LENGTHS, Windows, cut_and_continued, spans, spread


def spec(*events: dict[str, Any], **more: Any) -> FaultSpec:
    return FaultSpec.model_validate({"events": list(events), "detection_s": 0.0, **more})


def told(served: Served, devices: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = summarize(served, Objectives(SloSpec()), Hardware(devices)).document()["faults"]
    return found


FAIL = {"at_s": 0.025, "replica": 0, "kind": "fail"}


def test_a_failure_takes_effect_at_the_step_boundary_and_is_noticed_later() -> None:
    faults = spec({**FAIL, "for_s": 0.1}, detection_s=0.04)
    served = serve([(0.0, 5, 4), (0.0, 5, 4)], replicas=2, faults=faults)
    # Replica 0 has given two tokens at 20 ms and a third at 30 ms, when it stops. The other has nothing to do from
    # 40 ms on; it gets the request at 30 + 40 = 70 ms, computes 5 + 3 tokens again, and gives the fourth.
    assert seconds(served, "finish_ps") == [0.08, 0.04]
    assert seconds(served, "first_token_ps") == [0.01, 0.01]
    assert seconds(served, "first_scheduled_ps") == [0.0, 0.0]
    assert served.table["replica"].tolist() == [1, 1]
    found = told(served, 2)
    assert found["events"] == [
        {"at_s": 0.025, "replica": 0, "device": 0, "kind": "fail", "for_s": 0.1, "factor": None}
        | {"took_effect_s": 0.03, "step": 3}
    ]
    assert (found["requeued"], found["recomputed_tokens"]) == (1, 7)
    assert found["down_replica_s"] == pytest.approx(0.05)  # from 30 ms to the end of the run at 80 ms
    assert found["availability"] == pytest.approx(1 - 0.05 / 0.16)
    gaps = summarize(served, Objectives(SloSpec()), Hardware(2)).document()["latency_s"]["itl"]
    assert (gaps["n"], gaps["mean"]) == (6, pytest.approx((5 * 0.01 + 0.05) / 6))


def test_requests_wait_at_the_router_while_no_replica_is_up() -> None:
    served = serve([(0.0, 5, 4), (0.05, 5, 1), (0.06, 5, 1)], faults=spec({**FAIL, "for_s": 0.1}))
    # All three are there when the replica is back at 125 ms, and are computed in one step.
    assert seconds(served, "finish_ps") == [0.135, 0.135, 0.135]
    assert seconds(served, "first_scheduled_ps") == [0.0, 0.125, 0.125]


def test_a_replica_that_never_comes_back_leaves_requests_unfinished() -> None:
    for deployment in (Deployment(), Deployment(control=Windows([10**13]))):
        served = serve([(0.0, 5, 4), (0.05, 5, 1)], faults=spec(FAIL), deployment=deployment)
        assert served.table["status"].tolist() == [WAITING, WAITING]
        assert served.table["emitted_tokens"].tolist() == [3, 0]
        # The step that was under way ended at 30 ms; the last request came at 50 ms, and nobody was there.
        assert served.end_s == 0.05
        assert told(served)["replicas_left"] is False
        assert told(served)["availability"] == pytest.approx(0.6)


@pytest.mark.parametrize("kind", ["fail", "leave"])
@pytest.mark.parametrize(("max_time_s", "end_s"), [(None, 2.0), (1.5, 1.5), (5.0, 5.0)])
def test_who_waits_in_vain_has_missed_the_slo(kind: str, max_time_s: float | None, end_s: float) -> None:
    """One request every 0.1 s, and nobody there from 0.45 s on."""
    requests = [(round(0.1 * i, 1), 5, 1) for i in range(21)]
    faults = spec({"at_s": 0.45, "replica": 0, "kind": kind})
    for deployment in (Deployment(), Deployment(control=Windows([10**14]))):
        served = serve(requests, faults=faults, max_time_s=max_time_s, deployment=deployment)
        found = summarize(served, Objectives(SloSpec(ttft_s=0.55)), Hardware(1)).document()
        assert served.end_s == end_s
        assert found["requests"]["finished"] == 5
        assert found["throughput"]["requests_per_s"] == pytest.approx(5 / end_s)
        assert found["slo"]["goodput_requests_per_s"] == pytest.approx(5 / end_s)
        waited = [end_s - at for at, *_ in requests[5:] if at < (max_time_s or 9)]
        missed = sum(wait > 0.55 for wait in waited)
        assert found["slo"]["attainment"] == pytest.approx(5 / (5 + missed))
        assert found["slo"]["censored"]["all"] == len(waited) - missed
        assert found["faults"]["availability"] == pytest.approx(0.45 / end_s if kind == "fail" else 1)


def test_a_run_that_serves_all_ends_with_its_last_step_whatever_fails_then() -> None:
    served = serve([(0.0, 5, 2)], faults=spec(FAIL), max_time_s=3.0)
    assert served.end_s == 0.02


def test_a_slow_device_slows_its_replica_from_step_boundary_to_step_boundary() -> None:
    slow = {"at_s": 0.015, "replica": 0, "kind": "slow", "factor": 2.5, "for_s": 0.05}
    served = serve([(0.0, 5, 6)], faults=spec(slow))
    # Steps end at 10, 20, 45, 70 (from 65 ms on it is as before), 80, 90 ms.
    assert seconds(served, "finish_ps") == [0.09]
    assert told(served)["slowdowns"] == [
        {"replica": 0, "first_step": 2, "factor": 2.5},
        {"replica": 0, "first_step": 4, "factor": 1.0},
    ]


def test_the_slowest_device_sets_the_pace() -> None:
    events = [{"at_s": 0, "replica": 0, "kind": "slow", "factor": f, "for_s": t} for f, t in ((2, 0.02), (3, 0.03))]
    served = serve([(0.0, 5, 2)], faults=spec(*events))
    assert seconds(served, "finish_ps") == [0.04]


def test_a_replica_that_leaves_finishes_what_runs() -> None:
    leave = {"at_s": 0.025, "replica": 0, "kind": "leave"}
    one_at_a_time = SchedulerSpec(max_num_seqs=1)
    served = serve([(0.0, 5, 4), (0.0, 5, 4), (0.01, 5, 4)], replicas=2, spec=one_at_a_time, faults=spec(leave))
    # The third request waits on replica 0 until that leaves at 30 ms, and then on the other.
    assert seconds(served, "finish_ps") == [0.04, 0.04, 0.08]
    assert served.table["replica"].tolist() == [0, 1, 1]
    found = told(served, 2)
    assert (found["requeued"], found["recomputed_tokens"], found["availability"]) == (1, 0, 1)


def test_two_faults_at_once_last_until_both_are_over() -> None:
    both = [{**FAIL, "for_s": 0.1}, {"at_s": 0.05, "replica": 0, "kind": "fail", "for_s": 0.2}]
    served = serve([(0.0, 5, 4)], faults=spec(*both))
    assert seconds(served, "finish_ps") == [0.26]
    assert told(served)["down_replica_s"] == pytest.approx(0.22)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"faults": spec({**FAIL, "replica": 3})}, r"^faults.events.0.replica: 3: there are 1, from 0 up"),
        ({"faults": spec({**FAIL, "device": 3})}, r"^faults.events.0.device: 3: a replica has 1, from 0 up"),
    ],
)
def test_faults_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        serve([(0.0, 5, 5)], **changes)


@pytest.mark.medium
def test_random_failures_have_the_mean_that_they_should() -> None:
    def times(devices: list[int], count: int, seed: int = 3) -> list[int]:
        faults = Faults(spec(mtbf_s=100.0, repair_s=10.0), devices, seed)
        found: list[int] = []
        while faults.next_fs is not None and len(found) < count:
            found.append(faults.next_fs)
            faults.due(faults.next_fs)
        return found

    found = times([2, 2], 8000)
    assert found == sorted(found)
    # Each of 4 devices fails and comes back once in 110 s in the mean.
    assert len(found) / 2 / 4 == pytest.approx(found[-1] / FS_PER_S / 110, rel=0.05)
    assert times([2, 2], 100) == found[:100]
    assert times([2, 2], 100, seed=4) != found[:100]
    assert set(found[:100]) < set(times([2, 2, 2], 300))  # devices have streams of their own


@dataclass
class Faulty:
    """A case on some replicas, with what happens to them."""

    case: Case
    replicas: int
    router: str
    interval_s: float
    faults: FaultSpec

    def run(self, deployment: Deployment = Deployment()) -> Run:  # noqa: B008 frozen
        return Run(
            *(self.case, self.replicas, self.router),
            report_interval_s=self.interval_s,
            deployment=deployment,
            faults=self.faults,
        )


def event_of(kind: str, at_ms: int, replica: int, for_ms: int | None, factor: float) -> dict[str, Any]:
    event: dict[str, Any] = {"kind": kind, "at_s": at_ms / 1000, "replica": replica}
    if for_ms is not None:
        event["for_s"] = for_ms / 1000
    if kind == "slow":
        event["factor"] = factor
    return event


_CASES = cases() | batching_cases()


@cache
def _events(replicas: int, *, ever: bool) -> st.SearchStrategy[list[dict[str, Any]]]:
    lasts = st.integers(1, 300)
    one = st.builds(
        event_of,
        st.sampled_from(["fail", "slow", "leave"]),
        st.integers(0, 500),
        st.integers(0, replicas - 1),
        st.none() | lasts if ever else lasts,
        st.sampled_from([1.001, 1.5, 2.0, 7.3]),
    )
    return st.lists(one, max_size=6)


@st.composite
def faulty(draw: st.DrawFn, of: st.SearchStrategy[Case] | None = None, *, ever: bool = True) -> Faulty:
    """Up to six faults within the first half second; with `ever`, of which some never end. Some are at random."""
    case = replace(draw(_CASES if of is None else of), concurrency=None)
    case.requests = [replace(r, arrival_fs=r.arrival_fs or 0) for r in case.requests]
    case.max_time_fs = None
    replicas = draw(st.integers(1, 3))
    events = draw(_events(replicas, ever=ever))
    more: dict[str, Any] = {"detection_s": draw(st.integers(0, 100)) / 1000}
    if draw(st.integers(0, 3)) == 3:
        more |= {"mtbf_s": draw(st.integers(5, 50)) / 10, "repair_s": draw(st.integers(1, 200)) / 1000}
    return Faulty(
        case=case,
        replicas=replicas,
        router=draw(ROUTERS),
        interval_s=draw(st.sampled_from([0.0, 0.05, 0.13])),
        faults=FaultSpec.model_validate({"events": events, **more}),
    )


@pytest.mark.medium
@examples(40)
@given(faulty(ever=False))
def test_requests_and_tokens_are_conserved(faulty: Faulty) -> None:
    run = faulty.run()
    table, summary = run.table, run.summary()
    counts = summary["requests"]
    assert counts["finished"] + counts["rejected"] == counts["total"] == len(faulty.case.requests)
    done = table[table["status"] == FINISHED]
    assert (done["emitted_tokens"] == done["output_tokens"]).all()
    assert sum(row.steps * row.outputs for row in run.all_rows()) == table["emitted_tokens"].sum()
    # Every gap between two tokens is a sample, those across failures too.
    logs = run.served.logs
    assert sum(log.itl.count for log in logs) == (done["output_tokens"] - 1).sum()
    lived = int((done["finish_ps"] - done["first_token_ps"]).sum()) * FS_PER_PS
    assert abs(sum(log.itl.state()["sum_fs"] for log in logs) - lived) <= 2 * FS_PER_PS * len(done)
    prefilled = sum(row.prefill_tokens for row in run.all_rows())
    assert prefilled >= done["input_tokens"].sum()
    if not summary.get("faults", {}).get("requeued") and not counts["preemptions"]:
        assert prefilled == done["input_tokens"].sum()


@pytest.mark.medium
@examples(30)
@given(faulty())
def test_nobody_is_lost_where_replicas_do_not_come_back(faulty: Faulty) -> None:
    run = faulty.run()
    counts = run.summary()["requests"]
    assert counts["finished"] + counts["rejected"] + counts["unfinished"] == counts["total"]
    assert sum(row.steps * row.outputs for row in run.all_rows()) == run.table["emitted_tokens"].sum()
    waiting = run.table[run.table["status"] == WAITING]
    assert (waiting["emitted_tokens"] < waiting["output_tokens"]).all()


@pytest.mark.medium
@examples(30)
@given(faulty())
def test_time_is_monotone_and_no_effect_comes_before_its_cause(faulty: Faulty) -> None:
    run = faulty.run()
    for replica, log in enumerate(run.served.logs):
        end = 0
        for begin, row in run.rows(replica):
            assert begin >= end
            end = begin + row.duration_fs
            assert 0 < row.blocks_begin <= row.blocks_end <= run.case.kv_blocks
        assert end == log.clock_fs
    for row in run.table:
        times = [row["arrival_ps"], row["first_scheduled_ps"], row["first_token_ps"], row["finish_ps"]]
        known = [time for time in times if time != NEVER]
        assert known == times[: len(known)] == sorted(known)
    found = run.summary().get("faults")
    if found is None:
        return
    for event in found["events"]:
        assert event["took_effect_s"] is None or event["took_effect_s"] >= event["at_s"]
    assert found["availability"] is None or 0 <= found["availability"] <= 1
    for replica, since, until in down_times(run.served):
        for begin, row in run.rows(replica):  # no step runs while its replica is down
            assert begin + row.duration_fs <= since or begin >= until


def down_times(served: Served) -> Sequence[tuple[int, int, int]]:
    assert served.faults is not None
    down: list[list[int]] = served.faults.state()["down"]
    return [(replica, since, until if until >= 0 else 2**200) for replica, since, until in down]


@pytest.mark.medium
@examples(30)
@given(faulty())
def test_the_recorded_slowdowns_give_the_steps_again(faulty: Faulty) -> None:
    run = faulty.run()
    case, exact = run.case, run.case.routing.mode == "exact"
    told_of = run.summary().get("faults", {"slowdowns": ()})["slowdowns"]
    pools = case.pools()
    for replica in range(faulty.replicas):
        normal = make_costs(case.plan, pools, replica=replica, seed=case.seed, exact=exact)
        step = 0
        for begin, row in run.rows(replica):
            factors = [each["factor"] for each in told_of if each["replica"] == replica and each["first_step"] <= step]
            costs = normal.slowed(round(1000 * (factors[-1] if factors else 1))).at(begin)
            single = expand(costs, SpanColumns(*(np.array([value]) for value in row)), np.array([step]))
            assert single.duration_fs.sum() == row.duration_fs
            step += row.steps


def test_a_fault_after_the_end_of_a_run_is_none_of_it() -> None:
    faults = FaultSpec.model_validate({"events": [{"kind": "fail", "at_s": 0.001, "replica": 0}]})
    for control in (None, Windows([1])):
        served = serve([], faults=faults, deployment=Deployment(control=control))
        figures = summarize(served, Objectives(SloSpec()), Hardware(1)).document()["faults"]
        assert (figures["events"], figures["replicas_left"]) == ([], True)


def test_a_fault_during_the_last_step_is_part_of_the_run_however_it_is_cut() -> None:
    """The request leaves at 20 ms, in a step that begins at 10; the other replica has had nothing to do since 10 ms."""
    last = {"at_s": 0.015, "replica": 0, "kind": "fail"}
    idle = {"at_s": 0.016, "replica": 1, "kind": "leave"}
    for control in (None, Windows([1]), Windows([11 * 10**12])):
        served = serve([(0.0, 5, 2)], replicas=2, faults=spec(last, idle), deployment=Deployment(control=control))
        found = told(served, 2)
        assert [event["took_effect_s"] for event in found["events"]] == [0.02, 0.016]
        assert (found["replicas_left"], found["requeued"], served.end_s) == (False, 0, 0.02)


def test_a_fault_while_requests_wait_in_vain_is_part_of_the_run_however_it_is_cut() -> None:
    for control in (None, Windows([1]), Windows([10**13])):
        faults = spec(FAIL, {"at_s": 0.04, "replica": 0, "kind": "slow", "factor": 2.0})
        served = serve([(0.0, 5, 4), (0.05, 5, 1)], faults=faults, deployment=Deployment(control=control))
        assert [event["kind"] for event in told(served)["events"]] == ["fail", "slow"]


@pytest.mark.medium
@examples(30)
@given(faulty(), LENGTHS)
def test_windows_and_shards_do_not_matter(faulty: Faulty, lengths: list[int]) -> None:
    alone = faulty.run()
    found = (spans(alone), digest(alone.served), alone.summary())
    spreads = [(1, Windows(lengths))]
    if faulty.interval_s or faulty.router in BLIND:
        spreads += [(2, None), (3, Windows(lengths))]
    for shards, control in spreads:
        deployment = Deployment(shards=spread(min(shards, faulty.replicas)), control=control)
        run = faulty.run(deployment)
        assert (spans(run), digest(run.served), run.summary()) == found


@pytest.mark.medium
@examples(30)
@given(faulty(), LENGTHS, st.integers(0, 1000))
def test_an_interrupted_run_goes_on_to_the_same_bits(faulty: Faulty, lengths: list[int], at: int) -> None:
    alone = faulty.run()
    _, continued = cut_and_continued(faulty.run, lengths, at)
    assert digest(continued.served) == digest(alone.served)
    assert continued.summary() == alone.summary()


@given(cases(), st.integers(1001, 9999), st.integers(1, 300), st.integers(0, 1000))
def test_a_slowed_plan_takes_that_much_longer(case: Case, thousandths: int, tokens: int, step: int) -> None:
    normal = make_costs(case.plan, case.pools(), replica=0, seed=case.seed, exact=False)
    slowed = normal.slowed(thousandths)
    paced = tokens, 20 * tokens, 0, tokens
    share = -(-tokens // case.plan.data_parallel)
    rows = (0, 0, 1, tokens, 20 * tokens, 0, 0, tokens, share, 0, 0, 0, 0, *paced, 1, 1, 0)
    one = SpanColumns(*(np.array([value]) for value in rows))
    before, after = (int(expand(costs, one, np.array([step])).duration_fs[0]) for costs in (normal, slowed))
    # Rounding is of single coefficients, by half a femtosecond each.
    assert after == pytest.approx(before * thousandths / 1000, rel=1e-6, abs=20 * 40 * tokens)
    if slowed.pools is not None and case.plan.micro_batches is None:
        prefix, at = slowed.experts_prefix(tokens, step)
        five, steps = each_step(one._replace(steps=np.array([5])).shape), np.arange(step, step + 5)
        features = slowed.experts_features(five, steps)
        assert prefix[at + 5] - prefix[at] == features[:, 0].sum()
        assert [slowed.experts_fs(tokens, number) for number in steps.tolist()] == features[:, 0].tolist()
        energy = slice(FEATURES.index("dram_pj"), None)
        assert (features[:, energy] == normal.experts_features(five, steps)[:, energy]).all()
