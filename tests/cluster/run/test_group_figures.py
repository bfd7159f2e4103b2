"""What summaries say of groups of devices: where their time went, held against a schedule worked out step by step."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.run.history import History
from pimserve.cluster.run.read_summary import read_summary
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.memo import Memo
from pimserve.device_models.plan import Chunk, CostPlan, RowTerm
from pimserve.device_models.round_trips import PartTimes, schedule_fs
from pimserve.device_models.routing import POOL_SIZE
from pimserve.scheduler.group_times import group_times
from tests.cluster.documents import run, serve
from tests.scheduler.reference_costs import fastest_attention_fs
from tests.scheduler.reference_mixed import mixed_fs

ON_H100 = [
    "cluster.devices_per_node=2",
    "workload.num_requests=12",
    "workload.arrival={process: constant, rate_per_s: 6}",  # prompts come alone
    "scheduler.max_num_batched_tokens=32768",
]
MEASURED_HOST = ["cluster.device=h100", "costs.setting=measured", "costs.backend=vllm"]
SKEWED = "routing={popularity: zipf, zipf_exponent: 1.0}"
FREE = ((0, 0),)


def placed(**placement: Any) -> str:
    return f"cluster.placement={ {'experts': {'device': 'h100'}, 'micro_batches': 2, **placement} }"


def without(plan: CostPlan, *stages: str) -> CostPlan:
    """The plan whose operators of these stages take no time."""

    def free(row: RowTerm) -> RowTerm:
        return replace(row, pieces=FREE, alternatives=()) if row.stage in stages and row.runs != "first" else row

    link = None if "dispatch" in stages else plan.link  # else its terms would be worked out again
    return replace(plan, rows=tuple(map(free, plan.rows)), link=link)


def totals_fs(history: History) -> dict[str, int]:
    """All steps of replica 0 as they were, over free links, and of each group alone, by the naive event schedule."""
    costs = history.costs[0]
    layers, pools = costs.plan.experts.layers, costs.pools
    instant = replace_pools(pools, lambda tokens: np.zeros((layers, POOL_SIZE), np.int64))
    nothing: Callable[[int, int, int], int] = lambda requests, context, prefill: 0  # noqa: E731
    links = ("dispatch", "combine")
    cases = {
        "step": (costs.plan, pools, partial(fastest_attention_fs, costs.plan)),
        "free": (without(costs.plan, *links), pools, partial(fastest_attention_fs, costs.plan)),
        "attention": (without(costs.plan, *links, "experts"), instant, partial(fastest_attention_fs, costs.plan)),
        "experts": (without(costs.plan, *links, "attention"), pools, nothing),
        "host": (without(costs.plan, *links, "attention", "experts"), instant, nothing),
    }
    found = dict.fromkeys(cases, 0)
    step = 0
    for span in history.spans[0]:
        assert span["chunks"] <= 1
        for number in range(span["steps"]):
            shape = {
                "step": step,
                "decodes": int(span["decodes"]),
                "context": int(span["context"] + number * span["decodes"]),
                "chunks": [Chunk(int(span["prefill_tokens"]), 0)] * int(span["chunks"]),
                "outputs": int(span["outputs"]),
            }
            for name, (plan, of_pools, attention) in cases.items():
                found[name] += mixed_fs(
                    plan, of_pools, exact=False, replica=0, offset=costs.offset, attention_fs=attention, **shape
                )
            step += 1
    return found


def replace_pools(pools: Any, layers_fs: Callable[[int], Any]) -> Any:
    """The pools with other times of layers."""
    other = object.__new__(type(pools))
    vars(other).update(vars(pools))
    other.layers_fs = Memo(layers_fs)
    return other


@pytest.mark.medium
@pytest.mark.parametrize(
    "overrides",
    [
        [placed(link={"gb_per_s": 4, "latency_us": 20})],
        pytest.param([placed(micro_batches=3, lm_head="experts")], marks=pytest.mark.slow),
        [placed(micro_batches=1)],
        [placed(), *MEASURED_HOST],
        [placed(hot_experts={"device": "b200", "devices_per_node": 1, "count": 2}), SKEWED],
    ],
)
def test_time_by_cause_is_that_of_the_naive_schedule(overrides: list[str], tmp_path: Path) -> None:
    run(prepare(load_scenario(None, [*ON_H100, "workload.num_requests=6", *overrides])), tmp_path / "r")
    history = History.load(tmp_path / "r")
    totals = {name: fs / 1e15 for name, fs in totals_fs(history).items()}
    groups, end_s = read_summary(tmp_path / "r").groups, history.end_s
    of_attention, of_experts = groups.attention.shares_of_time, groups.experts.shares_of_time
    own = {name: totals[name] - totals["host"] for name in ("attention", "experts")}
    assert of_attention.working * end_s == pytest.approx(own["attention"], rel=1e-9)
    assert of_experts.working * end_s == pytest.approx(own["experts"], rel=1e-9)
    for share, name in ((of_attention, "attention"), (of_experts, "experts")):
        assert share.link * end_s == pytest.approx(totals["step"] - totals["free"], rel=1e-9)
        assert share.other_group * end_s == pytest.approx(totals["free"] - totals["host"] - own[name], rel=1e-6)
        assert share.work * end_s == pytest.approx(end_s - totals["step"] + totals["host"], rel=1e-9)
        assert sum(part for _, part in share) == pytest.approx(1)


times = st.lists(st.integers(0, 50), min_size=3, max_size=3)


@given(st.lists(st.tuples(times, times, times, times, st.integers(0, 50)), min_size=1, max_size=4), st.integers(0, 99))
def test_no_cause_is_negative_and_all_add_up(parts: list[Any], idle: int) -> None:
    schedule = [PartTimes([1, 1, 1], *part) for part in parts]
    step, free = schedule_fs(schedule), schedule_fs([part.free_links for part in schedule])
    attention = sum(part.attention_fs for part in schedule)
    stages = {"experts": free - attention, "link": step - free, "work": sum(part.experts_fs for part in schedule)}
    for group, working in zip(
        group_times(step + 7, 7, stages, step + 7 + idle), (attention, stages["work"]), strict=True
    ):
        assert min(group) >= 0
        assert sum(group) == step + 7 + idle
        assert group.working == working


def test_two_layers_of_a_millisecond_each_stage() -> None:
    """Alone, both groups work 2 of 8 ms and wait 4 for the link; two micro-batches hide some of each."""
    one, two = ([PartTimes([2], [1], [1], [1, 1], [1], 0) for _ in range(parts)] for parts in (1, 2))
    for parts, attention, experts in ((one, (2, 2, 4, 0), (2, 2, 4, 0)), (two, (4, 1, 4, 0), (4, 1, 4, 0))):
        step, free = schedule_fs(parts), schedule_fs([part.free_links for part in parts])
        work = sum(part.experts_fs for part in parts)
        stages = {"experts": free - sum(part.attention_fs for part in parts), "link": step - free, "work": work}
        assert group_times(step, 0, stages, step) == (attention, experts)


def test_the_link_carries_every_token_in_every_moe_layer() -> None:
    found = prepare(load_scenario(None, [*ON_H100, placed(lm_head="experts", link={"copies": "per_pick"})]))
    summary, served = serve(found)
    link, computed, outputs = summary["groups"]["link"], served.logs[0].computed_tokens, served.logs[0].tokens
    assert link["copies_per_token"] == pytest.approx(2)  # experts of a token
    vectors = computed * 32 * 2
    assert link["dispatch"]["tokens"] == pytest.approx(vectors + 2 * outputs)  # each of two devices has half the head
    assert link["dispatch"]["bytes"] == pytest.approx((vectors + 2 * outputs) * 4096 * 2)
    assert link["combine"]["tokens"] == pytest.approx(vectors)
    assert link["combine"]["bytes"] == pytest.approx(vectors * 4096 * 2 + 4 * outputs)
    assert sum(part["bytes"] for part in summary["traffic"] if part["operator"] == "combine") > 0
    for name in ("dispatch", "combine"):
        assert link[name]["busy_share"] == pytest.approx(served.logs[0].unit_fs[name] / served.end_fs)


def test_each_group_says_what_it_is() -> None:
    found = prepare(load_scenario(None, [*ON_H100, placed(experts={"device": "aimc-realistic"})]))
    summary, _ = serve(found)
    attention, experts = (summary["groups"][name] for name in ("attention", "experts"))
    assert (attention["device"], attention["devices"]) == ("duplex", 2)
    assert (experts["device"], experts["devices"]) == ("aimc-realistic", 6)
    assert attention["parts"] == ["attention", "lm_head"]
    assert experts["parts"] == ["routed_experts"]
    held = found.pools[0].kv_capacity_tokens * found.model.kv_bytes_per_token
    assert attention["kv_gb_per_device"] * 2e9 == pytest.approx(held)
    assert experts["kv_gb_per_device"] == 0
    assert attention["silicon_mm2"] + experts["silicon_mm2"] == summary["silicon_mm2"]
    passive = attention["passive_joules"] + experts["passive_joules"]
    assert passive == pytest.approx(summary["energy"]["passive_joules"])
    assert experts["device_facts"]["tiers_used"] == 172_032
    assert "tiers_used" not in summary["device_facts"]
    assert summary["groups"]["micro_batches"] == {"most": 2, "from_tokens": [1], "numbers": [2]}


def test_copies_of_a_latent_fill_each_device() -> None:
    base = ["model=deepseek-v3", "cluster.device=b200", "cluster.devices_per_node=8", "cluster.tensor_parallel=8"]
    aside = {"experts": {"device": "h200", "devices_per_node": 16}, "micro_batches": 2}
    found = prepare(load_scenario(None, [*base, f"cluster.placement={aside}", "workload.num_requests=2"]))
    attention = serve(found)[0]["groups"]["attention"]
    held = found.pools[0].kv_capacity_tokens * found.model.kv_bytes_per_token
    assert attention["kv_gb_per_device"] * 1e9 == pytest.approx(held)


def test_devices_of_experts_need_not_divide_the_kv_heads() -> None:
    """Mixtral's 8 are on attention's devices; 3 others share its experts by slices."""
    experts = {"device": "h100", "devices_per_node": 3, "experts": "tp"}
    summary, _ = serve(prepare(load_scenario(None, [*ON_H100, placed(experts=experts)])))
    assert summary["groups"]["experts"]["devices"] == 3
    assert summary["groups"]["experts"]["kv_gb_per_device"] == 0


def test_auto_says_what_it_tried() -> None:
    chosen = serve(prepare(load_scenario(None, [*ON_H100, placed(micro_batches="auto")])))[0]["groups"]["micro_batches"]
    largest = chosen["tried"]["batches"][-1]
    assert list(largest["step_s"]) == ["1", "2", "3", "4"]
    assert largest["step_s"][str(chosen["most"])] == min(largest["step_s"].values())
    assert max(chosen["numbers"]) == chosen["most"]
    assert len(chosen["numbers"]) == len(chosen["from_tokens"])
    assert [batch["requests"] for batch in chosen["tried"]["batches"]][:3] == [1, 2, 4]


def test_pools_have_groups_of_their_own() -> None:
    decode = {"devices_per_node": 2, "placement": {"experts": {"device": "h100"}, "micro_batches": 2}}
    pools = {"prefill": {"device": "h100", "devices_per_node": 2}, "decode": decode}
    summary, _ = serve(prepare(load_scenario(None, [f"cluster.pools={pools}", "workload.num_requests=20"])))
    assert "groups" not in summary
    assert "groups" not in summary["pools"]["prefill"]
    assert sum(summary["pools"]["decode"]["groups"]["experts"]["shares_of_time"].values()) == pytest.approx(1)


def test_replicas_with_one_group_have_none() -> None:
    assert "groups" not in serve(prepare(load_scenario(None, ["workload.num_requests=5"])))[0]


def test_hot_and_cold_experts_have_devices_of_their_own_kind() -> None:
    hot = {"device": "h100", "devices_per_node": 2, "count": 2}
    mixed = placed(experts={"device": "aimc-realistic"}, hot_experts=hot)
    found = prepare(load_scenario(None, [*ON_H100, mixed, "routing={popularity: zipf, zipf_exponent: 1}"]))
    summary = serve(found)[0]
    experts = summary["groups"]["experts"]
    kinds = experts["kinds"]
    assert [kind["group"] for kind in kinds] == ["hot_experts", "experts"]
    assert [kind["device"] for kind in kinds] == ["h100", "aimc-realistic"]
    assert sum(kind["devices"] for kind in kinds) == experts["devices"]
    for name in ("silicon_mm2", "passive_joules"):
        assert sum(kind[name] for kind in kinds) == pytest.approx(experts[name])
    assert kinds[0]["weights_gb_per_device"] == pytest.approx(2 / 8 * 90.2 / 2, rel=0.01)
    assert kinds[1]["weights_gb_per_device"] == 0
    assert "kinds" not in summary["groups"]["attention"]
    metrics = metrics_of(found, "r")
    keys, values = metrics.layout.keys["pimserve_group_devices"], metrics.values["pimserve_group_devices"].tolist()
    assert {key[3:]: number for key, number in zip(keys, values, strict=True)} == {
        ("duplex", "attention"): 2,
        ("h100", "hot_experts"): 2,
        ("aimc-realistic", "experts"): kinds[1]["devices"],
    }
