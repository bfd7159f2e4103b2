"""Pools for prefill and decode as a scenario has them: keys, checks, figures, report and export."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pimserve.cluster.cli.render import summary_report
from pimserve.cluster.cli.terminal import write
from pimserve.cluster.run.compare import compare
from pimserve.cluster.run.export import export_table
from pimserve.cluster.run.read_summary import summary_of_document
from pimserve.cluster.run.results import load_table
from pimserve.cluster.scenario.document import Scenario, load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.plan import FS_PER_S
from pimserve.errors import InputError
from tests.cluster.documents import run, serve

SMALL = ["workload.num_requests=60", "cluster.devices_per_node=4", "cluster.experts=tp"]
POOLS = [*SMALL, "cluster.pools.prefill.device=h100", "cluster.pools.decode.device=duplex"]


def scenario(*overrides: str) -> Scenario:
    return load_scenario(None, [*POOLS, *overrides])


def test_what_a_pool_leaves_out_is_as_in_the_cluster() -> None:
    pools = scenario(
        "cluster.replicas=3", "cluster.pools.decode.replicas=2", "cluster.pools.prefill.devices_per_node=8"
    )
    prefill, decode = (pools.of_pool(name).cluster for name in pools.pools)
    assert (prefill.device, prefill.replicas, prefill.split.devices, prefill.split.experts) == ("h100", 3, 8, "tp")
    assert (decode.device, decode.replicas, decode.split.devices) == ("duplex", 2, 4)
    assert load_scenario(None, SMALL).pools == ("",)
    alone = load_scenario(None, SMALL)
    assert alone.of_pool("") is alone
    for asked, name in ((alone, "decode"), (pools, ""), (pools, "third")):
        with pytest.raises(InputError, match=rf"^cluster.pools: there is no pool '{name}'"):
            asked.of_pool(name)


def test_pools_hear_of_each_other_ten_times_a_second() -> None:
    assert scenario().scheduler.report_interval_s == 0.1
    assert scenario("scheduler.report_interval_s=2").scheduler.report_interval_s == 2
    assert scenario("scheduler.max_num_seqs=8").scheduler.report_interval_s == 0.1
    assert load_scenario(None, SMALL).scheduler.report_interval_s == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scheduler.report_interval_s=0"], r"^scheduler.report_interval_s: is 0; pools hear of each other"),
        (
            ["cluster.pools.conditional_disagg={}", "scheduler.enable_prefix_caching=true"],
            r"^cluster.pools.conditional_disagg: is not modelled together with scheduler.enable_prefix_caching",
        ),
        (
            ["cluster.pools.conditional_disagg.max_prefill_queue_size=0"],
            r"^cluster.pools.conditional_disagg.max_prefill_queue_size: ",
        ),
        (
            [
                "cluster.pools.prefill.device=aimc-realistic",
                "cluster.pools.prefill.experts=ep",
                "cluster.pools.prefill.devices_per_node=8",
            ],
            r"^cluster.pools: a KV cache of 8 bits per element \(aimc-realistic\) cannot be handed over to one of 16 ",
        ),
        (["cluster.pools.prefill.device=nothing"], r"^cluster.pools.prefill.device: "),
        (["cluster.pools.decode.devices_per_node=1"], r"^cluster.pools.decode: mixtral-8x7b does not fit"),
        (["cluster.pools.decode.tensor_parallel=3"], r"^cluster.pools.decode.tensor_parallel: "),
    ],
)
def test_what_does_not_go_together_is_refused_where_it_stands(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        serve(prepare(scenario(*overrides)))


@pytest.mark.parametrize(
    ("rule", "warning"),
    [
        ("{max_local_prefill_tokens: 100000}", "sent no prompt to the prefill pool, whose replicas did nothing"),
        ("{max_local_prefill_tokens: 0, max_prefill_queue_size: null}", "kept no prompt on a decode replica: all went"),
    ],
)
def test_a_rule_that_splits_nothing_is_told(rule: str, warning: str) -> None:
    summary, _ = serve(prepare(scenario(f"cluster.pools.conditional_disagg={rule}")))
    assert any(f"cluster.pools.conditional_disagg {warning}" in told for told in summary["warnings"])
    summary, _ = serve(prepare(scenario("cluster.pools.conditional_disagg={}")))
    assert not any("conditional_disagg" in told for told in summary["warnings"])


@pytest.mark.medium
def test_a_queue_that_nobody_waited_in_is_told() -> None:
    for interval, told in ((0.1, True), (0.001, False)):
        asked = scenario(
            f"scheduler.report_interval_s={interval}",
            "cluster.pools.conditional_disagg.max_local_prefill_tokens=0",
            "workload.arrival={process: constant, rate_per_s: 40}",
        )
        summary, _ = serve(prepare(asked))
        assert summary["pools"]["prefill"]["busy_share"] < 0.5
        assert any("counts as waiting until it reports" in warning for warning in summary["warnings"]) == told


def test_groups_that_wait_for_none_are_told() -> None:
    told = "scheduler.attention_dp_balance: no effect, a replica has one data-parallel group, or one queue"
    for nodes, expected in ((1, True), (2, False)):
        asked = load_scenario(None, [*SMALL[:1], f"cluster.nodes={nodes}", "scheduler.attention_dp_balance={}"])
        (pool,) = prepare(asked).pools
        assert (told in pool.replica.warnings) == expected


def test_a_budget_of_whole_prompts_is_told() -> None:
    for batching, expected in (("stage", True), ("decode_first", True), ("prefill_first", False)):
        asked = load_scenario(None, [*SMALL, f"scheduler.batching={batching}", "scheduler.max_num_batched_tokens=4096"])
        (pool,) = prepare(asked).pools
        assert any("scheduler.max_num_batched_tokens: no effect" in note for note in pool.replica.warnings) == expected


def test_what_is_assumed_of_links_is_told() -> None:
    """Of that between pools once in the results, and of that within a pool's replicas by its place."""
    handover = "cluster.pools.handover: latency_us 10 assumed, as the scenario gives none"
    placed = "cluster.pools.decode.placement={experts: {device: h100}}"
    prepared = prepare(scenario("cluster.pools.handover.gb_per_s=25", placed))
    prefill, decode = (pool.replica.warnings for pool in prepared.pools)
    assert handover in prefill
    assert handover in decode
    within = "cluster.pools.decode.placement.link: gb_per_s 50 and latency_us 5 assumed, as the scenario gives none"
    assert [note for note in (*prefill, *decode) if "placement.link" in note] == [within]
    summary, _ = serve(prepare(scenario("cluster.pools.handover.gb_per_s=25", "workload.num_requests=5")))
    assert summary["warnings"].count(handover) == 1
    told = prepare(scenario("cluster.pools.handover={gb_per_s: 50, latency_us: 10}"))
    assert not any("assumed" in note for pool in told.pools for note in pool.replica.warnings)


def test_a_token_has_the_kv_cache_of_its_model() -> None:
    asked = scenario("cluster.pools.handover.gb_per_s=25", "cluster.pools.handover.latency_us=3")
    prepared = prepare(asked)
    model, link = prepared.model, prepared.link
    assert link is not None
    assert link.bytes_per_token == 32 * 2 * 8 * 128 * 2  # layers x (key, value) x heads x width x 16 bit
    assert (link.bytes_per_s, link.latency_fs, link.window_bytes_per_token) == (25 * 10**9, 3 * 10**9, 0)
    windowed = scenario("model=gpt-oss-120b")
    prepared = prepare(windowed)
    model, link = prepared.model, prepared.link
    assert link is not None
    assert model.windowed_layers > 0
    assert link.size(10) == pytest.approx(10 * model.kv_bytes_per_token_layer * model.layers)
    assert link.size(10_000) == pytest.approx(10_000 * model.kv_bytes_per_token + model.kv_window_bytes_per_request)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pools") / "run"
    run(prepare(scenario("cluster.pools.prefill.replicas=2")), place)
    return place


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_figures_of_both_pools(folder: Path) -> None:
    found = summary_of(folder)
    prefill, decode, handover = (found["pools"][name] for name in ("prefill", "decode", "handover"))
    assert found["device"] == "h100 + duplex"
    assert (found["devices"], found["replicas"]) == (12, 3)
    assert (prefill["device"], prefill["devices"], prefill["replicas"]) == ("h100", 8, 2)
    assert (decode["device"], decode["devices"], decode["replicas"]) == ("duplex", 4, 1)
    for key in ("joules", "silicon_mm2", "steps", "output_tokens"):
        whole = {"joules": found["energy"]["joules"], "steps": found["batch"]["steps"]}
        whole |= {"silicon_mm2": found["silicon_mm2"], "output_tokens": found["tokens"]["output"]}
        assert prefill[key] + decode[key] == pytest.approx(whole[key])
    assert found["tdp_w"] is None  # nobody sells a Duplex
    assert found["kv"]["capacity_tokens"] == prefill["kv"]["capacity_tokens"] + decode["kv"]["capacity_tokens"]
    assert found["busy_share"] == pytest.approx((2 * prefill["busy_share"] + decode["busy_share"]) / 3)
    assert found["unit_busy_share"]["logic_pim"] == decode["unit_busy_share"]["logic_pim"]
    assert prefill["output_tokens"] == 60
    table = load_table(folder, "requests")
    moved = table["input_tokens"][table["output_tokens"] > 1]
    assert handover["n"] == len(moved)
    assert handover["bytes"] == moved.sum() * 131_072
    assert handover["transfer_s"]["mean"] >= moved.mean() * 131_072 / 50e9 + 10e-6


def test_a_request_alone_decodes_as_on_the_decode_pools_plan() -> None:
    one = [
        "workload.num_requests=1",
        "workload.lengths={input: {kind: fixed, tokens: 700}, output: {kind: fixed, tokens: 50}}",
    ]
    pooled, served = serve(prepare(scenario(*one, "workload.arrival={process: poisson, rate_per_s: 1}")))
    _, decode = prepare(scenario()).pools
    plan = decode.plan
    assert plan.experts is not None
    fixed = [evaluate(plan, shape_of(plan, 1, 700 + token)).duration_fs for token in range(1, 50)]
    costs = served.logs[1].costs
    moe = [costs.experts_fs(1, step) for step in range(49)]
    table = served.table
    lived = int(table["finish_ps"][0] - table["first_token_ps"][0])
    way = served.handovers.transfers_ps[0] if served.handovers is not None else 0
    assert lived == pytest.approx((sum(fixed) + sum(moe)) / 1000 + way, abs=2)
    assert pooled["latency_s"]["tpot"]["mean"] == pytest.approx(lived / 49 * 1000 / FS_PER_S)


def test_the_resolved_scenario_runs_the_same(folder: Path) -> None:
    again, _ = serve(prepare(load_scenario(folder / "scenario.yaml")))
    assert again["digest"] == summary_of(folder)["digest"]
    assert again["scenario_digest"] == summary_of(folder)["scenario_digest"]


def test_the_clusters_device_is_told_only_where_a_pool_uses_it() -> None:
    assert "device" not in scenario().resolved()["cluster"]
    one = load_scenario(None, [*SMALL, "cluster.device=h200", "cluster.pools.decode.device=duplex"]).resolved()
    assert one["cluster"]["device"]["name"] == "h200"
    others = scenario("cluster.device=h200").resolved()
    assert others == scenario().resolved()


def test_steps_of_both_pools_are_exported(folder: Path) -> None:
    file = io.StringIO()
    assert export_table(folder, "steps", file) == summary_of(folder)["batch"]["steps"]
    lines = [line.split(",") for line in file.getvalue().splitlines()[1:]]
    spans = load_table(folder, "steps")
    for replica in range(3):
        mine = [float(line[3]) for line in lines if int(line[0]) == replica]
        assert sum(mine) == pytest.approx(spans["duration_fs"][spans["replica"] == replica].sum() / FS_PER_S)
    changed = summary_of(folder)
    changed["pools"]["decode"]["plan_digest"] = "other"
    (folder / "summary.json").rename(folder / "kept")
    (folder / "summary.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="its steps cannot be worked out"):
        export_table(folder, "steps", io.StringIO())
    (folder / "kept").rename(folder / "summary.json")


def test_the_report_tells_pools_apart(folder: Path) -> None:
    file = io.StringIO()
    write(summary_report(summary_of_document(summary_of(folder))), file)
    text = file.getvalue()
    assert "mixtral-8x7b on 8 h100 + 4 duplex" in text
    assert "prefill: 2 replicas of 4 (nodes 1" in text
    assert "costs: ideal devices, seed 0" in text
    assert re.search(r"pools +prefill +decode +hand-over of KV caches", text)
    assert re.search(r"Logic-PIM +- +\d", text)
    assert max(map(len, text.splitlines())) <= 80


def test_runs_with_and_without_pools_compare(folder: Path, tmp_path: Path) -> None:
    run(prepare(load_scenario(None, SMALL)), tmp_path / "alone")
    found = compare([tmp_path / "alone", folder])
    quantities = {quantity.path: quantity for quantity in found.quantities}
    assert quantities["pools.handover.transfer_s.mean"].values[0] is None
    assert quantities["pools.decode.busy_share"].values[1] == summary_of(folder)["pools"]["decode"]["busy_share"]
    assert found.differences["cluster.pools.prefill.device.name"] == (None, "h100")


def test_pools_of_two_kinds_have_passive_power_and_precision_of_their_own() -> None:
    found, _ = serve(
        prepare(
            scenario(
                "model.preset=mixtral-8x7b",
                "model.kv_dtype=fp8",
                "cluster.pools.decode.device=aimc-realistic",
                "cluster.pools.decode.experts=ep",
                "cluster.pools.decode.devices_per_node=8",
                "workload.num_requests=3",
            )
        )
    )
    pools, energy = [found["pools"][name] for name in ("prefill", "decode")], found["energy"]
    gpus, chips = (pool["devices"] for pool in pools)
    assert pools[0]["passive_joules"] == pytest.approx(gpus * 115 * found["end_s"])
    assert pools[1]["passive_joules"] == pytest.approx(chips * 23.184 * found["end_s"])
    for key in ("joules", "active_joules", "passive_joules"):
        assert energy[key] == pytest.approx(sum(pool[key] for pool in pools))
    assert [pool["precision"]["weights"] for pool in pools] == ["bf16", "5-bit"]
    assert [pool["precision"]["kv_cache"] for pool in pools] == ["fp8", "8-bit"]
    assert "weights of the pools differ in precision: bf16 and 5-bit" in found["warnings"]
