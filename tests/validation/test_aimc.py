"""The event-driven model of 3D AIMC against the reference simulator's cases, one test each, and how they are judged."""

import json
import math
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from pimserve.cluster.validation.aimc_case import Case, read_cases
from pimserve.cluster.validation.targets import Finding
from pimserve.cluster.validation.validate_aimc import PUBLISHED, judge, published_cases, run_case, validate_aimc

CASES = {case.id: case for case in published_cases()}
# Where row blocks, as the reference simulator finds them to count its memory, are not those of the matrices.
MEMORY = [
    case for case in read_cases(Path(__file__).parent / "data" / "aimc_cases_memory.json") if isinstance(case, Case)
]
DOCUMENTS: dict[str, dict[str, Any]] = {
    case["id"]: case
    for name in PUBLISHED
    for case in json.loads((resources.files("pimserve.cluster.validation") / name).read_text(encoding="utf-8"))["cases"]
}
DENSE, MOE, BUSY = "open-01-hand-chain", "open-03-hand-moe-top2", "open-12-switch-in-order"
QUANTITIES = [
    "latency, ns",
    "last token, ns",
    "energy, nJ",
    "active energy, nJ",
    "FLOPs",
    "operations",
    "operation time, ns",
    "peak memory, B",
    "parameters",
    "chunk grids alike",
    "chunks placed alike",
    "MVMs of tiles alike",
]


@pytest.mark.medium
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_reference_case(case: Case) -> None:
    found = judge(case)
    assert [each.quantity for each in found] == QUANTITIES
    assert [each for each in found if each.passed is False] == []
    # The reference simulator cannot count the peak of its scratchpad for one of the cases.
    assert [each.quantity for each in found if each.passed is None] == (
        ["peak memory, B"] if case.id == "open-16-small-tiers-util" else []
    )


@pytest.mark.parametrize("case", MEMORY, ids=[case.id for case in MEMORY])
def test_every_figure_of_the_cases_about_memory(case: Case) -> None:
    assert [each for each in judge(case) if not each.passed] == []


def test_the_package_holds_all_cases() -> None:
    assert len(CASES) == 19
    assert len(MEMORY) == 3


def test_cases_worked_out_on_paper() -> None:
    # Hop 10, add 10, norm 50, relu 1, attention 2, sampler 10, MVM 100 ns; a linear is hop, MVM, hop.
    linear = 10 + 100 + 10
    chain = 100 + 10 + 10 + linear + 2 + linear + 10 + 50 + linear + 1 + linear + 10 + 50 + linear + 10
    by_hand = {
        "open-01-hand-chain": chain,
        "open-02-hand-one-tile": chain + 2 * 100,  # q, k and v one after the other
        "open-03-hand-moe-top2": chain + 10,  # one combining add
        "open-04-hand-prefill": chain + 3 * 100 + 3 * 100,  # four tokens queue at the embedding, and after attention
        "open-05-hand-batch": chain + 2 * 100,
    }
    assert {name: run_case(CASES[name]).makespan_ps for name in by_hand} == {
        name: ns * 1000 for name, ns in by_hand.items()
    }


def changed(folder: Path, *cases: dict[str, Any]) -> list[Finding]:
    path = folder / "cases.json"
    path.write_text(json.dumps({"cases": cases}), encoding="utf-8")
    return validate_aimc(path)


def case_of(name: str) -> dict[str, Any]:
    return deepcopy(DOCUMENTS[name])


def by_quantity(findings: list[Finding]) -> dict[str, Finding]:
    return {found.quantity: found for found in findings}


@pytest.mark.parametrize(
    ("name", "key", "factor", "quantity", "passed"),
    [
        (DENSE, "latency_ns", 1.0005, "latency, ns", False),  # by hand, so exact
        (BUSY, "latency_ns", 1.0009, "latency, ns", True),
        (BUSY, "latency_ns", 1.0011, "latency, ns", False),
        (BUSY, "energy_nJ", 0.9991, "energy, nJ", True),
        (BUSY, "energy_nJ", 0.9989, "energy, nJ", False),
        (BUSY, "flops", 1 + 1e-6, "FLOPs", False),
        (BUSY, "peak_memory_bytes", 1.0001, "peak memory, B", False),
    ],
)
def test_a_figure_is_held_to_its_tolerance(
    tmp_path: Path, name: str, key: str, factor: float, quantity: str, passed: bool
) -> None:
    case = case_of(name)
    case["result"][key] *= factor
    found = changed(tmp_path, case)
    assert by_quantity(found)[quantity].passed is passed
    assert by_quantity(found)[quantity].ratio == pytest.approx(1 / factor, rel=1e-4)
    assert all(each.passed for each in found if each.quantity != quantity)


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    case = case_of(BUSY)
    case["result"]["op_counts"]["layer_norm"] += 1
    case["result"]["energy_breakdown_nJ"]["mha"]["dram"] *= 1.001
    case["result"]["op_latency_sums_ns"]["tier_linear"] += 100
    case["result"]["token_finish_ns"]["2"][1] *= 1.01
    case["derived"]["mapping"]["lm_head"][3][1] += 1
    case["derived"]["chunk_grid"]["lm_head"] = [2, 17]
    case["derived"]["chunk_grid"]["decoder_stack.layers.9.out_proj"] = [1, 1]
    case["derived"]["mvms_per_tile"][5] += 1
    case["derived"]["parameters"] += 1
    found = by_quantity(changed(tmp_path, case))
    missed = {quantity: each.note for quantity, each in found.items() if not each.passed}
    assert missed.keys() == {
        "last token, ns",
        "active energy, nJ",
        "operations",
        "operation time, ns",
        "parameters",
        "chunk grids alike",
        "chunks placed alike",
        "MVMs of tiles alike",
    }
    assert missed["operations"] == "layer_norm: 187 there, 186 here"
    assert missed["active energy, nJ"].startswith("mha.dram: ")
    assert missed["operation time, ns"].startswith("tier_linear: 379300")
    assert missed["last token, ns"].startswith("1 of 18 tokens; sequence 2, token 1: ")
    assert missed["chunks placed alike"].startswith("lm_head, chunk 3: (")
    assert missed["chunk grids alike"] == "lm_head: (2, 17) there, (2, 16) here"
    assert missed["MVMs of tiles alike"].startswith("tile 5: ")
    placed, grids = found["chunks placed alike"], found["chunk grids alike"]
    assert isinstance(placed.published, int)
    assert placed.ours == placed.published - 1
    assert isinstance(grids.published, int)
    assert grids.ours == grids.published - 2


def test_what_a_case_does_not_hold_is_not_judged(tmp_path: Path) -> None:
    case = case_of(DENSE)
    case["result"] = {"latency_ns": 853}
    del case["derived"], case["seed"], case["note"], case["simulator_wall_time"]
    found = changed(tmp_path, case)
    assert [each.quantity for each in found] == QUANTITIES
    latency, *others = found
    assert latency.passed
    assert {(each.published, each.ratio, each.passed, each.note) for each in others} == {
        (None, None, None, "not given")
    }
    assert all(math.isfinite(each.ours) for each in found)


def test_a_mapping_made_by_chance_is_taken_over(tmp_path: Path) -> None:
    case = case_of(BUSY)
    case["mapping_strategy"]["strategy"] = "GREEDY_RANDOM"
    found = by_quantity(changed(tmp_path, case))
    assert found["chunks placed alike"].note == "taken over"
    assert all(each.passed for quantity, each in found.items() if quantity != "chunks placed alike")
    # Experts that no token is sent to need not be listed.
    chosen = {e for step in case["derived"]["routing"] for token in step["0"] for e in token}
    case["derived"]["mapping"] = {
        name: places
        for name, places in case["derived"]["mapping"].items()
        if ".layers.0.moe_layer.experts." not in name or int(name.split(".")[5]) in chosen
    }
    assert len(case["derived"]["mapping"]) < len(DOCUMENTS[BUSY]["derived"]["mapping"])
    assert by_quantity(changed(tmp_path, case))["latency, ns"].passed


def test_a_mapping_from_a_density_that_is_not_given_is_taken_over(tmp_path: Path) -> None:
    case = case_of(MOE)
    case["mapping_strategy"]["strategy"] = "GREEDY_TOP2"
    assert by_quantity(changed(tmp_path, case))["chunks placed alike"].note == "taken over"
    case["model"]["expert_density"] = [[0.0 if i == j else 1 / 12 for j in range(4)] for i in range(4)]
    assert by_quantity(changed(tmp_path, case))["chunks placed alike"].passed is not None


def read_one(folder: Path, case: dict[str, Any]) -> Case:
    path = folder / "one.json"
    path.write_text(json.dumps({"cases": [case]}), encoding="utf-8")
    (read,) = read_cases(path)
    assert isinstance(read, Case), read.reason
    return read


def outcome_of(folder: Path, case: dict[str, Any]) -> tuple[Case, Any]:
    read = read_one(folder, case)
    return read, run_case(read)


def test_pairs_are_mapped_by_their_own_density(tmp_path: Path) -> None:
    # One expert takes two of seven tiles; 0 comes first, and after it the one that is chosen with it most often.
    def placed(**densities: Any) -> list[int]:
        """Experts in the order of their places."""
        case = case_of(MOE)
        case["hardware"] |= {"tiles": 9, "tiers": 3}
        case["mapping_strategy"] |= {"strategy": "GREEDY_TOP2", "density": densities["pairs"]}
        case["model"]["expert_density"] = densities.get("routing")
        del case["derived"]["mapping"], case["derived"]["mvms_per_tile"]
        read = read_one(tmp_path, case)
        assert not read.mapping_given
        ups = [ffn.up[0] for (ffn,) in read.network.blocks[0].experts]
        return sorted(range(4), key=lambda e: (read.mapping.tiers[ups[e]], read.mapping.tiles[ups[e]]))

    def pairs(*likely: tuple[int, int]) -> list[list[float]]:
        weight = {(0, 1): 0.1, **dict.fromkeys(likely, 0.3)}
        return [[weight.get((min(i, j), max(i, j)), 0.01) if i != j else 0.0 for j in range(4)] for i in range(4)]

    assert placed(pairs=pairs((0, 2))) != placed(pairs=pairs((0, 3)))
    assert placed(pairs=pairs((0, 2)), routing=pairs((0, 3))) == placed(pairs=pairs((0, 2)))
    assert placed(pairs=pairs((0, 2)), routing=[0.1, 0.2, 0.3, 0.4]) == placed(pairs=pairs((0, 2)))


def test_more_experts_per_token(tmp_path: Path) -> None:
    case = case_of(MOE)
    case["model"]["top_k"] = 3
    case["derived"]["routing"] = [{"0": [[1, 3, 0]]}]
    _, outcome = outcome_of(tmp_path, case)
    before = run_case(CASES[MOE])
    assert outcome.op_counts["mvm"] == before.op_counts["mvm"] + 2  # another expert's two matrices
    assert outcome.op_counts["add"] == before.op_counts["add"] + 1
    assert outcome.makespan_ps == before.makespan_ps + 10_000  # combined after the others


def test_optional_hardware_reaches_the_chip(tmp_path: Path) -> None:
    case = case_of("open-07-dense-kv")
    plain = run_case(CASES["open-07-dense-kv"])
    case["hardware"] |= {"dram_bandwidth_GBps": 2 * 5.332, "dram_active_power_W": 1.0, "dram_inactive_power_W": 2.0}
    _, outcome = outcome_of(tmp_path, case)
    reads = outcome.op_latency_ps["attention_dram"]
    # Each read takes a whole number of ns.
    assert reads == pytest.approx(plain.op_latency_ps["attention_dram"] / 2, abs=1000 * outcome.op_counts["attention"])
    assert outcome.energy_nj["attention_dram"] == pytest.approx(reads / 1000)
    assert outcome.energy_nj["passive"] == pytest.approx((4 + 1 + 2.0) * outcome.makespan_ps / 1000)


def test_other_rules_of_scheduling(tmp_path: Path) -> None:
    together = case_of("open-02-hand-one-tile")
    together["hardware"]["one_tier_at_a_time"] = False
    _, outcome = outcome_of(tmp_path, together)
    # q, k and v wait for the tile together, and start together.
    assert outcome.makespan_ps == run_case(CASES["open-02-hand-one-tile"]).makespan_ps - 2 * 100_000
    locked = case_of("open-15-attention-bound")
    locked["hardware"] |= {"num_mha_units": 4}
    free = outcome_of(tmp_path, locked)[1]
    locked["hardware"]["lock_mha_unit_to_layer"] = True
    held = outcome_of(tmp_path, locked)[1]
    assert held.op_counts == free.op_counts
    assert held.makespan_ps > free.makespan_ps  # two layers on four units


def test_tiers_that_are_not_square(tmp_path: Path) -> None:
    case = case_of(DENSE)
    case["hardware"] |= {"tier_shape": [512, 256]}
    read, outcome = outcome_of(tmp_path, case)
    assert read.network.matrices[-1].grid(512, 256) == (1, 2)
    assert outcome.op_counts["mvm"] == 2 * run_case(CASES[DENSE]).op_counts["mvm"]
    assert outcome.op_counts["add"] == run_case(CASES[DENSE]).op_counts["add"]
    assert outcome.makespan_ps == run_case(CASES[DENSE]).makespan_ps


def test_progress_counts_cases(tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"cases": [DOCUMENTS[DENSE], DOCUMENTS[MOE]]}), encoding="utf-8")
    seen: list[tuple[int, int]] = []
    validate_aimc(path, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
