"""Classes of requests in whole runs: tables, exports, and the same requests again from these."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pimserve.cluster.cli.comparison_report import comparison_report
from pimserve.cluster.cli.render import summary_report
from pimserve.cluster.cli.terminal import console, write
from pimserve.cluster.report.report import write_report
from pimserve.cluster.run.class_tables import limits_of_all
from pimserve.cluster.run.compare import compare
from pimserve.cluster.run.export import export_table
from pimserve.cluster.run.read_summary import summary_of_document
from pimserve.cluster.run.results import load_table
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from pimserve.loadgen.workload import WorkloadSpec, generate
from tests.cluster.documents import run

EXAMPLE = Path(__file__).parents[3] / "examples/two_classes.yaml"
FEW = ("workload.num_requests=200", "output.steps=false")


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("classes") / "r"
    return folder, run(prepare(load_scenario(EXAMPLE, FEW)), folder)


def exported(folder: Path) -> str:
    file = io.StringIO()
    export_table(folder, "requests", file)
    return file.getvalue()


def shown(summary: dict[str, Any]) -> str:
    file = io.StringIO()
    write(summary_report(summary_of_document(summary)), file)
    return file.getvalue()


def test_classes_of_the_table_are_those_of_the_figures(two_classes: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = two_classes
    ids = load_table(folder, "requests")["class_id"]
    chat, batch = summary["classes"]
    assert [chat["requests"]["total"], batch["requests"]["total"]] == np.bincount(ids)[1:].tolist()
    assert (chat["tenant"], batch["tenant"], chat["priority"], batch["priority"]) == ("assistant", "reports", 0, 10)
    assert batch["tokens"]["prompt"] > chat["tokens"]["prompt"]
    assert summary["slo"]["limits"] == {}
    assert chat["slo"]["limits"] == {"ttft_s": 0.1, "tpot_s": 0.03}
    assert list(batch["slo"]["at_percentiles"]) == ["e2e_p99_s"]
    assert any("priorities of classes have no effect" in warning for warning in summary["warnings"])


def test_the_tables_show_them(two_classes: tuple[Path, dict[str, Any]]) -> None:
    text = shown(two_classes[1])
    (line,) = (line for line in text.splitlines() if line.startswith("batch   "))
    assert f" {two_classes[1]['classes'][1]['requests']['total']} " in line
    assert "TTFT, by class" in text
    assert "chat, limits" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.medium
def test_comparisons_have_the_figures_of_each_class(two_classes: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, summary = two_classes
    other = "workload.classes=[{name: batch, slo: {e2e_s: 0.7}}, {name: web, slo: {ttft_s: 1}}]"
    asked = "output={steps: false, percentiles: [50, 99.9]}"
    again = run(prepare(load_scenario(None, ["workload.num_requests=200", other, asked])), tmp_path / "other")
    comparison = compare([folder, tmp_path / "other"])
    found = {each.path.removeprefix("classes."): each for each in comparison.quantities if each.group == "classes"}
    (_, ours), (theirs, web) = summary["classes"], again["classes"]
    for path in ("requests.total", "throughput.output_tokens_per_s", "latency_s.ttft.p99", "latency_s.e2e.mean"):
        section, *keys = path.split(".")
        pair = [each[section] for each in (ours, theirs)]
        for key in keys:
            pair = [each[key] for each in pair]
        assert found[f"batch.{path}"].values == tuple(pair)
        assert found[f"batch.{path}"].ratios == (1, pair[1] / pair[0])
    assert found["web.slo.attainment"].values == (None, web["slo"]["attainment"])
    assert found["batch.latency_s.tpot.percentiles.p99.9"].values == (
        None,
        theirs["latency_s"]["tpot"]["percentiles"]["p99.9"],
    )
    units = {path: found[path].unit for path in ("web.slo.attainment", "web.latency_s.ttft.p99", "web.requests.total")}
    assert list(units.values()) == ["share", "s", "count"]
    file = io.StringIO()
    write(comparison_report(comparison, console(file)), file)
    assert "batch: TTFT p99" in file.getvalue()
    page = write_report([folder, tmp_path / "other"], tmp_path / "report.html").read_text()
    assert "Classes of requests" in page
    assert "web: SLO attainment" in page


def test_limits_that_all_classes_share_are_named(two_classes: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    same = "workload.classes=[{name: a}, {name: b, slo: {ttft_s: 0.2}}]"
    summary = run(prepare(load_scenario(None, [*FEW, same, "slo.ttft_s=0.2"])), tmp_path / "same")
    assert limits_of_all(summary_of_document(summary)) == {"ttft_s": 0.2}
    assert "TTFT <= 200 ms" in shown(summary)
    assert limits_of_all(summary_of_document(two_classes[1])) == {}


def test_an_export_replays_the_same_requests_of_the_same_classes(
    two_classes: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = two_classes
    path = tmp_path / "requests.csv"
    path.write_text(exported(folder))
    header, first, *_ = path.read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert {"chat": ("assistant", "0"), "batch": ("reports", "10")}[row["class"]] == (row["tenant"], row["priority"])
    for column in ("class", "tenant"):
        names = {"class": ("chat", "batch"), "tenant": ("assistant", "reports")}[column]
        classes = [{"name": each, "labels": [label]} for each, label in zip(("chat", "batch"), names, strict=True)]
        spec = {"trace": {"path": str(path), "label_column": column}, "classes": classes}
        again = generate(WorkloadSpec.model_validate(spec), 7)
        before = load_table(folder, "requests")
        for name in ("arrival_ps", "input_tokens", "output_tokens"):
            np.testing.assert_array_equal(getattr(again, name), before[name])
        np.testing.assert_array_equal(again.class_ids, before["class_id"])


def test_an_export_without_classes_has_no_such_columns(tmp_path: Path) -> None:
    run(prepare(load_scenario(None, ["workload.num_requests=5"])), tmp_path / "r")
    assert "class" not in exported(tmp_path / "r").splitlines()[0]


def test_classes_that_the_scenario_does_not_have_are_told(
    two_classes: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run(prepare(load_scenario(None, ["workload.num_requests=5"])), tmp_path / "r")
    np.save(tmp_path / "r" / "requests.npy", load_table(two_classes[0], "requests")[:5])
    with pytest.raises(InputError, match=r"has requests of class \d; scenario.yaml has 0"):
        exported(tmp_path / "r")


def test_lengths_of_a_class_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "lengths.csv").write_text("5\n5\n9\n")
    law = "{input: {kind: fixed, tokens: 3}, output: {kind: empirical, file: lengths.csv}}"
    text = f"workload: {{classes: [{{name: a}}, {{name: b, lengths: {law}}}]}}\n"
    (tmp_path / "s.yaml").write_text(text)
    (_, b) = load_scenario(tmp_path / "s.yaml").workload.classes or ()
    assert b.lengths is not None
    assert b.lengths.output.model_dump(include={"values", "weights"}) == {"values": (5, 9), "weights": (2, 1)}
    (tmp_path / "s.yaml").write_text(text.replace("lengths.csv", "nowhere.csv"))
    with pytest.raises(InputError, match=r"workload\.classes\.1\.lengths\.output\.file"):
        load_scenario(tmp_path / "s.yaml")


def test_a_scenario_that_was_written_out_says_the_same() -> None:
    scenario = load_scenario(EXAMPLE)
    document = scenario.resolved()["workload"]
    assert WorkloadSpec.model_validate(document) == scenario.workload
