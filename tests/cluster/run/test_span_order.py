"""steps.npy: the same bytes however a run was cut into windows and spread, and in little memory."""

import resource
from pathlib import Path

import numpy as np
import pytest

from pimserve.cluster.distributed.run_on import run_on
from pimserve.cluster.distributed.run_spread import Spread
from pimserve.cluster.run import results
from pimserve.cluster.run.checkpoint import CheckpointFolder
from pimserve.cluster.run.results import SPAN, SpanFile, load_table
from pimserve.cluster.scenario.document import Scenario, load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.scheduler.control import RunView
from pimserve.scheduler.steplog import SpanColumns
from tests.cluster.documents import run


class Killed(BaseException):
    """Stands for the end of the process."""


class Windows:
    """Ends windows every 0.2 s of simulated time, and the run in one of them."""

    def __init__(self, last: int = -1) -> None:
        self.last = last

    def next_barrier_fs(self, now_fs: int) -> int:
        return now_fs + 200 * 10**12

    def barrier(self, view: RunView) -> None:
        if view.window == self.last:
            raise Killed

    def ended(self, view: RunView) -> None:
        pass


def scenario() -> Scenario:
    return load_scenario(None, ["workload.num_requests=60", "cluster.replicas=3"])


@pytest.mark.medium
def test_the_rows_are_by_replica_and_time_however_a_run_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointFolder, "due", lambda _: True)
    run(prepare(scenario()), tmp_path / "whole")
    run(prepare(scenario()), tmp_path / "windows", control=Windows())
    with pytest.raises(Killed):
        run(prepare(scenario()), tmp_path / "continued", control=Windows(6), checkpoints=tmp_path / "kept")
    run(prepare(scenario()), tmp_path / "continued", control=Windows(), checkpoints=tmp_path / "kept")
    run_on("processes", prepare(scenario()), tmp_path / "shards", spread=Spread(shards=2), control=Windows())
    spans = load_table(tmp_path / "whole", "steps")
    for replica in range(3):
        assert (np.diff(spans["begin_ps"][spans["replica"] == replica]) > 0).all()
    assert (np.diff(spans["replica"]) >= 0).all()
    assert spans["replica"][-1] == 2
    whole = (tmp_path / "whole" / "steps.npy").read_bytes()
    for name in ("windows", "continued", "shards"):
        assert (tmp_path / name / "steps.npy").read_bytes() == whole, name
        assert not list((tmp_path / name).glob(".*"))


@pytest.mark.medium
def test_rows_are_ordered_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_ROWS_AT_ONCE", 1000)
    file = SpanFile(tmp_path / "steps.npy")
    numbers = np.arange(300, dtype=np.int64)
    for first in range(0, 600_000, 300):
        rows = np.zeros((300, len(SpanColumns._fields)), np.int64)
        rows[:, 0] = first + numbers
        file.write(first // 300 % 7, rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file.finish(tmp_path / "steps.npy")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    size = 600_000 * SPAN.itemsize
    assert grown < size / 4
    spans = load_table(tmp_path, "steps")
    assert len(spans) == 600_000
    name = SpanColumns._fields[0]
    values = np.arange(600_000)
    expected = np.concatenate([values[values // 300 % 7 == replica] for replica in range(7)])
    assert (spans[name] == expected).all()
    assert [file.name for file in tmp_path.iterdir()] == ["steps.npy"]
