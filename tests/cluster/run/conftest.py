"""Results folders that are written without a run."""

import json

import pytest
import yaml

from tests.cluster.run.example_summary import example_summary


@pytest.fixture
def save(tmp_path):
    """Write a results folder: changes to the example's summary, and the scenario beside it."""

    def write_run(name, scenario=None, **changes):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(example_summary(**changes)))
        if scenario is not None:
            (folder / "scenario.yaml").write_text(yaml.safe_dump(scenario))
        return folder

    return write_run
