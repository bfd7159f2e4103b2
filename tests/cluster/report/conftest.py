"""Small runs that reports show."""

import shutil
from functools import cache

import pytest

from tests.cluster.report.parsed_page import page_of
from tests.cluster.report.runs import AIMC, MEASURED, MIXED, make_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders of small runs."""
    folder = tmp_path_factory.mktemp("runs")
    made = {
        "duplex": make_run(folder / "duplex", "run.warmup_s=5", "name=on-duplex"),
        "aimc": make_run(folder / "aimc", *AIMC),
        "measured": make_run(folder / "measured", *MEASURED),
    }
    pools = "{prefill: {device: h100}, decode: {device: duplex}, handover: {gb_per_s: 50}}"
    made["pools"] = make_run(folder / "pools", f"cluster.pools={pools}")
    faults = "{events: [{at_s: 5, replica: 0, device: 1, kind: fail, for_s: 2}]}"
    made["faults"] = make_run(folder / "faults", f"faults={faults}", "cluster.replicas=2")
    made["mixed"] = make_run(folder / "mixed", *MIXED)
    return made


@pytest.fixture(scope="session")
def page_alone(runs, tmp_path_factory):
    """The page of one of the small runs by its name, drawn once: (text, Parsed)."""
    return cache(lambda name: page_of(runs[name], tmp_path_factory.mktemp("pages")))


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of the run on Duplex, to be changed."""
    return shutil.copytree(runs["duplex"], tmp_path / "copy")


@pytest.fixture
def bare(copy):
    """The same with its summary alone, so that few pictures are drawn."""
    for name in ("steps.npy", "requests.npy", "scenario.yaml"):
        (copy / name).unlink()
    return copy


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures have titles and texts, but nothing is laid out and written, which takes most of the time of a page.

    Not beside `page_alone`, which keeps its pages.
    """

    def empty(figure, out, **options):
        del figure, options
        out.write('<svg viewBox="0 0 1 1"></svg>')

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty)
