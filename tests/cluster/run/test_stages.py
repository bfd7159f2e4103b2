"""Figures of each stage of a rate that steps."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pimserve.cluster.cli.render import summary_report
from pimserve.cluster.cli.terminal import write
from pimserve.cluster.metrics.replay import replay
from pimserve.cluster.run.history import History
from pimserve.cluster.run.read_summary import summary_of_document
from pimserve.cluster.run.results import load_table
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from tests.cluster.documents import run

STEP = "[[0, 5], [600, 5], [600, 10], [1200, 10]]"


def settings(series: str, *more: str, output: int = 10) -> list[str]:
    return [
        *("model=llama-3.1-8b", "cluster.device=h100", "cluster.devices_per_node=1", "output.steps=false"),
        f"workload.arrival={{process: nhpp, rate_series: {series}}}",
        f"workload.lengths={{input: {{kind: fixed, tokens: 100}}, output: {{kind: fixed, tokens: {output}}}}}",
        *more,
    ]


def stages(folder: Path, *overrides: str) -> tuple[dict[str, Any], np.ndarray]:
    summary = run(prepare(load_scenario(None, list(overrides))), folder)
    return summary, load_table(folder, "requests")


def test_each_stage_of_a_step_has_its_figures(tmp_path: Path) -> None:
    summary, table = stages(tmp_path / "r", *settings(STEP, "workload.duration_s=1200", "slo.ttft_s=1"))
    low, high = summary["stages"]
    assert [(each["from_s"], each["to_s"], each["rate_per_s"]) for each in (low, high)] == [
        (0, 600, 5),
        (600, 1200, 10),
    ]
    assert low["requests"] == pytest.approx(3000, abs=4 * 55)  # four standard deviations
    assert high["requests"] == pytest.approx(6000, abs=4 * 77)
    assert low["requests"] + high["requests"] == summary["requests"]["total"] == len(table)
    for stage in (low, high):
        assert stage["offered_requests_per_s"] == pytest.approx(stage["rate_per_s"], rel=0.08)
        assert stage["throughput"]["requests_per_s"] == pytest.approx(stage["offered_requests_per_s"], rel=0.01)
        assert stage["throughput"]["output_tokens_per_s"] == pytest.approx(10 * stage["throughput"]["requests_per_s"])
        assert stage["slo"] == {"attainment": 1.0, "censored": 0}
        assert {key: each["n"] for key, each in stage["latency_s"].items()} == dict.fromkeys(
            ("ttft", "tpot", "e2e", "queue"), stage["requests"]
        )
    first = table[: low["requests"]]
    ttft_s = np.sort((first["first_token_ps"] - first["arrival_ps"]) / 1e12)
    assert low["latency_s"]["ttft"]["p99"] == ttft_s[int(np.ceil(0.99 * len(ttft_s))) - 1]
    assert low["latency_s"]["ttft"]["mean"] < high["latency_s"]["ttft"]["mean"]


def test_stages_together_are_the_run(tmp_path: Path) -> None:
    # A stage above capacity, and one in which the queue drains: limits are missed in the one where requests arrived.
    series = "[[0, 2], [20, 2], [20, 400], [30, 400], [30, 1], [60, 1]]"
    more = ("workload.duration_s=200", "slo.ttft_s=0.5", "scheduler.max_num_seqs=64")
    summary, _ = stages(tmp_path / "r", *settings(series, *more, output=100))
    found = summary["stages"]
    assert sum(each["requests"] for each in found) == summary["requests"]["measured"]
    assert sum(each["time_s"] for each in found) == pytest.approx(200, abs=2)  # from the first request on
    good = sum(each["slo"]["attainment"] * each["requests"] for each in found)
    assert good / summary["requests"]["measured"] == pytest.approx(summary["slo"]["attainment"])
    assert found[0]["slo"]["attainment"] > 0.9 > found[1]["slo"]["attainment"]
    assert found[1]["throughput"]["requests_per_s"] < found[1]["offered_requests_per_s"]


@pytest.mark.parametrize("n", [60, 61, 62, 999])
def test_the_last_of_so_many_requests_is_of_a_stage_too(tmp_path: Path, n: int) -> None:
    summary, _ = stages(tmp_path / "r", *settings("[[0, 2], [20, 2], [20, 5], [40, 5]]", f"workload.num_requests={n}"))
    assert sum(each["requests"] for each in summary["stages"]) == n


def test_a_run_that_is_cut_off_has_its_stages_as_far_as_it_went(tmp_path: Path) -> None:
    until = ("workload.duration_s=1200", "run.max_time_s=700")
    summary, table = stages(tmp_path / "r", *settings(STEP, *until))
    low, high = summary["stages"]
    assert low["requests"] + high["requests"] == summary["requests"]["total"] == len(table)
    assert low["time_s"] == pytest.approx(600, abs=2)
    assert high["time_s"] == pytest.approx(100, abs=2)
    assert high["offered_requests_per_s"] == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("until_s", [None, 70])
def test_turns_of_sessions_are_of_the_stage_in_which_they_were_sent(tmp_path: Path, until_s: int | None) -> None:
    """Of more turns than first ones some are sent after the last stage, or in the one after that of their session."""
    more = ("workload.duration_s=100", "workload.sessions={num_sessions: 5000, turns: 4, think_time_s: 5}")
    more += ("output.steps=true",)
    until = () if until_s is None else (f"run.max_time_s={until_s}",)
    summary, table = stages(tmp_path / "r", *settings("[[0, 2], [50, 2], [50, 6], [100, 6]]", *more, *until))
    arrival_s, first_s = table["arrival_ps"] / 1e12, 0
    low, high = summary["stages"]
    change_s, end_s = low["time_s"] - first_s, min(low["time_s"] + high["time_s"], until_s or 100)
    assert low["requests"] == ((arrival_s >= 0) & (arrival_s < change_s)).sum() > 2.5 * 2 * 50
    assert high["requests"] == ((arrival_s >= change_s) & (arrival_s < end_s)).sum()
    assert high["requests"] > 2.5 * 4 * (end_s - change_s)
    history = History.load(tmp_path / "r")
    (metrics,) = replay(history, "r", [history.end_s])
    counted = metrics.values["pimserve_stage_requests_total"].reshape(2, 2).sum(axis=1)
    if until_s is None:  # else metrics leave out whom the end cut off
        assert counted.tolist() == [low["requests"], high["requests"]]
    assert (until_s is None) == (low["requests"] + high["requests"] < (arrival_s >= 0).sum())


def test_only_the_measured_window_counts(tmp_path: Path) -> None:
    window = ("run.warmup_s=300", "run.cooldown_s=100", "workload.duration_s=1200")
    summary, _ = stages(tmp_path / "r", *settings(STEP, *window))
    low, high = summary["stages"]
    assert low["requests"] + high["requests"] == summary["requests"]["measured"]
    assert low["time_s"] == pytest.approx(300, abs=2)
    assert high["time_s"] == pytest.approx(500, abs=2)
    assert low["offered_requests_per_s"] == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("series", ["[[0, 5], [10, 9]]", "[[0, 5], [10, 5], [10.1, 9], [20, 9]]"])
def test_a_rate_that_does_not_step_has_no_stages(tmp_path: Path, series: str) -> None:
    assert "stages" not in stages(tmp_path / "r", *settings(series, "workload.num_requests=20"))[0]


def test_the_table_shows_them(tmp_path: Path) -> None:
    summary, _ = stages(tmp_path / "r", *settings(STEP, "workload.duration_s=1200", "slo.ttft_s=1"))
    file = io.StringIO()
    write(summary_report(summary_of_document(summary)), file)
    text = file.getvalue()
    (low,) = (line for line in text.splitlines() if line.startswith("0 to 600 s"))
    assert f"{summary['stages'][0]['requests']:,}" in low
    assert max(map(len, text.splitlines())) <= 80
