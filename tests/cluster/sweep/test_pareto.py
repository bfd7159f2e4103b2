"""Fronts: nobody on one is beaten, noise is no merit, who is no candidate stands apart; and what sweeps say of runs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pimserve.cluster.cli.sweep_table import sweep_report
from pimserve.cluster.report.report import write_report
from pimserve.cluster.run.read_summary import summary_of_document
from pimserve.cluster.sweep import key_figures
from pimserve.cluster.sweep.grid import load_grid, value_names
from pimserve.cluster.sweep.pareto import ENERGY, THROUGHPUT, Axis, axes_at, fixed_rate, front, why_not_on_a_front
from pimserve.cluster.sweep.sweep import sweep
from pimserve.errors import InputError
from pimserve.loadgen.workload import WorkloadSpec
from tests.cluster.sweep.grids import Here

GAIN, COST = Axis("gain", more=True), Axis("cost")
SERVED = ["model=llama-3.1-8b", "cluster={device: h100, devices_per_node: 1}", "output.steps=false"]
LENGTHS = "lengths: {input: {kind: fixed, tokens: 500}, output: {kind: fixed, tokens: 100}}"


def estimates(values, widths=None, axes=(GAIN, COST)):
    widths = widths or [[None] * len(axes)] * len(values)
    return [
        {axis.key: {"mean": value, "ci95": width} for axis, value, width in zip(axes, *each, strict=True)}
        for each in zip(values, widths, strict=True)
    ]


# -- the front of figures


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30))
def test_without_noise_it_is_what_nobody_beats(places):
    found = front(estimates(places), (GAIN, COST))
    for index, (gain, cost) in enumerate(places):
        better = [(g, c) for g, c in places if g >= gain and c <= cost and (g, c) != (gain, cost)]
        assert (index in found.members) == (not better)
        assert (index in found.beaten_by) == bool(better)
        if better:
            assert places[found.beaten_by[index]] in better
            assert found.beaten_by[index] in found.members


_number = st.floats(0, 10, allow_subnormal=False)
_point = st.tuples(st.tuples(_number, _number, _number), st.tuples(*[st.floats(0, 4)] * 3))


@given(st.lists(_point, min_size=1, max_size=12))
def test_nobody_on_it_is_beaten_by_more_than_noise(points):
    axes = (GAIN, COST, Axis("third"))
    found = front(estimates(*zip(*points, strict=True), axes), axes)
    assert found.members
    assert found.members.isdisjoint(found.beaten_by)
    assert found.members | set(found.beaten_by) == set(range(len(points)))

    def beats(a, b):
        (one, wide), (other, narrow) = points[a], points[b]
        apart = [y - x if axis is not GAIN else x - y for axis, x, y in zip(axes, one, other, strict=True)]
        least = [(x**2 + y**2) ** 0.5 * (1 + 1e-12) for x, y in zip(wide, narrow, strict=True)]
        return any(d > n for d, n in zip(apart, least, strict=True)) and not any(
            d < -n for d, n in zip(apart, least, strict=True)
        )

    unbeaten = {b for b in range(len(points)) if not any(beats(a, b) for a in range(len(points)))}
    assert unbeaten <= found.members  # and more only where all others beat each other in a ring


@given(_number, st.floats(0.01, 5), st.floats(-0.99, 0.99))
def test_what_differs_by_less_than_noise_is_a_tie(value, width, part):
    wide = width * 2**0.5
    tied = front(estimates([[value, 1], [value + part * wide, 1]], [[width, 0], [width, 0]]), (GAIN, COST))
    assert tied.members == {0, 1}
    apart = front(estimates([[value, 1], [value + 1.01 * wide, 1]], [[width, 0], [width, 0]]), (GAIN, COST))
    assert apart.members == {1}
    # A tie in one axis leaves the other to decide.
    decided = front(estimates([[value, 2], [value + part * wide, 1]], [[width, 0], [width, 0]]), (GAIN, COST))
    assert decided.members == {1}


def test_a_ring_of_ties_is_on_it():
    axes = (Axis("a"), Axis("b"), Axis("c"))
    # Each is better than the next in one axis by more than the noise, and in the others by less.
    ring = [[0.0, 0.9, 1.8], [1.8, 0.0, 0.9], [0.9, 1.8, 0.0]]
    found = front(estimates(ring, [[1.0] * 3] * 3, axes), axes)
    assert found.members == {0, 1, 2}


def test_what_not_all_candidates_have_is_no_axis():
    found = front(estimates([[1, None], [2, 3]]), (GAIN, COST))
    assert found.axes == (GAIN,)
    assert found.members == {1}
    assert front([], (GAIN,)).members == frozenset()
    assert front(estimates([[None, None]]), (GAIN, COST)).axes == ()


# -- what points are compared by, and who is a candidate


def test_at_a_fixed_rate_throughput_is_no_merit():
    slow, fast = ({"arrival": {"process": "poisson", "rate_per_s": rate}} for rate in (5, 6))
    nine = {"kind": "fixed", "tokens": 9}
    longer = {**slow, "num_requests": 7, "lengths": {"input": nine, "output": nine}}
    one, other, third = (WorkloadSpec.model_validate(each) for each in (slow, fast, longer))
    closed = WorkloadSpec.model_validate({"mode": "closed", "concurrency": 3})
    assert fixed_rate([one, one], [5.0, 5.5]) == fixed_rate([one, third], [5.0, 5.5]) == 5.25  # of other seeds
    assert fixed_rate([one, other], [5.0, 5.0]) is fixed_rate([closed] * 2, [None] * 2) is fixed_rate([], []) is None
    fixed, free = ({axis.key: axis.more for axis in axes_at(rate)} for rate in (5.0, None))
    assert fixed == {
        "joules_per_output_token": False,
        "ttft_p99_s": False,
        "tpot_p99_s": False,
        "silicon_mm2": False,
        "devices": False,
        "goodput_requests_per_s": True,
    }
    assert free == {THROUGHPUT.key: True, "ttft_p99_s": False, "tpot_p99_s": False, ENERGY.key: False}


def summary(stability="steady", attainment=None, rejected=0):
    return summary_of_document(
        {
            "stability": stability,
            "slo": {"attainment": attainment},
            "requests": {"total": 200, "rejected": rejected},
        }
    )


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (summary(), None),
        (summary(attainment=0.99), None),
        (summary(attainment=0.9), "misses its SLO: 90.0 % of the requests meet it"),
        (summary("saturated"), "saturated"),
        (summary("too short to tell"), "too short to tell"),
        (summary(rejected=2), None),
        (summary(rejected=20), "rejects 10.0 % of the requests"),
        (summary("saturated", 0.5), "saturated"),
    ],
)
def test_who_is_no_candidate(found, why):
    assert why_not_on_a_front(found) == why


# -- of runs


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two rates, one of them far above what the device serves, on one and two replicas, with an SLO."""
    workload = f"workload={{arrival: {{process: poisson, rate_per_s: 5}}, num_requests: 250, {LENGTHS}}}"
    grid = ["workload.arrival.rate_per_s=5,500", "cluster.replicas=1,2"]
    folder = tmp_path_factory.mktemp("sweep") / "out"
    return folder, sweep(load_grid(None, [*SERVED, workload, "slo.ttft_s=0.3"], grid, 1), folder, Here())


@pytest.mark.medium
def test_overload_is_never_on_a_front(swept, tmp_path):
    folder, document = swept
    named = {point["name"]: point for point in document["points"]}
    over = [name for name in named if "rate_per_s=500" in name]
    assert document["pareto"]["offered_requests_per_s"] is None  # there are two
    assert sorted(document["pareto"]["left_out"]) == sorted(over)
    for name in over:
        assert named[name]["figures"]["output_tokens_per_s_per_device"]["mean"] > 500  # more than who is on the front
        assert "pareto" not in named[name]
        assert named[name]["not_on_front"]
        assert named[name]["not_on_front"] == named[name]["runs"][0]["not_on_front"]
    assert "rate_per_s=5,replicas=1" in document["pareto"]["front"]
    assert not set(over) & set(document["pareto"]["front"])
    screen = Console(width=200, no_color=True)
    with screen.capture() as captured:
        screen.print(sweep_report(document, screen))
    shown = " ".join(captured.get().split())
    assert "better in one of output tokens/s per device, TTFT p99, TPOT p99 and energy/token, and" in shown
    for name in over:
        assert name in shown[shown.index("not on a front: ") :]
    page = write_report([folder], tmp_path / "out.html")
    text = page.read_text() if page is not None else (tmp_path / "out.html").read_text()
    assert "not on a front: " in text
    assert "not a candidate" in text


def test_at_one_rate_it_is_about_cost(tmp_path):
    workload = f"workload={{arrival: {{process: poisson, rate_per_s: 5}}, num_requests: 250, {LENGTHS}}}"
    grid = load_grid(None, [*SERVED, workload], ["cluster.replicas=1,2", "run.cooldown_s=0,1"], 1)
    document = sweep(grid, tmp_path / "out", Here())
    pareto = document["pareto"]
    assert pareto["offered_requests_per_s"] == pytest.approx(5, rel=0.2)
    assert {axis["figure"] for axis in pareto["axes"]} >= {"joules_per_output_token", "tpot_p99_s", "devices"}
    assert not any("tokens_per_s" in axis["figure"] for axis in pareto["axes"])
    # One replica serves it at a TPOT that is worse by less than the noise or at least cheaper in devices.
    assert any("replicas=1" in name for name in pareto["front"])
    for point in document["points"]:
        own = point["figures"]["tpot_p99_s"]["ci95"]
        assert own == point["runs"][0]["ci95"]["tpot_p99_s"] > 0
    # The same twice but for its last second: within the noise, no matter which digits differ.
    for replicas in (1, 2):
        twins = [point for point in document["points"] if f"replicas={replicas}" in point["name"]]
        assert twins[0].get("pareto") == twins[1].get("pareto")


@pytest.mark.medium
def test_every_warning_of_the_runs_is_there_once(tmp_path):
    faults = "faults={events: [{at_s: 0.5, replica: 0, kind: fail, for_s: 1}]}"
    sets = ["workload.num_requests=30", faults]
    document = sweep(load_grid(None, sets, ["cluster.replicas=2,3", "run.seed=1,2"], 1), tmp_path, Here())
    runs = [run for point in document["points"] for run in point["runs"]]
    for run in runs:
        assert run["warnings"] == json.loads((tmp_path.parent / run["folder"] / "summary.json").read_text())["warnings"]
    told = {each["warning"]: each["points"] for each in document["warnings"]}
    assert set(told) == {warning for run in runs for warning in run["warnings"]}
    assert told["faults were simulated: 1 took place"] == [point["name"] for point in document["points"]]
    screen = Console(width=80, no_color=True)
    with screen.capture() as captured:
        screen.print(sweep_report(document, screen))
    assert captured.get().count("faults were simulated") == 1
    assert "all points: faults were simulated" in " ".join(captured.get().split())


# -- names


def test_points_are_named_by_what_differs():
    values = [
        "duplex",
        {"preset": "duplex", "pim": {"flop_per_byte": 16}},
        {"preset": "duplex", "pim": {"flop_per_byte": 8}},
    ]
    assert value_names(values) == ["duplex", "duplex flop_per_byte=16", "duplex flop_per_byte=8"]
    wide = [
        {"preset": "h100", "memory_gb": 80, "tdp_w": 700},
        {"preset": "h100", "memory_gb": 96, "tdp_w": 700},
        "b200",
    ]
    assert value_names(wide) == ["h100 memory_gb=80", "h100 memory_gb=96", "b200"]
    assert value_names(["duplex", {"preset": "duplex"}]) == ["duplex", "{preset: duplex}"]
    grid = load_grid(None, ["workload.num_requests=30"], ["cluster.device=duplex,{preset: duplex, tdp_w: 900}"], 1)
    assert [point.name for point in grid.points] == ["device=duplex", "device=duplex-tdp_w=900"]
    assert [point.shown["cluster.device"] for point in grid.points] == ["duplex", "duplex tdp_w=900"]


_scalar = st.one_of(st.integers(0, 3), st.sampled_from(["duplex", "h100"]), st.booleans())
_device = st.recursive(
    st.dictionaries(st.sampled_from(["preset", "name", "a", "b"]), _scalar, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(["pim", "a"]), inner, max_size=2),
    max_leaves=4,
)


@given(st.lists(st.one_of(_scalar, _device), min_size=1, max_size=6))
def test_names_tell_values_apart(values):
    distinct = []
    for value in values:
        if not any(json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True) for other in distinct):
            distinct.append(value)
    assert len(set(value_names(distinct))) == len(distinct)


# -- what is checked before anything runs


@pytest.mark.parametrize(
    ("sets", "grid", "message"),
    [
        ([], "cluster.devices_per_node=4,1", "--grid cluster.devices_per_node=1: cluster: mixtral-8x7b does not fit"),
        ([], "model=llama-3.1-8b,deepseek-v3", "--grid model=deepseek-v3: cluster: deepseek-v3 does not fit"),
        ([], "cluster.device=duplex,nosuch", "--grid cluster.device=nosuch: cluster.device: unknown device"),
        ([], "scheduler.router=round_robin,nosuch", "--grid scheduler.router=nosuch: scheduler.router: unknown router"),
        ([], "scheduler.block_size=16,1000000000", "--grid scheduler.block_size=1000000000: scheduler.block_size"),
        ([], "workload.trace={path: nosuch.csv}", "nosuch.csv"),
        ([], "run.cooldown_s=0,9999", "--grid run.cooldown_s=9999: run.warmup_s: warm-up"),
    ],
)
def test_every_point_is_looked_at_first(sets, grid, message):
    with pytest.raises(InputError) as refused:
        load_grid(None, ["workload.num_requests=30", *sets], [grid], 1)
    assert message in str(refused.value)


def test_all_points_that_cannot_run_are_told():
    with pytest.raises(InputError) as refused:
        load_grid(None, ["workload.num_requests=30"], ["cluster.replicas=1..4", "cluster.devices_per_node=4,1"], 1)
    text = str(refused.value)
    assert "4 of 8 points cannot be run" in text
    for replicas in (1, 2, 3, 4):
        assert f"cluster.replicas={replicas} cluster.devices_per_node=1: cluster: mixtral-8x7b does not fit" in text


def test_figures_have_their_unit():
    assert {figure.unit for figure in key_figures.FIGURES} <= {"", "s", "J", "share", "state", "count"}


def test_points_of_another_precision_or_without_passive_power_are_not_alike(tmp_path):
    dense = ["model=gpt2-medium", "cluster.devices_per_node=1", "workload.num_requests=5", "output.steps=false"]
    axes = ["cluster.device=h100,aimc-realistic", "costs.passive_power=true,false"]
    document = sweep(load_grid(None, dense, axes, 1), tmp_path / "s", Here())
    points = document["points"]
    told = {each["warning"]: each["points"] for each in document["warnings"]}
    begin = "not like for like: the points differ in "
    assert [warning.removeprefix(begin) for warning in told if warning.startswith(begin)] == [
        "whether energy includes passive power",
        "precision of weights (fp16 against 5-bit)",
        "precision of KV cache (fp16 against 8-bit)",
    ]
    assert told[f"{begin}whether energy includes passive power"] == [point["name"] for point in points]
    assert [point["runs"][0]["precision"]["weights"] for point in points] == ["fp16"] * 2 + ["5-bit"] * 2
    alike = load_grid(None, [*dense, "cluster.device=h100"], ["cluster.replicas=1,2"], 1)
    assert not any("like for like" in each["warning"] for each in sweep(alike, tmp_path / "t", Here())["warnings"])
