"""A scenario is fitted once, whatever then runs, shows or checks it."""

import pytest
from typer.testing import CliRunner

from pimserve.cluster.cli.main import app
from pimserve.cluster.run.history import History
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.device import Demand, Fitted
from pimserve.device_models.duplex import Duplex


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Demand]:
    """What Duplex devices were asked to hold, in order."""
    demands: list[Demand] = []
    fit = Duplex.fit

    def counted(device: Duplex, demand: Demand) -> Fitted:
        demands.append(demand)
        return fit(device, demand)

    monkeypatch.setattr(Duplex, "fit", counted)
    return demands


@pytest.mark.medium
def test_a_metered_run_fits_its_scenario_once(fits, tmp_path):
    out = tmp_path / "r"
    options = ["--set", "workload.num_requests=5", "--set", "run.warmup_s=0", "--out", str(out)]
    done = CliRunner().invoke(
        app, ["run", *options, "--metrics", "127.0.0.1:0", "--checkpoint", str(tmp_path / "kept")]
    )
    assert done.exit_code == 0, done.output
    assert len(fits) == 1
    History.load(out)
    assert len(fits) == 2


@pytest.mark.parametrize("setting", ["scheduler.kv_blocks=100", "costs.expert_decision=paper_table"])
def test_what_is_checked_against_the_devices_is_part_of_that(fits, setting):
    prepare(load_scenario(None, [setting]))
    assert len(fits) == 1


def test_replicas_are_numbered_pool_by_pool(fits):
    pools = ["cluster.pools={prefill: {replicas: 2}, decode: {replicas: 3}}"]
    prepared = prepare(load_scenario(None, pools))
    assert len(fits) == len(prepared.pools) == 2
    assert [pool.numbers for pool in prepared.pools] == [range(2), range(2, 5)]
    assert [pool.name for pool in prepared.pool_of_replica] == ["prefill"] * 2 + ["decode"] * 3
    assert prepared.replicas == 5
