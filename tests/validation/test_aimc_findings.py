"""The findings of the 3D AIMC paper (Buechel et al., 2025), against sweeps that its simulator was run through.

All sweeps: 4 layers, GeLU, 2,048 words, prompt 1, 3 tokens, 512 x 512 tiers, affine unit costs with fast attention and
memory. Rows of sweeps that draw experts cannot be repeated number for number, as the draws are not known: their ranges
are held, and what does not depend on the draw.
"""

import json
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.event.graph import COMPAT, PHYSICAL, Rules, Sequence
from pimserve.device_models.aimc.event.simulate import Outcome, simulate
from pimserve.device_models.aimc.mapping import MappingSpec, map_network
from pimserve.device_models.aimc.network import Network, gpt2_like
from pimserve.device_models.aimc.operation_costs import AffineCosts, Dram

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "aimc_findings.json").read_text())
LAYERS, TOKENS, HIDDEN = 4, 3, 512
DIGITAL_UNITS, ATTENTION_UNITS = 16, 4
CAPACITY = 8192  # tiers in all
COSTS = AffineCosts(
    mvm_ns=100, mvm_nj=10,
    mha_base_ns=20, mha_flop_per_ns=65536, mha_nj_per_flop=0.0002,
    com_base_ns=6, com_elem_per_ns=128, com_nj_per_bit=1e-05,
    ln_base_ns=12, ln_elem_per_ns=32, ln_nj_per_elem=0.005,
    act_base_ns=1, act_elem_per_ns=256, act_nj_per_elem=0.001,
    add_base_ns=2, add_elem_per_ns=128, add_nj_per_elem=0.001,
    smp_base_ns=8, smp_elem_per_ns=2048, smp_nj_per_elem=0.001,
)  # fmt: skip
SEEDS = range(1, 6)
STRATEGIES = ("greedy_in_order", "greedy_util", "greedy_random")


@cache
def run(
    *,
    tiles: int,
    sequences: int = 4,
    hidden: int = HIDDEN,
    ffns: int = 1,
    experts: int = 0,
    top_k: int = 1,
    strategy: str = "greedy_in_order",
    split: bool = True,
    seed: int = 0,
    rules: Rules = COMPAT,
) -> tuple[Network, Outcome]:
    """A model whose dense FFN is `ffns` times the usual width, or with `experts` of the usual width."""
    network = gpt2_like(
        hidden=hidden, heads=8, ffn_width=ffns * 4 * hidden, layers=LAYERS, vocab=2048, positions=1 + TOKENS,
        activation="gelu", experts=experts, top_k=top_k if experts else 0,
    )  # fmt: skip
    memory = Dram(gb=1, gb_per_s=1000, active_w=0.2467)
    units_w = DIGITAL_UNITS + ATTENTION_UNITS + 0.1297
    chip = Chip(tiles, CAPACITY // tiles, 512, 512, DIGITAL_UNITS, ATTENTION_UNITS, COSTS, memory, units_w)
    spec = MappingSpec.model_validate({"strategy": strategy, "split_ffn": split, "seed": seed})
    mapping = map_network(network, chip, spec)
    return network, simulate(network, chip, mapping, [Sequence(1, TOKENS)] * sequences, rules=rules, seed=seed)


def time_ns(**setting: Any) -> float:
    return run(**setting)[1].makespan_ps / 1000


def setting_of(row: dict[str, Any]) -> dict[str, Any]:
    """What a row was run with."""
    sweep, value = row["sweep"], row["value"]
    common = {"tiles": row["tiles"], "sequences": row["sequences"]}
    if sweep == "width":
        return {**common, "hidden": int(value)}
    if sweep == "experts_at_fixed_active_size":
        return {**common, **({"experts": int(value), "strategy": "moe_separated"} if int(value) > 1 else {})}
    if sweep == "dense_of_the_same_size":
        return {**common, "ffns": int(value)}
    if sweep == "mapping":
        strategy, split, seed = (part.rpartition("=")[2] for part in value.split(","))
        mapping = {"strategy": strategy.lower(), "split": split == "True", "seed": int(seed)}
        return {**common, "experts": 8, "top_k": 2, **mapping}
    return {**common, **({"ffns": 8} if sweep.endswith("dense") else {"experts": 8})}


def is_drawn(row: dict[str, Any]) -> bool:
    """Whether the time of a row depends on which experts were drawn."""
    setting = setting_of(row)
    return "experts" in setting and setting.get("strategy") != "moe_separated"


@pytest.mark.medium
@pytest.mark.parametrize("row", ROWS, ids=[f"{row['sweep']}-{row['value']}" for row in ROWS])
def test_sweep(row: dict[str, Any]) -> None:
    network, outcome = run(**setting_of(row))
    tokens = TOKENS * row["sequences"]
    assert network.parameters == row["parameters"]
    active = outcome.total_energy_nj - outcome.energy_nj["passive"]
    assert active / tokens == pytest.approx(row["active_nJ_per_token"], abs=0.051)  # they print one decimal
    if not is_drawn(row):
        assert outcome.makespan_ps / 1000 == pytest.approx(row["latency_ns"], rel=1e-3)
        assert outcome.total_energy_nj / tokens == pytest.approx(row["nJ_per_token"], rel=1e-3)
        assert outcome.busy.busiest_tile == pytest.approx(row["busiest_tile"], abs=1e-3)
        assert outcome.busy.mean_tile == pytest.approx(row["mean_tile"], abs=1e-3)
        assert outcome.busy.digital == pytest.approx(row["digital"], abs=1e-3)
        assert outcome.busy.attention == pytest.approx(row["attention"], abs=1e-3)


def theirs(sweep: str) -> dict[str, float]:
    return {row["value"]: row["latency_ns"] for row in ROWS if row["sweep"] == sweep}


EXPERTS = (2, 4, 8, 16, 32, 64)


@pytest.mark.medium
def test_the_number_of_experts_is_free() -> None:
    separated = {time_ns(tiles=64, experts=experts, strategy="moe_separated") for experts in EXPERTS}
    assert separated == {time_ns(tiles=64)}  # all of them as quick as the dense model with one FFN
    parameters = [run(tiles=64, experts=e, strategy="moe_separated")[0].parameters for e in EXPERTS]
    assert parameters[-1] > 20 * parameters[0]
    # A dense model of the same size takes longer, the more the larger it is.
    dense = [time_ns(tiles=64, ffns=ffns) for ffns in (1, 2, 4, 8, 16)]
    assert dense == sorted(dense)
    assert dense[-1] > 2.2 * dense[0]


def test_the_number_of_experts_is_free_on_a_physical_machine() -> None:
    """With experts that wait for the router and a routing for each sequence; the token's own row is read."""
    times = [time_ns(tiles=64, experts=e, strategy="moe_separated", rules=PHYSICAL) for e in EXPERTS]
    assert max(times) == pytest.approx(min(times), rel=0.01)
    assert min(times) > time_ns(tiles=64, rules=PHYSICAL)  # the router is on the way


@pytest.mark.medium
def test_stacking_costs_dense_models_much_and_moe_models_little() -> None:
    dense = time_ns(tiles=8, ffns=8) / time_ns(tiles=256, ffns=8)
    assert dense == pytest.approx(4.1, abs=0.05)
    moe = mean(time_ns(tiles=8, experts=8, seed=s) / time_ns(tiles=256, experts=8, seed=s) for s in SEEDS)
    published = theirs("tiles_at_fixed_capacity,moe")
    assert published["8"] / published["256"] == pytest.approx(1.7, abs=0.05)
    assert moe == pytest.approx(1.7, rel=0.1)


@pytest.mark.medium
@pytest.mark.parametrize("sweep", ["tiles_at_fixed_capacity,moe", "sequences,moe"])
def test_drawn_experts_give_times_in_their_range(sweep: str) -> None:
    rows = [row for row in ROWS if row["sweep"] == sweep]
    assert len(rows) >= 5
    for row in rows:
        ours = [time_ns(**setting_of(row), seed=seed) for seed in SEEDS]
        assert 0.9 * min(ours) < row["latency_ns"] < 1.1 * max(ours), row["value"]


def test_width_steps_where_tiers_are_full() -> None:
    times = {int(width): time_ns(tiles=32, hidden=int(width)) for width in theirs("width")}
    steps = ((256, 384, 512), (640, 768, 896, 1024), (1280, 1536))
    for widths in steps:
        flat = [times[width] for width in widths]
        assert max(flat) < 1.2 * min(flat)
    for low, high in ((512, 640), (512, 768), (1024, 1280)):
        assert times[high] > 1.4 * times[low]


@pytest.mark.medium
def test_mapping_matters_and_separated_experts_win() -> None:
    common: dict[str, Any] = {"tiles": 40, "sequences": 8, "experts": 8, "top_k": 2}
    separated = {time_ns(**common, strategy="moe_separated", seed=seed) for seed in SEEDS}
    assert len(separated) == 1  # whichever experts are drawn
    (best,) = separated
    others = {
        (strategy, split): [time_ns(**common, strategy=strategy, split=split, seed=seed) for seed in SEEDS]
        for strategy in STRATEGIES
        for split in (True, False)
    }
    assert min(map(min, others.values())) > 0.99 * best  # wins or ties
    # Published: up to 1.6, the slowest of 18 drawn runs.
    assert 1.4 < max(map(max, others.values())) / best < 1.7
    for row in ROWS:
        if row["sweep"] == "mapping" and is_drawn(row):
            setting = setting_of(row)
            ours = others[setting["strategy"], setting["split"]]
            assert 0.85 * min(ours) < row["latency_ns"] < 1.15 * max(ours), row["value"]
    for strategy in STRATEGIES:  # an expert's matrices on the same tiles are worse
        assert mean(others[strategy, False]) > mean(others[strategy, True])
