"""Which series a run has, and how they go from one process to another."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.metrics.families import BY_NAME, FAMILIES, bounds
from pimserve.cluster.metrics.state import Layout, RunMetrics, metrics_of
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError

EXAMPLES = Path(__file__).parents[3] / "examples"


def metrics(*overrides, example=None, **options):
    scenario = load_scenario(None if example is None else EXAMPLES / f"{example}.yaml", overrides)
    return metrics_of(prepare(scenario), "r", **options)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_follow_the_conventions(family):
    assert family.name.startswith("pimserve_")
    assert ":" not in family.name
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert family.name.endswith("_info") == (family.kind == "info")
    assert not family.name.endswith(("_count", "_sum", "_bucket"))
    assert family.help.endswith(".")
    assert family.labels[0] == "run_id"
    assert not any(label in family.name.split("_") for label in ("engine",) if family.kind == "histogram")
    assert bool(family.bounds) == (family.kind == "histogram")
    assert list(family.bounds) == sorted(set(family.bounds))


@given(limit=st.floats(1e-6, 1e5))
def test_a_limit_of_the_slo_is_a_bound(limit):
    family = BY_NAME["pimserve_time_to_first_token_seconds"]
    found = bounds(family, {"ttft_s": limit, "tpot_s": 3.21})
    assert limit in found
    assert 3.21 not in found
    assert set(family.bounds) <= set(found)
    assert list(found) == sorted(set(found))


def test_every_family_has_its_series_from_the_start():
    found = metrics("cluster.replicas=2", "slo={ttft_s: 0.3, tpot_s: 0.02}")
    assert set(found.layout.keys) == {family.name for family in FAMILIES}
    for family in FAMILIES:
        keys = found.layout.keys[family.name]
        assert len(set(keys)) == len(keys)
        assert all(len(key) == len(family.labels) for key in keys)
    without = {name for name, keys in found.layout.keys.items() if not keys}
    assert without == {"pimserve_device_tiers"}
    assert found.values["pimserve_requests_total"].tolist() == [0, 0]
    assert found.layout.keys["pimserve_slo_limit_seconds"] == (("r", "ttft"), ("r", "tpot"))
    assert found.values["pimserve_slo_limit_seconds"].tolist() == [0.3, 0.02]
    assert ("r", "all", "met") in found.layout.keys["pimserve_slo_requests_total"]
    assert found.values["pimserve_devices"].tolist() == [4, 4]


def test_without_limits_there_is_nothing_to_meet():
    assert metrics().layout.keys["pimserve_slo_requests_total"] == ()


def test_pools_have_their_own_roles_and_units():
    found = metrics(example="prefill_decode_pools")
    roles = [role for _, role in found.layout.engines]
    assert set(roles) == {"prefill", "decode"}
    busy = found.layout.keys["pimserve_device_busy_seconds_total"]
    assert {key[4] for key in busy if key[2] == "prefill"} != {key[4] for key in busy if key[2] == "decode"}


def test_crossbars_have_tiers():
    found = metrics(example="mixtral_aimc")
    used, total = found.values["pimserve_device_tiers"]
    assert 0 < used <= total


def test_histograms_of_many_replicas_are_put_together():
    found = metrics("cluster.replicas=3", most_engines=2)
    assert found.layout.keys["pimserve_step_tokens"] == (("r", "all", "mixed"),)
    assert found.layout.histogram_rows == (0, 0, 0)
    assert len(found.layout.keys["pimserve_requests_running"]) == 3


def test_what_is_packed_is_what_is_unpacked():
    found = metrics("cluster.replicas=2", "slo.ttft_s=0.3")
    rng = np.random.default_rng(1)
    for part in (found.values, found.sums):
        for array in part.values():
            array[:] = rng.random(array.shape)
    for array in found.counts.values():
        array[:] = rng.integers(0, 2**50, array.shape)
    layout = Layout.from_json(found.layout.to_json())
    assert layout == found.layout
    for again in (RunMetrics.unpack(layout, found.pack()), RunMetrics.from_bytes(found.to_bytes())):
        assert again.layout == found.layout
        for part in ("values", "counts", "sums"):
            for name, array in getattr(found, part).items():
                assert np.array_equal(array, getattr(again, part)[name])


def test_values_of_another_run_are_refused():
    one, other = metrics(), metrics("cluster.replicas=2")
    with pytest.raises(InputError, match="do not belong to this run"):
        RunMetrics.unpack(one.layout, other.pack())
    for text in ("", "[]", "{}", '{"keys": {"nobody": []}}'):
        with pytest.raises(InputError, match="no layout of this version"):
            Layout.from_json(text)
