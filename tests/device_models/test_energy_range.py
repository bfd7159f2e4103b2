"""Energies beyond 64 bit are refused: numpy would go round without a word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.routing import ExpertPools, Routing
from pimserve.errors import InputError
from tests.cluster.documents import serve

FEW = ["workload.num_requests=20", "output.steps=false"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("mac_pj", "1e9"), ("row_activation_nj", "1e9"), ("row_activation_nj", "1e8"), ("xpu_pj_per_bit", "1e9")],
)
@pytest.mark.parametrize("device", ["h100", "duplex"])
def test_the_key_is_named(device: str, key: str, value: str) -> None:
    scenario = load_scenario(None, [*FEW, f"cluster.device={device}", f"cluster.device.energy.{key}={value}"])
    with pytest.raises(InputError, match=rf"cluster\.device\.energy\.{key}: 1e\+0[89]: a step may take .* J"):
        serve(prepare(scenario))


def test_energies_that_fit_are_proportional() -> None:
    """A thousand times the energy of a row takes a thousand times the energy of rows: nothing went round."""
    joules = []
    for value in (0.0, 1e3, 1e6):
        summary, _ = serve(prepare(load_scenario(None, [*FEW, f"cluster.device.energy.row_activation_nj={value}"])))
        joules.append(sum(kinds["dram"] for kinds in summary["energy"]["joules_by_category"].values()))
    assert (joules[2] - joules[0]) / (joules[1] - joules[0]) == pytest.approx(1000, rel=1e-6)


@given(tokens=st.integers(1, 5000), seed=st.integers(0, 5))
def test_no_outcome_exceeds_the_bound(tokens: int, seed: int) -> None:
    (pool,) = prepare(load_scenario(None)).pools
    term = pool.plan.experts
    assert term is not None
    found = dict(zip(FEATURES, ExpertPools(term, Routing(), seed).exact(tokens, 0, 0).tolist(), strict=True))
    assert found["dram_pj"] + found["compute_pj"] <= term.most_pj(tokens)
    assert found["time_fs"] >= 0.999 * term.least_fs(tokens)
