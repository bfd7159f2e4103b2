"""A sweep runs every point once, as `pimserve run` would, and survives what goes wrong; its figures are right."""

import csv
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner

from pimserve.cluster.cli.sweep_command import sweep_command
from pimserve.cluster.cli.sweep_table import sweep_report
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.sweep import key_figures
from pimserve.cluster.sweep.grid import MAX_RUNS, labels, load_grid
from pimserve.cluster.sweep.sweep import sweep
from pimserve.cluster.sweep.workers import ProcessWorkers
from pimserve.errors import InputError
from pimserve.scheduler.batch_means import t_quantile
from tests.cluster.documents import run

pytestmark = pytest.mark.server

SMALL = ["workload.num_requests=30"]
REPLICAS = ["cluster.replicas=1,2,3"]


class NoWorkers:
    """Fails if there is anything to do."""

    def run(self, tasks):
        assert list(tasks) == []
        yield from ()


def small(grid, repeat=1, more=()):
    return load_grid(None, [*SMALL, *more], grid, repeat)


def entries(document):
    return [run for point in document["points"] for run in point["runs"]]


def statuses(document):
    return [entry["status"] for entry in entries(document)]


# -- the grid


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "--grid: is needed, such as --grid cluster.replicas=1,2,4"),
        (["cluster.replicas"], "--grid cluster.replicas: must be path=v1,v2,..."),
        (["=1"], "--grid =1: must be path=v1,v2,..."),
        (["cluster..replicas=1"], "must be path=v1,v2,..."),
        (["cluster.replicas="], "--grid cluster.replicas=: has no values"),
        (["cluster.replicas=1,,2"], "--grid cluster.replicas=1,,2: not valid YAML"),
        (["cluster.replicas=1]"], "--grid cluster.replicas=1]: not valid YAML"),
        (["cluster.replicas=a\0"], "not valid YAML"),
        (["cluster.replicas=1\n2"], "must be a single line"),
        (["cluster.replicas=2020-13-45"], "not valid YAML: month must be in 1..12"),
        (["cluster.replicas=1,2,1"], "--grid cluster.replicas=1,2,1: has 1 twice"),
        (["cluster.replicas=1..3,2"], "has 2 twice"),
        (["cluster.replicas=3..1"], "3..1: a range goes up"),
        (["cluster.replicas=1..3..0"], "1..3..0: a range goes up"),
        (["cluster.replicas=1..999999999999"], "999,999,999,999 values are too many; at most 10,000 runs"),
        (["run.seed=1..101", "cluster.replicas=1..100"], "--grid: 10,100 runs are too many; at most 10,000"),
        (
            ["cluster.replicas=1", "cluster.replicas=2"],
            "--grid cluster.replicas=2: cluster.replicas has a --grid already",
        ),
        (
            ["cluster.device.memory_gb=80", "cluster.device=h100"],
            "would undo --grid cluster.device.memory_gb; give it before",
        ),
        (["workload.num_requests=5"], "--grid workload.num_requests=5: workload.num_requests is given by --set too"),
        (["cluster.replica=1"], "--grid cluster.replica=1: cluster.replica: unknown key; did you mean replicas?"),
        (["cluster.replicas=1,0"], "--grid cluster.replicas=0: cluster.replicas: must be greater than 0"),
        (["cluster.replicas=1,x"], "--grid cluster.replicas=x: cluster.replicas: must be a whole number (got 'x')"),
        (["cluster.device=h100,nosuch"], "--grid cluster.device=nosuch: cluster.device: unknown device 'nosuch'"),
        (["cluster.replicas=1", "model=nosuch"], "--grid cluster.replicas=1 model=nosuch: model: unknown model"),
        (["cluster.replicas.x=1"], "cluster.replicas"),
        (["cluster.devices_per_node=4,1"], "--grid cluster.devices_per_node=1: cluster: mixtral-8x7b does not fit"),
        (["scheduler.router=round_robin,nosuch"], "--grid scheduler.router=nosuch: scheduler.router: unknown router"),
        (["scheduler.max_model_len=100,40000"], "--grid scheduler.max_model_len=40000: scheduler.max_model_len"),
        (["run.warmup_s=0,3600"], "--grid run.warmup_s=3600: run.warmup_s: warm-up (3600.0 s) and cool-down"),
        (["cluster.device=nosuch,h100,none"], "2 of 3 points cannot be run"),
    ],
)
def test_a_grid_is_refused_before_anything_runs(grid, message):
    with pytest.raises(InputError) as refused:
        small(grid)
    assert message in str(refused.value)


def test_seeds_of_the_grid_and_of_repeat_do_not_go_together():
    with pytest.raises(InputError, match=r"--grid run.seed=1,2: --repeat takes seeds of its own"):
        small(["run.seed=1,2"], repeat=2)
    assert [point.runs[0].seed for point in small(["run.seed=1,2"]).points] == [1, 2]


def test_the_number_of_runs_is_limited_with_repeats():
    with pytest.raises(InputError, match=rf"{MAX_RUNS + 2:,} runs are too many"):
        small([f"cluster.replicas=1..{(MAX_RUNS + 2) // 2}"], repeat=2)


def test_a_mistake_in_the_scenario_is_not_blamed_on_the_grid():
    with pytest.raises(InputError, match=r"^cluster.replicas: must be greater than 0"):
        load_grid(None, ["cluster.replicas=0"], ["cluster.nodes=1,2"], 1)


def test_points_are_the_product_in_order():
    grid = small(["cluster.replicas=1..5..2", "cluster.device=h100,{preset: h100, memory_gb: 96}"])
    assert [point.settings["cluster.replicas"] for point in grid.points] == [1, 1, 3, 3, 5, 5]
    assert [point.runs[0].scenario.load_device().spec.memory_gb for point in grid.points][1] == 96
    assert [point.name for point in grid.points[:2]] == [
        "replicas=1,device=h100",
        "replicas=1,device=h100-memory_gb=96",
    ]
    names = [point.name for point in grid.points]
    assert len(set(names)) == 6
    assert all("/" not in name and " " not in name and len(name) < 100 for name in names)


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join), min_size=1, unique=True))
def test_labels_tell_paths_apart(paths):
    found = labels(paths)
    assert len(set(found)) == len(found)
    assert all(f".{path}".endswith(f".{label}") for path, label in zip(paths, found, strict=True))


def test_all_points_share_the_seeds():
    grid = small(REPLICAS, repeat=3, more=["run.seed=7"])
    for point in grid.points:
        assert [each.seed for each in point.runs] == [each.scenario.run.seed for each in point.runs] == [7, 8, 9]


# -- runs


@pytest.mark.parametrize("jobs", [1, 2, 5])
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
            assert each["figures"] == key_figures.figures_of(theirs)
            assert each["scenario_digest"] == theirs["scenario_digest"]


def test_what_is_there_is_not_run_again(tmp_path):
    first = sweep(small(REPLICAS), tmp_path, ProcessWorkers(2))
    seen = []
    again = sweep(small(REPLICAS), tmp_path, NoWorkers(), lambda done, total: seen.append((done, total)))
    assert again == first
    assert seen == [(3, 3)]
    assert json.loads((tmp_path / "sweep.json").read_text()) == first


def test_more_seeds_keep_the_runs_that_are_there(tmp_path):
    sweep(small(REPLICAS), tmp_path, ProcessWorkers(2))
    seen = []
    document = sweep(small(REPLICAS, 2), tmp_path, ProcessWorkers(2), lambda done, total: seen.append((done, total)))
    assert seen == [(3, 6), (4, 6), (5, 6), (6, 6)]
    assert statuses(document) == ["done"] * 6


@pytest.mark.parametrize(
    "left", ["no summary", "half a summary", "an empty folder and a partial one", "another scenario's"]
)
def test_what_is_half_there_is_run_again(tmp_path, left):
    first = sweep(small(REPLICAS), tmp_path, ProcessWorkers(2))
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
    again = sweep(small(REPLICAS), tmp_path, ProcessWorkers(1), lambda done, total: seen.append(done))
    assert again == first
    assert seen == [2, 3]
    assert [entry.name for entry in folder.parent.iterdir()] == ["seed-0"]
    assert json.loads(summary.read_text())["digest"] == json.loads(text)["digest"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    sweep(small(REPLICAS), tmp_path / "sweep", ProcessWorkers(2))
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


CLOSED = ["workload={mode: closed, concurrency: 4, num_requests: 30}"]
LATE = "run.warmup_s=3600,0.1,0.2"  # how long a closed loop lasts is known when it has ended


def test_a_point_that_fails_does_not_stop_the_others(tmp_path):
    grid = load_grid(None, CLOSED, [LATE], 1)
    document = sweep(grid, tmp_path, ProcessWorkers(2))
    assert statuses(document) == ["failed", "done", "done"]
    assert "leaves nothing to measure" in document["points"][0]["runs"][0]["error"]
    assert document["baseline"] == "warmup_s=0.1"
    seen = []
    sweep(grid, tmp_path, ProcessWorkers(1), lambda done, total: seen.append(done))
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
    document = sweep(small(REPLICAS, 2), tmp_path, ProcessWorkers(2))
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["cluster.replicas"], row["seed"]) for row in rows] == [(r, s) for r in "123" for s in "01"]
    for row, entry in zip(rows, entries(document), strict=True):
        assert row["status"] == "done"
        assert float(row["tpot_p99_s"]) == entry["figures"]["tpot_p99_s"]


# -- figures


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
    document = sweep(small(["cluster.device=duplex,h100"], repeat=3), tmp_path, ProcessWorkers(2))
    first, second = ([each["figures"]["tpot_p50_s"] for each in point["runs"]] for point in document["points"])
    differences = [b - a for a, b in zip(first, second, strict=True)]
    found = document["points"][1]["difference_to_baseline"]["tpot_p50_s"]
    assert found == key_figures.estimate(differences)
    assert "difference_to_baseline" not in document["points"][0]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_fit_the_screen(tmp_path, width):
    document = sweep(load_grid(None, CLOSED, ["cluster.replicas=1,2", LATE], 2), tmp_path, ProcessWorkers(2))
    screen = Console(width=width, no_color=True)
    with screen.capture() as captured:
        screen.print(sweep_report(document, screen))
    text = captured.get()
    assert max(map(len, text.splitlines())) <= width
    for heading in ("output tokens/s", "TTFT p99", "TPOT p99", "energy/token", "stability", "+-", "Pareto front"):
        assert heading in text
    assert "differences to replicas=1,warmup_s=0.1, paired by" in text
    assert text.count("failed: replicas=1,warmup_s=3600") == 1


# -- the command


def command():
    app = typer.Typer()
    app.command("sweep")(sweep_command)

    @app.callback()
    def main():
        pass

    return app


def test_the_command_prints_a_table_and_where_results_are(tmp_path):
    arguments = ["sweep", "--grid", REPLICAS[0], "--set", SMALL[0], "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(command(), arguments)
    assert done.exit_code == 0, done.output
    assert "replicas" in done.stdout
    assert done.stdout.endswith(f"results in {tmp_path / 'out'}\n")
    again = CliRunner().invoke(command(), arguments)
    assert again.stdout == done.stdout


def test_the_command_ends_with_2_where_a_point_failed(tmp_path):
    arguments = ["--grid", LATE, "--set", CLOSED[0], "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(command(), ["sweep", *arguments])
    assert done.exit_code == 2
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert "error: 1 of 3 runs failed" in done.stderr


SWEEP = """
import typer
from pimserve.cluster.cli.sweep_command import sweep_command
if __name__ == "__main__":
    typer.run(sweep_command)
"""


def start(tmp_path, *arguments):
    script = tmp_path / "sweep.py"
    script.write_text(SWEEP)
    return subprocess.Popen(
        [sys.executable, str(script), *arguments, "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )


def children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def eventually(condition, limit_s=30.0):
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.e2e
@pytest.mark.slow
def test_workers_end_with_a_sweep_that_is_killed(tmp_path):
    long = ("--grid", "cluster.replicas=1..40", "--set", "workload.num_requests=400")
    process = start(tmp_path, *long)
    done = lambda: list(tmp_path.glob("out/*/*/summary.json"))  # noqa: E731
    assert eventually(lambda: len(done()) >= 2)
    workers = children(process.pid)
    assert workers
    process.kill()
    process.communicate()
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    before = {path: path.stat().st_mtime_ns for path in done()}
    again = start(tmp_path, *long)
    assert again.wait(timeout=120) == 0, again.stderr.read()
    again.communicate()
    assert len(done()) == 40
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(tmp_path.rglob("*partial*"))


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_results(tmp_path):
    grid = ("--grid", LATE, "--set", CLOSED[0], "--json")
    process = start(tmp_path, *grid, "--on", "ray")
    out, err = process.communicate(timeout=150)
    assert process.returncode == 2, err
    assert err.count("\n") == 2, "only where the results are, and that a run failed"
    document = json.loads(out)
    assert statuses(document) == ["failed", "done", "done"]
    assert "leaves nothing to measure" in entries(document)[0]["error"]
    folder = tmp_path / "out" / "warmup_s=0.1" / "seed-0"
    run(prepare(load_scenario(None, [*CLOSED, "run.warmup_s=0.1"])), tmp_path / "alone")
    for name in ("requests.npy", "steps.npy", "scenario.yaml"):
        assert (folder / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["results"] == str(folder)


def test_what_the_scenario_lacks_may_come_from_the_grid():
    grid = load_grid(None, ["workload.arrival.process=poisson"], ["workload.arrival.rate_per_s=10,20"], 1)
    assert [point.runs[0].scenario.workload.arrival.rate_per_s for point in grid.points] == [10, 20]
    with pytest.raises(InputError, match=r"^workload\.arrival"):
        load_grid(None, ["workload.arrival.process=poisson"], ["cluster.replicas=1,2"], 1)


def test_devices_of_several_kinds_are_compared_each_in_the_number_that_it_takes(tmp_path):
    example = Path(__file__).parents[3] / "examples" / "mixtral_duplex.yaml"
    arguments = [
        "sweep",
        str(example),
        "--grid",
        "cluster.device=duplex,h100,aimc-realistic",
        "--out",
        str(tmp_path / "s"),
    ]
    arguments += ["--set", "workload.num_requests=200", "--set", "run.warmup_s=0", "--jobs", "1"]
    done = CliRunner().invoke(command(), arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    heading, *rows = done.stdout.splitlines()
    assert heading.split()[:2] == ["device", "devices"]
    assert [row.replace("*", "").split()[:2] for row in rows[:3]] == [
        ["duplex", "2"],
        ["h100", "2"],
        ["aimc-realistic", "6"],
    ]
    document = json.loads((tmp_path / "s" / "sweep.json").read_text(encoding="utf-8"))
    assert [point["figures"]["devices"]["mean"] for point in document["points"]] == [2, 2, 6]
    # Where all have the same number, it is no column.
    alike = [*arguments[:3], "cluster.device=duplex,h100", "--out", str(tmp_path / "alike"), *arguments[6:]]
    assert "devices" not in CliRunner().invoke(command(), alike, env={"COLUMNS": "200"}).stdout.splitlines()[0].split()
