"""Metrics of a run of the command line."""

import pytest

from pimserve.cluster.base.whole_folders import results_folder
from pimserve.cluster.metrics.endpoint import EndpointOptions
from pimserve.cluster.metrics.metered import metered
from pimserve.cluster.run.checkpoint_files import write_target
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare, scenario_digest


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


SCENARIO = load_scenario(None, ["name=nice"])


def label(out=None, checkpoints=None):
    with metered(prepare(SCENARIO), out, None, EndpointOptions("127.0.0.1:0"), 0.0, checkpoints) as (_, feed, _):
        return feed.latest().layout.run_id


@pytest.mark.medium
def test_a_run_is_called_as_its_results_folder_will_be(tmp_path):
    assert label() == "nice"
    with results_folder(None, "nice") as (partial, target):
        (partial / "summary.json").write_text("{}")
        assert target.name == "nice"
        assert label() == "nice-2"  # while the other one goes on
    assert label() == "nice-2"
    (tmp_path / "results" / "nice-2").write_text("")
    assert label() == "nice-3"
    assert label(tmp_path / "mine" / "..") == tmp_path.name


@pytest.mark.medium
def test_a_run_that_goes_on_keeps_its_name(tmp_path):
    kept = tmp_path / "kept"
    (tmp_path / "results" / "nice").mkdir(parents=True)  # somebody else's
    assert label(checkpoints=kept) == "nice-2"
    kept.mkdir()
    write_target(kept, scenario_digest(SCENARIO), tmp_path / "results" / "nice")
    assert label(checkpoints=kept) == "nice"
    assert label(tmp_path / "other", checkpoints=kept) == "other"
