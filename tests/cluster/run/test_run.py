"""Whole runs: what is summarised, that a results folder's scenario runs to the same bits, and physical bounds."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from pimserve.cluster.run.read_summary import load_document
from pimserve.cluster.run.results import load_table
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from tests.cluster.documents import run, serve

SMALL = ["workload.num_requests=25"]


@pytest.mark.medium
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["cluster.device=h100", "cluster.experts=tp", "cluster.replicas=2", "scheduler.router=least_outstanding"],
        ["cluster.device.processor_selection=per_layer", "routing={popularity: zipf, zipf_exponent: 1}", "run.seed=9"],
        ["model=llama-3.1-8b", "cluster.tensor_parallel=1", "workload.mode=closed", "workload.concurrency=8"],
        ["cluster.device.memory_gb=96", "workload.num_requests=5"],
        ["model=gpt-oss-120b", "scheduler.batching=stage", "scheduler.kv_admission=oracle", "run.warmup_s=1"],
        ["slo={preset: mlperf/llama3.1-8b/server, e2e_s: 3 s}", "run.max_time_s=5", "output.steps=false"],
        ["cluster.device=aimc-realistic", "cluster.devices_per_node=6", "scheduler.max_num_seqs=4"],
        ["cluster.device.preset=aimc-nand", "cluster.device.power.idle_gating=0.3", "cluster.devices_per_node=3"],
    ],
    ids=lambda overrides: " ".join(overrides)[:40],
)
def test_the_scenario_of_a_results_folder_runs_to_the_same_bits(overrides: list[str], tmp_path: Path) -> None:
    first = run(prepare(load_scenario(None, [*SMALL, *overrides])), tmp_path / "first")
    again = run(prepare(load_scenario(tmp_path / "first" / "scenario.yaml")), tmp_path / "again")
    for summary in (first, again):
        for key in ("simulator", "results"):
            del summary[key]
    assert again == first
    tables = [name for name in ("requests.npy", "steps.npy") if (tmp_path / "first" / name).exists()]
    assert len(tables) == (1 if "output.steps=false" in overrides else 2)
    for name in tables:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (tmp_path / "first" / "scenario.yaml").read_text() == (tmp_path / "again" / "scenario.yaml").read_text()


def test_summary(tmp_path: Path) -> None:
    overrides = [*SMALL, "cluster.replicas=2", "cluster.device.memory_gb=96", "name=my-run", "run.seed=5"]
    summary = run(prepare(load_scenario(None, overrides)), tmp_path / "r")
    assert load_document(tmp_path / "r") == json.loads(json.dumps(summary))
    expected = {
        "schema_version": 2,
        "name": "my-run",
        "model": "mixtral-8x7b",
        "device": "duplex (changed)",
        "devices": 8,
        "replicas": 2,
        "devices_per_replica": 4,
        "parallelism": {"nodes": 1, "devices_per_node": 4, "tensor": 4, "experts": "ep"},
        # 2 x 32 all-reduces of 4,096 x 2 bytes, of which a ring of 4 sends 2 x 3 times a whole vector
        "traffic": [
            {"operator": "all-reduce, as a ring", "link": "intra_node", "per": "token", "bytes": 64 * 8192 * 6}
        ],
        "seed": 5,
        "trace_rows": {"read": 0, "dropped": {}},
        "results": str(tmp_path / "r"),
    }
    assert {key: summary[key] for key in expected} == expected
    assert summary["weights_gb_per_device"] == pytest.approx(46.7 * 2 / 4, rel=0.001)
    simulator = summary["simulator"]
    assert simulator["requests"] == 25
    assert simulator["steps"] == summary["batch"]["steps"]
    assert 0 < simulator["loop_s"] < simulator["process_s"]
    assert simulator["steps_per_s"] == pytest.approx(simulator["steps"] / simulator["loop_s"])
    assert 10 < simulator["peak_memory_mb"] < 10_000
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert simulator["peak_memory_mb"] == pytest.approx(now / 1e6, rel=0.01)


def test_silicon_and_power_that_devices_are_sold_at() -> None:
    gpus = serve(prepare(load_scenario(None, [*SMALL, "cluster.device=h100", "cluster.replicas=2"])))[0]
    assert (gpus["silicon_mm2"], gpus["tdp_w"]) == (8 * 814, 8 * 700)
    rates, energy = gpus["throughput"], gpus["energy"]
    assert rates["output_tokens_per_s_per_mm2"] == pytest.approx(rates["output_tokens_per_s"] / (8 * 814))
    tokens = gpus["tokens"]["output"]
    assert energy["tdp_joules_per_output_token"] == pytest.approx(8 * 700 * gpus["end_s"] / tokens)
    assert energy["passive_joules"] == pytest.approx(8 * 115 * gpus["end_s"])
    assert gpus["warnings"] == []
    bare = "{kind: gpu, memory_gb: 96, memory_gb_per_s: 3352, peak_tflop_per_s: {bf16: 989}, link_gb_per_s: 450, "
    bare += "link_latency_us: 3, energy: {xpu_pj_per_bit: 3.48, row_activation_nj: 0.909, mac_pj: 0.46}}"
    unknown = serve(prepare(load_scenario(None, [*SMALL, f"cluster.device={bare}"])))[0]
    assert (unknown["silicon_mm2"], unknown["tdp_w"]) == (None, None)
    assert unknown["throughput"]["output_tokens_per_s_per_mm2"] is None
    assert unknown["energy"]["tdp_joules_per_output_token"] is None


@pytest.mark.parametrize(
    ("device", "label"),
    [
        ("duplex", "duplex"),
        ("{preset: duplex}", "duplex"),
        ("{preset: duplex, memory_gb: 80 GiB}", "duplex"),  # says what the preset says
        ("{preset: duplex, link_gb_per_s: 300}", "duplex (changed)"),
        ("{preset: duplex, name: mine, link_gb_per_s: 300}", "mine"),
        ("{preset: aimc-realistic, tiers: 400}", "aimc-realistic (changed)"),
        ("{kind: gpu, memory_gb: 192, memory_gb_per_s: 8000, peak_tflop_per_s: {bf16: 2000}, link_gb_per_s: 900,"
         " link_latency_us: 1, energy: {xpu_pj_per_bit: 4, row_activation_nj: 1, mac_pj: 1}}", "custom"),
    ],
)  # fmt: skip
def test_a_changed_device_does_not_look_like_the_original(device: str, label: str) -> None:
    scenario = load_scenario(None, ["workload.num_requests=1", f"cluster.device={device}"])
    assert serve(prepare(scenario))[0]["device"] == label


def test_digests_tell_scenario_plan_and_bits_apart() -> None:
    def digests(*overrides: str) -> tuple[str, str, str]:
        summary = serve(prepare(load_scenario(None, [*SMALL, *overrides])))[0]
        return summary["scenario_digest"], summary["plan_digest"], summary["digest"]

    base = digests()
    assert digests() == base
    named = digests("name=other")
    assert (named[0] != base[0], named[1:]) == (True, base[1:])
    seeded = digests("run.seed=1")
    assert (seeded[1], seeded[2] != base[2]) == (base[1], True)
    assert all(a != b for a, b in zip(digests("cluster.device=h100"), base, strict=True))


def test_the_seed_also_decides_which_experts_tokens_fall_on() -> None:
    lengths = "lengths: {input: {kind: fixed, tokens: 9}, output: {kind: fixed, tokens: 9}}"
    workload = f"workload={{arrival: {{process: constant, rate_per_s: 9}}, {lengths}, num_requests: 9}}"
    for mode in ("pooled", "exact"):
        scenarios = [load_scenario(None, [workload, f"routing.mode={mode}", f"run.seed={seed}"]) for seed in (0, 1)]
        assert len({serve(prepare(scenario))[0]["digest"] for scenario in scenarios}) == 2


def test_progress_ends_at_all_requests() -> None:
    seen: list[tuple[int, int]] = []
    serve(prepare(load_scenario(None, SMALL)), progress=lambda left, total: seen.append((left, total)))
    assert seen[-1] == (25, 25)


def test_dropped_trace_rows_are_told(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{i},50,5\n" for i in range(10)))
    scenario = load_scenario(None, ["workload.trace.start_s=2", "workload.trace.max_requests=5"], f"csv:{trace}")
    summary = serve(prepare(scenario))[0]
    assert summary["trace_rows"] == {"read": 10, "dropped": {"before start_s": 2, "beyond max_requests": 3}}
    assert summary["requests"]["total"] == 5
    assert summary["tokens"]["prompt"] == 250


def test_the_longest_request_is_what_model_and_cache_allow() -> None:
    assert serve(prepare(load_scenario(None, SMALL)))[0]["max_model_len"] == 32768
    assert serve(prepare(load_scenario(None, [*SMALL, "scheduler.max_model_len=3000"])))[0]["max_model_len"] == 3000
    tight = load_scenario(None, [*SMALL, "scheduler.memory_utilization=0.273"])
    capacity = prepare(tight).pools[0].kv_capacity_tokens
    assert capacity < 32768
    summary = serve(prepare(tight))[0]
    assert summary["max_model_len"] == capacity // 16 * 16
    assert summary["requests"]["rejected"] + summary["requests"]["finished"] == 25


def steps_of(folder: Path) -> Any:
    spans = load_table(folder, "steps")
    return spans, spans["duration_fs"] / spans["steps"] / 1e15


@pytest.mark.parametrize(
    ("device", "path_pj_per_bit", "bandwidth"), [("h100", 3.48, 3352e9), ("duplex", 1.8125, 4 * 3352e9)]
)
def test_no_step_is_faster_or_cheaper_than_reading_what_it_needs(
    device: str, path_pj_per_bit: float, bandwidth: float, tmp_path: Path
) -> None:
    overrides = [*SMALL, f"cluster.device={device}", "model=llama-3.1-8b", "cluster.devices_per_node=1"]
    scenario = load_scenario(None, overrides)
    summary = run(prepare(scenario), tmp_path / "r")
    spans, step_s = steps_of(tmp_path / "r")
    model = scenario.load_model()
    layers = 2 * (model.parameters - model.embedding_parameters) * 0.999  # bytes; norms are not read as matrices
    # Matrices are always read by the processor, over its full path; the cache by whoever reads it.
    assert (step_s >= layers / 3352e9).all()
    cache = model.kv_bytes_per_token
    alone = spans["prefill_tokens"] == 0
    assert (step_s[alone] >= layers / 3352e9 + spans["context"][alone] * cache / bandwidth).all()
    steps = int(spans["steps"].sum())
    contexts = int(
        (spans["steps"] * spans["context"] + spans["decodes"] * spans["steps"] * (spans["steps"] - 1) // 2).sum()
    )
    head = model.vocab * model.hidden * 2
    matrices = steps * layers + int(spans["steps"][spans["outputs"] > 0].sum()) * head
    activation = 0.909e-9 / 1024 * (matrices + contexts * cache)  # of DRAM rows
    least = 8e-12 * (matrices * 3.48 + contexts * cache * path_pj_per_bit) + activation
    dram = sum(kinds["dram"] for kinds in summary["energy"]["joules_by_category"].values())
    flops = model.flops_per_token(0) * (summary["tokens"]["prompt"] + summary["tokens"]["output"] - 25) * 0.9  # no head
    compute = sum(kinds["compute"] for kinds in summary["energy"]["joules_by_category"].values())
    assert least <= dram < 1.2 * least
    assert flops / 2 * 0.46e-12 <= compute < 2 * flops / 2 * 0.46e-12
    assert summary["energy"]["active_joules"] == pytest.approx(dram + compute)


def test_twice_the_capacity_is_saturated_and_half_of_it_is_not() -> None:
    def at(rate: float) -> dict[str, Any]:
        lengths = "lengths: {input: {kind: fixed, tokens: 100}, output: {kind: fixed, tokens: 50}}"
        workload = f"workload={{arrival: {{process: poisson, rate_per_s: {rate}}}, {lengths}, num_requests: 1000}}"
        return serve(prepare(load_scenario(None, ["model=llama-3.1-8b", "scheduler.max_num_seqs=16", workload])))[0]

    capacity = at(1e6)["throughput"]["requests_per_s"]
    for load, state in ((0.5, "steady"), (2.0, "saturated")):
        found = at(capacity * load)
        assert found["stability"] == state
        assert any(each.startswith("saturated: ") for each in found["warnings"]) == (state == "saturated")
        assert found["throughput"]["requests_per_s"] == pytest.approx(capacity * min(load, 1), rel=0.1)


def test_steps_in_the_file_add_up_to_the_run(tmp_path: Path) -> None:
    summary = run(prepare(load_scenario(None, [*SMALL, "cluster.replicas=2"])), tmp_path / "r")
    spans, _ = steps_of(tmp_path / "r")
    requests = load_table(tmp_path / "r", "requests")
    assert spans["steps"].sum() == summary["batch"]["steps"]
    assert (spans["steps"] * spans["outputs"]).sum() == requests["emitted_tokens"].sum() == summary["tokens"]["output"]
    assert spans["prefill_tokens"].sum() == requests["input_tokens"].sum() == summary["tokens"]["prompt"]
    for replica in (0, 1):
        mine = spans[spans["replica"] == replica]
        ends = mine["begin_ps"] + (mine["begin_rest_fs"] + mine["duration_fs"]) // 1000
        assert (mine["begin_ps"][1:] >= ends[:-1]).all()
        served = requests[requests["replica"] == replica]
        assert served["finish_ps"].max() == pytest.approx(ends[-1], abs=2)
