"""Confidence intervals hold the truth as often as they say, on independent samples and on those that hang together."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.scheduler.batch_means import nearest_rank, of_mean, of_percentile, of_ratio, t_quantile
from pimserve.scheduler.distributions import percentile
from pimserve.scheduler.step_batches import StepBatches
from tests.cluster.documents import serve

REPEATS = 400
P99 = float(stats.norm.ppf(0.99))


@pytest.mark.parametrize("degrees", [1, 2, 9, 30, 31, 60, 999])
def test_quantiles_of_students_t(degrees):
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=5e-4)


def independent(rng):
    return rng.standard_normal(2000)


def one_after_the_other(rng, memory=0.9):
    """Each sample is near the one before it, as in a queue; the standard normal distribution all the same."""
    noise = rng.standard_normal(4000) * math.sqrt(1 - memory**2)
    found = np.empty(len(noise))
    found[0] = rng.standard_normal()
    for index in range(1, len(noise)):
        found[index] = memory * found[index - 1] + noise[index]
    return found


@pytest.mark.medium
@pytest.mark.parametrize(
    ("made", "figure", "interval", "truth", "least"),
    [
        (independent, np.mean, of_mean, 0.0, 0.92),
        (one_after_the_other, np.mean, of_mean, 0.0, 0.88),
        (independent, lambda x: nearest_rank(x, 50), lambda x: of_percentile(x, 50), 0.0, 0.90),
        (one_after_the_other, lambda x: nearest_rank(x, 50), lambda x: of_percentile(x, 50), 0.0, 0.86),
        (independent, lambda x: nearest_rank(x, 99), lambda x: of_percentile(x, 99), P99, 0.90),
        (one_after_the_other, lambda x: nearest_rank(x, 99), lambda x: of_percentile(x, 99), P99, 0.85),
    ],
)
def test_the_truth_lies_within(made, figure, interval, truth, least):
    rng = np.random.default_rng(7)
    within = widths = 0.0
    for _ in range(REPEATS):
        samples = made(rng)
        width = interval(samples)
        within += abs(figure(samples) - truth) <= width
        widths += width
    assert within / REPEATS >= least
    assert widths / REPEATS < 0.5  # not by being wide


def test_samples_on_their_own_would_promise_too_much():
    rng = np.random.default_rng(7)
    narrow = [1.96 * samples.std() / math.sqrt(len(samples)) for samples in map(one_after_the_other, [rng] * 20)]
    assert np.mean(narrow) < 0.5 * np.mean([of_mean(one_after_the_other(rng)) for _ in range(20)])


def test_too_few_samples_tell_nothing():
    for n in (0, 1, 19):
        assert of_mean(np.ones(n)) is of_percentile(np.ones(n), 99) is None
    assert of_mean(np.ones(20)) == of_percentile(np.ones(20), 99) == 0
    assert of_ratio([np.ones(9)], [np.ones(9)]) is of_ratio([], []) is of_ratio([np.ones(20)], [np.zeros(20)]) is None


def test_a_ratio_knows_what_both_sums_share():
    rng = np.random.default_rng(3)
    below = rng.integers(50, 150, 32).astype(float)
    assert of_ratio([2 * below], [below]) == pytest.approx(0, abs=1e-12)
    noisy = [[2 * part + rng.standard_normal(len(part)) * 10 for part in np.split(below, 2)] for _ in range(REPEATS)]
    ratios = [sum(map(np.sum, each)) / below.sum() for each in noisy]
    widths = [of_ratio(each, np.split(below, 2)) for each in noisy]
    assert np.mean([abs(ratio - 2) <= width for ratio, width in zip(ratios, widths, strict=True)]) > 0.9


def test_ranks_are_those_of_the_summary():
    samples = np.random.default_rng(1).standard_normal(173)
    for percent in (0.1, 1, 50, 90, 99, 100):
        assert nearest_rank(samples, percent) == percentile(np.sort(samples), percent)


# -- batches of steps


@pytest.mark.parametrize("cut", [1, 7, 64, 1000])
def test_batches_of_steps_do_not_hang_on_how_they_come(cut):
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 128, 1000)
    first = np.cumsum(lengths) - lengths
    begins, tokens, energy = (
        np.cumsum(rng.integers(1, 10**9, 1000)),
        rng.integers(0, 500, 1000),
        rng.random(1000) * 1e12,
    )
    whole, parts = StepBatches(), StepBatches()
    whole.add(first, begins, tokens, energy)
    for start in range(0, 1000, cut):
        part = slice(start, start + cut)
        parts.add(first[part], begins[part], tokens[part], energy[part])
        again = StepBatches()
        again.restore(json.loads(json.dumps(parts.state())))
        assert again.state() == parts.state()
        parts = again
    assert parts.state() == whole.state()
    at, emitted, joules = whole.table()
    assert 16 <= len(at) <= 32
    assert (np.diff(at) > 0).all()
    assert emitted.sum() == tokens.sum()
    assert joules.sum() == pytest.approx(energy.sum() / 1000, rel=1e-6)


@pytest.mark.parametrize(
    "example",
    ["duplex", "h100", "aimc", "dense", "pools"],
)
def test_energy_of_batches_is_all_the_energy(example):
    settings = {
        "duplex": [],
        "h100": ["cluster.device=h100", "cluster.experts=tp"],
        "aimc": ["cluster={device: aimc-realistic, devices_per_node: 6}"],
        "dense": ["model=llama-3.1-8b", "cluster={device: h100, devices_per_node: 1}", "costs.setting=measured"],
        "pools": ["cluster.pools={prefill: {device: h100, replicas: 1}, decode: {replicas: 2}}"],
    }[example]
    _, served = serve(prepare(load_scenario(None, ["workload.num_requests=60", *settings])))
    for log in served.logs:
        _, tokens, energy_nj = log.batches.table()
        assert tokens.sum() == log.tokens
        assert energy_nj.sum() == pytest.approx(sum(log.energy_pj.values()) / 1000, rel=1e-6, abs=len(tokens) * 4096)


@pytest.mark.medium
def test_intervals_of_a_run_hold_the_figures_of_other_seeds():
    sets = [
        *("model=llama-3.1-8b", "cluster={device: h100, devices_per_node: 1}", "slo.ttft_s=0.05"),
        "workload={arrival: {process: poisson, rate_per_s: 8}, num_requests: 800, lengths: {"
        "input: {kind: lognormal, median: 300, sigma: 0.8, max: 4000}, output: {kind: fixed, tokens: 60}}}",
    ]
    runs = [serve(prepare(load_scenario(None, [*sets, f"run.seed={seed}"])))[0] for seed in range(12)]

    def inside(*path):
        values, widths = [], []
        for run in runs:
            value, width = run, run["ci95"]
            for key in path:
                value, width = value[key], width[key]
            values.append(value)
            widths.append(width)
        off = np.abs(np.array(values) - np.mean(values))
        assert max(widths) < 0.5 * np.mean(values), path
        return np.mean(off <= np.array(widths))

    for path in [
        ("throughput", "output_tokens_per_s"),
        ("throughput", "output_tokens_per_s_per_device"),
        ("latency_s", "ttft", "mean"),
        ("latency_s", "ttft", "p50"),
        ("latency_s", "e2e", "p90"),
        ("latency_s", "tpot", "mean"),
        ("latency_s", "itl", "mean"),
        ("latency_s", "itl", "p50"),
        ("latency_s", "itl", "p90"),
        ("latency_s", "itl", "p99"),
        ("latency_s", "queue", "mean"),
        ("throughput", "requests_per_s"),
        ("slo", "goodput_requests_per_s"),
        ("energy", "joules_per_output_token"),
    ]:
        assert inside(*path) >= 0.75, path
