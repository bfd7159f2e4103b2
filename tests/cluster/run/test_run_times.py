"""Which run of a name is the newest, and when each ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pimserve.cluster.run.compare import compare
from pimserve.cluster.run.read_summary import load_document, summary_of_document
from pimserve.cluster.run.run_times import earlier_run, ended_at, newer_runs, now
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from tests.cluster.documents import run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with results of three runs of one name, an hour apart, and of others whose names only begin so."""
    monkeypatch.chdir(tmp_path)
    scenario = load_scenario(None, ["workload.num_requests=3", "name=x", "output.steps=false"])
    for hour, name in enumerate(("x", "x-2", "x-3", "x-mini", "xy-2")):
        run(prepare(scenario), Path("results") / name)
        file = Path("results") / name / "summary.json"
        summary = json.loads(file.read_text())
        summary["simulator"]["ended_at"] = f"2026-11-28T0{hour}:30:59+00:00"
        file.write_text(json.dumps(summary))
        os.utime(file, (1e9 + 3600 * hour,) * 2)
    return Path("results")


def test_a_summary_says_when_its_run_ended(tmp_path: Path) -> None:
    before = now()
    summary = run(prepare(load_scenario(None, ["workload.num_requests=3"])), tmp_path / "out")
    assert before <= summary["simulator"]["ended_at"] <= now()
    assert load_document(tmp_path / "out")["simulator"]["ended_at"] == summary["simulator"]["ended_at"]


@pytest.mark.parametrize("said", [None, 5, "yesterday", "9999-99-99", ["x"]])
def test_without_it_the_file_tells(said: Any, folder: Path) -> None:
    file = folder / "x" / "summary.json"

    def ended(document: dict[str, Any], place: Path) -> str:
        return ended_at(summary_of_document(document), place)

    assert ended({"simulator": {"ended_at": said}}, folder / "x") == "2001-09-09 01:46 UTC"
    assert ended({"simulator": 1}, file) == "2001-09-09 01:46 UTC"
    assert ended({}, folder / "nowhere") == ""
    assert ended({"simulator": {"ended_at": "2026-11-28T05:30:59+02:00"}}, file) == "2026-11-28 03:30 UTC"


def test_newer_runs_are_those_of_the_same_name(folder: Path) -> None:
    names = {place: [other.name for other, _ in newer_runs(folder / place)] for place in ("x", "x-2", "x-3", "x-mini")}
    assert names == {"x": ["x-3", "x-2"], "x-2": ["x-3"], "x-3": [], "x-mini": []}
    assert newer_runs(folder / "x" / "summary.json") == newer_runs(folder / "x")


def test_a_run_into_a_used_name_names_the_earlier_one(folder: Path) -> None:
    assert earlier_run("x", folder / "x-4") == "results/x is of an earlier run (2001-09-09 01:46 UTC)"
    assert earlier_run("x", folder / "x") is None
    assert earlier_run("x", folder.absolute() / "x") is None
    assert earlier_run("new", folder / "new") is None


def test_comparisons_say_when_and_whether_there_is_a_newer_run(folder: Path) -> None:
    found = compare([Path("x"), Path("results/x-3")])
    assert [run.ended for run in found.runs] == ["2026-11-28 00:30 UTC", "2026-11-28 02:30 UTC"]
    assert found.runs[0].title.endswith(", 2026-11-28 00:30 UTC")
    (note,) = found.notes
    assert note.startswith("results/x is of 2026-11-28 00:30 UTC; newer: results/x-2 (")
    assert "x-3" not in note  # which is compared
    document = found.document()
    assert document["notes"] == [note]
    assert document["runs"][0]["ended"] == "2026-11-28 00:30 UTC"
    assert not compare([Path("results/x-3"), Path("x-mini")]).notes
