"""Popularities of experts that drift, from the scenario to the results and back."""

from pathlib import Path

import pytest

from pimserve.cluster.run.history import History
from pimserve.cluster.run.replica_progress import ReplicaProgress
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from tests.cluster.documents import run, serve

SMALL = ["workload.num_requests=60", "cluster.replicas=2", "workload.arrival={process: poisson, rate_per_s: 20}"]
DRIFT = ["routing={popularity: zipf, zipf_exponent: 1.0, drift: {interval_s: 0.5, sigma: 0.5}}"]
SLOW = "faults.events=[{at_s: 1, replica: 1, kind: slow, factor: 1.7, for_s: 2}]"


@pytest.mark.medium
@pytest.mark.parametrize("more", [[], [SLOW], ["routing.mode=exact", "workload.num_requests=8"]])
def test_results_are_read_with_the_law_of_each_step(tmp_path: Path, more: list[str]) -> None:
    summary = run(prepare(load_scenario(None, [*SMALL, *DRIFT, *more])), tmp_path / "run")
    history = History.load(tmp_path / "run")
    progress = [ReplicaProgress(history, replica) for replica in range(2)]
    ledgers = [replica.until(0, last=True) for replica in progress]
    history.check_digest([replica.digest() for replica in progress])
    assert sum(ledger.steps for ledger in ledgers) == summary["batch"]["steps"]
    laws = {costs.pools.epoch for _, costs in history.stretches(0, 0, len(history.spans[0]), 0) if costs.pools}
    assert len(laws) > 2


@pytest.mark.medium
def test_runs_drift_apart_from_those_that_do_not_after_the_first_interval() -> None:
    drifting, (plain, still), late = (
        serve(prepare(load_scenario(None, [*SMALL, *routing])))
        for routing in (
            DRIFT,
            ["routing={popularity: zipf, zipf_exponent: 1.0}"],
            ["routing={popularity: zipf, zipf_exponent: 1.0, drift: {interval_s: 1000, sigma: 0.5}}"],
        )
    )
    assert drifting[0]["digest"] != plain["digest"] == late[0]["digest"]
    assert drifting[0]["requests"]["finished"] == plain["requests"]["finished"] == len(still.table)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["routing.drift={interval_s: 1}"], r"^routing\.drift\.sigma: is missing"),
        (["routing.drift={interval_s: 0, sigma: 0.1}"], r"^routing\.drift\.interval_s: must be greater than or equal"),
        (["routing.drift={interval_s: 1, sigma: 0}"], r"^routing\.drift\.sigma: must be greater than 0"),
        (
            ["model=llama-3.1-8b", "routing.drift={interval_s: 1, sigma: 0.1}"],
            r"^routing\.drift: llama-3\.1-8b has no routed experts",
        ),
    ],
)
def test_a_drift_that_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(load_scenario(None, overrides))


def test_devices_with_expected_loads_say_that_it_changes_nothing() -> None:
    chips = ["cluster.device=aimc-realistic", "cluster.devices_per_node=8"]
    (pool,) = prepare(load_scenario(None, [*chips, *DRIFT])).pools
    assert any(warning.startswith("routing.drift changes nothing") for warning in pool.replica.warnings)
