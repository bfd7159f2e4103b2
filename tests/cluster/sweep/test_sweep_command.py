"""`pimserve sweep`: what it prints, and what is left when it is killed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pimserve.cluster.cli.sweep_command import sweep_command
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from tests.cluster.documents import run
from tests.cluster.sweep.grids import CLOSED, LATE, REPLICAS, SMALL, entries, statuses

pytestmark = pytest.mark.server


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
@pytest.mark.deep
def test_workers_end_with_a_sweep_that_is_killed(tmp_path):
    long = ("--grid", "cluster.replicas=1..40", "--set", "workload.num_requests=400")
    process = start(tmp_path, *long)
    done = lambda: list(tmp_path.glob("out/*/[!.]*/summary.json"))  # noqa: E731  # but no partial folders
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
@pytest.mark.deep
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
