"""Figures of runs on a device whose every step takes 10 ms, worked out by hand or from the request table."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.experts import ExpertTerm, ExpertUnit
from pimserve.device_models.pipeline import Load, PassivePower, PipelineTerm, Station
from pimserve.device_models.plan import HOST, CostPlan, DecodeAttentionTerm, Energy, RowTerm
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.distributions import distribution, percentile
from pimserve.scheduler.fleet import Pool
from pimserve.scheduler.outcomes import CENSORED, outcomes
from pimserve.scheduler.requests import REJECTED, SERVABLE, WAITING
from pimserve.scheduler.simulation import Served, simulate
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware

from .summaries import LAYERS, NO_LIMITS, PLAN, serve, summary

NOT_SHED = {"queue_full": 0, "predicted_ttft": 0}
FEW = {"few_samples": ["p50", "p90", "p99"]}


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.sampled_from([0.1, 1, 50, 90, 99, 100]))
def test_percentile_is_the_smallest_value_with_that_share_at_or_below(values: list[float], percent: float) -> None:
    found = percentile(np.sort(np.array(values)), percent)
    need = math.ceil(percent / 100 * len(values))
    assert found in values
    assert sum(value <= found for value in values) >= need
    assert sum(value < found for value in values) < need


def test_distribution_tells_how_many_samples_it_has() -> None:
    found = distribution(np.array([3.0, 1.0, 2.0, 10.0])).document()
    assert found == {"mean": 4.0, "p50": 2.0, "p90": 10.0, "p99": 10.0, "n": 4, **FEW}
    assert distribution(np.zeros(0)).document() == {
        "mean": None,
        **dict.fromkeys(["p50", "p90", "p99"]),
        "n": 0,
    }


def test_latencies() -> None:
    # The first arrives at once; the second during the first step, which it waits for; the third has one token.
    found = summary([(0.0, 5, 5), (0.005, 5, 11), (0.2, 5, 1)])["latency_s"]
    assert all(latency.pop("few_samples") == FEW["few_samples"] for latency in found.values())
    ttft, e2e = [0.01, 0.015, 0.01], [0.05, 0.115, 0.01]
    none = {"censored": 0}
    assert found["ttft"] == pytest.approx(
        {"mean": np.mean(ttft), "p50": 0.01, "p90": 0.015, "p99": 0.015, "n": 3, "censored": 0}
    )
    assert found["e2e"] == pytest.approx(
        {"mean": np.mean(e2e), "p50": 0.05, "p90": 0.115, "p99": 0.115, "n": 3, "censored": 0}
    )
    assert found["queue"] == pytest.approx(
        {"mean": 0.005 / 3, "p50": 0.0, "p90": 0.005, "p99": 0.005, "n": 3, "censored": 0}
    )
    assert found["tpot"] == pytest.approx({"mean": 0.01, "p50": 0.01, "p90": 0.01, "p99": 0.01, "n": 2, **none})
    assert found["itl"] == pytest.approx({"mean": 0.01, "p50": 0.01, "p90": 0.01, "p99": 0.01, "n": 14}, rel=2**-12)


def test_throughput_counts_what_happens_inside_the_window() -> None:
    requests = [(float(i), 5, 150) for i in range(11)]  # each takes 1.5 s
    found = summary(requests, warmup_s=2.0, cooldown_s=3.0)
    assert found["window"] == {"start_s": 2.0, "end_s": 7.0, "length_s": 5.0, "whole_run": False}
    assert found["requests"]["measured"] == found["requests"]["measured_finished"] == 5  # 2 to 6
    # Inside the window those finish that came at 1 to 5; they are not those that are measured.
    assert found["throughput"]["requests_per_s"] == 1.0
    assert found["throughput"]["output_tokens_per_s"] == 150.0
    assert found["throughput"]["output_tokens_per_s_per_device"] == 75.0
    assert found["latency_s"]["e2e"]["n"] == 5
    whole = summary(requests)
    assert whole["window"] == {"start_s": 0.0, "end_s": 11.5, "length_s": 11.5, "whole_run": True}
    assert whole["requests"]["measured"] == 11
    assert whole["throughput"]["output_tokens_per_s"] == pytest.approx(11 * 150 / 11.5)
    assert whole["tokens"] == {"prompt": 55, "prompt_rejected": 0, "output": 1650, "output_in_window": 1650}


def test_who_arrives_in_the_window_is_followed_beyond_it() -> None:
    found = summary([(0.0, 5, 5), (2.0, 5, 500), (4.0, 5, 5)], warmup_s=1.0, cooldown_s=1.0)
    assert found["window"]["end_s"] == 3.0
    assert found["requests"]["measured_finished"] == 1
    assert found["latency_s"]["e2e"]["mean"] == pytest.approx(5.0)
    assert found["throughput"]["requests_per_s"] == 0.0


def test_unfinished_and_rejected_requests_are_misses() -> None:
    # Done in time; too slow; too long for the device; still running when the run stops.
    requests = [(0.0, 5, 10), (0.0, 5, 60), (0.1, 1600, 5), (0.5, 5, 600)]
    limits = SloSpec(e2e_s=0.2)
    found = summary(requests, limits, max_time_s=1.0)
    assert [found["requests"][key] for key in ("finished", "rejected", "unfinished")] == [2, 1, 1]
    assert found["slo"]["limits"] == {"e2e_s": 0.2}
    assert found["slo"]["met"] == {"e2e": 0.25}
    assert found["slo"]["attainment"] == 0.25
    assert found["slo"]["attainment_of_completed"] == 0.5
    assert found["slo"]["goodput_requests_per_s"] == 1.0
    assert found["tokens"]["output"] == 10 + 60 + 50


def test_who_is_cut_off_is_censored_where_a_limit_had_not_passed() -> None:
    # Of three at once one finishes; one has tokens, and one waits for the others: two run at a time.
    requests = [(0.0, 5, 20), (0.0, 5, 200), (0.0, 5, 150)]
    spec = SchedulerSpec(max_num_seqs=2)

    def slo(limits: SloSpec, stop_s: float) -> dict[str, Any]:
        found = summary(requests, limits, spec=spec, max_time_s=stop_s)
        return {key: found["slo"][key] for key in ("met", "known", "censored", "attainment")}

    assert slo(SloSpec(ttft_s=0.5), 0.1) == {  # before the third has its first token
        "met": {"ttft": 1},
        "known": {"ttft": 2, "all": 2},
        "censored": {"ttft": 1, "all": 1},
        "attainment": 1,
    }
    assert slo(SloSpec(ttft_s=0.05), 0.1)["known"] == {"ttft": 3, "all": 3}  # which is too late by then
    assert slo(SloSpec(ttft_s=0.05), 0.1)["met"] == {"ttft": pytest.approx(2 / 3)}
    both = slo(SloSpec(ttft_s=0.5, tpot_s=0.02), 1.0)
    assert both["known"] == {"ttft": 3, "tpot": 1, "all": 1}
    assert both["censored"] == {"ttft": 0, "tpot": 2, "all": 2}
    assert both["attainment"] == 1
    # 0.24 s of decoding are more than 1 ms for each of the 199 gaps that there would be.
    assert slo(SloSpec(tpot_s=0.001), 0.25)["known"]["tpot"] == 2
    assert slo(SloSpec(e2e_s=5), 1.0)["censored"] == {"e2e": 2, "all": 2}
    assert slo(SloSpec(e2e_s=0.5), 1.0) == {
        "met": {"e2e": pytest.approx(1 / 3)},
        "known": {"e2e": 3, "all": 3},
        "censored": {"e2e": 0, "all": 0},
        "attainment": pytest.approx(1 / 3),
    }
    nothing = slo(SloSpec(e2e_s=5), 0.1)
    assert (nothing["met"], nothing["attainment"]) == ({"e2e": None}, None)
    left_out = summary(requests, spec=spec, max_time_s=0.1)["latency_s"]
    assert {key: each.get("censored") for key, each in left_out.items()} == {
        **{"ttft": 1, "tpot": 3, "itl": None, "e2e": 3},
        "queue": 1,
    }
    assert left_out["ttft"]["n"] == 2


@given(
    requests=st.lists(
        st.tuples(st.integers(0, 300), st.sampled_from([5, 40, 1600]), st.integers(1, 60)), min_size=1, max_size=12
    ),
    stop_ms=st.integers(301, 1200),
    limits=st.fixed_dictionaries(
        {name: st.sampled_from([None, 0.012, 0.1, 0.5]) for name in ("ttft_s", "tpot_s", "e2e_s")}
    ),
)
def test_what_is_known_when_a_run_is_cut_is_what_comes_of_it(
    requests: list[tuple[int, int, int]], stop_ms: int, limits: dict[str, float | None]
) -> None:
    requests.sort()
    timed = [(ms / 1000, prompt, output) for ms, prompt, output in requests]
    slo = SloSpec(**limits)
    spec = SchedulerSpec(max_num_seqs=2)

    def outcomes_of(served: Served) -> dict[str, Any]:
        return outcomes(served.latencies(np.ones(len(timed), np.bool_)), Objectives(slo))

    cut, whole = serve(timed, spec=spec, max_time_s=stop_ms / 1000), serve(timed, spec=spec)
    found, later = outcomes_of(cut), outcomes_of(whole)
    assert set(found) == {name.removesuffix("_s") for name in slo.limits()} | ({"all"} if slo.limits() else set())
    for name, each in found.items():
        known = each != CENSORED
        assert (later[name] != CENSORED).all()
        assert each[known].tolist() == later[name][known].tolist()
        assert known[cut.table["status"] != WAITING].all()
    for table in (cut.table, whole.table):
        assert ((table["reject_reason"] != SERVABLE) == (table["status"] == REJECTED)).all()


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 50)), min_size=1, max_size=20), st.integers(20, 300))
def test_requests_are_rejected_for_a_reason(lengths: list[tuple[int, int]], most: int) -> None:
    served = serve([(0.0, *each) for each in lengths], max_model_len=most, kv_capacity_tokens=160)
    found = summarize(served, Objectives(NO_LIMITS), Hardware(1)).document()
    longer = [prompt for prompt, _ in lengths if prompt >= min(most, 160)]
    assert found["requests"]["rejected_by_reason"] == {
        "max_model_len": sum(prompt >= most for prompt in longer),
        "kv_cache": sum(prompt < most for prompt in longer),
        **NOT_SHED,
    }
    assert found["tokens"]["prompt_rejected"] == sum(longer)
    assert served.limits_tokens == {"max_model_len": most, "kv_cache": 160}


def test_a_good_request_meets_every_limit() -> None:
    # The second waits 5 ms for the step in which it comes; one token has no TPOT.
    requests = [(0.0, 5, 3), (0.015, 5, 3), (1.0, 5, 1)]
    for limits, attainment in (
        (SloSpec(ttft_s=0.01, tpot_s=0.01), 2 / 3),
        (SloSpec(ttft_s=0.015, tpot_s=0.01), 1.0),  # a limit is met when it is just reached
        (SloSpec(ttft_s=1, tpot_s=0.0099), 1 / 3),
        (SloSpec(ttft_s=0.012, e2e_s=0.02), 1 / 3),
    ):
        assert summary(requests, limits)["slo"]["attainment"] == pytest.approx(attainment)
    found = summary(requests, SloSpec(ttft_s=0.012, e2e_s=0.02))["slo"]
    assert found["met"] == pytest.approx({"ttft": 2 / 3, "e2e": 1 / 3})
    none = summary(requests)["slo"]
    assert none["met"] == {}
    assert (none["attainment"], none["attainment_of_completed"], none["goodput_requests_per_s"]) == (None, None, None)


def test_energy_batch_and_kv() -> None:
    found = summary([(0.0, 8, 3), (0.1, 16, 1)], kv_capacity_tokens=160)
    # 4 steps of 5 J; 8 + 2 + 16 tokens of 1 J in memory and 2 J in compute.
    assert found["energy"]["joules_by_category"]["fc"] == {"dram": 4 * 5 + 26, "compute": 52}
    assert found["energy"]["joules"] == 98
    assert found["energy"]["joules_per_output_token"] == 98 / 4
    assert found["batch"] == {"mean_requests": 1.0, "steps": 4, "decode_only_share": 0.5}
    # One block of ten in use for four steps of 10 ms, of 110 ms.
    assert found["kv"] == pytest.approx({"capacity_tokens": 160, "mean_use": 0.1 * 4 / 11, "peak_use": 0.1})
    assert found["busy_share"] == pytest.approx(4 / 11)
    assert found["unit_busy_share"]["xpu"] == pytest.approx(4 / 11)
    assert found["time_share"]["fc"] == 1.0


def test_the_host_takes_time_by_requests_and_launches_by_what_runs() -> None:
    ms = 10**12
    host = RowTerm("host", "step", HOST, "requests", ((2 * ms, ms),))
    launches = [
        RowTerm("launch", "attention_prefill", "xpu", "prompts", ((3 * ms, 0),)),
        RowTerm("launch", "attention_decode", "xpu", "decodes", ((4 * ms, 0),), Energy(7 * ms, 0, ms)),
    ]
    plan = replace(PLAN, rows=(*PLAN.rows, host, *launches))
    # A prompt beside nothing, two prompts beside a decoding request, three decode steps of three, two and two requests.
    found = summary([(0.0, 5, 5), (0.001, 5, 4), (0.001, 5, 4)], plan=plan)
    device, by_host = [13, 17, 14, 14, 14], [3, 5, 5, 5, 5]
    total = sum(device) + sum(by_host)
    assert found["end_s"] == pytest.approx(total * 1e-3)
    assert found["unit_busy_share"] == pytest.approx(
        {"xpu": sum(device) / total, "link": 0, "host": sum(by_host) / total}
    )
    share = {
        "fc": 50,
        "attention_prefill": 6,
        "attention_decode": 16,
        "moe": 0,
        "communication": 0,
        "step": sum(by_host),
    }
    assert found["time_share"] == pytest.approx({category: time / total for category, time in share.items()})
    energy = found["energy"]["joules_by_category"]
    assert energy["attention_decode"] == {"dram": 4 * 7, "compute": 1 + 3 + 3 + 3}
    assert energy["step"] == {"dram": 0, "compute": 0}


def test_the_busiest_device_of_a_pipeline_and_of_groups_of_experts() -> None:
    ms = 10**12
    pipeline = PipelineTerm(
        *((None,), (("fc", 10 * ms),), (0,), (Station("tiles", "fc", 0, 0, 0, (0,)),), 0, 0, "fc"),
        loads=(Load("tiles", ms, ms, 0, (0,)),),
        device_loads=(Load("tiles", 2 * ms, 0, 0, (0,)), Load("tiles", 0, 2 * ms, 0, (0,))),
    )
    plan = replace(PLAN, devices=2, units=("tiles",), rows=(), pipeline=pipeline)
    # A prompt of five tokens and three decode steps: 8 tokens, 4 outputs, 40 ms.
    found = summary([(0.0, 5, 4)], plan=plan)
    assert found["unit_busy_share"] == {"tiles": pytest.approx(12 / 40)}
    assert found["unit_busy_share_of_busiest_device"] == {"tiles": pytest.approx(16 / 40)}
    # Four experts, of which each token takes one, on two devices: one token keeps one device busy and not the other.
    experts = ExpertTerm(1, 4, 1, 2, 1, (ExpertUnit("xpu", (((3 * ms, 0),),), (0, 0), 0, 0, 0),), "first")
    found = summary([(0.0, 1, 4)], plan=replace(PLAN, devices=2, experts=experts))
    assert found["unit_busy_share"]["xpu"] == pytest.approx((10 + 3 / 2) / 13)
    assert found["unit_busy_share_of_busiest_device"]["xpu"] == 1  # to the femtosecond
    assert found["unit_busy_share_of_busiest_device"]["link"] == found["unit_busy_share"]["link"]


def test_a_pipeline_waits_for_the_host_and_rests_meanwhile() -> None:
    ms = 10**12
    pipeline = PipelineTerm((None,), (("fc", 10 * ms),), (0,), (Station("tiles", "fc", 0, 0, 0, (0,)),), 0, 0, "fc", ())
    plan = replace(PLAN, units=("tiles",), rows=(), pipeline=pipeline, passive=PassivePower(10**6, 3 * 10**6))
    host = RowTerm("host", "step", HOST, "requests", ((4 * ms, ms),))
    requests = [(0.0, 5, 4)]
    alone, beside = (summary(requests, plan=each) for each in (plan, replace(plan, rows=(host,))))
    assert (alone["end_s"], beside["end_s"]) == (0.04, 0.06)
    assert alone["unit_busy_share"] == alone["unit_busy_share_of_busiest_device"] == {"tiles": 0}
    assert beside["unit_busy_share"] == {"tiles": 0, "host": pytest.approx(1 / 3)}
    assert beside["time_share"]["step"] == pytest.approx(1 / 3)
    assert alone["energy"]["passive_joules"] == pytest.approx(3 * 0.04)
    assert beside["energy"]["passive_joules"] == pytest.approx(3 * 0.04 + 1 * 0.02)


def test_replicas_pool_their_samples() -> None:
    requests = [(i * 0.001, 5, 5 + 10 * (i % 2)) for i in range(8)]
    found = summary(requests, replicas=2)
    # The second replica gets the long ones.
    assert found["latency_s"]["itl"]["n"] == 4 * 4 + 4 * 14
    assert found["kv"]["capacity_tokens"] == 2 * 16000
    assert 0.5 < found["busy_share"] < 1


def test_preemptions_are_counted_and_their_gap_is_a_time_between_tokens() -> None:
    found = summary([(0.0, 16, 30), (0.0, 16, 30)], kv_capacity_tokens=64, spec=SchedulerSpec(), max_model_len=64)
    assert found["requests"]["preempted"] == found["requests"]["preemptions"] == 1
    assert found["latency_s"]["itl"]["n"] == 2 * 29
    # The second is held up from its 17th token until the first has all its 30.
    assert summary([(0.0, 16, 30)] * 2)["latency_s"]["itl"]["p99"] == pytest.approx(0.01, rel=2**-12)
    assert found["latency_s"]["itl"]["p99"] == pytest.approx(0.15, abs=0.03)


def test_a_run_in_which_nothing_is_served() -> None:
    found = summary([(0.0, 1600, 5), (1.0, 1600, 5)], SloSpec(ttft_s=1))
    assert found["requests"]["rejected"] == 2
    assert found["slo"]["attainment"] == 0.0
    assert found["throughput"]["output_tokens_per_s"] in {None, 0.0}
    assert found["latency_s"]["ttft"]["n"] == 0
    assert found["stability"] == "too short to tell"
    assert found["requests"]["rejected_by_reason"] == {"max_model_len": 2, "kv_cache": 0, **NOT_SHED}
    assert (found["tokens"]["prompt"], found["tokens"]["prompt_rejected"]) == (0, 3200)


def test_a_closed_loop_is_trimmed_at_both_ends() -> None:
    workload = Workload(np.zeros(20, np.int64), np.full(20, 5), np.full(20, 10), 4, None, "", 0, {})
    for warmup, measured in ((0.0, 20), (1e-9, 12)):
        served = simulate([Pool("", PLAN, 1600)], workload, SchedulerSpec(), max_model_len=1600, warmup_s=warmup)
        # Of 20 the first 4 are sent before the window, and the last 4 when it ends.
        assert summarize(served, Objectives(NO_LIMITS), Hardware(1)).requests.measured == measured


def test_replicas_of_a_closed_loop_add_up_their_own_rates() -> None:
    # A client on each of three replicas, a token in every 10 ms; a fourth replica has none. The requests of replicas
    # take 0.1, 0.2 and 0.3 s, so the windows end at 0.9, 1.8 and 2.7 s.
    requests = [(0.0, 5, 10 * (1 + i % 3)) for i in range(30)]
    found = summary(requests, SloSpec(e2e_s=0.25), concurrency=3, replicas=4, warmup_s=0.05)
    assert (found["window"]["start_s"], found["window"]["end_s"]) == (0.05, 0.9)
    assert found["throughput"]["output_tokens_per_s"] == pytest.approx(300)
    # Each sends its second to ninth request and sees the first to eighth finish.
    rates = [8 / 0.85, 8 / 1.75, 8 / 2.65]
    assert found["requests"]["measured"] == 24
    assert found["throughput"]["requests_per_s"] == pytest.approx(sum(rates))
    assert found["slo"]["goodput_requests_per_s"] == pytest.approx(sum(rates[:2]))
    whole = summary(requests, concurrency=3, replicas=4)
    assert whole["throughput"]["output_tokens_per_s"] == pytest.approx(600 / 3.0)


def test_requests_that_wait_when_a_closed_loop_stops_are_of_their_replica() -> None:
    # One runs at a time. The first replica sends its last at 0.05 s, the second at 0.1 s: that waits until the stop.
    requests = [(0.0, 5, 5), (0.0, 5, 10)] * 3
    spec = SchedulerSpec(max_num_seqs=1)
    served = serve(requests, spec=spec, concurrency=4, replicas=2, warmup_s=0.01, max_time_s=0.15)
    assert served.ends_fs == (5 * 10**13, 10**14)
    assert served.table["replica"].tolist() == [0, 1, 0, 1, 0, 1]


def test_only_requests_that_came_and_were_not_rejected_bring_tokens_or_are_cut() -> None:
    spec = SchedulerSpec(max_num_seqs=1)
    requests = [(0.0, 5, 10), (0.0, 1600, 5), (0.0, 7, 1600), (0.0, 9, 1600), (0.0, 11, 1600)]
    found = summary(requests, spec=spec, concurrency=2, max_time_s=0.05)
    # One runs; the second is turned away, for which the third comes and waits.
    assert found["requests"]["total"] == 3
    assert found["requests"]["truncated"] == 1
    assert found["tokens"]["prompt"] == 5 + 7
    every = summary(requests)
    assert every["requests"]["truncated"] == 3
    assert every["tokens"]["prompt"] == 5 + 7 + 9 + 11


def test_digest_covers_steps_and_requests() -> None:
    requests = [(0.0, 5, 5), (0.5, 5, 5)]
    one = digest(serve(requests))
    assert digest(serve(requests)) == one
    assert digest(serve([(0.0, 5, 5), (0.6, 5, 5)])) != one  # the same steps, at another time
    slower = CostPlan(2, 1, ("xpu",), (RowTerm("layers", "fc", "xpu", "tokens", ((10**13 + 1, 0),)),), (), (), None)
    assert digest(serve(requests, plan=slower)) != one  # the same request table, to the picosecond, or nearly
    attention = DecodeAttentionTerm("xpu", None, 1, 0, 0)
    assert digest(serve(requests, plan=CostPlan(2, 1, ("xpu",), (LAYERS,), (attention,), (), None))) != one
