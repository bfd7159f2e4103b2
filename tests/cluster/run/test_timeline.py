"""Timelines keep the rules of Chrome's trace events, and say what the run's tables say."""

import json
import os
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pimserve.cluster.run import timeline
from pimserve.cluster.run.results import load_table
from pimserve.cluster.run.timeline import write_timeline
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from tests.cluster.documents import run


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timeline") / "run"
    summary = run(prepare(load_scenario(None, ["cluster.replicas=2", "workload.num_requests=80"])), folder)
    return folder, summary


def events_of(results, tmp_path, **options):
    told = write_timeline(results[0], tmp_path / "timeline.json", **options)
    return json.loads((tmp_path / "timeline.json").read_text())["traceEvents"], told


@pytest.mark.medium
def test_events_keep_the_rules(results, tmp_path):
    events, told = events_of(results, tmp_path)
    end_us = results[1]["end_s"] * 1e6
    named = {event["pid"] for event in events if event["ph"] == "M" and event["name"] == "process_name"}
    assert named == {0, 1, 2}
    open_ = defaultdict(list)
    last = {}
    for event in events:
        assert event["pid"] in named
        assert isinstance(event["name"], str)
        if event["ph"] == "M":
            continue
        assert 0 <= event["ts"] <= end_us * (1 + 1e-9)
        if event["ph"] == "X":
            assert event["dur"] >= 0
            track = event["pid"], event["tid"]
            assert event["ts"] >= last.get(track, 0) - 1e-7, "slices of a track do not overlap"
            last[track] = event["ts"] + event["dur"]
        elif event["ph"] == "b":
            open_[event["id"]].append(event["name"])
        elif event["ph"] == "e":
            open_[event["id"]].remove(event["name"])
        else:
            assert event["ph"] == "C"
            assert all(isinstance(value, int | float) for value in event["args"].values())
    assert not any(open_.values())
    kinds = Counter(event["ph"] for event in events)
    assert told == {"slices": kinds["X"], "counters": kinds["C"], "requests": 80}
    places = {e["pid"]: e["args"]["sort_index"] for e in events if e["name"] == "process_sort_index"}
    assert sorted(places, key=places.get) == [1, 2, 0], "requests come last"


@pytest.mark.medium
def test_a_replica_that_rests_has_no_batch(results, tmp_path):
    events, _ = events_of(results, tmp_path)
    rests = 0
    for pid in (1, 2):
        mine = [event for event in events if event["pid"] == pid]
        slices = [event for event in mine if event["ph"] == "X"]
        for name in ("requests in the batch", "KV blocks"):
            counted = {event["ts"]: event["args"]["value"] for event in mine if event["name"] == name}
            assert list(counted) == sorted(counted)
            for before, after in pairwise(slices):
                end = before["ts"] + before["dur"]
                if after["ts"] > end + 1:
                    rests += 1
                    assert [value for at, value in counted.items() if before["ts"] < at < after["ts"]] == [0]
            assert list(counted.values())[-1] == 0
    assert rests > 20


def test_replicas_that_had_nothing_to_do(tmp_path):
    run(prepare(load_scenario(None, ["cluster.replicas=2", "workload.num_requests=1"])), tmp_path / "run")
    write_timeline(tmp_path / "run", tmp_path / "timeline.json")
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events if event["ph"] == "X"} == {1}
    assert {event["pid"] for event in events if event["ph"] == "M"} == {0, 1, 2}


@pytest.mark.parametrize("most", [20_000, 50])
def test_steps_and_tokens_are_all_there(results, tmp_path, monkeypatch, most):
    monkeypatch.setattr(timeline, "MOST_SLICES", most)
    monkeypatch.setattr(timeline, "_BINS", 10)
    events, _ = events_of(results, tmp_path)
    slices = [event for event in events if event["ph"] == "X"]
    assert sum(event["args"]["steps"] for event in slices) == results[1]["batch"]["steps"]
    assert sum(event["args"]["output tokens"] for event in slices) == results[1]["tokens"]["output"]
    assert all(count <= most for count in Counter(event["pid"] for event in slices).values())


def test_many_replicas_share_the_slices(results, tmp_path, monkeypatch):
    monkeypatch.setattr(timeline, "_BINS", 10)
    monkeypatch.setattr(timeline, "MOST_IN_ALL", 100)
    events, told = events_of(results, tmp_path)
    assert told["slices"] <= 100
    slices = [event for event in events if event["ph"] == "X"]
    assert sum(event["args"]["steps"] for event in slices) == results[1]["batch"]["steps"]


@pytest.mark.medium
def test_units_are_as_busy_as_the_summary_says(results, tmp_path):
    events, _ = events_of(results, tmp_path)
    end_us = results[1]["end_s"] * 1e6
    assert results[1]["unit_busy_share"]
    for unit, share in results[1]["unit_busy_share"].items():
        busy_us = 0.0
        for pid in (1, 2):
            mine = [e for e in events if e["ph"] == "C" and e["pid"] == pid and e["name"] == f"{unit} busy, %"]
            assert 100 < len(mine) <= 500
            assert all(0 <= event["args"]["value"] <= 100.001 for event in mine)
            ends = [*(event["ts"] for event in mine[1:]), end_us]
            busy_us += sum(e["args"]["value"] / 100 * (end - e["ts"]) for e, end in zip(mine, ends, strict=True))
        assert busy_us / (2 * end_us) == pytest.approx(share, rel=1e-4)


def test_requests_have_their_phases(results, tmp_path):
    events, told = events_of(results, tmp_path, most_requests=20)
    assert told["requests"] == 20
    begins = [event for event in events if event["ph"] == "b"]
    assert Counter(event["id"] for event in begins) == dict.fromkeys(range(20), 4)
    rows = load_table(results[0], "requests")
    for event in begins:
        if event["name"] == "decode":
            assert event["ts"] == rows["first_token_ps"][event["id"]] / 1e6


@pytest.mark.medium
def test_what_cannot_be_written(results, tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        write_timeline(results[0], tmp_path / "none" / "timeline.json")
    with pytest.raises(InputError, match="no results here"):
        write_timeline(tmp_path, tmp_path / "timeline.json")
    for folder in (tmp_path, Path("/"), Path()):
        with pytest.raises(InputError, match="is a folder; a file is needed"):
            write_timeline(results[0], folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.medium
def test_what_must_not_be_replaced(results, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no file that could be replaced"):
        write_timeline(results[0], tmp_path / "pipe")
    summary = (results[0] / "summary.json").read_bytes()
    with pytest.raises(InputError, match="belongs to the results of a run"):
        write_timeline(results[0], results[0] / "summary.json")
    assert (results[0] / "summary.json").read_bytes() == summary
    (tmp_path / "file.json").write_text("old")
    (tmp_path / "link.json").symlink_to("file.json")
    write_timeline(results[0], tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert "traceEvents" in json.loads((tmp_path / "file.json").read_text())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed") / "run"
    placement = "cluster.placement={experts: {device: aimc-realistic}, micro_batches: 2, link: {gb_per_s: 50}}"
    overrides = ["cluster.devices_per_node=2", placement, "workload.num_requests=20"]
    return folder, run(prepare(load_scenario(None, overrides)), folder)


@pytest.mark.medium
def test_micro_batches_of_a_step_go_round_and_end_with_it(mixed, tmp_path):
    events, _ = events_of(mixed, tmp_path)
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert "replica 0: 2 duplex + 6 aimc-realistic" in names
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert lanes == {1: "steps"} | {
        2 + place: f"{name}, some steps" for place, name in enumerate(("attention", "dispatch", "experts", "combine"))
    }
    slices = [event for event in events if event["ph"] == "X"]
    spans = load_table(mixed[0], "steps")
    begins = spans["begin_ps"] / 1e6
    ends = defaultdict(float)
    for event in slices:
        if event["tid"] != 1:
            span = int(np.searchsorted(begins, event["ts"] + 1e-6, side="right")) - 1
            ends[span] = max(ends[span], event["ts"] + event["dur"])
    single = [span for span in ends if spans["steps"][span] == 1]
    assert len(single) > 10
    for span in single:
        assert ends[span] - begins[span] == pytest.approx(spans["duration_fs"][span] / 1e9, rel=1e-6)
    for tid, name in lanes.items():
        mine = sorted((event["ts"], event["dur"]) for event in slices if event["tid"] == tid)
        assert all(ts + dur <= after + 1e-6 for (ts, dur), (after, _) in pairwise(mine)), name


@pytest.mark.medium
def test_counters_of_groups_come_to_their_shares_of_the_run(mixed, tmp_path):
    events, _ = events_of(mixed, tmp_path)
    end_us = mixed[1]["end_s"] * 1e6
    for group in ("attention", "experts"):
        shares = mixed[1]["groups"][group]["shares_of_time"]
        for name, key in (("working", "working"), ("waiting for the link", "link"), ("without a step", "work")):
            counted = [(e["ts"], e["args"]["value"]) for e in events if e["name"] == f"{group}: {name}, %"]
            until = [at for at, _ in counted[1:]] + [end_us]
            area = sum(value * (end - at) for (at, value), end in zip(counted, until, strict=True)) / 100 / end_us
            before = counted[0][0] / end_us if key == "work" else 0.0  # nothing is drawn before the first step
            assert area + before == pytest.approx(shares[key], abs=2e-4)
