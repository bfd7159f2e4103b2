"""A sweep over a trace is another one when the file has changed."""

import json
from pathlib import Path

import pytest

from pimserve.cluster.sweep.grid import load_grid
from pimserve.cluster.sweep.sweep import sweep
from pimserve.errors import InputError
from tests.cluster.sweep.grids import Here


@pytest.mark.medium
def test_results_of_another_trace_are_not_taken(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,6\n")
    settings = [f"workload={{trace: {{format: csv, path: {trace}}}}}"]

    def run(folder: str) -> dict:
        return sweep(load_grid(None, settings, ["cluster.replicas=1,2"], 1), tmp_path / folder, Here())

    run("out")
    summary = tmp_path / "out" / "replicas=1" / "seed-0" / "summary.json"
    before = json.loads(summary.read_text())
    made = summary.stat().st_mtime_ns
    run("out")
    assert summary.stat().st_mtime_ns == made
    trace.write_text(trace.read_text().replace("20,6", "21,6"))
    with pytest.raises(InputError, match="belongs to a sweep of another scenario or grid"):
        run("out")
    run("again")
    after = json.loads((tmp_path / "again" / "replicas=1" / "seed-0" / "summary.json").read_text())
    assert after["scenario_digest"] != before["scenario_digest"]
    assert after["tokens"] != before["tokens"]
