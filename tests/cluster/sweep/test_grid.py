"""Grids of sweeps: what they may say, and the points that they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.sweep.grid import MAX_RUNS, labels, load_grid
from pimserve.errors import InputError
from tests.cluster.sweep.grids import REPLICAS, small

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "--grid: is needed, such as --grid cluster.replicas=1,2,4"),
        (["cluster.replicas"], "--grid cluster.replicas: must be path=v1,v2,..."),
        (["=1"], "--grid =1: must be path=v1,v2,..."),
        (["cluster..replicas=1"], "must be path=v1,v2,..."),
        (["cluster.replicas="], "--grid cluster.replicas=: has no values"),
        (["cluster.replicas=1,,2"], "--grid cluster.replicas=1,,2: not valid YAML"),
        (["cluster.replicas=1]"], "--grid cluster.replicas=1]: not valid YAML"),
        (["cluster.replicas=a\0"], "not valid YAML"),
        (["cluster.replicas=1\n2"], "must be a single line"),
        (["cluster.replicas=2020-13-45"], "not valid YAML: month must be in 1..12"),
        (["cluster.replicas=1,2,1"], "--grid cluster.replicas=1,2,1: has 1 twice"),
        (["cluster.replicas=1..3,2"], "has 2 twice"),
        (["cluster.replicas=3..1"], "3..1: a range goes up"),
        (["cluster.replicas=1..3..0"], "1..3..0: a range goes up"),
        (["cluster.replicas=1..999999999999"], "999,999,999,999 values are too many; at most 10,000 runs"),
        (["run.seed=1..101", "cluster.replicas=1..100"], "--grid: 10,100 runs are too many; at most 10,000"),
        (
            ["cluster.replicas=1", "cluster.replicas=2"],
            "--grid cluster.replicas=2: cluster.replicas has a --grid already",
        ),
        (
            ["cluster.device.memory_gb=80", "cluster.device=h100"],
            "would undo --grid cluster.device.memory_gb; give it before",
        ),
        (["workload.num_requests=5"], "--grid workload.num_requests=5: workload.num_requests is given by --set too"),
        (["cluster.replica=1"], "--grid cluster.replica=1: cluster.replica: unknown key; did you mean replicas?"),
        (["cluster.replicas=1,0"], "--grid cluster.replicas=0: cluster.replicas: must be greater than 0"),
        (["cluster.replicas=1,x"], "--grid cluster.replicas=x: cluster.replicas: must be a whole number (got 'x')"),
        (["cluster.device=h100,nosuch"], "--grid cluster.device=nosuch: cluster.device: unknown device 'nosuch'"),
        (["cluster.replicas=1", "model=nosuch"], "--grid cluster.replicas=1 model=nosuch: model: unknown model"),
        (["cluster.replicas.x=1"], "cluster.replicas"),
        (["cluster.devices_per_node=4,1"], "--grid cluster.devices_per_node=1: cluster: mixtral-8x7b does not fit"),
        (["scheduler.router=round_robin,nosuch"], "--grid scheduler.router=nosuch: scheduler.router: unknown router"),
        (["scheduler.max_model_len=100,40000"], "--grid scheduler.max_model_len=40000: scheduler.max_model_len"),
        (["run.warmup_s=0,3600"], "--grid run.warmup_s=3600: run.warmup_s: warm-up (3600.0 s) and cool-down"),
        (["cluster.device=nosuch,h100,none"], "2 of 3 points cannot be run"),
    ],
)
def test_a_grid_is_refused_before_anything_runs(grid, message):
    with pytest.raises(InputError) as refused:
        small(grid)
    assert message in str(refused.value)


def test_seeds_of_the_grid_and_of_repeat_do_not_go_together():
    with pytest.raises(InputError, match=r"--grid run.seed=1,2: --repeat takes seeds of its own"):
        small(["run.seed=1,2"], repeat=2)
    assert [point.runs[0].seed for point in small(["run.seed=1,2"]).points] == [1, 2]


def test_the_number_of_runs_is_limited_with_repeats():
    with pytest.raises(InputError, match=rf"{MAX_RUNS + 2:,} runs are too many"):
        small([f"cluster.replicas=1..{(MAX_RUNS + 2) // 2}"], repeat=2)


def test_a_mistake_in_the_scenario_is_not_blamed_on_the_grid():
    with pytest.raises(InputError, match=r"^cluster.replicas: must be greater than 0"):
        load_grid(None, ["cluster.replicas=0"], ["cluster.nodes=1,2"], 1)


def test_points_are_the_product_in_order():
    grid = small(["cluster.replicas=1..5..2", "cluster.device=h100,{preset: h100, memory_gb: 96}"])
    assert [point.settings["cluster.replicas"] for point in grid.points] == [1, 1, 3, 3, 5, 5]
    assert [point.runs[0].scenario.load_device().spec.memory_gb for point in grid.points][1] == 96
    assert [point.name for point in grid.points[:2]] == [
        "replicas=1,device=h100",
        "replicas=1,device=h100-memory_gb=96",
    ]
    names = [point.name for point in grid.points]
    assert len(set(names)) == 6
    assert all("/" not in name and " " not in name and len(name) < 100 for name in names)


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join), min_size=1, unique=True))
def test_labels_tell_paths_apart(paths):
    found = labels(paths)
    assert len(set(found)) == len(found)
    assert all(f".{path}".endswith(f".{label}") for path, label in zip(paths, found, strict=True))


def test_all_points_share_the_seeds():
    grid = small(REPLICAS, repeat=3, more=["run.seed=7"])
    for point in grid.points:
        assert [each.seed for each in point.runs] == [each.scenario.run.seed for each in point.runs] == [7, 8, 9]
