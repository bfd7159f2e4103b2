"""Results folders that were edited, cut short or mixed up: what is worked out from them says so, and writes nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pimserve.cluster.metrics.backfill import parts_of, write_file
from pimserve.cluster.run.history import History
from pimserve.cluster.run.timeline import write_timeline
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from tests.cluster.documents import run

EXAMPLES = Path(__file__).parents[3] / "examples"
GONE = object()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    few = ["run={warmup_s: 0}", "workload.num_requests=80"]
    run(prepare(load_scenario(None, ["cluster.replicas=2", *few])), folder / "plain")
    run(prepare(load_scenario(EXAMPLES / "prefill_decode_pools.yaml", few)), folder / "pools")
    slow = "faults={events: [{at_s: 5, replica: 0, kind: slow, factor: 2}]}"
    run(prepare(load_scenario(None, [slow, *few])), folder / "slow")
    return folder


def edited(runs, name, tmp_path):
    shutil.copytree(runs / name, tmp_path / "run")
    return tmp_path / "run"


def refused(folder, message):
    """Neither command takes the folder, or writes anything."""
    out = folder.parent / "out"
    out.mkdir()
    with pytest.raises(InputError, match=message):
        write_file(parts_of([folder], None), 0.0, out / "run.om")
    with pytest.raises(InputError, match=message):
        write_timeline(folder, out / "timeline.json")
    assert list(out.iterdir()) == []


def change(document, path, value):
    *way, last = path.split(".")
    for key in way:
        document = document[key]
    if value is GONE:
        del document[last]
    else:
        document[last] = value


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("plain", "end_s", GONE, r"summary\.json\.end_s: is missing"),
        ("plain", "end_s", None, r"end_s: must be a number \(got null\)"),
        ("plain", "end_s", "soon", "end_s: must be a number"),
        ("plain", "end_s", float("inf"), "Infinity is not JSON"),
        ("plain", "end_s", float("nan"), "NaN is not JSON"),
        ("plain", "end_s", -1, "end_s: must be greater"),
        ("plain", "end_s", 1e13, "end_s: must be less"),
        ("plain", "end_s", 0.5, "after the run's end"),
        ("plain", "simulator.loop_s", [1], r"simulator\.loop_s: must be a number"),
        ("plain", "simulator.peak_memory_mb", GONE, "peak_memory_mb: is missing"),
        ("plain", "simulator.spread", "all", "spread: must be a mapping"),
        ("plain", "requests.total", 79, "total 80, where summary.json has 79"),
        ("plain", "batch.steps", 5, "steps, where summary.json has 5"),
        ("plain", "kv.capacity_tokens", 16, "held 16 tokens in all, and that of scenario.yaml holds [0-9,]+ .*version"),
        ("plain", "digest", "0" * 64, "digest in summary.json is of other ones"),
        ("plain", "pools", [], "pools: must be a mapping"),
        ("pools", "pools", 7, "pools: must be a mapping"),
        ("pools", "pools", {}, r"pools\.prefill: is missing"),
        ("pools", "pools.decode", 1, r"pools\.decode: must be a mapping"),
        ("pools", "pools.decode.plan_digest", "0", "written by another version"),
        ("slow", "faults", None, "faults: must be a mapping"),
        ("slow", "faults.slowdowns", [{}], r"faults\.slowdowns\.0\.replica: is missing"),
        ("slow", "faults.slowdowns", [], "steps take another time"),
    ],
)
def test_a_summary_that_was_edited(runs, tmp_path, name, path, value, message):
    folder = edited(runs, name, tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    change(summary, path, value)
    (folder / "summary.json").write_text(json.dumps(summary))
    refused(folder, message)


def test_a_summary_with_a_number_that_no_computer_has(runs, tmp_path):
    folder = edited(runs, "plain", tmp_path)
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    file.write_text(
        file.read_text().replace(f'"end_s": {summary["end_s"]!r},\n  "stability"', '"end_s": 1e999,\n  "stability"')
    )
    assert "1e999" in file.read_text()
    refused(folder, "end_s: must be")


@pytest.mark.medium
@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("requests", "replica", -1, "replica of a row is not between 0 and 1"),
        ("requests", "replica", 2, "replica of a row is not between 0 and 1"),
        ("requests", "status", 3, "status of a row"),
        ("requests", "finish_ps", -1, "finish before they begin"),
        ("requests", "finish_ps", 2**62, "after the run's end"),
        ("requests", "arrival_ps", -1, "total 79, where summary.json has 80"),
        ("requests", "preemptions", 1, "digest in summary.json is of other ones"),
        ("steps", "replica", 7, "replica of a row is not between 0 and 1"),
        ("steps", "steps", 0, "steps of a row"),
        ("steps", "steps", 10**12, "is of another run"),
        ("steps", "decodes", -1, "decodes of a row"),
        ("steps", "context", 10**9, "digest in summary.json is of other ones"),
        ("steps", "paced_context", 10**9, "steps take another time"),
        ("steps", "begin_ps", 0, "begin before those before them end"),
        ("steps", "begin_ps", 2**61, "after the end of the run"),
    ],
)
def test_a_table_that_was_edited(runs, tmp_path, table, column, value, message):
    folder = edited(runs, "plain", tmp_path)
    rows = np.load(folder / f"{table}.npy")
    rows[column][len(rows) // 2] = value
    np.save(folder / f"{table}.npy", rows)
    refused(folder, message)


@pytest.mark.parametrize("table", ["requests", "steps"])
def test_a_table_that_is_half_there_or_none(runs, tmp_path, table):
    folder = edited(runs, "plain", tmp_path)
    rows = np.load(folder / f"{table}.npy")
    np.save(folder / f"{table}.npy", rows[: len(rows) // 2])
    refused(folder, "is of another run")
    with (folder / f"{table}.npy").open("wb") as file:
        np.savez(file, rows)
    with pytest.raises(InputError, match="not a table of this version"):
        History.load(folder)


def test_files_of_different_runs(runs, tmp_path):
    folder = edited(runs, "plain", tmp_path)
    shutil.copy(runs / "slow" / "scenario.yaml", folder)
    refused(folder, "replica of a row")
    shutil.copy(runs / "pools" / "scenario.yaml", folder)
    with pytest.raises(InputError, match="written by another version"):
        History.load(folder)


def test_steps_after_more_picoseconds_than_62_bit_are_counted_and_read(tmp_path):
    rare = ["workload.arrival={process: constant, rate_per_s: 0.00002}", "workload.num_requests=100"]
    lengths = ["workload.lengths.input={kind: fixed, tokens: 200}", "workload.lengths.output={kind: fixed, tokens: 64}"]
    prepared = prepare(load_scenario(None, [*rare, *lengths, "run={warmup_s: 60000}"]))
    summary = run(prepared, tmp_path / "run")
    assert summary["end_s"] * 10**12 > 2**62
    rate = summary["throughput"]
    assert rate["output_tokens_per_s"] == pytest.approx(64 * rate["requests_per_s"])
    assert write_timeline(tmp_path / "run", tmp_path / "timeline.json")["requests"] == 100


def test_a_scenario_that_is_cut_short_is_named(runs, tmp_path):
    folder = edited(runs, "plain", tmp_path)
    text = (folder / "scenario.yaml").read_text()
    (folder / "scenario.yaml").write_text(text[: text.index("dispatch: forward") + len("dispatch: forw")])
    refused(folder, r"run/scenario\.yaml: cluster\.dispatch: must be 'forward', 'direct' or 'per_pick' \(got 'forw'\)")
    (folder / "scenario.yaml").unlink()
    with pytest.raises(InputError) as gone:
        History.load(folder)
    assert str(gone.value).count("scenario.yaml") == 1
