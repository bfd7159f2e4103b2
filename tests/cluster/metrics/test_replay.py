"""Finished runs over time: in the end they say what live metrics say, and the text is OpenMetrics."""

import io
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.openmetrics import parser as openmetrics

from pimserve.cluster.metrics.backfill import epoch_of, parts_of, write, write_file
from pimserve.cluster.metrics.families import PREFIX_CACHE, SPEC_DECODE
from pimserve.cluster.metrics.replay import replay
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.metrics.tier_families import KV_LOADS, KV_TIERS
from pimserve.cluster.run.history import History
from pimserve.cluster.run.read_summary import load_document
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from tests.cluster.documents import run
from tests.cluster.metrics.agreement import groups_are_those_of
from tests.cluster.metrics.watched import CASES, watched

EXAMPLES = Path(__file__).parents[3] / "examples"
# What results do not hold: gaps between tokens that no step shows, and the process while it ran.
ONLY_LIVE = {
    "pimserve_inter_token_latency_seconds",
    "pimserve_virtual_time_seconds_total",
    "pimserve_device_energy_joules_total",  # to the end of the last window; compared with the summary
    "pimserve_group_idle_seconds_total",  # likewise
    "pimserve_engine_up",
    "pimserve_requests_waiting",
    "pimserve_router_decisions_total",
    *PREFIX_CACHE,
    *KV_TIERS,
    *KV_LOADS,
}


def finished(tmp_path, example, overrides):
    path = None if example is None else EXAMPLES / f"{example}.yaml"
    scenario = load_scenario(path, ["workload.num_requests=300", *overrides])
    run(prepare(scenario), tmp_path / "r")
    return History.load(tmp_path / "r")


@pytest.mark.medium
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.deep] * (case in {"rebalanced", "mixed pools"})) for case in CASES]
)
def test_in_the_end_it_is_what_live_metrics_say(case, tmp_path, monkeypatch):
    monkeypatch.setattr("pimserve.cluster.run.live_control._LEDGERS_S", 0.0)
    summary, _, live, _ = watched(*CASES[case], out=tmp_path / "r")
    history = History.load(tmp_path / "r")
    times = [*np.arange(0, history.end_s, 5).tolist(), history.end_s]
    seen = [moment.copy() for moment in replay(history, "r", times)]
    last = seen[-1]
    assert last.values["pimserve_run_stability"].tolist() == live.values["pimserve_run_stability"].tolist()
    gauges_differ = "cut off" in case  # live ones say who was still running
    for name, values in live.values.items():
        if gauges_differ and not name.endswith("_total"):
            continue
        if name not in ONLY_LIVE and not name.startswith(("pimserve_sim_", "pimserve_wall_", "pimserve_run_")):
            assert last.values[name] == pytest.approx(values, rel=1e-9), name
    for name, counts in live.counts.items():
        if name not in ONLY_LIVE:
            assert np.array_equal(last.counts[name], counts), name
            assert last.sums[name] == pytest.approx(live.sums[name], rel=1e-9), name
    energy = last.values["pimserve_device_energy_joules_total"].sum()
    assert energy == pytest.approx(summary["energy"]["joules"], rel=1e-9)
    groups_are_those_of(summary, last, 0.0)
    for earlier, later in itertools.pairwise(seen):
        for name, values in earlier.values.items():
            if name.endswith("_total"):
                fell = later.values[name] < values - 1e-9
                assert not fell.any(), name
        for name, counts in earlier.counts.items():
            assert (later.counts[name] >= counts).all(), name


@pytest.mark.parametrize(
    ("name", "case"),
    {
        "sessions_active": "sessions, cut off",
        "sessions_thinking": "sessions, cut off",
        "users_thinking": "users who think, cut off",
        "client_requests_waiting": "a cap on requests in flight, cut off",
    }.items(),
)
def test_what_waits_at_clients_is_what_live_metrics_said(name, case, tmp_path, monkeypatch):
    monkeypatch.setattr("pimserve.cluster.run.live_control._LEDGERS_S", 0.0)
    _, _, _, seen = watched(*CASES[case], out=tmp_path / "r")
    times = [float(moment.values["pimserve_virtual_time_seconds_total"][0]) for moment in seen]
    told = [float(moment.values[f"pimserve_{name}"][0]) for moment in seen]
    again = replay(History.load(tmp_path / "r"), "r", times)
    assert told == [float(moment.values[f"pimserve_{name}"][0]) for moment in again]
    assert max(told) > 0


@pytest.mark.medium
@pytest.mark.parametrize("case", ["drafts in pools", "drafts"])
def test_drafts_are_told_as_live_metrics_told_them(case, tmp_path, monkeypatch):
    monkeypatch.setattr("pimserve.cluster.run.live_control._LEDGERS_S", 0.0)
    summary, _, _, seen = watched(*CASES[case], out=tmp_path / "r")
    told = {name: np.array([moment.values[name] for moment in seen]) for name in SPEC_DECODE}
    history = History.load(tmp_path / "r")
    last = [moment.copy() for moment in replay(history, "r", [0.0, history.end_s])][-1]
    for name, attribute in SPEC_DECODE.items():
        assert last.values[name].tolist() == told[name][-1].tolist(), name
        assert last.values[name].sum() == summary["spec_decode"][attribute] > 0, name
    times = [float(moment.values["pimserve_virtual_time_seconds_total"][0]) for moment in seen]
    each = history.prepared.scenario.scheduler.speculative.num_speculative_tokens
    engines = [role != "prefill" for _, role in metrics_of(history.prepared, "r").layout.engines]
    for index, moment in enumerate(replay(history, "r", times)):  # in which the step under way counts already
        under_way = moment.values["pimserve_requests_decoding"][engines]
        for name, most in zip(SPEC_DECODE, (1, each, each), strict=True):
            ahead = moment.values[name] - told[name][index]
            assert (ahead >= 0).all(), name
            assert (ahead <= most * under_way).all(), name


def test_drafts_that_were_accepted_are_unknown_where_prompts_were_computed_again(tmp_path):
    _, drafts = CASES["drafts"]
    history = finished(tmp_path, None, [*drafts, "scheduler.kv_blocks=250"])
    assert history.summary.requests.preemptions > 0
    *_, last = replay(history, "r", [0.0, history.end_s])
    found = {attribute: last.values[name] for name, attribute in SPEC_DECODE.items()}
    assert np.isnan(found["accepted_tokens"]).all()
    assert found["drafts"].sum() == history.summary.spec_decode.drafts
    assert found["draft_tokens"].sum() == history.summary.spec_decode.draft_tokens


def test_queues_and_batches_are_those_of_the_moment(tmp_path):
    history = finished(tmp_path, None, ["cluster.replicas=2", "workload.arrival.rate_per_s=300"])
    requests = history.requests
    for time_s, moment in zip(times := [0.0, 0.2, 0.5, 1.0, history.end_s], replay(history, "r", times), strict=True):
        now = time_s * 1e12
        arrived = requests["arrival_ps"] <= now
        assert moment.values["pimserve_requests_arrived_total"][0] == arrived.sum()
        waiting = arrived & (requests["first_scheduled_ps"] > now)
        assert moment.values["pimserve_requests_waiting"].sum() == waiting.sum()
        running = arrived & (requests["first_scheduled_ps"] <= now) & (requests["finish_ps"] > now)
        assert abs(moment.values["pimserve_requests_running"].sum() - running.sum()) <= 0.2 * running.sum() + 2
        assert (moment.values["pimserve_kv_cache_usage_ratio"] <= 1).all()


@pytest.mark.medium
def test_a_replica_is_down_for_as_long_as_the_summary_says(tmp_path):
    fail = "{at_s: 10, replica: 0, kind: fail, for_s: 20}, {at_s: 15, replica: 0, device: 1, kind: fail, for_s: 35}"
    leave = "{at_s: 20, replica: 1, kind: leave, for_s: 9}, {at_s: 60, replica: 1, device: 3, kind: fail}"
    history = finished(tmp_path, None, ["cluster.replicas=3", f"faults={{events: [{fail}, {leave}]}}"])
    times = np.arange(0, history.end_s, 0.25)
    up = np.array([moment.values["pimserve_engine_up"].copy() for moment in replay(history, "r", times.tolist())])
    assert [up[times == at].tolist() for at in (9.75, 12, 49.75, 50, 61)] == [
        [[1, 1, 1]],
        [[0, 1, 1]],
        [[0, 1, 1]],
        [[1, 1, 1]],
        [[1, 0, 1]],
    ]
    assert (1 - up).sum() * 0.25 == pytest.approx(load_document(history.folder)["faults"]["down_replica_s"], abs=0.5)


def text_of(runs, epoch, **options):
    parts = parts_of(runs, 5.0, **options)
    target = io.StringIO()
    write(parts, epoch_of(epoch, parts), target)
    return target.getvalue()


@pytest.mark.medium
def test_the_text_is_openmetrics_in_order_of_time_and_always_the_same(tmp_path):
    finished(tmp_path, None, ["cluster.replicas=2", "slo.ttft_s=0.02"])
    text = text_of([tmp_path / "r"], "2026-01-01T00:00:00Z")
    assert text == text_of([tmp_path / "r"], "1767225600")
    assert text.endswith("\n# EOF\n")
    assert "nan" not in text.lower()
    assert "_created" not in text
    last = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            series, _, stamp = line.rsplit(" ", 2)
            assert float(stamp) > last.get(series, 0), "a sample that comes late is lost without a word"
            last[series] = float(stamp)
    assert min(last.values()) >= 1767225600
    # Families come one after the other, as the parser wants them; of a histogram it takes one moment at a time.
    lines = [(line, line.startswith("#") or line.rpartition(" ")[2]) for line in text.splitlines()]
    for stamp in ("1767225600.0", "1767225605.0", "1767225610.0"):
        moment = "".join(f"{line}\n" for line, of in lines if of in (True, stamp))
        families = {family.name: family for family in openmetrics.text_string_to_metric_families(moment)}
        assert len(families) > 30
        assert len(families["pimserve_step_tokens"].samples) > 20
    assert len({line for line, of in lines if of is True}) == len([line for line, of in lines if of is True])


@pytest.mark.medium
def test_histograms_of_many_engines_are_merged_unless_asked_for(tmp_path):
    finished(tmp_path, None, ["cluster.replicas=9", "workload.num_requests=40"])
    for options, engines in (({}, {"all"}), ({"per_engine": True}, {str(engine) for engine in range(9)})):
        text = text_of([tmp_path / "r"], "1767225600", **options)
        steps = [line for line in text.splitlines() if line.startswith("pimserve_step_tokens_count")]
        assert {re.search('engine="(.*?)"', line)[1] for line in steps} == engines
        assert text.count("--metrics-per-engine") == (11 if engines == {"all"} else 0)  # in the help of histograms


def test_what_cannot_be_written(tmp_path):
    history = finished(tmp_path, None, [])
    with pytest.raises(InputError, match="two runs are called r"):
        parts_of([tmp_path / "r", tmp_path / "r"], None)
    with pytest.raises(InputError, match="--interval: "):
        parts_of([tmp_path / "r"], 1e-4)
    parts = parts_of([tmp_path / "r"], None)
    with pytest.raises(InputError, match="--epoch: must be a date"):
        epoch_of("tomorrow", parts)
    with pytest.raises(InputError, match="cannot be written"):
        write_file(parts, 0.0, tmp_path / "none" / "file.om")
    (history.folder / "steps.npy").unlink()
    with pytest.raises(InputError, match=r"has no steps\.npy: run its scenario with output\.steps: true$"):
        parts_of([tmp_path / "r"], None)
    np.save(history.folder / "steps.npy", np.zeros(3))
    with pytest.raises(InputError, match="not a table of this version"):
        parts_of([tmp_path / "r"], None)
