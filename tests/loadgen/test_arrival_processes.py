"""Arrival processes of other packages: one that is installed is used, and one that does wrong is named."""

from pathlib import Path

import numpy as np
import pytest

from pimserve.loadgen.arrival_processes import BUILT_IN_PROCESSES, process_names
from pimserve.loadgen.arrivals import ArrivalSpec, arrival_times
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.streams import Streams

PLUGIN = """
import numpy as np
from pimserve.loadgen.arrival_processes import RATES, ArrivalProcess

pairs = ArrivalProcess((RATES, ("shape",)), lambda spec: lambda rng, n: np.where(np.arange(n) % 2, 2.0 * spec.shape, 0))
few = ArrivalProcess((RATES,), lambda _: lambda rng, n: [1.0] * (n - 1))
many = ArrivalProcess((RATES,), lambda _: lambda rng, n: np.ones(n + 1))
back = ArrivalProcess((RATES,), lambda _: lambda rng, n: np.full(n, -1.0))
endless = ArrivalProcess((RATES,), lambda _: lambda rng, n: np.full(n, np.inf))
raises = ArrivalProcess((RATES,), lambda _: 1 / 0)
odd = ArrivalProcess((("rate",),), lambda _: None)
none = 3
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "ours-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n")
    names = ("pairs", "few", "many", "back", "endless", "raises", "odd", "none", "gone")
    points = "".join(f"{name} = arrivals_of_ours:{name}\n" for name in names)
    (metadata / "entry_points.txt").write_text(f"[pimserve.arrivals]\n{points}")
    (tmp_path / "arrivals_of_ours.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))


def times_s(n: int, **keys: object) -> list[float]:
    spec = ArrivalSpec.model_validate(keys)
    return (arrival_times(spec, Streams(0), n, None) / PS_PER_S).tolist()


def test_one_that_is_not_installed_is_unknown() -> None:
    with pytest.raises(ValueError, match=r"must be one of constant, .*, trace"):
        times_s(4, process="pairs", rate_per_s=1, shape=1)


@pytest.mark.usefixtures("installed")
def test_a_package_adds_a_process() -> None:
    assert process_names()[: len(BUILT_IN_PROCESSES)] == list(BUILT_IN_PROCESSES)
    assert "pairs" in ArrivalSpec.model_json_schema()["properties"]["process"]["enum"]
    assert times_s(4, process="pairs", rate_per_s=2, shape=1) == [0, 1, 1, 2]
    stages = [{"rate_per_s": rate, "duration_s": 4} for rate in (1, 2)]
    assert times_s(6, process="pairs", stages=stages, shape=1) == [0, 2, 2, 4, 4, 5]
    with pytest.raises(ValueError, match="takes rate_per_s or rate_series or stages or ramp, shape"):
        times_s(4, process="pairs", rate_per_s=2, cv=1)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("process", "message"),
    [
        ("few", "must draw 3 finite gaps"),
        ("many", "must draw 3 finite gaps"),
        ("back", "none below 0"),
        ("endless", "must draw 3 finite gaps"),
        ("raises", "failed to draw gaps: ZeroDivisionError"),
        ("odd", "takes rate; there are rate_per_s, "),
        ("none", "is no ArrivalProcess"),
        ("gone", "does not load: AttributeError"),
    ],
)
def test_a_process_that_does_wrong_is_named(process: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"process '{process}' of arrivals_of_ours:{process} .*{message}"):
        times_s(3, process=process, rate_per_s=1)


def test_gaps_of_all_processes_have_mean_one() -> None:
    parameters = {"gamma": {"cv": 0.5}, "weibull": {"cv": 0.5}}
    for name in BUILT_IN_PROCESSES.keys() - {"mmpp", "nhpp"}:
        spec = ArrivalSpec.model_validate({"process": name, "rate_per_s": 3, **parameters.get(name, {})})
        gaps = BUILT_IN_PROCESSES[name].gaps(spec)(np.random.default_rng(0), 10_000)
        assert gaps.mean() == pytest.approx(1, abs=0.04)
