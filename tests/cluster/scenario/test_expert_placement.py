"""Which expert is on which devices, from the scenario to the run; and tables of numbers from files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pimserve.cluster.scenario.document import load_scenario, parse_scenario
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.device import Demand
from pimserve.device_models.operators import Parallelism
from pimserve.errors import InputError
from tests.cluster.documents import run
from tests.cluster.scenario.refusals import refusal

SKEWED = ["routing.popularity=zipf", "routing.zipf_exponent=1.0"]
BUSY = [
    "workload.num_requests=40",
    "workload.arrival={process: poisson, rate_per_s: 1000}",
    "workload.lengths={input: {kind: fixed, tokens: 1500}, output: {kind: fixed, tokens: 2}}",
]


def placed(*overrides: str) -> PlacedPool:
    """The only pool of a scenario, of Mixtral on 4 Duplex devices unless it says otherwise."""
    return prepare(load_scenario(None, list(overrides))).pools[0]


def facts(pool: PlacedPool) -> dict[str, Any]:
    found = pool.facts["expert_placement"]
    assert isinstance(found, dict)
    return found


def test_without_the_section_nothing_changes() -> None:
    plain, in_order = placed(), placed("cluster.expert_placement={}")
    alike = placed("cluster.expert_placement={order: popularity}")  # all experts are
    assert plain.plan == in_order.plan == alike.plan
    assert "expert_placement" not in plain.facts
    assert "redundant_experts" not in in_order.replica.parallelism
    assert facts(in_order)["imbalance"] == pytest.approx(1)


def test_weights_of_copies_take_memory_of_the_kv_cache() -> None:
    plain = placed(*SKEWED)
    copied = placed(*SKEWED, "cluster.expert_placement={order: popularity, redundant_experts: 4}")
    prepared = prepare(load_scenario(None, []))
    copy_bytes = prepared.model.routed_parameters / 8 * 2 / 4 * 4  # 4 of 8 experts, 16 bit, on 4 devices
    more = copied.replica.weight_bytes_per_device - plain.replica.weight_bytes_per_device
    assert more == pytest.approx(copy_bytes)
    lost = (plain.kv_capacity_tokens - copied.kv_capacity_tokens) * prepared.model.kv_bytes_per_token / 4
    assert lost == pytest.approx(more, rel=1e-4)
    assert copied.replica.parallelism["redundant_experts"] == 4
    with pytest.raises(InputError, match=r"does not fit: weights take"):
        placed("cluster.devices_per_node=2", "cluster.expert_placement={redundant_experts: 8}")


def test_the_summary_says_how_even_the_load_is() -> None:
    even = facts(placed(*SKEWED, "cluster.expert_placement={order: popularity, redundant_experts: 4}"))
    packed = facts(placed(*SKEWED, "cluster.expert_placement={order: popularity}"))
    in_order = facts(placed(*SKEWED, "cluster.expert_placement={}"))
    assert 1 <= even["imbalance"] < packed["imbalance"] < in_order["imbalance"]
    assert even["imbalance_contiguous"] == packed["imbalance_contiguous"] == in_order["imbalance"]
    assert even["picks_per_token"] == 2 / 4
    assert even["picks_per_token_of_busiest"] == pytest.approx(0.5 * even["imbalance"])


def test_each_layer_has_a_layout_of_its_own_where_popularity_differs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "popular.npy", rng.lognormal(sigma=1.0, size=(32, 8)))
    path = tmp_path / "scenario.yaml"
    path.write_text("routing: {popularity: given, weights_file: popular.npy}\n")
    scenario = load_scenario(path, ["cluster.expert_placement={order: popularity, redundant_experts: 8}"])
    pool = prepare(scenario).pools[0]
    assert pool.plan.experts is not None
    assert len(set(pool.plan.experts.slots)) > 16
    found = facts(pool)
    assert 1 <= found["imbalance"] <= found["imbalance_of_worst_layer"] < found["imbalance_of_worst_layer_contiguous"]
    again = type(scenario).model_validate(scenario.resolved())  # runs from anywhere, without the file
    assert prepare(again).pools[0].plan == pool.plan


@pytest.mark.parametrize("mode", ["pooled", "exact"])
def test_long_prompts_are_faster_with_balanced_experts(tmp_path: Path, mode: str) -> None:
    end_s = {}
    for name, spec in (("plain", "{}"), ("even", "{order: popularity, redundant_experts: 4}")):
        overrides = [*SKEWED, *BUSY, f"routing.mode={mode}", "cluster.device=h100", f"cluster.expert_placement={spec}"]
        summary = run(prepare(load_scenario(None, overrides)), tmp_path / name)
        assert summary["requests"]["finished"] == 40
        assert summary["device_facts"]["expert_placement"]["redundant_experts"] == (4 if name == "even" else 0)
        end_s[name] = summary["latency_s"]["e2e"]["mean"]
    assert end_s["even"] < end_s["plain"]


def test_of_pools_each_may_have_its_own() -> None:
    copied = "{order: popularity, redundant_experts: 4}"
    spec = f"cluster.pools={{prefill: {{}}, decode: {{expert_placement: {copied}}}}}"
    prefill, decode = prepare(load_scenario(None, [*SKEWED, spec])).pools
    assert "expert_placement" not in prefill.facts
    assert facts(decode)["redundant_experts"] == 4


def test_slices_become_whole_experts_where_copies_fill_the_devices() -> None:
    split = Parallelism(2, 8, 8, "ep", 8)
    assert split.expert_groups(8) == 16
    pool = placed("cluster.nodes=2", "cluster.devices_per_node=8", "cluster.expert_placement={redundant_experts: 8}")
    assert pool.plan.experts is not None
    assert (pool.plan.experts.groups, pool.plan.experts.physical_experts) == (16, 16)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("slots.csv", b"7,6,5,4,3,2,1,0\n"),
        ("slots.json", b"[7, 6, 5, 4, 3, 2, 1, 0]"),
        ("slots.json", json.dumps([[7, 6, 5, 4, 3, 2, 1, 0]] * 32).encode()),
    ],
)
def test_an_own_table_of_a_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    path = tmp_path / "scenario.yaml"
    path.write_text(f"cluster: {{expert_placement: {{file: {name}}}}}\n")
    pool = prepare(load_scenario(path)).pools[0]
    assert pool.plan.experts is not None
    assert pool.plan.experts.slots == ((7, 6, 5, 4, 3, 2, 1, 0),)
    assert facts(pool)["order"] == "own table"


TOGETHER = "on the same devices"


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        ("[0, 0, 1, 2, 3, 4, 5, 6, 7, 7]", "slots 0 and 1 hold expert 0 on the same devices, and 1 more like it"),
        ("[0, 1, 2, 3, 4, 5, 5, 6, 7, 0]", "slots 5 and 6 hold expert 5 on the same devices: copies there take memory"),
        (str([[*range(8), 0, 1]] * 31 + [[*range(8), 6, 0]]), "slots 6 and 8 of MoE layer 31 hold expert 6 on"),
        ("[0, 1, 2, 3, 4, 5, 6, 7, 0, 1]", ""),
    ],
)
def test_copies_beside_each_other_are_told(slots: str, said: str) -> None:
    spec = f"{{redundant_experts: 2, slots: {slots}}}"
    pool = placed("cluster.devices_per_node=2", "cluster.device=h200", f"cluster.expert_placement={spec}")
    told = [warning for warning in pool.replica.warnings if TOGETHER in warning]
    assert len(told) == bool(said)
    assert all(said in warning for warning in told)


@pytest.mark.parametrize("device", ["h100", "{preset: aimc-realistic, spread: experts}"])
def test_copies_that_the_popularity_order_spreads_are_not_told(device: str) -> None:
    placement = f"cluster.placement={{experts: {{device: {device}, devices_per_node: 4}}, micro_batches: 1}}"
    tiers = ["cluster.placement.experts.device.tiers=128"] if "aimc" in device else []
    copied = "cluster.expert_placement={order: popularity, redundant_experts: 4}"
    pool = placed(*SKEWED, placement, *tiers, copied)
    assert not [warning for warning in pool.replica.warnings if TOGETHER in warning]


REFUSED: list[tuple[list[str], str]] = [
    (
        ["cluster.expert_placement.redundant_experts=3"],
        "cluster.expert_placement.redundant_experts: 8 experts with 3 copies do not spread evenly over 4 devices with "
        "experts: ep; use a number of devices that divides both together",
    ),
    (
        ["cluster.expert_placement.redundant_experts=28"],
        "cluster.expert_placement.redundant_experts: at most 24 copies make sense",
    ),
    (
        ["cluster.expert_placement.order=hot"],
        "cluster.expert_placement.order: must be 'contiguous', 'round_robin' or 'popularity'",
    ),
    (
        ["cluster.expert_placement={slots: [0, 1, 2, 3, 4, 5, 7, 7]}"],
        "cluster.expert_placement.slots: expert 7 is in slots 6 and 7, expert 6 is in none, 8 slots; give each of the "
        "8 experts a slot, and as many more as redundant_experts says (0)",
    ),
    (
        ["cluster.expert_placement={slots: [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]}"],
        "cluster.expert_placement.slots: expert 0 is in slots 0 and 8, 12 slots; give each",
    ),
    (
        ["cluster.expert_placement={slots: [0, 1, 2, 3, 4, 5, 6]}"],
        "cluster.expert_placement.slots: expert 7 is in none, 7 slots",
    ),
    (
        ["cluster.expert_placement={slots: [0, 1, 2, 3, 4, 5, 6, 8]}"],
        "cluster.expert_placement.slots.7: must be an expert from 0 to 7 (got 8)",
    ),
    (
        ["cluster.expert_placement={slots: [[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0]]}"],
        "cluster.expert_placement.slots: 2 lists of slots for 32 MoE layers of mixtral-8x7b; give one for all",
    ),
    (
        ["cluster.expert_placement={slots: [0, 1, 2, 3, 4, 5, 6, 7], order: popularity}"],
        "cluster.expert_placement: slots stand in place of an order",
    ),
    (
        ["model=llama-3.1-8b", "cluster.expert_placement={}"],
        "cluster.expert_placement: llama-3.1-8b has no routed experts: leave it out",
    ),
    (
        [
            "cluster.device=aimc-realistic",
            "cluster.devices_per_node=8",
            "cluster.expert_placement={slots: [7, 6, 5, 4, 3, 2, 1, 0]}",
        ],
        "cluster.expert_placement: the plan of a whole model on aimc-realistic has expected loads of experts",
    ),
    (
        ["cluster.expert_placement={file: absent.csv}"],
        "cluster.expert_placement.file: no such file",
    ),
    (
        ["cluster.expert_placement={file: a.csv, slots: [0]}"],
        "cluster.expert_placement.file: cluster.expert_placement.slots says the same: leave one of both out",
    ),
    (["cluster.expert_placement={file: 3}"], "cluster.expert_placement.file: must be the path of a table of numbers"),
]


@pytest.mark.parametrize(("overrides", "said"), REFUSED, ids=[said[:60] for _, said in REFUSED])
def test_what_cannot_be_is_refused(tmp_path: Path, overrides: list[str], said: str) -> None:
    assert said in refusal(tmp_path, None, overrides)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("w.csv", b"1,2,x\n", "w.csv:1: 'x' is not a number"),
        ("w.csv", b"\n\n", "w.csv: holds no numbers"),
        ("w.csv", b"\xff\n", "is not UTF-8 text (byte 0); it should be a table of numbers"),
        ("w.csv", b"1,2,3\n", "routing.weights.0: 3 weights for the model's 8 experts"),
        ("w.csv", b"1,2,3,4,5,6,7,8\n" * 3, "routing.weights: 3 lists of weights for 32 MoE layers"),
        ("w.csv", b"1,2,3,4,5,6,7,nan\n", "routing.weights.0.7: "),
        ("w.json", b"{}", "w.json: must be a list of numbers, or a list of these for each MoE layer"),
        ("w.json", b"[1, [2]]", "w.json: [0]: must be a list of numbers"),
        ("w.json", b"[1, true]", "w.json: [0]: True is not a number"),
        ("w.json", b"[1", "w.json: is not JSON"),
        ("w.npy", b"nothing", "w.npy: cannot be read"),
        ("w.txt", b"1", "w.txt: is not a table of numbers (.csv, .json or .npy)"),
    ],
)
def test_files_that_hold_no_popularity_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    path = tmp_path / "scenario.yaml"
    path.write_text(f"routing: {{popularity: given, weights_file: {name}}}\n")
    assert said in refusal(tmp_path, path, [])


@pytest.mark.parametrize(
    ("section", "where"),
    [
        ("routing: {popularity: given, weights_file: w.csv}", "routing.weights_file"),
        ("routing: {weights_file: w.csv}", "routing.weights_file"),
        ("cluster: {expert_placement: {file: w.csv}}", "cluster.expert_placement.file"),
        (
            "cluster: {pools: {prefill: {expert_placement: {file: w.csv}}, decode: {}}}",
            "cluster.pools.prefill.expert_placement.file",
        ),
        ("workload: {lengths: {input: {kind: empirical, file: w.csv}}}", "workload.lengths.input.file"),
        ("workload: {lengths: {joint: {kind: pairs, file: w.csv}}}", "workload.lengths.joint.file"),
        (
            "workload: {classes: [{name: a, lengths: {input: {kind: empirical, file: w.csv}}}]}",
            "workload.classes.0.lengths.input.file",
        ),
    ],
)
def test_a_file_that_is_missing_is_one_mistake(tmp_path: Path, section: str, where: str) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(f"{section}\nscheduler: {{max_num_seqs: 0}}\n")
    file, other = refusal(tmp_path, path, []).splitlines()
    assert file.startswith(f"{where}: no such file: {tmp_path / 'w.csv'}")
    assert other.startswith("scheduler.max_num_seqs: ")


def test_each_file_that_is_missing_is_told(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(
        "routing: {popularity: given, weights_file: w.csv}\ncluster: {expert_placement: {file: w.json}}\n"
        "workload: {lengths: {input: {kind: empirical, file: a.csv}, output: {kind: empirical, file: b.csv}}}\n"
    )
    assert [line.partition(": ")[0] for line in refusal(tmp_path, path, []).splitlines()] == [
        "routing.weights_file",
        "cluster.expert_placement.file",
        "workload.lengths.input.file",
        "workload.lengths.output.file",
    ]


def test_arrays_that_hold_no_popularity_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text("routing: {popularity: given, weights_file: w.npy}\n")
    for array in (np.ones((2, 2, 2)), np.array(["a"]), np.ones(3, complex)):
        np.save(tmp_path / "w.npy", array)
        assert "w.npy: must be an array of numbers, (experts,) or (MoE layers, experts)" in refusal(tmp_path, path, [])


def test_a_text_from_elsewhere_names_no_files() -> None:
    with pytest.raises(InputError, match=r"^routing\.weights_file: 'w\.csv' is a file, which is not read here: give"):
        parse_scenario("routing: {popularity: given, weights_file: w.csv}", "scenario")


def test_a_device_that_knows_nothing_of_it_says_so() -> None:
    chips = ("cluster.device=aimc-realistic", "cluster.devices_per_node=8")
    pool = placed(*chips, "cluster.expert_placement={}")
    assert "cluster.expert_placement: no effect, aimc-realistic places experts itself" in pool.replica.warnings
    assert Demand(prepare(load_scenario(None, [])).model, Parallelism()).expert_slots == ()
