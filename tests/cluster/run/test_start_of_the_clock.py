"""Simulated time 0 is the first request that is used, and figures are over the time in which something was served."""

from pathlib import Path

import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from tests.cluster.documents import serve

DATA = Path(__file__).parents[2] / "data"
ON = ["model=llama-3.1-8b", "cluster={device: h100, devices_per_node: 1}"]


def replayed(name: str, *overrides: str) -> dict:
    trace = f"workload.trace={{format: csv, path: {DATA / name}}}"
    return serve(prepare(load_scenario(None, [*ON, trace, *overrides])))[0]


@pytest.mark.parametrize("costs", ["ideal", "measured"])
def test_a_trace_cut_from_its_middle_runs_as_if_it_began_there(costs, monkeypatch):
    monkeypatch.chdir(DATA)
    setting = [f"costs.setting={costs}"]
    whole = serve(prepare(load_scenario(DATA / "offset-trace.yaml", setting)))[0]
    cut = serve(prepare(load_scenario(DATA / "offset-trace.yaml", [*setting, "workload.trace.start_s=819000"])))[0]
    assert whole.pop("scenario_digest") != cut.pop("scenario_digest")
    assert whole == cut
    assert whole["offered_requests_per_s"] == pytest.approx(3.06, abs=0.005)
    assert whole["throughput"]["requests_per_s"] == pytest.approx(3.0, rel=0.05)
    assert whole["busy_share"] > 0.95
    assert whole["window"]["start_s"] == 0
    assert whole["end_s"] < 70
    assert whole["energy"]["joules_per_output_token"] < 1  # 178 J where it idled for nine days before


def test_a_target_rate_holds_for_a_trace_that_begins_late():
    summary = replayed("offset-trace.csv", "workload.trace.target_rate_per_s=10")
    assert summary["offered_requests_per_s"] == pytest.approx(10)
    assert summary["throughput"]["requests_per_s"] == pytest.approx(10, rel=0.15)  # to the end of the last few


@pytest.mark.parametrize(("start_s", "first"), [(0, 0), (19440290, 4)])
@pytest.mark.parametrize("epoch_s", [0, 1_700_000_000])
def test_a_trace_may_show_any_clock(start_s, first, epoch_s, tmp_path):
    header, *rows = (DATA / "late-start.csv").read_text().split()
    times = [float(row.partition(",")[0]) for row in rows]
    shifted = (f"{epoch_s + time:.1f},{row.partition(',')[2]}" for time, row in zip(times, rows, strict=True))
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([header, *shifted]))
    overrides = [f"workload.trace.start_s={epoch_s + start_s}"] if start_s else []
    trace = f"workload.trace={{format: csv, path: {path}}}"
    summary, served = serve(prepare(load_scenario(None, [*ON, trace, *overrides])))
    arrivals = [time - times[first] for time in times[first:]]
    assert (served.table["arrival_ps"] / 1e12).tolist() == arrivals
    assert arrivals[:2] == ([0, 51] if first == 0 else [0, 70])
    assert summary["end_s"] == pytest.approx(arrivals[-1], abs=10)


ARRIVALS = {
    "poisson": "{process: poisson, rate_per_s: 0.001}",
    "gamma": "{process: gamma, rate_per_s: 0.001, cv: 2}",
    "nhpp": "{process: nhpp, rate_series: [[0, 0], [50000, 0], [50001, 1], [90000, 1]]}",
}


@pytest.mark.parametrize("process", ARRIVALS)
def test_arrivals_that_are_drawn_begin_at_0_too(process):
    """So that the time before the first request, in which devices would rest, is in no figure."""
    lengths = "workload.lengths={input: {kind: fixed, tokens: 100}, output: {kind: fixed, tokens: 200}}"
    arrival = f"workload.arrival={ARRIVALS[process]}"
    summary, served = serve(prepare(load_scenario(None, [*ON, arrival, lengths, "workload.num_requests=1"])))
    assert served.table["arrival_ps"].tolist() == [0]
    assert summary["window"] == {
        "start_s": 0,
        "end_s": summary["end_s"],
        "length_s": summary["end_s"],
        "whole_run": True,
    }
    assert summary["end_s"] < 10
    assert summary["throughput"]["output_tokens_per_s"] == pytest.approx(200 / summary["end_s"])
    assert summary["busy_share"] == pytest.approx(1)
    assert summary["kv"]["mean_use"] > 0.5 * summary["kv"]["peak_use"]
