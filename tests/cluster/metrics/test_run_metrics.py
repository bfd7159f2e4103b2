"""How metrics go from one process to another."""

import numpy as np
import pytest

from pimserve.cluster.metrics.layout import Layout
from pimserve.cluster.metrics.run_metrics import RunMetrics, metrics_of
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError


def metrics(*overrides):
    return metrics_of(prepare(load_scenario(None, overrides)), "r")


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
