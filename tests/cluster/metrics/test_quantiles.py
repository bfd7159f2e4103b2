"""What Prometheus reads from histograms, what GetLatencies says and what the summary says are the same quantiles."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pimserve.cluster.client import answers
from pimserve.cluster.metrics.buckets import E2E, ITL, SECONDS, SECONDS_FROM, SECONDS_TO, TTFT
from pimserve.cluster.metrics.collector import registry
from pimserve.cluster.metrics.families import FAMILIES
from pimserve.cluster.metrics.feed import MetricsFeed, RequestMetrics
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.metrics.vllm import VLLM_FAMILIES, as_vllm
from pimserve.cluster.run.live_control import LiveControl
from pimserve.cluster.run.running_latencies import RunningLatencies
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.service.messages import latencies_of
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.percentiles import nearest_place
from pimserve.scheduler.requests import FINISHED, RequestTable
from pimserve.scheduler.simulation import Deployment
from pimserve.scheduler.window import MeasuredWindow
from tests.cluster.documents import serve
from tests.examples import examples

EXAMPLES = Path(__file__).parents[3] / "examples"
WITHIN = 0.10
PERCENTS = (1, 10, 50, 90, 99, 99.9, 100)
NAMES = {
    "ttft": "time_to_first_token_seconds",
    "tpot": "time_per_output_token_seconds",
    "itl": "inter_token_latency_seconds",
    "e2e": "e2e_request_latency_seconds",
    "queue": "request_queue_time_seconds",
}
# Llama-3.1-8B in 16 GB with next to no room for KV caches: requests queue for minutes and are preempted (a case of the
# field's: exact TTFT p90 251 s, which vLLM's own bounds of 160 and 640 s make 528 s).
PREEMPTIONS = [
    "model=llama-3.1-8b",
    "cluster={device: {preset: h100, memory_gb: 16.186351616}, devices_per_node: 1}",
    "scheduler={memory_utilization: 1.0}",
    "workload={num_requests: 200, arrival: {process: poisson, rate_per_s: 2000}, lengths: {"
    "input: {kind: normal, mean: 512, std: 128, min: 64, max: 900}, "
    "output: {kind: normal, mean: 256, std: 64, min: 8, max: 512}}}",
]
RUNS = {
    "whole run": (None, ["cluster.replicas=2"]),
    "warm-up and cool-down": (None, ["run={warmup_s: 3, cooldown_s: 5}"]),
    "overloaded": (None, ["workload.arrival.rate_per_s=300", "run.warmup_s=0.3"]),
    "pools": ("prefill_decode_pools", ["run={warmup_s: 2}"]),
    "closed loop": ("closed_loop", ["cluster.replicas=3", "run.warmup_s=1"]),
    "faults": ("faults", []),
    "minutes in the queue, preempted": (None, PREEMPTIONS),
    "cut off": (None, ["workload.arrival.rate_per_s=300", "run.max_time_s=0.9"]),
}


def histogram_quantile(q, bounds, cumulative):
    """As Prometheus computes it (promql/quantile.go, bucketQuantile), of bounds that end with +Inf."""
    rank = q * cumulative[-1]
    at = next((index for index, count in enumerate(cumulative[:-1]) if count >= rank), len(bounds) - 1)
    if at == len(bounds) - 1:
        return bounds[-2]
    begin, before = (bounds[at - 1], cumulative[at - 1]) if at else (0.0, 0)
    return begin + (bounds[at] - begin) * ((rank - before) / (cumulative[at] - before))


def scraped(families, metrics, name):
    """Bounds and cumulative counts of a family, summed over its series, as a scrape has them."""
    text = generate_latest(registry(families, lambda: [metrics])).decode()
    found = next(family for family in text_string_to_metric_families(text) if family.name == name)
    buckets = {}
    for sample in found.samples:
        if sample.name == f"{name}_bucket":
            bound = float(sample.labels["le"])
            buckets[bound] = buckets.get(bound, 0) + sample.value
    return list(buckets), list(buckets.values())


def run_live(example, overrides):
    path = None if example is None else EXAMPLES / f"{example}.yaml"
    prepared = prepare(load_scenario(path, ["workload.num_requests=300", *overrides]))
    slo, frontend_ps = prepared.scenario.slo, prepared.frontend_ps
    feed = MetricsFeed(metrics_of(prepared, "r"), Objectives(slo), frontend_ps=frontend_ps)
    control = LiveControl(RunningLatencies(Objectives(slo), frontend_ps=frontend_ps), observer=feed)
    summary, _ = serve(prepared, deployment=Deployment(control=control))
    return summary, answers.latencies(latencies_of(control.snapshot, control.latencies, ())), feed.latest()


@pytest.mark.medium
@pytest.mark.parametrize("name", RUNS)
def test_prometheus_the_service_and_the_summary_agree(name):
    summary, told, metrics = run_live(*RUNS[name])
    assert set(told.latencies) == set(NAMES)
    for latency, family in NAMES.items():
        exact, live = summary["latency_s"][latency], told.latencies[latency]
        bounds, cumulative = scraped(FAMILIES, metrics, f"pimserve_{family}")
        assert live.count == cumulative[-1] == exact["n"] > 0, latency
        assert live.mean_s == pytest.approx(exact["mean"], rel=1e-9, abs=1e-12), latency
        for percent in (50, 90, 99):
            value = exact[f"p{percent}"]
            assert live.percentiles[percent] == pytest.approx(value, rel=2**-11, abs=2e-12), (latency, percent)
            read = histogram_quantile(percent / 100, bounds, cumulative)
            assert read == pytest.approx(value, rel=WITHIN, abs=SECONDS_FROM), (latency, percent)
    window = summary["window"]
    assert told.measured_from_s == window["start_s"]
    assert told.measured_until_s in (None, pytest.approx(window["end_s"], rel=1e-12))
    # A closed loop with a warm-up ends its windows by itself: no time is set for it.
    assert (told.measured_until_s is None) == (window["whole_run"] or name == "closed loop")


def test_minutes_in_the_queue_are_read_as_such():
    summary, _, metrics = run_live(None, PREEMPTIONS)
    assert summary["requests"]["preemptions"] > 20
    assert summary["latency_s"]["ttft"]["p90"] > 200
    read = histogram_quantile(0.9, *scraped(FAMILIES, metrics, "pimserve_time_to_first_token_seconds"))
    assert read == pytest.approx(summary["latency_s"]["ttft"]["p90"], rel=WITHIN)
    coarse = histogram_quantile(0.9, *scraped(VLLM_FAMILIES, as_vllm(metrics), "vllm:time_to_first_token_seconds"))
    assert coarse > 1.5 * summary["latency_s"]["ttft"]["p90"]  # by vLLM's own bounds, 160 and 640 s


@pytest.mark.parametrize("bounds", [SECONDS, TTFT, ITL, E2E])
def test_bounds_are_as_dense_as_their_derivation_says(bounds):
    dense = [bound for bound in bounds if SECONDS_FROM <= bound <= SECONDS_TO]
    assert (dense[0], dense[-1]) == (SECONDS_FROM, SECONDS_TO)
    assert dense[0] <= 0.0002
    # The sample just above a bound, by as much as a histogram of gaps may err, and the next bound that is read for it.
    assert max(above / below for below, above in pairwise(dense)) * (1 + 2**-12) - 1 < 0.098 < WITHIN


spread = st.floats(math.log(0.0002), math.log(1000)).map(math.exp)
sample_sets = st.one_of(
    st.lists(spread, min_size=1, max_size=60),
    st.builds(lambda value, n: [value] * n, spread, st.integers(1, 40)),  # ties, and a single one
    st.builds(lambda values, n: values * n, st.lists(spread, min_size=1, max_size=3), st.integers(1, 20)),
    st.lists(st.sampled_from([b for b in SECONDS if 0.0002 <= b <= 1000]), min_size=1, max_size=30),  # on bounds
    st.builds(  # a heavy tail: Pareto with no mean
        lambda seed, n: np.minimum(0.0002 * (1 + np.random.default_rng(seed).pareto(0.5, n)), 1000).tolist(),
        *(st.integers(0, 1000), st.integers(1, 2000)),
    ),
)


@examples(300)
@given(samples=sample_sets, percent=st.floats(0.1, 100))
@example(samples=[0.001] * 999 + [1000.0], percent=50.0)  # 99.9 / 100 * 1000 is more than 999 in floating point
def test_any_samples_are_read_within_a_tenth(samples, percent):
    ps = np.sort(np.rint(np.array(samples) * 1e12).astype(np.int64))
    table = RequestTable(np.zeros(len(ps), np.int64), np.ones(len(ps)), np.full(len(ps), 2), 10)
    table["status"][:] = FINISHED
    for name in ("first_scheduled_ps", "first_token_ps", "finish_ps"):
        table[name][:] = ps
    metrics = EMPTY.copy()
    RequestMetrics(metrics, Objectives(SloSpec()), frontend_ps=0).add(
        table.columns, np.arange(len(ps)), MeasuredWindow()
    )
    gaps = DurationHistogram()
    gaps.add(ps * 1000)
    itl = metrics.layout.bounds["pimserve_inter_token_latency_seconds"]
    for bounds, counts in [
        (itl, gaps.counts(itl)),
        *((metrics.layout.bounds[name], metrics.counts[name][0]) for name in ("pimserve_" + NAMES["ttft"],)),
    ]:
        for each in (*PERCENTS, percent):
            exact = ps[place_looked_for(each, len(ps))] / 1e12
            read = histogram_quantile(each / 100, [*bounds, math.inf], np.cumsum(counts).tolist())
            assert abs(read - exact) <= WITHIN * exact


def place_looked_for(percent, n):
    """Of the sample that Prometheus looks for, from 0: nearest rank, but for what q n lacks of a whole number."""
    rank = percent / 100 * n
    place, nearest = max(0, math.ceil(rank) - 1), nearest_place(n, percent)
    assert place == nearest or (abs(place - nearest) == 1 and abs(rank - round(rank)) < 1e-9)
    return place


EMPTY = metrics_of(prepare(load_scenario(None)), "r")
_TTFT = ".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5 10 20 40 80 160 640 2560"
_ITL = ".01 .025 .05 .075 .1 .15 .2 .3 .4 .5 .75 1 2.5 5 7.5 10 20 40 80"
_E2E = ".3 .5 .8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"
_TOKENS = "1 2 5 10 20 50 100 200 500 1000 2000 5000 10000 20000"  # up to the 32,768 of the model
VLLM = {
    "vllm:time_to_first_token_seconds": _TTFT,
    "vllm:inter_token_latency_seconds": _ITL,
    "vllm:request_time_per_output_token_seconds": _ITL,
    "vllm:e2e_request_latency_seconds": _E2E,
    "vllm:request_queue_time_seconds": _E2E,
    "vllm:request_prefill_time_seconds": _E2E,
    "vllm:request_decode_time_seconds": _E2E,
    "vllm:request_prompt_tokens": _TOKENS,
    "vllm:request_generation_tokens": _TOKENS,
    "vllm:iteration_tokens_total": "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384",
}


@pytest.mark.parametrize("limit", ["", "slo={ttft_s: 0.33, tpot_s: 0.033, e2e_s: 33}"])
def test_names_of_vllm_have_vllms_bounds_and_no_other(limit):
    metrics = metrics_of(prepare(load_scenario(None, [limit] if limit else [])), "r")
    assert {family.name for family in VLLM_FAMILIES if family.kind == "histogram"} == set(VLLM)
    for name, bounds in VLLM.items():
        assert scraped(VLLM_FAMILIES, as_vllm(metrics), name)[0] == [*map(float, bounds.split()), math.inf], name


@pytest.mark.medium
def test_under_names_of_vllm_nothing_is_lost():
    _, _, metrics = run_live(None, ["cluster.replicas=2", "slo.ttft_s=0.0123"])
    theirs = as_vllm(metrics)
    for name in VLLM:
        ours = {"vllm:iteration_tokens_total": "pimserve_step_tokens"}.get(
            name, name.replace("vllm:", "pimserve_").replace("request_time_per", "time_per")
        )
        bounds, cumulative = scraped(FAMILIES, metrics, ours)
        mine = dict(zip(bounds, cumulative, strict=True))
        for bound, count in zip(*scraped(VLLM_FAMILIES, theirs, name), strict=True):
            assert count == mine[bound], (name, bound)
