"""Simulated faults as a scenario has them: keys, figures, report and export."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from pimserve.cluster.cli.render import summary_report
from pimserve.cluster.cli.terminal import write
from pimserve.cluster.run.compare import compare
from pimserve.cluster.run.export import export_table
from pimserve.cluster.run.read_summary import summary_of_document
from pimserve.cluster.run.results import load_table
from pimserve.cluster.scenario.document import Scenario, load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.plan import FS_PER_S
from pimserve.errors import InputError
from tests.cluster.documents import run, serve

SMALL = ["workload.num_requests=150", "cluster.replicas=2", "cluster.experts=tp"]
EVENTS = (
    "faults.events=[{at_s: 3, replica: 0, device: 1, kind: fail, for_s: 5}, "
    "{at_s: 6, replica: 1, kind: slow, factor: 1.7, for_s: 8}, {at_s: 12, replica: 0, kind: leave}]"
)


def scenario(*overrides: str) -> Scenario:
    return load_scenario(None, [*SMALL, *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["faults.events=[{at_s: 1, replica: 2, kind: fail}]"], r"^faults.events.0.replica: 2: there are 2, from 0"),
        (["faults.events=[{at_s: 1, replica: 1, device: 4, kind: fail}]"], r"^faults.events.0.device: 4: a replica"),
        (["faults.events=[{at_s: 1, replica: 1, kind: slow}]"], r"faults.events.0: kind: slow needs factor"),
        (["faults.events=[{at_s: 1, replica: 1, kind: fail, factor: 2}]"], r"faults.events.0: kind: slow needs"),
        (
            ["faults.events=[{at_s: 1, replica: 1, kind: slow, factor: 1}]"],
            r"factor: must be greater than or equal to 1.001",
        ),
        (["faults.events=[{at_s: -1, replica: 1, kind: fail}]"], r"^faults.events.0.at_s: must be"),
        (
            ["faults.events=[{at_s: 1, replica: 1, kind: explode}]"],
            r"^faults.events.0.kind: must be 'fail', 'slow' or 'leave'",
        ),
        (["faults.mtbf_s=100"], r"^faults: mtbf_s and repair_s go together"),
    ],
)
def test_faults_that_make_no_sense_are_refused_where_they_stand(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        serve(prepare(scenario(*overrides)))


def test_without_faults_nothing_is_said_of_them() -> None:
    plain, _ = serve(prepare(scenario()))
    for none in ("faults={}", "faults.detection_s=3", "faults=null"):
        found, _ = serve(prepare(scenario(none)))
        assert "faults" not in found
        assert found["digest"] == plain["digest"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("faults") / "run"
    run(prepare(scenario(EVENTS, "faults.detection_s=0.5")), place)
    return place


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_what_took_place(folder: Path) -> None:
    found = summary_of(folder)
    faults = found["faults"]
    assert [event["kind"] for event in faults["events"]] == ["fail", "slow", "leave"]
    assert faults["down_replica_s"] == pytest.approx(5, abs=0.1)
    assert faults["availability"] == pytest.approx(1 - faults["down_replica_s"] / (2 * found["end_s"]))
    assert found["requests"]["finished"] == 150
    assert [each["factor"] for each in faults["slowdowns"]] == [1.7, 1.0]
    assert found["warnings"] == ["faults were simulated: 3 took place"]


def test_slow_steps_are_exported_as_they_were(folder: Path) -> None:
    file = io.StringIO()
    assert export_table(folder, "steps", file) == summary_of(folder)["batch"]["steps"]
    lines = [line.split(",") for line in file.getvalue().splitlines()[1:]]
    spans = load_table(folder, "steps")
    for replica in range(2):
        mine = [float(line[3]) for line in lines if int(line[0]) == replica]
        assert sum(mine) == pytest.approx(spans["duration_fs"][spans["replica"] == replica].sum() / FS_PER_S, rel=1e-12)


def test_the_resolved_scenario_runs_the_same(folder: Path) -> None:
    again, _ = serve(prepare(load_scenario(folder / "scenario.yaml")))
    assert again["digest"] == summary_of(folder)["digest"]


def test_the_report_shows_what_faults_cost(folder: Path) -> None:
    file = io.StringIO()
    write(summary_report(summary_of_document(summary_of(folder))), file)
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert {"simulated faults", "devices that failed 1", "that slowed down 1", "that left 1"} <= set(lines)
    assert f"requests queued again {summary_of(folder)['faults']['requeued']}" in lines
    assert "warning: faults were simulated: 3 took place" in lines


def test_faults_are_not_like_for_like(folder: Path, tmp_path: Path) -> None:
    run(prepare(scenario()), tmp_path / "plain")
    found = compare([tmp_path / "plain", folder])
    assert "simulated faults" in found.unlike
    assert {quantity.path for quantity in found.quantities} >= {"faults.availability", "faults.requeued"}


@pytest.mark.medium
def test_random_failures_are_of_the_seed() -> None:
    random = ["faults.mtbf_s=20", "faults.repair_s=2"]
    first, again, other = (
        serve(prepare(scenario(*random, f"run.seed={seed}")))[0]["faults"]["events"] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert all(event["kind"] == "fail" and event["for_s"] == 2 for event in first)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("mtbf_s", "repair_s", "ends"),
    [(0.01, 1000, False), (0.01, 0.001, False), (1, 1e6, False), (20, 10, True), (3600, 120, True)],
)
def test_failures_that_never_let_a_run_end_are_refused(mtbf_s, repair_s, ends):
    sets = ["workload.num_requests=10", f"faults={{mtbf_s: {mtbf_s}, repair_s: {repair_s}}}", "cluster.replicas=2"]
    if ends:
        assert serve(prepare(load_scenario(None, sets)))[0]["requests"]["finished"] == 10
        return
    with pytest.raises(InputError, match=r"faults: with mtbf_s .* would not end: .* give run.max_time_s"):
        serve(prepare(load_scenario(None, sets)))
    summary, _ = serve(prepare(load_scenario(None, [*sets, "run.max_time_s=5"])))  # that ends it
    assert summary["end_s"] <= 6
