"""The same scenario gives the same bits wherever its shards and devices live: the whole summary and the digest.

Hosts live in threads here, with real gRPC between them; tests/e2e has them in processes and Ray actors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pimserve.cluster.distributed.run_spread import Spread
from pimserve.cluster.run.checkpoint import CheckpointFolder
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.scheduler.control import RunView
from tests.cluster.distributed.spread_scenarios import DEEP, REQUESTS, SCENARIOS
from tests.cluster.distributed.threads import figures, run_there
from tests.cluster.documents import run

IN_LOCKSTEP = 200  # steps: more take too long
BRIEFLY = "run.max_time_s=0.4"  # instead
DIE = [
    "mixtral on duplex, ep",
    "bursts to the least loaded",
    "sessions",
    "users who think",
    "at most two in flight",
    "prefill on h100, decode on duplex",
    "experts on h100, two micro-batches",
    "hot experts on h100, cold ones on aimc",
    "mixed pools whose replicas fail",
    "devices that fail, slow down and leave",
    "pools whose replicas fail, slow down and leave",
    "a router by what caches say, and tiers",
]
WHERE = [Spread(2), Spread(2, "planned", 3), Spread(1, "planned"), Spread(1, "lockstep", 2)]
DYING = [
    pytest.param(name, spread, id=f"{name}-{spread}", marks=() if one % len(WHERE) == other else pytest.mark.deep)
    for one, name in enumerate(DIE)
    for other, spread in enumerate(WHERE)
]


class Killed(BaseException):
    """Stands for the end of the process."""


class DiesAfter:
    """Ends windows every 0.05 s of simulated time, and dies in one."""

    def __init__(self, window: int) -> None:
        self.window = window

    def next_barrier_fs(self, now_fs: int) -> int:
        return now_fs + 50 * 10**12

    def ended(self, view: RunView) -> None:
        pass

    def barrier(self, view: RunView) -> None:
        if view.window == self.window:
            raise Killed


def spreads(replicas: int, devices: int) -> Iterator[Spread]:
    """For so many replicas of so many devices. In threads of one process, two lockstep actors a replica are enough."""
    for shards in (1, 2, 4):
        if shards <= replicas:
            yield Spread(shards)
    yield Spread(1, "planned", audit_share=1.0)
    if replicas > 1:
        yield Spread(2, "planned", 3)
    yield Spread(1, "lockstep", -(-devices // 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.deep if name in DEEP else ()) for name in SCENARIOS],
)
def test_same_bits_everywhere(name: str, tmp_path: Path) -> None:
    scenario = load_scenario(None, [f"workload.num_requests={REQUESTS}", *SCENARIOS[name]])
    prepared = prepare(scenario)
    here = run(prepared, tmp_path / "here")
    assert here["batch"]["steps"]
    for number, spread in enumerate(spreads(prepared.replicas, prepared.pools[0].devices_per_replica)):
        if spread.devices == "lockstep" and here["batch"]["steps"] > IN_LOCKSTEP:
            briefly = [f"workload.num_requests={REQUESTS}", *SCENARIOS[name], BRIEFLY]
            scenario_there = load_scenario(None, briefly)
            expected = run(prepare(scenario_there), tmp_path / "briefly")
        else:
            scenario_there, expected = scenario, here
        there = run_there(scenario_there, spread, tmp_path / str(number))
        assert figures(there) == figures(expected), spread


@pytest.mark.slow
@pytest.mark.parametrize(("name", "spread"), DYING)
def test_a_run_that_dies_goes_on_to_the_same_bits(
    name: str, spread: Spread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its coordinator dies, and its hosts with it, between windows in which all have something in hand."""
    monkeypatch.setattr(CheckpointFolder, "due", lambda _: True)
    briefly = ["run.max_time_s=0.9"] if spread.devices == "lockstep" else []
    scenario = load_scenario(None, [f"workload.num_requests={REQUESTS}", *SCENARIOS[name], *briefly])
    here = run(prepare(scenario), tmp_path / "here")
    out, kept = tmp_path / "out", tmp_path / "kept"
    for window in (2, 9, 15):
        with pytest.raises(Killed):
            run_there(scenario, spread, out, DiesAfter(window), kept)
    there = run_there(scenario, spread, out, DiesAfter(-1), kept)
    assert there["simulator"]["continued"]
    assert figures(there) == figures(here)
