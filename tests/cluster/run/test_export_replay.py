"""What `export` writes is a trace: replayed, it gives the same requests to the picosecond."""

import csv
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pimserve.cluster.run.export import export_table
from pimserve.cluster.run.results import load_table
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.loadgen.traces import TraceSpec, load_trace
from tests.cluster.documents import run

LENGTHS = "lengths: {input: {kind: uniform, low: 1, high: 2000}, output: {kind: uniform, low: 1, high: 300}}"
CLOSED = f"workload={{mode: closed, concurrency: 6, num_requests: 60, {LENGTHS}}}"
SESSIONS = f"workload={{sessions: {{turns: 3, num_sessions: 20, think_time_s: 0.5}}, {LENGTHS}}}"


@pytest.mark.parametrize(
    "overrides",
    [
        [f"workload={{arrival: {{process: gamma, rate_per_s: 20, cv: 3}}, num_requests: 100, {LENGTHS}}}"],
        [CLOSED, "cluster.replicas=3"],
        [CLOSED, "run.max_time_s=1"],
        ["workload.num_requests=50", "scheduler.max_model_len=1500"],  # some are rejected
        [SESSIONS, "cluster.replicas=2", "run.max_time_s=8"],
    ],
    ids=["open", "closed, three replicas", "closed and cut off", "some rejected", "sessions"],
)
def test_an_exported_run_replays_the_same_requests(tmp_path: Path, overrides: list[str]) -> None:
    run(prepare(load_scenario(None, ["model=llama-3.1-8b", "cluster.device=h100", *overrides])), tmp_path / "r")
    with (tmp_path / "requests.csv").open("w") as file:
        export_table(tmp_path / "r", "requests", file)
    trace = load_trace(TraceSpec(format="csv", path=str(tmp_path / "requests.csv")))
    before = load_table(tmp_path / "r", "requests")
    arrived = before[before["arrival_ps"] >= 0]
    arrived = arrived[np.argsort(arrived["arrival_ps"], kind="stable")]
    for name in ("arrival_ps", "input_tokens", "output_tokens"):
        assert getattr(trace, name).tolist() == arrived[name].tolist(), name
    assert trace.rows_dropped.get("without a time", 0) == len(before) - len(arrived)


def test_an_open_loop_replayed_runs_the_same(tmp_path: Path) -> None:
    before = run(prepare(load_scenario(None, ["workload.num_requests=200"])), tmp_path / "r")
    with (tmp_path / "requests.csv").open("w") as file:
        export_table(tmp_path / "r", "requests", file)
    replayed = load_scenario(None, trace=f"csv:{tmp_path / 'requests.csv'}")
    assert run(prepare(replayed), tmp_path / "again")["digest"] == before["digest"]


def test_requests_have_their_session(tmp_path: Path) -> None:
    run(prepare(load_scenario(None, [SESSIONS])), tmp_path / "r")
    with (tmp_path / "requests.csv").open("w") as file:
        export_table(tmp_path / "r", "requests", file)
    with (tmp_path / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["session"] for row in rows) == {str(number): 3 for number in range(20)}
    for number in range(20):
        mine = [row for row in rows if row["session"] == str(number)]  # by arrival
        prompts = [int(row["input_tokens"]) for row in mine]
        assert prompts == sorted(prompts)  # that grow with every turn
        for before, after in pairwise(mine):
            assert float(after["arrival_s"]) == pytest.approx(float(before["finish_s"]) + 0.5, abs=1e-9)
