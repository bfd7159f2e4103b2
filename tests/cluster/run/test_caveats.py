"""What a run says beside its figures: requests that were cut off or rejected, and whether it served what came."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from pimserve.cluster.cli.render import summary_report
from pimserve.cluster.cli.terminal import write
from pimserve.cluster.run.caveats import caveats_of_policy
from pimserve.cluster.run.export import export_table
from pimserve.cluster.run.read_summary import summary_of_document
from pimserve.cluster.run.results import load_table
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from tests.cluster.documents import run, serve

DATA = Path(__file__).parents[2] / "data"
ON = ["model=llama-3.1-8b", "cluster={device: h100, devices_per_node: 1}", "output.steps=false"]
NOT_SHED = {"queue_full": 0, "predicted_ttft": 0}
LENGTHS = "lengths: {input: {kind: fixed, tokens: 200}, output: {kind: fixed, tokens: 400}}"
OPEN = f"workload={{num_requests: 400, arrival: {{process: poisson, rate_per_s: 25}}, {LENGTHS}}}"


def summary_of(*overrides: str, scenario: str | None = None) -> dict[str, Any]:
    path = None if scenario is None else DATA / f"{scenario}.yaml"
    return serve(prepare(load_scenario(path, [*([] if scenario else ON), *overrides])))[0]


def table(summary: dict[str, Any]) -> list[str]:
    summary["simulator"] = {"loop_s": 1, "steps_per_s": 1, "requests_per_s": 1, "process_s": 1, "peak_memory_mb": 1}
    screen = io.StringIO()
    write(summary_report(summary_of_document(summary)), screen)
    return [" ".join(line.split()) for line in screen.getvalue().splitlines()]


# --- cut off by the end of the run -----------------------------------------------------------------------------------


def test_a_closed_loop_that_is_cut_off_met_the_ttft_of_all_that_had_a_token():
    summary = summary_of(scenario="cut-by-max-time-closed")
    slo, requests = summary["slo"], summary["requests"]
    assert (requests["measured"], requests["measured_finished"], requests["measured_unfinished"]) == (256, 192, 64)
    assert slo["met"] == {"ttft": 1, "tpot": 1}
    assert slo["known"] == {"ttft": 256, "tpot": 192, "all": 192}
    assert slo["censored"] == {"ttft": 0, "tpot": 64, "all": 64}
    assert slo["attainment"] == slo["attainment_of_completed"] == 1
    assert {key: (each["n"], each.get("censored")) for key, each in summary["latency_s"].items() if key != "itl"} == {
        "ttft": (256, 0),
        "tpot": (192, 64),
        "e2e": (192, 64),
        "queue": (256, 0),
    }
    (warning,) = [each for each in summary["warnings"] if "cut off" in each]
    assert warning.startswith(
        "64 of 256 measured requests (25.0 %) were cut off by the end of the run: latencies leave"
    )
    assert warning.endswith("and SLO attainment 64 of them (censored)")
    lines = table(summary)
    assert "left out, as the end of the run hides them: TPOT 64, E2E 64" in lines
    assert any(line.startswith("censored, all 64") for line in lines)


@pytest.mark.parametrize("at_s", [6, 10])
@pytest.mark.parametrize("warmup", ["0", "1"])
def test_an_open_loop_that_is_cut_off_is_not_blamed_for_it(at_s, warmup):
    limits = ["slo={ttft_s: 1, tpot_s: 0.05, e2e_s: 8}", f"run.warmup_s={warmup}"]
    cut, whole = summary_of(OPEN, *limits, f"run.max_time_s={at_s}"), summary_of(OPEN, *limits)
    assert cut["requests"]["measured_unfinished"] > 0.01 * cut["requests"]["measured"]
    assert whole["slo"]["attainment"] == cut["slo"]["attainment"] == 1
    assert set(whole["slo"]["censored"].values()) == {0}
    assert cut["slo"]["known"]["ttft"] + cut["slo"]["censored"]["ttft"] == cut["requests"]["measured"]
    assert any("cut off by the end of the run" in each for each in cut["warnings"])
    assert not any("cut off" in each for each in whole["warnings"])


def test_a_limit_that_had_passed_when_the_run_ended_was_missed():
    limits = "slo={ttft_s: 1, tpot_s: 0.0001, e2e_s: 0.5}"
    found = summary_of(limits, scenario="cut-by-max-time-closed")["slo"]
    assert found["met"] == {"ttft": 1, "tpot": 0, "e2e": 0}
    assert found["censored"]["e2e"] == found["censored"]["all"] == 0
    assert found["known"] == {"ttft": 256, "tpot": 256, "e2e": 256, "all": 256}


def test_fewer_than_one_in_a_hundred_cut_off_go_without_a_warning():
    few = f"workload={{num_requests: 4000, arrival: {{process: constant, rate_per_s: 4}}, {LENGTHS}}}"
    summary = summary_of(few, "run.max_time_s=990", "slo.ttft_s=1")
    assert 0 < summary["requests"]["measured_unfinished"] < 0.01 * summary["requests"]["measured"]
    assert not any("cut off" in each for each in summary["warnings"])


# --- rejected --------------------------------------------------------------------------------------------------------


def test_a_run_in_which_nothing_fits_says_so_first(tmp_path):
    summary = run(prepare(load_scenario(DATA / "nothing-fits.yaml")), tmp_path / "r")
    assert summary["requests"]["rejected_by_reason"] == {"max_model_len": 0, "kv_cache": 50, **NOT_SHED}
    assert (summary["tokens"]["prompt"], summary["tokens"]["prompt_rejected"]) == (0, 50 * 1600)
    first, second, *_ = summary["warnings"]
    assert first == "no request finished: 50 of 50 were rejected"
    assert second.startswith(
        "50 of 50 requests were rejected, with 100 % of the prompt tokens: 50 longer than the KV c"
    )
    lines = table(summary)
    assert lines[0] == f"warning: {first}"
    assert any("longer than the KV cache holds 50" in line for line in lines)
    assert set(load_table(tmp_path / "r", "requests")["reject_reason"].tolist()) == {2}
    assert reasons_in_export(tmp_path / "r") == ["kv_cache"] * 50


def reasons_in_export(folder: Path) -> list[str]:
    target = io.StringIO()
    export_table(folder, "requests", target)
    return [row["reject_reason"] for row in csv.DictReader(io.StringIO(target.getvalue()))]


def test_each_rejected_request_has_its_reason(tmp_path):
    """The model takes 131,072 tokens, and the KV cache holds fewer."""
    prompts = [100, 120_000, 200_000, 150] * 15
    trace = tmp_path / "trace.csv"
    rows = [f"{i},{tokens},5" for i, tokens in enumerate(prompts)]
    trace.write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]))
    small = "cluster={device: {preset: h100, memory_gb: 30}, devices_per_node: 1}"
    scenario = load_scenario(None, [ON[0], small, "scheduler.memory_utilization=1"], f"csv:{trace}")
    summary = run(prepare(scenario), tmp_path / "r")
    held = summary["max_model_len"]
    assert 10_000 < held < 120_000
    assert summary["requests"]["rejected_by_reason"] == {"max_model_len": 15, "kv_cache": 15, **NOT_SHED}
    (warning,) = [each for each in summary["warnings"] if "were rejected" in each]
    assert warning == (
        "30 of 60 requests were rejected, with >99.9 % of the prompt tokens: 15 longer than max_model_len (131,072 "
        f"tokens), 15 longer than the KV cache holds ({held:,} tokens)"
    )
    assert reasons_in_export(tmp_path / "r") == ["", "kv_cache", "max_model_len", ""] * 15
    limited = load_scenario(None, [ON[0], "scheduler.max_model_len=1000"], f"csv:{trace}")
    by_reason = serve(prepare(limited))[0]["requests"]["rejected_by_reason"]
    assert by_reason == {"max_model_len": 30, "kv_cache": 0, **NOT_SHED}


def test_no_caveats_without_a_cause():
    summary = summary_of(OPEN, "slo.ttft_s=1")
    assert not [each for each in summary["warnings"] if "rejected" in each or "cut off" in each or "finished" in each]
    assert not table(summary)[0].startswith("warning")
    assert "stability: steady" in table(summary) or "stability: too short to tell" in table(summary)


# --- saturated, steady, too short to tell -----------------------------------------------------------------------------


def test_a_short_run_at_more_than_twice_the_capacity_is_never_steady():
    """A backlog of 250 requests fits in the batch, so that none of them waits."""
    lengths = "lengths: {input: {kind: fixed, tokens: 1000}, output: {kind: fixed, tokens: 500}}"

    def at(rate: float, n: int) -> dict[str, Any]:
        arrival = f"arrival: {{process: poisson, rate_per_s: {rate}}}"
        return summary_of(f"workload={{num_requests: {n}, {arrival}, {lengths}}}")

    capacity = at(1e6, 1500)["throughput"]["requests_per_s"]
    short = at(2.5 * capacity, 250)
    assert short["in_system"]["at_last_arrival"] > 100
    assert short["stability"] == "too short to tell"
    longer = at(2.5 * capacity, 6000)
    assert longer["stability"] == "saturated"
    (warning,) = [each for each in longer["warnings"] if each.startswith("saturated")]
    assert "requests were in the system when the last one arrived" in warning
    assert at(0.6 * capacity, 3000)["stability"] == "steady"


B = "lengths: {input: {kind: fixed, tokens: 500}, output: {kind: fixed, tokens: 100}}"


@pytest.mark.parametrize(
    ("rate", "n", "state"), [(60, 2000, "steady"), (88, 2000, "too short to tell"), (400, 6000, "saturated")]
)
def test_a_backlog_is_never_called_steady(rate, n, state):
    """Some 85 requests a second can be served."""
    summary = summary_of(f"workload={{num_requests: {n}, arrival: {{process: poisson, rate_per_s: {rate}}}, {B}}}")
    assert summary["stability"] == state
    told = [each for each in summary["warnings"] if each.startswith(state)]
    assert len(told) == (state != "steady")


# --- nobody there, nothing measured ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fail", "leave"])
@pytest.mark.parametrize("stop", ["run.max_time_s=null", "run.max_time_s=30"])
def test_a_dead_cluster_is_blamed_for_whom_it_left_waiting(kind, stop):
    dead = f"faults.events=[{{at_s: 1, replica: 0, kind: {kind}}}]"
    summary = summary_of(OPEN, "slo.ttft_s=1", dead, stop)
    requests, slo = summary["requests"], summary["slo"]
    assert requests["unfinished"] > 350
    assert slo["attainment"] < 0.1
    assert slo["goodput_requests_per_s"] < 3
    assert slo["known"]["all"] + slo["censored"]["all"] == 400
    assert any("no replica was left to take requests" in each for each in summary["warnings"])
    assert not any("cut off" in each for each in summary["warnings"])


def test_a_window_in_which_nothing_arrived_says_so():
    closed = f"workload={{mode: closed, concurrency: 64, num_requests: 5000, {LENGTHS}}}"
    summary = summary_of(closed, "run={max_time_s: 10, warmup_s: 9.5}", "slo.ttft_s=1")
    assert summary["requests"]["measured"] == 0
    assert summary["warnings"][0].startswith("no request arrived in the measured window")
    assert summary["throughput"]["requests_per_s"] is None
    assert summary["slo"]["goodput_requests_per_s"] is None
    assert summary["ci95"]["slo"]["goodput_requests_per_s"] is None
    assert summary["throughput"]["output_tokens_per_s"] > 0
    table(summary)
    wider = summary_of(closed, "run={max_time_s: 10, warmup_s: 1}", "slo.ttft_s=1")
    assert not any("measured window" in each for each in wider["warnings"])


@pytest.mark.parametrize(("policy", "said"), [("fcfs", True), ("priority", False), ("edf", True)])
def test_priorities_that_no_policy_goes_by_are_told(policy: str, said: bool) -> None:
    classes = "workload.classes=[{name: a, slo: {ttft_s: 1}}, {name: b, priority: 2}]"
    found = list(caveats_of_policy(load_scenario(None, [classes, f"scheduler.policy={policy}"])))
    assert found == ([f"priorities of classes have no effect: scheduler.policy is {policy}"] if said else [])
    alike = load_scenario(None, [classes.replace("2", "0"), "scheduler.policy=fcfs"])
    assert not list(caveats_of_policy(alike))


@pytest.mark.parametrize(
    ("key", "policy"), [("ageing_s=3", "priority"), ("input_token_weight=3", "vtc"), ("output_token_weight=1", "vtc")]
)
def test_keys_of_another_policy_are_told(key: str, policy: str) -> None:
    classes = "workload.classes=[{name: a, priority: 1}, {name: b, priority: 1}]"
    found = list(caveats_of_policy(load_scenario(None, [classes, f"scheduler.{key}"])))
    name = key.partition("=")[0]
    assert found == [f"scheduler.{name} has no effect: it is of policy {policy}, and scheduler.policy is fcfs"]


@pytest.mark.parametrize(("policy", "said"), [("fcfs", True), ("vtc", False)])
def test_weights_that_no_policy_goes_by_are_told(policy: str, said: bool) -> None:
    classes = "workload.classes=[{name: a, tenant_weight: 3}, {name: b}]"
    found = list(caveats_of_policy(load_scenario(None, [classes, f"scheduler.policy={policy}"])))
    assert found == ([f"weights of tenants have no effect: scheduler.policy is {policy}"] if said else [])


@pytest.mark.parametrize(
    ("batching", "declared", "said"),
    [
        ("chunked", "", None),
        ("stage", "", None),
        ("prefill_first", "", "set a lower one, scheduler.prefill_tokens_per_s"),
        ("prefill_first", ", prefill_tokens_per_s: 15000", None),
        ("decode_first", "", "prompts wait until all that decode have their last token"),
        ("decode_first", ", prefill_tokens_per_s: 15000", "prompts wait until all that decode have their last token"),
    ],
)
def test_waits_that_early_rejection_does_not_see_are_told(batching: str, declared: str, said: str | None) -> None:
    settings = f"scheduler={{batching: {batching}, early_rejection: true, early_rejection_ttft_s: 2{declared}}}"
    found = list(caveats_of_policy(load_scenario(None, [settings])))
    if said is None:
        assert not found
    else:
        (caveat,) = found
        assert caveat.startswith(f"scheduler.early_rejection takes too many with batching: {batching}: ")
        assert said in caveat
        summary = summary_of(settings, OPEN)
        assert caveat in summary["warnings"]
        assert f"warning: {caveat}" in " ".join(table(summary))
    assert not list(caveats_of_policy(load_scenario(None, [f"scheduler.batching={batching}"])))


@pytest.mark.parametrize(("names", "said"), [((), ["no tier"] * 2), (("host",), ["one tier, host"]), (("a", "b"), [])])
def test_weights_of_tiers_that_are_not_there_are_told(names: tuple[str, ...], said: list[str]) -> None:
    router = "{name: dynamo, host_cache_hit_weight: 1, disk_cache_hit_weight: 0.5}"
    tiers = ", ".join(f"{{name: {name}}}" for name in names)
    settings = f"scheduler={{enable_prefix_caching: true, router: {router}, kv_tiers: [{tiers}]}}"
    keys = ["host_cache_hit_weight", "disk_cache_hit_weight"][len(names) :]
    assert list(caveats_of_policy(load_scenario(None, [settings]))) == [
        f"scheduler.router.{key} has no effect: scheduler.kv_tiers has {there}"
        for key, there in zip(keys, said, strict=True)
    ]
    if names:  # no router hears of what is shared
        shared = settings.replace(f"{{name: {names[-1]}}}", f"{{name: {names[-1]}, shared: true}}")
        last = ["no tier", "one tier"][len(names) - 1]
        *_, found = caveats_of_policy(load_scenario(None, [shared]))
        assert found.startswith("scheduler.router.disk_cache_hit_weight has no effect: scheduler.kv_tiers has ")
        assert f"{last} of each replica" in found
    weights = settings.replace("host_cache_hit_weight: 1, disk_cache_hit_weight: 0.5", "host_cache_hit_weight: 0.75")
    assert not list(caveats_of_policy(load_scenario(None, [weights])))


def test_what_prefix_caches_leave_out_is_told() -> None:
    shared = "workload.prefix.shared_tokens=400"
    pools = "cluster.pools={prefill: {device: duplex}, decode: {device: duplex}}"
    few, cached = "workload.num_requests=20", "scheduler.enable_prefix_caching=true"
    whole = "KV caches are handed over whole, also what of them the decode replica has in its prefix cache"
    computed = "prompts begin alike, and all of each is computed: scheduler.enable_prefix_caching is false"
    nothing = "scheduler.enable_prefix_caching finds nothing: the workload does not say what prompts have in common"
    for overrides, said in (
        ((shared, pools, cached), whole),
        ((shared, pools), computed),
        ((pools, cached), nothing),
        ((shared, cached), None),
    ):
        told = summary_of(few, "run.warmup_s=0", *overrides)["warnings"]
        assert [each for each in told if each in {whole, computed, nothing}] == ([said] if said else [])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "reserves 8,192 of 29,205 KV blocks for each of the 20 requests that declare no max_tokens: a replica"),
        ("workload.max_tokens=400", None),
        ("workload.max_tokens=200000", "that declare no max_tokens, or more than fits: a replica runs 3 of"),
        ("scheduler.kv_admission=prompt", None),
        ("scheduler.max_num_seqs=2", None),  # as many as run anyway
    ],
)
def test_what_requests_reserve_that_declare_nothing_is_told(more: str, said: str | None) -> None:
    few = OPEN.replace("400, arrival", "20, arrival")
    summary = summary_of(few, "scheduler.kv_admission=no_evict", *filter(None, [more]))
    told = [each for each in summary["warnings"] if "no_evict" in each]
    assert [said in each for each in told] == [True] if said else not told


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("start: 2, changes: [{at_s: 900, replicas: 1}]", None),  # long after the end
        ("start: 1, changes: [{at_s: 900, replicas: 2}]", "some replicas never joined: busy"),
        ("start: 1, changes: [{at_s: 2, replicas: 2}]", "replicas joined and left: busy"),
    ],
)
def test_figures_over_replicas_that_were_not_there_are_told(rule: str, said: str | None) -> None:
    few = OPEN.replace("400, arrival", "100, arrival")
    summary = summary_of(few, "cluster.replicas=2", f"autoscaling.replicas={{{rule}}}")
    told = [each for each in summary["warnings"] if "autoscaling.device_s" in each]
    assert [each[: len(said or "")] for each in told] == ([] if said is None else [said])
    assert all("output tokens/s per device and per mm2" in each for each in told)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["scheduler={preemption: swap, swap_gb_per_s: 50 GB/s, swap_space_gb: 1 MB}"], ["swap_space_gb holds no KV"]),
        (["scheduler={preemption: swap, swap_gb_per_s: 50, swap_space_gb: 1 GiB}"], []),
        (
            [
                "scheduler={enable_prefix_caching: true, kv_tiers: "
                "[{name: host, capacity_gb: 1 MB}, {name: disk, capacity_gb: 1}]}"
            ],
            ["kv_tiers: host holds no KV block"],
        ),
        (
            ["scheduler.speculative={method: mtp, num_speculative_tokens: 1, acceptance: 0.6}"],
            ["method mtp: the layer"],
        ),
        (["scheduler.speculative={method: ngram, num_speculative_tokens: 1, acceptance: 0.6}"], []),
    ],
)
def test_memory_of_nothing_and_an_assumed_layer_are_told(overrides: list[str], said: list[str]) -> None:
    told = summary_of(OPEN.replace("400, arrival", "5, arrival"), *overrides)["warnings"]
    told = [each for each in told if "holds no KV block" in each or "method mtp" in each]
    assert [part in each for part, each in zip(said, told, strict=True)] == [True] * len(said)


def test_a_router_without_parameters_may_be_a_mapping_of_its_name() -> None:
    assert load_scenario(None, ["scheduler.router={name: least_kv}"]).scheduler.router == "least_kv"
