"""Metrics of real runs: at the end they say what the summary says, and on the way they only grow."""

import numpy as np
import pytest

from pimserve.cluster.metrics.families import FAMILIES
from pimserve.cluster.metrics.family import ENGINE
from pimserve.cluster.metrics.feed import MetricsFeed
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.run.live_control import LiveControl
from pimserve.cluster.run.running_latencies import RunningLatencies
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.loadgen.objectives import Objectives
from pimserve.scheduler.control import Inject
from pimserve.scheduler.requests import FINISHED
from pimserve.scheduler.simulation import Deployment
from tests.cluster.documents import serve
from tests.cluster.metrics.agreement import classes_are_those_of, figures_are_those_of, grows
from tests.cluster.metrics.watched import CASES, CLASSES, WINDOW_S, Watcher, watched

LINK_BYTES_PER_S = 450e9  # of Duplex, one way


@pytest.mark.medium
@pytest.mark.parametrize("case", CASES)
def test_in_the_end_metrics_say_what_the_summary_says(case, monkeypatch):
    monkeypatch.setattr("pimserve.cluster.run.live_control._LEDGERS_S", 0.0)
    summary, _, last, seen = watched(*CASES[case])
    values = last.values
    assert values["pimserve_requests_total"].tolist() == [summary["requests"][key] for key in ("finished", "rejected")]
    assert values["pimserve_requests_arrived_total"] == summary["requests"]["total"]
    assert values["pimserve_generation_tokens_total"].sum() == summary["tokens"]["output"]
    assert values["pimserve_steps_total"].sum() == summary["batch"]["steps"]
    late_s = values["pimserve_virtual_time_seconds_total"][0] - summary["end_s"]
    assert -1e-9 <= late_s < WINDOW_S
    energy = values["pimserve_device_energy_joules_total"]
    passive = np.array([key[4] == "passive" for key in last.layout.keys["pimserve_device_energy_joules_total"]])
    passive_joules = summary["energy"]["passive_joules"] or 0
    # The closed loop is the Duplex paper's, and leaves it out.
    assert (passive_joules > 0) == bool(passive.any()) == (CASES[case][0] != "closed_loop")
    assert energy[~passive].sum() == pytest.approx(summary["energy"]["active_joules"], rel=1e-9)
    assert energy[passive].sum() == pytest.approx(passive_joules, rel=late_s / summary["end_s"] + 1e-9)
    assert values["pimserve_operator_time_seconds_total"].sum() == pytest.approx(
        summary["busy_share"] * summary["end_s"] * len(last.layout.engines), rel=1e-9
    )
    assert (last.counts["pimserve_step_duration_seconds"].sum(), last.counts["pimserve_step_tokens"].sum()) == (
        summary["batch"]["steps"],
        summary["batch"]["steps"],
    )
    figures_are_those_of(summary, last, late_s)
    grows(seen, last)
    assert not any(each.values["pimserve_run_stability"].any() for each in seen)


def test_links_carry_what_the_tokens_ask_for_and_no_more_than_they_can(monkeypatch):
    """Two all-reduces of 16-bit vectors of 4,096 in each of 32 layers, between 4 devices in a ring."""
    monkeypatch.setattr("pimserve.cluster.run.live_control._LEDGERS_S", 0.0)
    _, _, last, _ = watched(None, ["cluster={replicas: 2, devices_per_node: 4}"])
    keys, sent = last.layout.keys["pimserve_link_bytes_total"], last.values["pimserve_link_bytes_total"]
    assert [key[1:3] + key[4:] for key in keys] == [
        (engine, "mixed", "all-reduce, as a ring", "intra_node") for engine in "01"
    ]
    computed = last.sums["pimserve_step_tokens"]
    assert sent.tolist() == (computed * 2 * 32 * 4096 * 2 * (2 * 3)).tolist()
    operators = [key[1::3] for key in last.layout.keys["pimserve_operator_time_seconds_total"]]
    for engine in "01":
        time_s = last.values["pimserve_operator_time_seconds_total"][operators.index((engine, "communication"))]
        assert 0 < sent[int(engine)] / 4 / LINK_BYTES_PER_S < time_s


@pytest.mark.medium
@pytest.mark.parametrize("rule", ["null", "{max_local_prefill_tokens: 300}"])
def test_a_handover_brings_the_caches_that_the_summary_counts(rule):
    overrides = ["run={warmup_s: 0}", f"cluster.pools.conditional_disagg={rule}"]
    summary, _, last, _ = watched("prefill_decode_pools", overrides)
    keys, sent = last.layout.keys["pimserve_link_bytes_total"], last.values["pimserve_link_bytes_total"]
    brought = [value for key, value in zip(keys, sent, strict=True) if key[4] == "handover"]
    assert {key[2] for key in keys if key[4] == "handover"} == {"decode"}
    assert {key[5] for key in keys if key[4] == "handover"} == {"inter_pool"}
    assert sum(brought) == summary["pools"]["handover"]["bytes"]
    assert min(brought) > 0


def test_histograms_of_requests_are_those_of_the_table():
    _, served, last, _ = watched(None, ["cluster.replicas=2", "slo.ttft_s=0.02", "scheduler.max_model_len=1500"])
    table = served.table
    done = table["status"] == FINISHED
    assert 0 < done.sum() < len(table)
    arrival, scheduled, first, finish = (
        table[f"{name}_ps"][done] / 1e12 for name in ("arrival", "first_scheduled", "first_token", "finish")
    )
    found = {
        "time_to_first_token_seconds": first - arrival,
        "e2e_request_latency_seconds": finish - arrival,
        "request_queue_time_seconds": scheduled - arrival,
        "request_prefill_time_seconds": first - scheduled,
        "request_decode_time_seconds": finish - first,
        "request_prompt_tokens": table["input_tokens"][done],
        "request_generation_tokens": table["output_tokens"][done],
    }
    for name, samples in found.items():
        for engine in (0, 1):
            mine = samples[table["replica"][done] == engine]
            below = [int((mine <= bound).sum()) for bound in last.layout.bounds[f"pimserve_{name}"]]
            assert np.cumsum(last.counts[f"pimserve_{name}"][engine]).tolist() == [*below, len(mine)], name
            assert last.sums[f"pimserve_{name}"][engine] == pytest.approx(mine.sum(), rel=1e-6), name


def test_metrics_change_no_bit():
    _, _, _, seen = watched(None, [])
    scenario = load_scenario(None, ["workload.num_requests=300"])
    summary, _, _, _ = watched(None, [])
    assert serve(prepare(scenario))[0]["digest"] == summary["digest"]
    assert seen


def test_a_feed_that_begins_in_the_middle_has_all_that_was_before(monkeypatch):
    monkeypatch.setattr("pimserve.cluster.run.live_control._LEDGERS_S", 0.0)
    scenario = load_scenario(None, ["workload.num_requests=300", "slo.ttft_s=0.02"])

    def feed():
        return MetricsFeed(metrics_of(prepare(scenario), "r"), Objectives(scenario.slo))

    class Restarting(Watcher):
        def barrier(self, view):
            if len(self.seen) == 5:
                self.observer = feed()
            super().barrier(view)

    whole, continued = (kind(feed(), RunningLatencies(Objectives(scenario.slo))) for kind in (Watcher, Restarting))
    for control in (whole, continued):
        serve(prepare(scenario), deployment=Deployment(control=control))
    one, other = whole.observer.latest(), continued.observer.latest()
    for name in set(one.values) - {"pimserve_wall_time_seconds_total", "pimserve_sim_memory_bytes"}:
        assert other.values[name] == pytest.approx(one.values[name]), name
    for name, counts in one.counts.items():
        assert np.array_equal(other.counts[name], counts), name


@pytest.mark.medium
def test_put_together_they_are_the_sum_of_the_engines(monkeypatch):
    monkeypatch.setattr("pimserve.cluster.run.live_control._LEDGERS_S", 0.0)
    _, _, apart, _ = watched(None, ["cluster.replicas=9"], per_engine=True)
    _, _, together, _ = watched(None, ["cluster.replicas=9"])
    for name in (family.name for family in FAMILIES if family.kind == "histogram" and family.labels == ENGINE):
        counts = together.counts[name]
        assert (counts.shape[0], apart.counts[name].shape[0]) == (1, 9)
        assert np.array_equal(counts[0], apart.counts[name].sum(axis=0)), name
        assert together.sums[name][0] == pytest.approx(apart.sums[name].sum())


def test_a_run_that_grows_expects_more():
    # What is injected is of no class, and has the limits of the run.
    scenario = load_scenario(None, ["workload.num_requests=100", "slo.ttft_s=1e-9", CLASSES])
    objectives = prepare(scenario).objectives
    feed = MetricsFeed(metrics_of(prepare(scenario), "r"), objectives)

    class Injector(LiveControl):
        done = False

        def barrier(self, view):
            if not self.done:
                view.apply(Inject((5, 6), (7, 8)))
                self.done = True
            super().barrier(view)

    control = Injector(RunningLatencies(objectives), observer=feed)
    summary, _ = serve(prepare(scenario), deployment=Deployment(control=control))
    values = feed.latest().values
    assert values["pimserve_requests_expected"] == 102
    assert values["pimserve_requests_total"].tolist() == [102, 0]
    assert values["pimserve_class_requests_total"].sum() == 100
    assert sum(each["requests"]["total"] for each in summary["classes"]) == 100
    met = sum(each["slo"]["attainment"] * each["requests"]["total"] for each in summary["classes"])
    assert summary["slo"]["attainment"] == pytest.approx(met / 102)
    classes_are_those_of(summary, feed.latest())
