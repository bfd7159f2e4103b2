"""A sweep runs every point once, as `pimserve run` would, and survives what goes wrong; its figures are right."""

import csv
import json
import math
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from pimserve.cluster.cli.sweep_table import sweep_report
from pimserve.cluster.run.read_summary import summary_of_document
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.sweep import key_figures
from pimserve.cluster.sweep.grid import load_grid
from pimserve.cluster.sweep.sweep import sweep
from pimserve.cluster.sweep.workers import ProcessWorkers
from pimserve.errors import InputError
from pimserve.scheduler.batch_means import t_quantile
from tests.cluster.documents import run
from tests.cluster.sweep.grids import CLOSED, LATE, REPLICAS, SMALL, Here, entries, small, statuses

pytestmark = pytest.mark.server


class NoWorkers:
    """Fails if there is anything to do."""

    def run(self, tasks):
        assert list(tasks) == []
        yield from ()


@pytest.mark.parametrize("jobs", [pytest.param(1, marks=pytest.mark.deep), 2, pytest.param(5, marks=pytest.mark.deep)])
def test_results_are_those_of_single_runs(tmp_path, jobs):
    grid = small(["cluster.replicas=1,2", "cluster.device=duplex,h100"], repeat=2)
    document = sweep(grid, tmp_path / "sweep", ProcessWorkers(jobs))
    assert statuses(document) == ["done"] * 8
    assert multiprocessing.active_children() == []
    for point in document["points"]:
        settings = [f"{path}={value}" for path, value in point["settings"].items()]
        for each in point["runs"]:
            alone = tmp_path / "alone" / Path(each["folder"]).relative_to(tmp_path)
            run(prepare(load_scenario(None, [*SMALL, *settings, f"run.seed={each['seed']}"])), alone)
            for name in ("requests.npy", "steps.npy", "scenario.yaml"):
                assert (alone / name).read_bytes() == (Path(each["folder"]) / name).read_bytes()
            ours, theirs = (
                json.loads((folder / "summary.json").read_text()) for folder in (Path(each["folder"]), alone)
            )
            for summary in (ours, theirs):
                del summary["simulator"], summary["results"]
            assert ours == theirs
            assert each["figures"] == key_figures.outcome_of(summary_of_document(theirs)).figures
            assert each["scenario_digest"] == theirs["scenario_digest"]


def test_what_is_there_is_not_run_again(tmp_path):
    first = sweep(small(REPLICAS), tmp_path, Here())
    seen = []
    again = sweep(small(REPLICAS), tmp_path, NoWorkers(), lambda done, total: seen.append((done, total)))
    assert again == first
    assert seen == [(3, 3)]
    assert json.loads((tmp_path / "sweep.json").read_text()) == first


def test_more_seeds_keep_the_runs_that_are_there(tmp_path):
    sweep(small(REPLICAS), tmp_path, Here())
    seen = []
    document = sweep(small(REPLICAS, 2), tmp_path, Here(), lambda done, total: seen.append((done, total)))
    assert seen == [(3, 6), (4, 6), (5, 6), (6, 6)]
    assert statuses(document) == ["done"] * 6


@pytest.mark.parametrize(
    "left", ["no summary", "half a summary", "an empty folder and a partial one", "another scenario's"]
)
def test_what_is_half_there_is_run_again(tmp_path, left):
    first = sweep(small(REPLICAS), tmp_path, Here())
    folder = tmp_path / "replicas=2" / "seed-0"
    summary = folder / "summary.json"
    text = summary.read_text()
    if left == "half a summary":
        summary.write_text(text[: len(text) // 2])
    elif left == "another scenario's":
        summary.write_text(text.replace(json.loads(text)["scenario_digest"], "0" * 64))
    else:
        summary.unlink()
    if left.startswith("an empty"):
        for file in folder.iterdir():
            file.unlink()
        (folder.parent / ".seed-0.00000000.partial").mkdir()
    seen = []
    again = sweep(small(REPLICAS), tmp_path, Here(), lambda done, total: seen.append(done))
    assert again == first
    assert seen == [2, 3]
    assert [entry.name for entry in folder.parent.iterdir()] == ["seed-0"]
    assert json.loads(summary.read_text())["digest"] == json.loads(text)["digest"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    sweep(small(REPLICAS), tmp_path / "sweep", Here())
    for other in (small(["cluster.replicas=1,2"]), small(REPLICAS, more=["cluster.nodes=1", "run.seed=4"])):
        with pytest.raises(InputError, match="belongs to a sweep of another scenario or grid; give another folder"):
            sweep(other, tmp_path / "sweep", NoWorkers())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(InputError, match="exists already, and is not of a sweep"):
        sweep(small(REPLICAS), tmp_path / "mine", NoWorkers())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        sweep(small(REPLICAS), tmp_path / "file", NoWorkers())


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 99}'])
def test_a_damaged_sweep_is_refused(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(InputError, match=r"sweep.json: (cannot be read|is not a sweep of schema_version 2)"):
        sweep(small(REPLICAS), tmp_path, NoWorkers())
    assert (tmp_path / "sweep.json").read_text() == text


def test_two_sweeps_do_not_work_in_one_folder(tmp_path):
    class Second:
        def run(self, tasks):
            with pytest.raises(InputError, match="another sweep is at work in this folder"):
                sweep(small(REPLICAS), tmp_path, NoWorkers())
            yield from ()

    assert statuses(sweep(small(REPLICAS), tmp_path, Second())) == ["missing"] * 3


def test_a_point_that_fails_does_not_stop_the_others(tmp_path):
    grid = load_grid(None, CLOSED, [LATE], 1)
    document = sweep(grid, tmp_path, Here())
    assert statuses(document) == ["failed", "done", "done"]
    assert "leaves nothing to measure" in document["points"][0]["runs"][0]["error"]
    assert document["baseline"] == "warmup_s=0.1"
    seen = []
    sweep(grid, tmp_path, Here(), lambda done, total: seen.append(done))
    assert seen == [2, 3], "what failed is tried again"


def test_a_worker_that_is_killed_fails_its_own_run_only(tmp_path):
    killed = []

    def kill_one():
        while not killed:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                killed.append(child.pid)
                break

    killer = threading.Thread(target=kill_one)
    killer.start()
    document = sweep(small(REPLICAS), tmp_path, ProcessWorkers(1))
    killer.join()
    assert len(killed) == 1
    assert statuses(document) == ["failed", "done", "done"]
    assert "its process was killed by signal 9" in entries(document)[0]["error"]


def test_what_is_finished_survives_an_interruption(tmp_path):
    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(small(REPLICAS), tmp_path, ProcessWorkers(1), interrupt)
    assert multiprocessing.active_children() == []
    assert statuses(json.loads((tmp_path / "sweep.json").read_text())).count("done") == 2
    assert len(list(tmp_path.glob("*/*/summary.json"))) == len(list(tmp_path.glob("*/*"))) == 2
    assert len(list(tmp_path.glob("*/"))) == 2
    assert statuses(sweep(small(REPLICAS), tmp_path, ProcessWorkers(1))) == ["done"] * 3


def test_the_table_has_a_row_for_each_run(tmp_path):
    document = sweep(small(REPLICAS, 2), tmp_path, Here())
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["cluster.replicas"], row["seed"]) for row in rows] == [(r, s) for r in "123" for s in "01"]
    for row, entry in zip(rows, entries(document), strict=True):
        assert row["status"] == "done"
        assert float(row["tpot_p99_s"]) == entry["figures"]["tpot_p99_s"]


@pytest.mark.parametrize("degrees", [1, 2, 9, 30, 31, 60, 999])
def test_quantiles_of_students_t(degrees):
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=5e-4)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40))
def test_confidence_intervals(values):
    found = key_figures.estimate(values)
    mean, error = np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))
    assert found["mean"] == pytest.approx(mean, abs=1e-6)
    assert found["ci95"] == pytest.approx(error * stats.t.ppf(0.975, len(values) - 1), rel=1e-3, abs=1e-6)


def test_estimates_of_few_values():
    assert key_figures.estimate([3.0]) == {"mean": 3.0, "ci95": None}
    assert key_figures.estimate([3.0], 0.5) == {"mean": 3.0, "ci95": 0.5}
    assert key_figures.estimate([3.0, None]) == key_figures.estimate([]) == {"mean": None, "ci95": None}


def test_differences_are_paired_by_seed(tmp_path):
    document = sweep(small(["cluster.device=duplex,h100"], repeat=3), tmp_path, Here())
    first, second = ([each["figures"]["tpot_p50_s"] for each in point["runs"]] for point in document["points"])
    differences = [b - a for a, b in zip(first, second, strict=True)]
    found = document["points"][1]["difference_to_baseline"]["tpot_p50_s"]
    assert found == key_figures.estimate(differences)
    assert "difference_to_baseline" not in document["points"][0]


@pytest.fixture(scope="module")
def partly_failed(tmp_path_factory):
    """The document of a sweep with two axes, of whose points some fail."""
    return sweep(load_grid(None, CLOSED, ["cluster.replicas=1,2", LATE], 2), tmp_path_factory.mktemp("late"), Here())


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_fit_the_screen(partly_failed, width):
    screen = Console(width=width, no_color=True)
    with screen.capture() as captured:
        screen.print(sweep_report(partly_failed, screen))
    text = captured.get()
    assert max(map(len, text.splitlines())) <= width
    for heading in ("output tokens/s", "TTFT p99", "TPOT p99", "energy/token", "stability", "+-", "Pareto front"):
        assert heading in text
    assert "differences to replicas=1,warmup_s=0.1, paired by" in text
    assert text.count("failed: replicas=1,warmup_s=3600") == 1


def test_what_the_scenario_lacks_may_come_from_the_grid():
    grid = load_grid(None, ["workload.arrival.process=poisson"], ["workload.arrival.rate_per_s=10,20"], 1)
    assert [point.runs[0].scenario.workload.arrival.rate_per_s for point in grid.points] == [10, 20]
    with pytest.raises(InputError, match=r"^workload\.arrival"):
        load_grid(None, ["workload.arrival.process=poisson"], ["cluster.replicas=1,2"], 1)
