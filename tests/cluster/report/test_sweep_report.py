"""The page of a sweep."""

import json
import re
import shutil

import pytest

from pimserve.cluster.report.report import write_report
from pimserve.cluster.sweep.grid import load_grid
from pimserve.cluster.sweep.sweep import sweep
from pimserve.cluster.sweep.workers import ProcessWorkers
from pimserve.errors import InputError
from tests.cluster.report.parsed_page import page_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep's folder and document: four points, one of which fails, with two seeds each."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    axes = ["cluster.device=duplex,h100", "run.warmup_s=3600,0.1"]
    sets = ["workload={mode: closed, concurrency: 4, num_requests: 30}", "output.steps=false"]
    document = sweep(load_grid(None, sets, axes, 2), folder, ProcessWorkers(2))
    return folder, document


def test_a_sweep_shows_its_front(swept, tmp_path):
    folder, document = swept
    text, page = page_of(folder, tmp_path)
    (alt,) = re.findall(r'<desc id="pareto-tpot-p99-s-alt">([^<]*)', text)
    names = [point["name"] for point in document["points"]]
    front = {str(names.index(name) + 1) for name in document["pareto"]["front"]}
    assert set(re.findall(r"point (\d+) with", alt)) == front
    assert {each.strip("*") for each in page.text if re.fullmatch(r"\d\*", each)} == front
    assert "2 of 4 points failed" in page.text
    assert any("leaves nothing to measure" in each for each in page.text)
    assert "difference_to_baseline" not in text
    assert "pareto-joules-per-output-token-title" in page.ids
    assert any("\u00b1" in each for each in page.text)


def test_a_sweep_stands_alone(swept, runs, tmp_path):
    folder, _ = swept
    with pytest.raises(InputError, match="one sweep, or runs"):
        write_report([runs["duplex"], folder], tmp_path / "out.html")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: {**document, "schema_version": 99}, "schema_version 2"),
        (lambda document: {key: document[key] for key in ("schema_version", "identity")}, "no points yet"),
        (lambda document: [], "schema_version 2"),
        (lambda document: {**document, "points": [7]}, "no points yet"),
    ],
)
def test_half_a_sweep_is_refused(swept, tmp_path, change, message):
    folder = shutil.copytree(swept[0], tmp_path / "sweep")
    (folder / "sweep.json").write_text(json.dumps(change(swept[1])))
    with pytest.raises(InputError, match=message):
        write_report([folder], tmp_path / "out.html")
    (folder / "sweep.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        write_report([folder], tmp_path / "out.html")
    assert list(tmp_path.glob("*.html")) == []


def test_names_of_a_sweep_are_only_text(swept, tmp_path):
    folder = shutil.copytree(swept[0], tmp_path / "sweep")
    text = (folder / "sweep.json").read_text().replace("h100", "<b>$1</b>")
    (folder / "sweep.json").write_text(text)
    _, page = page_of(folder, tmp_path)
    assert not page.of("b")
    assert any("<b>$1</b>" in each for each in page.text)
