"""Replicas that join and leave while a run goes on: times by hand, and laws that hold whenever they do."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pimserve.device_models.pipeline import PassivePower
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.autoscaling import AutoscalingSpec
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import RunView
from pimserve.scheduler.faults import FaultEvent, FaultSpec
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .law_runs import BLIND, ROUTERS, Run
from .pool_runs import Pooled, hand_over, pooled
from .strategies import Case, cases
from .test_kv_tiers import tier
from .test_prefix_cache import load
from .test_prefix_cache import run as with_prefix_cache
from .test_simulation import PLAN, seconds, serve
from .test_windows import LENGTHS, Kept, Windows, spans, spread


def scaling(**rule: Any) -> AutoscalingSpec:
    return AutoscalingSpec.model_validate({"replicas": rule})


def changes(*sizes: tuple[float, int], **more: Any) -> AutoscalingSpec:
    return scaling(changes=[{"at_s": at, "replicas": size} for at, size in sizes], **more)


def told(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = summarize(served, Objectives(SloSpec()), Hardware(1)).document()["autoscaling"]
    return found


def test_a_replica_joins_after_its_start_up_and_leaves_when_it_has_nothing_more_to_do() -> None:
    requests = [(0.0, 5, 4), (0.04, 5, 4), (0.06, 5, 6), (0.06, 5, 6), (0.15, 5, 4)]
    served = serve(requests, replicas=2, autoscaling=changes((0.03, 2), (0.1, 1), start_up_s=0.02))
    # Decided at 30 ms, the second one takes requests from 50 ms on; at 100 ms it has to leave, and does so at 120 ms.
    assert sorted(served.table["replica"][2:4].tolist()) == [0, 1]
    assert served.table["replica"][[0, 1, 4]].tolist() == [0, 0, 0]
    assert seconds(served, "finish_ps") == [0.04, 0.08, 0.12, 0.12, 0.19]
    found = told(served)
    assert [(each["at_s"], each["before"], each["after"], each["metric"]) for each in found["decisions"]] == [
        (0.03, 1, 2, None),
        (0.1, 2, 1, None),
    ]
    assert found["replica_s"] == pytest.approx(0.19 + 0.09)
    assert found["mean_replicas"] == pytest.approx(0.28 / 0.19)
    assert (found["most_replicas"], found["requeued"]) == (2, 0)


def test_who_waits_on_a_replica_that_leaves_goes_to_another() -> None:
    one_at_a_time = SchedulerSpec(max_num_seqs=1)
    served = serve([(0.0, 5, 5)] * 4, replicas=2, autoscaling=changes((0.02, 1), start=2), spec=one_at_a_time)
    assert sorted(seconds(served, "finish_ps")) == [0.05, 0.05, 0.1, 0.15]
    assert told(served)["requeued"] == 1


def test_the_rule_is_that_of_the_horizontal_pod_autoscaler() -> None:
    rule = scaling(metric="requests", target=1, interval_s=0.05, tolerance=0, stabilization_s=0.1, start_up_s=0)
    served = serve([(0.0, 5, 20)] * 3 + [(0.4, 5, 1)], replicas=4, autoscaling=rule)
    # Three requests run until 200 ms. One is wanted from then on, but three were at 150 ms, which counts until 250 ms.
    decisions = [(each["at_s"], each["before"], each["after"], each["metric"]) for each in told(served)["decisions"]]
    assert decisions == [(0.05, 1, 3, 3.0), (0.25, 3, 1, 0.0)]


def test_near_the_target_nothing_is_done_and_those_that_start_count_as_empty() -> None:
    near = scaling(metric="requests", target=2.8, interval_s=0.05, stabilization_s=0)
    assert told(serve([(0.0, 5, 20)] * 3, replicas=4, autoscaling=near))["decisions"] == []
    slow = scaling(metric="requests", target=1, interval_s=0.05, start_up_s=10)
    found = told(serve([(0.0, 5, 20)] * 3, replicas=4, autoscaling=slow))
    assert [(each["at_s"], each["after"]) for each in found["decisions"]] == [(0.05, 3)]
    assert found["replica_s"] == pytest.approx(0.2 + 2 * 0.15)  # they draw power from their beginning


def test_a_latency_over_its_limit_asks_for_more_and_fewer() -> None:
    rule = scaling(metric="ttft_p50_s", interval_s=0.05, tolerance=0, stabilization_s=0, start_up_s=0)
    slo = SloSpec.model_validate({"ttft_p50_s": 0.02})
    requests = [(0.0, 5, 1)] * 4 + [(0.2, 5, 1)]
    served = serve(requests, replicas=4, autoscaling=rule, slo=slo, spec=SchedulerSpec(max_num_seqs=1))
    # First tokens at 10, 20, 30 and 40 ms: the second of four is at the limit, and one is enough. At 210 ms another one
    # took half of it. In between nobody was served, and nothing is done.
    assert told(served)["decisions"] == []
    stricter = SloSpec.model_validate({"ttft_p50_s": 0.008})
    served = serve(requests, replicas=4, autoscaling=rule, slo=stricter, spec=SchedulerSpec(max_num_seqs=1))
    decisions = [(each["at_s"], each["before"], each["after"], each["metric"]) for each in told(served)["decisions"]]
    assert decisions == [(0.05, 1, 3, 2.5)]
    relaxed = rule.model_copy(update={"replicas": rule.replicas.model_copy(update={"target": 1.25})})
    served = serve(requests, replicas=4, autoscaling=relaxed, slo=stricter, spec=SchedulerSpec(max_num_seqs=1))
    assert [(each["before"], each["after"]) for each in told(served)["decisions"]] == [(1, 2)]


def test_replicas_that_start_have_no_part_in_a_latency() -> None:
    rule = scaling(metric="ttft_p100_s", interval_s=0.05, tolerance=0, stabilization_s=0, start_up_s=0.06)
    slo = SloSpec.model_validate({"ttft_p100_s": 0.02})
    requests = [(0.0, 5, 1)] * 8
    served = serve(requests, replicas=4, autoscaling=rule, slo=slo, spec=SchedulerSpec(max_num_seqs=1))
    # 50 ms at first, then 80 ms of one that serves and two that start; four there may be.
    decisions = [(each["at_s"], each["before"], each["after"], each["metric"]) for each in told(served)["decisions"]]
    assert decisions == [(0.05, 1, 3, 2.5)]


def test_tpot_and_e2e_are_of_requests_that_have_ended() -> None:
    requests = [(0.0, 5, 3)] + [(0.005, 30, 9)] * 3
    for key, limit, metric in (("tpot_p100_s", 0.005, 2.0), ("e2e_p100_s", 0.01, 3.0)):
        rule = scaling(metric=key, interval_s=0.035, tolerance=0, stabilization_s=0, start_up_s=1)
        served = serve(requests, replicas=4, autoscaling=rule, slo=SloSpec.model_validate({key: limit}))
        first = told(served)["decisions"][0]
        assert (first["at_s"], first["metric"]) == (0.035, pytest.approx(metric))


def test_what_a_metric_by_slo_needs_is_told() -> None:
    rule = scaling(metric="ttft_p90_s")
    with pytest.raises(
        InputError, match=r"^autoscaling.replicas.metric: ttft_p90_s: give slo.ttft_p90_s; slo has no limit"
    ):
        serve([(0.0, 5, 1)], replicas=2, autoscaling=rule)
    slo = SloSpec.model_validate({"ttft_p99_s": 1.0})
    with pytest.raises(InputError, match=r"give slo.ttft_p90_s; slo has ttft_p99_s$"):
        serve([(0.0, 5, 1)], replicas=2, autoscaling=rule, slo=slo)
    for metric in ("itl_p99_s", "ttft_s", "latency", "ttft_p99"):
        with pytest.raises(ValidationError, match="must be requests, kv_usage, or a limit of slo at a percentile"):
            scaling(metric=metric)


def test_kv_usage_is_that_of_the_very_time() -> None:
    rule = scaling(metric="kv_usage", target=0.02, interval_s=0.105, tolerance=0, start_up_s=0)
    # In the step that begins at 100 ms a request of 40 tokens has 50, in 4 of 100 blocks, and in that at 90 ms in 4.
    found = told(serve([(0.0, 40, 20), (0.5, 5, 1)], replicas=4, autoscaling=rule))
    assert found["decisions"][0] == {"at_s": 0.105, "pool": "", "before": 1, "after": 2, "metric": 0.04}


def test_devices_draw_power_while_their_replica_is_there_and_no_longer() -> None:
    plan = replace(PLAN, passive=PassivePower(idle_uw=10**6, step_uw=10**6))
    requests = [(0.0, 5, 4), (0.15, 5, 4)]
    served = serve(requests, plan=plan, replicas=3, autoscaling=changes((0.03, 2), (0.1, 1), start_up_s=0.02))
    energy = summarize(served, Objectives(SloSpec()), Hardware(3)).energy
    assert told(served)["replica_s"] == pytest.approx(0.19 + 0.07)
    assert energy.passive_joules == pytest.approx(0.26)

    class Looks(Windows):
        drawn: float | None = None

        def ended(self, view: RunView) -> None:
            self.drawn = sum(
                ledger.passive_joules + ledger.idle_w * (view.now_fs - ledger.clock_fs) / FS_PER_S
                for ledger in view.ledgers()
                if ledger.passive_joules is not None
            )

    looks = Looks([10**13])
    serve(
        requests,
        plan=plan,
        replicas=3,
        autoscaling=changes((0.03, 2), (0.1, 1), start_up_s=0.02),
        deployment=Deployment(control=looks),
    )
    assert looks.drawn == pytest.approx(0.26)


def test_pools_change_their_sizes_one_by_one() -> None:
    rule = {"start": 1, "start_up_s": 0, "changes": [{"at_s": 0.02, "replicas": 2}]}
    served = hand_over(
        [(0.0, 10, 3), (0.03, 10, 3), (0.03, 10, 3)],
        replicas=2,
        autoscaling=AutoscalingSpec.model_validate({"prefill": rule}),
    )
    # Two prefill replicas compute the later ones side by side; their caches come one after the other.
    assert seconds(served, "first_token_ps") == [0.01, 0.04, 0.04]
    assert seconds(served, "finish_ps")[1:] == [0.075, 0.085]
    assert [each["pool"] for each in told(served)["decisions"]] == ["prefill"]


def failing(at_s: float, *replicas: int) -> FaultSpec:
    return FaultSpec(events=tuple(FaultEvent(at_s=at_s, replica=replica, kind="fail") for replica in replicas))


@pytest.mark.parametrize("metric", ["requests", "kv_usage"])
def test_a_spare_joins_for_one_that_failed_for_good(metric: str) -> None:
    rule = scaling(metric=metric, target=1, interval_s=0.05, start_up_s=0.01)
    served = serve([(0.0, 5, 10)], replicas=2, autoscaling=rule, faults=failing(0.02, 0))
    assert served.table["replica"].tolist() == [1]
    assert served.table["finish_ps"][0] > 0
    found = told(served)
    assert [(each["at_s"], each["before"], each["after"]) for each in found["decisions"]] == [(0.05, 0, 1)]
    assert found["most_replicas"] == 1


def test_a_stated_size_is_of_those_that_have_not_failed_for_good() -> None:
    served = serve(
        [(0.0, 5, 10)], replicas=3, autoscaling=changes((0.05, 3), start=2, start_up_s=0), faults=failing(0.02, 1)
    )
    assert [(each["before"], each["after"]) for each in told(served)["decisions"]] == [(1, 2)]


@pytest.mark.parametrize(
    ("rule", "failed"),
    [
        (changes((0.01, 1), start=1), (0,)),  # nothing brings the other one
        (scaling(metric="requests", target=1, interval_s=0.05), (0, 1)),
    ],
)
def test_a_run_ends_where_no_replica_will_come_back(rule: AutoscalingSpec, failed: tuple[int, ...]) -> None:
    for deployment in (Deployment(), Deployment(control=Windows([10**13]), checkpoints=Kept())):
        served = serve(
            [(0.0, 5, 10)] * 3, replicas=2, autoscaling=rule, faults=failing(0.015, *failed), deployment=deployment
        )
        assert served.table["finish_ps"].tolist() == [-1] * 3
        found = summarize(served, Objectives(SloSpec()), Hardware(1)).document()
        assert not found["faults"]["replicas_left"]


@pytest.mark.parametrize("tiers", [(), (tier(),)])
def test_a_replica_that_joins_again_has_nothing_cached(tiers: tuple[Any, ...]) -> None:
    rule = changes((1, 1), (2, 2), start=2, start_up_s=0)
    # In turn: the first two go to each replica, the last two after the second one was away.
    rows = [(0, 0, 2), (500, 0, 2), (3000, 0, 2), (4000, 0, 2)]
    of_run = {"replicas": 2, "autoscaling": rule}
    served = with_prefix_cache(load(rows), 400, run_settings=of_run, kv_tiers=tiers)
    assert sorted(served.table["replica"].tolist()) == [0, 0, 1, 1]
    assert served.prefixes is not None
    assert served.prefixes.hit_tokens == 40


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"decode": {"metric": "requests", "target": 1}},
            r"^autoscaling.decode: there is no such pool",
        ),
        ({}, r"^autoscaling: names no pool \(there are replicas\)"),
        (
            {"replicas": {"metric": "requests", "target": 1, "start": 3}},
            r"^autoscaling.replicas.start: 3: must",
        ),
        (
            {"replicas": {"min_replicas": 9, "metric": "requests", "target": 1}},
            r"^autoscaling.replicas.min_replicas: 9: must be from 1 to the 2 replicas there are",
        ),
        (
            {"replicas": {"min_replicas": 2, "changes": [{"at_s": 1, "replicas": 1}]}},
            r"^autoscaling.replicas.changes.0.replicas: 1: must be from 2 to the 2 replicas there are",
        ),
    ],
)
def test_what_does_not_go_with_the_replicas(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        serve([(0.0, 5, 5)], replicas=2, autoscaling=AutoscalingSpec.model_validate(spec))


def test_a_closed_loop_is_refused() -> None:
    with pytest.raises(InputError, match=r"^autoscaling: a closed loop has as many users"):
        serve([(0.0, 5, 5)], replicas=2, concurrency=1, autoscaling=changes((1, 2)))


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"metric": "requests"},
        {"target": 1},
        {"metric": "requests", "target": 1, "changes": [{"at_s": 1, "replicas": 1}]},
        {"changes": [{"at_s": 2, "replicas": 1}, {"at_s": 1, "replicas": 2}]},
        {"metric": "requests", "target": 0},
        {"metric": "requests", "target": 1, "interval_s": 1e-16},
        {"changes": [{"at_s": 0, "replicas": 1}, {"at_s": 1e-16, "replicas": 2}]},
    ],
)
def test_a_rule_is_one_rule(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        scaling(**rule)


@st.composite
def rules(draw: st.DrawFn, most: int) -> dict[str, Any]:
    """A rule of a pool of so many replicas, in times of tens of milliseconds."""
    ms = st.integers(0, 200)
    least = draw(st.integers(1, most))
    sizes = st.integers(least, most)
    rule: dict[str, Any] = {"min_replicas": least, "start": draw(sizes), "start_up_s": draw(ms) / 1000}
    if draw(st.booleans()):
        times = sorted(draw(st.sets(ms, min_size=1, max_size=4)))
        return {**rule, "changes": [{"at_s": at / 1000, "replicas": draw(sizes)} for at in times]}
    of_replicas = [("requests", 0.1), ("requests", 2.5), ("kv_usage", 0.1), ("kv_usage", 1)]
    of_slo = [("ttft_p90_s", 1), ("ttft_p50_s", 0.4), ("tpot_p50_s", 0.7), ("e2e_p99.9_s", 2)]
    metric, target = draw(st.sampled_from(of_replicas + of_slo))
    return {
        **rule,
        "metric": metric,
        "target": target,
        "interval_s": draw(st.integers(30, 200)) / 1000,
        "tolerance": draw(st.sampled_from([0.0, 0.1])),
        "stabilization_s": draw(ms) / 1000,
    }


# What steps cost is beside the point here, and plans with experts take most of the time of a case.
COSTS = st.sampled_from([PLAN, replace(PLAN, passive=PassivePower(idle_uw=10**6, step_uw=2 * 10**6))])


LIMITS = SloSpec.model_validate({"ttft_p90_s": 0.1, "ttft_p50_s": 0.02, "tpot_p50_s": 0.01, "e2e_p99.9_s": 0.3})


@dataclass
class Scaled:
    """A case on replicas that join and leave."""

    case: Case
    replicas: int
    router: str
    interval_s: float
    rule: AutoscalingSpec

    def run(self, deployment: Deployment = Deployment()) -> Run:  # noqa: B008 frozen
        how = {"report_interval_s": self.interval_s, "deployment": deployment, "autoscaling": self.rule, "slo": LIMITS}
        return Run(self.case, self.replicas, self.router, **how)


@st.composite
def scaled(draw: st.DrawFn) -> Scaled:
    case = replace(draw(cases(COSTS)), concurrency=None, max_time_fs=None)
    case.requests = [replace(r, arrival_fs=r.arrival_fs or 0) for r in case.requests]
    replicas = draw(st.integers(2, 3))
    rule = AutoscalingSpec.model_validate({"replicas": draw(rules(replicas))})
    return Scaled(case, replicas, draw(ROUTERS), draw(st.sampled_from([0.0, 0.03])), rule)


@examples(20)
@given(scaled())
def test_requests_tokens_and_replicas_are_conserved(scaled: Scaled) -> None:
    run = scaled.run()
    counts, table = run.summary()["requests"], run.table
    assert counts["finished"] + counts["rejected"] == counts["total"] == len(scaled.case.requests)
    assert sum(row.steps * row.outputs for row in run.all_rows()) == table["emitted_tokens"].sum()
    found, served = run.summary()["autoscaling"], run.served
    rule = scaled.rule.replicas
    assert rule is not None
    size = rule.start or rule.min_replicas
    for decision in found["decisions"]:
        assert decision["before"] == size != decision["after"]
        size = decision["after"]
        assert rule.min_replicas <= size <= scaled.replicas
    for log in served.logs:
        assert log.busy_fs <= served.end_fs - log.away_fs <= served.end_fs
    assert rule.min_replicas * served.end_s <= found["replica_s"] * (1 + 1e-12)
    assert found["replica_s"] <= scaled.replicas * served.end_s * (1 + 1e-12)


@pytest.mark.medium
@examples(10)
@given(scaled(), LENGTHS, st.integers(0, 1000))
def test_windows_shards_and_interruptions_do_not_matter(scaled: Scaled, lengths: list[int], at: int) -> None:
    alone = scaled.run()
    found = spans(alone), digest(alone.served), alone.summary()
    shards = scaled.replicas if scaled.interval_s or scaled.router in BLIND else 1
    kept = Kept()
    for deployment in (
        Deployment(control=Windows(lengths), checkpoints=kept),
        Deployment(shards=spread(shards), control=Windows([10**15])),
    ):
        run = scaled.run(deployment)
        assert (spans(run), digest(run.served), run.summary()) == found
    kept.first = at
    continued = scaled.run(Deployment(control=Windows([10**15]), checkpoints=kept))
    assert (digest(continued.served), continued.summary()) == found[1:]


@pytest.mark.medium
@examples(10)
@given(pooled(COSTS, max_time_fs=None), st.data(), LENGTHS)
def test_so_with_pools(pools: Pooled, data: st.DataObject, lengths: list[int]) -> None:
    sizes = {"prefill": pools.prefill, "decode": pools.decode.replicas}
    rule = AutoscalingSpec.model_validate({name: data.draw(rules(size)) for name, size in sizes.items()})
    alone = pools.run(autoscaling=rule, slo=LIMITS)
    counts = alone.summary()["requests"]
    assert counts["finished"] + counts["rejected"] == counts["total"]
    assert alone.summary()["pools"]["handover"]["lost"] == 0
    done = alone.table[alone.table["finish_ps"] >= 0]
    gaps = sum(log.itl.state()["sum_fs"] for log in alone.served.logs)
    assert abs(gaps - int((done["finish_ps"] - done["first_token_ps"]).sum()) * FS_PER_PS) <= 2 * FS_PER_PS * len(done)
    run = pools.run(Deployment(shards=spread(2), control=Windows(lengths)), autoscaling=rule, slo=LIMITS)
    assert (spans(run), digest(run.served), run.summary()) == (spans(alone), digest(alone.served), alone.summary())
