"""What a user can get wrong in a scenario's settings, and the message: where, what, what is allowed."""

from pathlib import Path

import pytest

from tests.cluster.scenario.refusals import refusal

FIXED = "lengths: {input: {kind: fixed, tokens: 5}, output: {kind: fixed, tokens: 5}}"
POOLS = "cluster.pools={prefill: {replicas: 1}, decode: {replicas: 1}}"
DRAFTS = "scheduler.speculative={method: mtp, num_speculative_tokens: 1, acceptance: 0.5}"
SWAP = ["scheduler.preemption=swap", "scheduler.swap_gb_per_s=10", "scheduler.swap_space_gb=10"]
TIERS = ["scheduler.enable_prefix_caching=true", "scheduler.kv_tiers=[{name: host, capacity_gb: 10}]"]
# Overrides of the embedded scenario (Mixtral-8x7B on 4 Duplex devices), and what the message must hold.
OVERRIDES: list[tuple[list[str], str]] = [
    # Not path=value.
    (["cluster.replicas"], "--set cluster.replicas: must be path=value"),
    (["=5"], "--set =5: must be path=value"),
    (["cluster..replicas=2"], "--set cluster..replicas=2: must be path=value"),
    (["1.5=3"], "--set 1.5=3: must be path=value"),
    (["cluster.replicas=[1"], "--set cluster.replicas=[1: not valid YAML: did not find expected"),
    (["run.seed=2020-13-45"], "--set run.seed=2020-13-45: not valid YAML: month must be in 1..12"),
    (["run.seed=" + "9" * 5000], "999...9"),
    (["name=a\0b"], "not valid YAML: character '\\x00'"),
    (["name=a\nb: 3"], "must be a single line"),
    (["model.preset.x=3"], "--set model.preset.x=3: model.preset is 'mixtral-8x7b', which has no keys"),
    # Keys that do not exist, on every level.
    (["schedular.max_num_seqs=1"], "schedular: unknown key; did you mean scheduler? (known: name, model, cluster,"),
    (["scheduler.max_num_seq=1"], "scheduler.max_num_seq: unknown key; did you mean max_num_seqs?"),
    (["cluster.gpus=1"], "cluster.gpus: unknown key (known: device, replicas, nodes"),
    (["workload.arrival={process: poisson, rate_per_s: 1, rps: 1}"], "workload.arrival.rps: unknown key"),
    (
        ["workload.lengths={input: {kind: fixed, tokens: 1, min: 2}, output: {kind: fixed, tokens: 1}}"],
        "workload.lengths.input.min: unknown key (known: kind, tokens)",
    ),
    (["model.layer=3"], "model.layer: unknown key; did you mean layers?"),
    (["model.attention.head=3"], "model.attention.head: unknown key; did you mean heads?"),
    (["cluster.device.memory=3"], "cluster.device.memory: unknown key"),
    (["cluster.device.pim.speed=3"], "cluster.device.pim.speed: unknown key"),
    # Wrong types.
    (["scheduler.max_num_seqs=many"], "scheduler.max_num_seqs: must be a whole number (got 'many')"),
    (["scheduler.max_num_seqs=1.5"], "scheduler.max_num_seqs: must be a whole number (got 1.5)"),
    (["scheduler.max_num_seqs=true"], "scheduler.max_num_seqs: must be a number (got true)"),
    (["cluster.device.memory_gb=true"], "cluster.device.memory_gb: a number in GB is needed"),
    (["model.layers=true"], "model.layers: must be a number (got true)"),
    (["cluster.device.link_latency_us=[3]"], "cluster.device.link_latency_us: must be a number"),
    (["scheduler=5"], "scheduler: must be a mapping of keys to values (got 5)"),
    (["scheduler=[1]"], "scheduler: must be a mapping of keys to values (got a list)"),
    (
        ["cluster=null"],
        "cluster: must be a mapping of keys to values (got null); leave it out, or write {}, for its defaults",
    ),
    (["cluster.replicas.x=2"], "cluster.replicas: must be a whole number (got a mapping)"),
    (["model=5"], "model: must be a name of the catalogue, a YAML file, or a mapping of keys to values (got 5)"),
    (
        ["cluster.device=[h100]"],
        "cluster.device: must be a name of the catalogue, a YAML file, or a mapping of keys to values",
    ),
    (["workload.trace=azure:x.csv"], "workload.trace: must be a mapping of keys to values (got 'azure:x.csv')"),
    (["workload.lengths={input: 5, output: 5}"], "workload.lengths.input: must be a mapping of keys to values (got 5)"),
    (["routing={popularity: given, weights: 3}"], "routing.weights: must be a list (got 3)"),
    (
        ["routing={popularity: given, weights: [true, 1, 1, 1, 1, 1, 1, 1]}"],
        "routing.weights.0: must be a number (got true)",
    ),
    (
        ["routing={popularity: given, weights: [[1, 1, 1, 1, 1, 1, 1, false]]}"],
        "routing.weights.0.7: must be a number (got false)",
    ),
    (["output.steps=3"], "output.steps: must be true or false (got 3)"),
    (["name="], "name: must be text (got null)"),
    (["name=a/b"], "name: String should match pattern"),
    # Out of range.
    (["cluster.replicas=0"], "cluster.replicas: must be greater than 0 (got 0)"),
    (["cluster.devices_per_node=5000"], "cluster.devices_per_node: must be less than or equal to 4096 (got 5000)"),
    (["run.seed=-1"], "run.seed: must be greater than or equal to 0 (got -1)"),
    (["run.seed=99999999999999999999"], "run.seed: must be less than 9223372036854775808 (got 99999999999999999999)"),
    (["run.warmup_s=-1"], "run.warmup_s: must be greater than or equal to 0 (got -1)"),
    (["run.max_time_s=0"], "run.max_time_s: must be greater than 0"),
    (["run.max_time_s=1.0e+300"], "run.max_time_s: must be less than or equal to 9000000 (got 1e+300)"),
    (["scheduler.memory_utilization=1.1"], "scheduler.memory_utilization: must be less than or equal to 1 (got 1.1)"),
    (["scheduler.block_size=2048"], "scheduler.block_size: must be less than or equal to 1024 (got 2048)"),
    (["workload.num_requests=0"], "workload.num_requests: must be greater than or equal to 1 (got 0)"),
    (["workload.arrival={process: poisson, rate_per_s: 0}"], "workload.arrival.rate_per_s: must be greater than 0"),
    (["slo.ttft_s=-1"], "slo.ttft_s: must be greater than 0 (got -1)"),
    (["model.moe.top_k=9"], "model.moe: top_k (9) must not exceed experts (8)"),
    (["model.layers=0"], "model.layers: must be greater than 0"),
    # Not finite.
    (["run.warmup_s=.inf"], "run.warmup_s: must be"),
    (["scheduler.memory_utilization=.nan"], "scheduler.memory_utilization: must be less than or equal to 1 (got nan)"),
    (["cluster.node_gb_per_s=.nan"], "cluster.node_gb_per_s: must be a finite number (got nan)"),
    (["cluster.device.memory_gb_per_s=.inf"], "cluster.device.memory_gb_per_s: must be a finite number (got inf)"),
    (["workload.arrival={process: poisson, rate_per_s: 1.0e+400}"], "workload.arrival.rate_per_s: must be a finite"),
    (["routing={popularity: given, weights: [1, .nan]}"], "routing.weights.1: must be a finite number (got nan)"),
    # Units.
    (["run.warmup_s=10 parsecs"], "run.warmup_s: '10 parsecs' is not a number in s"),
    (["cluster.node_gb_per_s=10 GB"], "one of the units B/s, MB/s, GB/s, TB/s, GiB/s, TiB/s, Gb/s"),
    (["cluster.device={preset: h100, memory_gb: 80 apples}"], "cluster.device.memory_gb: '80 apples' is not a number"),
    (
        ["cluster.device.memory_gb_per_s=3 MB/s"],
        "run: the simulated clock ends: a step of more than 9,223 s",
    ),
    (["cluster.device.link_latency_us=1.0e+15"], "must be less than or equal to 1000000000 (got 1000000000000000.0)"),
    # Names that nothing has.
    (["model=mixtral-8x7"], "model: unknown model 'mixtral-8x7'; did you mean mixtral-8x7b"),
    (["model={preset: gpt-9}"], "model: unknown model 'gpt-9' (known: deepseek-r1,"),
    (["model={}"], "model: needs `preset` (one of deepseek-r1,"),
    (["cluster.device=h1000"], "cluster.device: unknown device 'h1000'; did you mean h100"),
    (["cluster.device={kind: tpu}"], "cluster.device.kind: unknown kind of device 'tpu' (known: aimc, duplex, gpu)"),
    (["cluster.device={}"], "cluster.device: needs `preset` (one of a100,"),
    # 3D AIMC chips: what does not fit, and what they know nothing of.
    (["cluster.device=aimc-realistic"], "cluster.devices_per_node: the network does not fit: it needs 178,416 tiers"),
    (["cluster.device=aimc-realistic"], "use 6 such chips"),
    (
        ["cluster.device=aimc-realistic", "cluster.devices_per_node=6", "cluster.tensor_parallel=2"],
        "cluster.tensor_parallel: chips of aimc-realistic hold whole layers or whole experts",
    ),
    (["cluster.device={preset: aimc-realistic, memory_gb: 80}"], "cluster.device.memory_gb: unknown key"),
    (
        ["cluster.device={preset: aimc-realistic, dram: {gb: 0}}"],
        "cluster.device.dram.gb: must be greater than or equal",
    ),
    (
        [
            "cluster.device={preset: aimc-realistic, dram: {gb: 0.001}}",
            "cluster.devices_per_node=6",
            "model=mixtral-8x7b",
            "scheduler.max_model_len=1000",
        ],
        "1000 exceeds the 73 tokens that the KV cache holds",
    ),
    (["model.attention.kind=mqa"], "model.attention.kind: must be one of 'gqa', 'mla' (got 'mqa')"),
    (["scheduler.router=fastest"], "scheduler.router: unknown router 'fastest' (known: round_robin, random"),
    (["scheduler.router={name: fastest}"], "scheduler.router: unknown router 'fastest' (known: round_robin, random"),
    (["scheduler={function-wrap: 1}"], "scheduler.function-wrap: unknown key (known: batching, "),
    (["scheduler.router=[random]"], "scheduler.router: must be a router's name, or a mapping of its name"),
    (["scheduler.router={name: random, x: 1}"], "scheduler.router: random has no parameters: give its name alone"),
    (
        ["scheduler.enable_prefix_caching=true", "scheduler.router={name: weighted, record_blocks: 5}"],
        "scheduler.router: record_blocks has no effect without prefixes: sent",
    ),
    (
        ["scheduler.router={name: weighted, prefix: 0, queue: 0, kv_usage: 0}"],
        "scheduler.router: one of prefix, queue, kv_usage and outstanding must be above 0",
    ),
    *(
        (
            [f"scheduler.speculative={{method: ngram, num_speculative_tokens: 2, acceptance: {given}}}"],
            "scheduler.speculative.acceptance: must be a number from 0 to 1, or a list of such",
        )
        for given in ("1.2", "high", "[0.5, 2]")
    ),
    *(
        (
            [
                "scheduler.speculative={method: draft_model, num_speculative_tokens: 2, acceptance: 0.5, "
                f"model: {given}}}"
            ],
            "scheduler.speculative.model: unknown model 'llama-9'",
        )
        for given in ("llama-9", "{preset: llama-9}")
    ),
    (["scheduler.swap_space_gb=4 apples"], "scheduler.swap_space_gb: '4 apples' is not a number in GB"),
    (
        ["autoscaling.replicas={changes: [{at_s: 1, replicas: 1}], tolerance: 0.2}"],
        "autoscaling.replicas: tolerance has no effect without metric and target",
    ),
    (
        ["autoscaling.replicas={metric: kv_usage, target: 1.5}"],
        "autoscaling.replicas.target: must be above 0 and at most 1 with metric: kv_usage, which is a share (got 1.5)",
    ),
    (
        ["scheduler.batching=continuous"],
        "scheduler.batching: must be 'chunked', 'stage', 'prefill_first' or 'decode_first' (got 'continuous')",
    ),
    (["cluster.experts=pp"], "cluster.experts: must be 'ep' or 'tp' (got 'pp')"),
    (["workload.preset=azure"], "workload.preset: must be 'azure-conv-2023' (got 'azure')"),
    (
        ["workload.arrival={process: uniform}"],
        "workload.arrival.process: must be one of constant, poisson, gamma, weibull, mmpp, nhpp, trace (got 'uniform')",
    ),
    (["workload.lengths={input: {kind: fixed, tokens: 1}}"], "workload.lengths: needs output, or joint in place of"),
    (
        ["workload.lengths={input: {tokens: 3}, output: {kind: fixed, tokens: 1}}"],
        "workload.lengths.input: needs `kind`, one of 'fixed', 'uniform', 'normal'",
    ),
    (
        ["workload.lengths={input: {kind: pareto}, output: {kind: fixed, tokens: 1}}"],
        "workload.lengths.input.kind: must be one of 'fixed', 'uniform',",
    ),
    (["slo.preset=mlperf/gpt-4"], "slo.preset: must be 'mlperf/llama2-70b/server'"),
    (["routing.popularity=pareto"], "routing.popularity: must be 'uniform', 'zipf' or 'given' (got 'pareto')"),
    # Values that contradict each other.
    (["workload.arrival={process: gamma, rate_per_s: 1, burstiness: 1, cv: 1}"], "exactly one of burstiness and cv"),
    (["workload.arrival={process: poisson}"], "workload.arrival: process 'poisson' needs exactly one of"),
    (["workload.arrival={process: poisson, rate_per_s: 1, cv: 2}"], "cv has no effect with process 'poisson'"),
    (["workload.arrival={process: nhpp, rate_series: [[0, 1]]}"], "workload.arrival.rate_series: must have at least 2"),
    (["workload.arrival={process: trace}"], "workload: arrival.process 'trace' needs trace"),
    (
        ["workload={mode: closed, concurrency: 8, arrival: {process: poisson, rate_per_s: 1}, " + FIXED + "}"],
        "workload: arrival has no effect with mode 'closed'",
    ),
    (
        ["workload.lengths={input: {kind: uniform, low: 5, high: 3}, output: {kind: fixed, tokens: 1}}"],
        "workload.lengths.input: high (3) must be at least low (5)",
    ),
    (
        ["workload.lengths={input: {kind: quantiles, knots: [[0, 5], [1, 3]]}, output: {kind: fixed, tokens: 1}}"],
        "workload.lengths.input: tokens of the knots must not decrease",
    ),
    (["workload.mode=closed"], "workload: mode 'closed' needs concurrency"),
    (["workload.concurrency=4"], "workload: concurrency has no effect with mode 'open'"),
    (
        ["workload.mode=closed", "workload.concurrency=8", "workload.num_requests=4"],
        "workload: num_requests (4) must be at least concurrency (8)",
    ),
    (["workload.duration_s=1.0e-9"], "workload.duration_s: no request arrives within 1e-09 s; lengthen it"),
    (
        ["workload={arrival: {process: constant, rate_per_s: 1.0e-4}, " + FIXED + "}"],
        "workload.arrival: arrivals reach",
    ),
    (["routing.popularity=zipf"], "routing: popularity: zipf needs zipf_exponent"),
    (["costs.setting=measured", "costs.collectives=ring"], "costs: collectives: ring goes with setting: ideal"),
    (["costs.collectives=tree"], "costs.collectives: must be 'best' or 'ring'"),
    (["cluster.dispatch=pigeon"], "cluster.dispatch: must be 'forward', 'direct' or 'per_pick'"),
    (["cluster.device.one_shot_latency_us=-1"], "cluster.device.one_shot_latency_us"),
    (["routing.zipf_exponent=1"], "routing: zipf_exponent goes with popularity: zipf"),
    (["routing={popularity: given, weights: [1, 2]}"], "routing.weights: 2 weights for the model's 8 experts"),
    (["routing={popularity: given, weights: []}"], "routing.weights: 0 weights for the model's 8 experts"),
    (["routing={popularity: given, weights: [[1, 2], 3]}"], "routing.weights.1: must be a list (got 3)"),
    (["routing={popularity: given, weights: [[1, -2]]}"], "routing.weights.0.1: must be greater than or equal to 0"),
    (
        ["routing={popularity: given, weights: [[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]]}"],
        "routing.weights: 2 lists of weights for 32 MoE layers of mixtral-8x7b; give one for all, or one for each",
    ),
    (
        ["routing={popularity: given, weights: [[1, 1, 1, 1, 1, 1, 1]]}"],
        "routing.weights.0: 7 weights for the model's 8 experts",
    ),
    (
        ["routing={popularity: given, weights: [0, 0, 0, 0, 0, 0, 0, 0]}"],
        "routing.weights: only 0 are above 0, and each token picks 2 experts",
    ),
    (
        ["routing={popularity: given, weights: [[0, 0, 0, 5, 0, 0, 0, 0]]}"],
        "routing.weights.0: only 1 are above 0, and each token picks 2 experts",
    ),
    (
        ["routing={popularity: given, weights: [1, 1, 1, 1, 1, 1, 0, 1.0e-20]}"],
        "routing: weights above 0 must lie within a factor of 1e+12",
    ),
    (
        ["model=llama-3.1-8b", "routing={popularity: zipf, zipf_exponent: 1}"],
        "routing.popularity: llama-3.1-8b has no routed experts",
    ),
    # Steps of prompts alone.
    *(
        ([f"scheduler.batching={batching}", *others], f"scheduler.batching: {batching} {why}: use chunked or stage")
        for batching in ("prefill_first", "decode_first")
        for others, why in (
            (SWAP, "does not go together with preemption: swap"),
            (TIERS, "does not go together with kv_tiers"),
            ([DRAFTS], "does not go together with speculative"),
            ([POOLS], "does not go together with pools for prefill and decode"),
            (["cluster.nodes=2"], "is not modelled with several data-parallel groups in a replica"),
        )
    ),
    (
        ["scheduler.batching=prefill_first", "cluster.nodes=2"],
        "use chunked or stage, or raise cluster.tensor_parallel to all devices",
    ),
    (
        ["scheduler.batching=decode_first", "scheduler.long_prefill_token_threshold=5"],
        "scheduler: long_prefill_token_threshold needs batching: chunked or prefill_first; decode_first computes whole",
    ),
    (["scheduler.max_num_batched_tokens=16"], "max_num_batched_tokens (16) must be at least max_num_seqs (256)"),
    (["scheduler.max_model_len=40000"], "scheduler.max_model_len: 40000 exceeds the 32768 tokens of mixtral-8x7b"),
    (
        ["scheduler.memory_utilization=0.273", "scheduler.max_model_len=32000"],
        "scheduler.max_model_len: 32000 exceeds the",
    ),
    (["run.warmup_s=5 h"], "run.warmup_s: warm-up (18000.0 s) and cool-down (0.0 s) leave nothing of the"),
    (["run.cooldown_s=5 h"], "leave nothing of the"),
    (["run.warmup_s=100", "run.max_time_s=50"], "run.warmup_s: 100.0 s leaves nothing to measure"),
    (
        ["workload.mode=closed", "workload.concurrency=8", "run.cooldown_s=1"],
        "run.cooldown_s: a closed loop ends its window when its last request is issued: leave it at 0",
    ),
    (
        ["workload.mode=closed", "workload.concurrency=2", "workload.num_requests=4", "run.warmup_s=1 h"],
        "run.warmup_s: 3600.0 s leaves nothing to measure",
    ),
    (["workload.think_time_s=1"], "think_time_s has no effect with mode 'open'"),
    (
        ["workload={mode: closed, concurrency: 4, max_concurrency: 2}"],
        "max_concurrency has no effect with mode 'closed'",
    ),
    (
        ["workload={mode: closed, concurrency: 4, sessions: {turns: 2}}"],
        "sessions has no effect with mode 'closed'",
    ),
    (["workload={sessions: {turns: 2}, num_requests: 9}"], "give sessions.num_sessions"),
    (["workload={sessions: {turns: 2}, max_concurrency: 9}"], "max_concurrency is of requests that come on their own"),
    (["workload.sessions={turns: 2, max_active: 501}"], "max_active (501) must be at most num_sessions (500)"),
    (
        ["workload={trace: {path: x.csv}, sessions: {max_active: 5}}"],
        "workload: sessions.max_active is not modelled for",
    ),
    (["workload={sessions: {turns: 2, max_active: 5}, duration_s: 9}"], "duration_s has no effect: without arrival"),
    (
        ["workload={sessions: {turns: 2, max_active: 5}}", "run.cooldown_s=1"],
        "run.cooldown_s: a closed loop ends its window when its last request is issued: leave it at 0",
    ),
    (["workload={sessions: {turns: 2}, prefix: {system_tokens: 9}}"], "prefix needs sessions.context: fresh"),
    (["workload.sessions={turns: 2, context: fresh, context_tokens: 9}"], "context_tokens has no effect"),
    (["workload.sessions={turns: 0}"], "workload.sessions.turns"),
    (["workload.sessions={turns: 2, think_time_s: -1}"], "workload.sessions.think_time_s"),
    (
        ["workload.sessions={turns: 2, think_time_s: {kind: uniform, low_s: 2, high_s: 1}}"],
        "high_s (1.0) must be at least low_s (2.0)",
    ),
    # What does not divide, or does not fit.
    (["cluster.tensor_parallel=3"], "cluster.tensor_parallel: 3 does not divide the 4 devices"),
    (["cluster.devices_per_node=3"], "cluster.tensor_parallel: 3 does not divide the 32 attention heads"),
    (
        ["model=grok-1", "cluster.devices_per_node=12", "cluster.tensor_parallel=4"],
        "cluster.experts: 8 experts do not spread evenly over 12 devices with experts: ep",
    ),
    (["cluster.devices_per_node=1"], "cluster: mixtral-8x7b does not fit: weights take 93.4 GB"),
    (["scheduler.memory_utilization=0.01"], "of each device's usable 0.9 GB (4 x duplex)"),
    (["scheduler.memory_utilization=0.27204", "scheduler.block_size=1024"], "scheduler.block_size: one block of 1024"),
]


@pytest.mark.parametrize(("overrides", "message"), OVERRIDES, ids=[" ".join(case[0])[:60] for case in OVERRIDES])
def test_overrides(overrides: list[str], message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path, None, overrides)


def test_every_fault_of_a_scenario_is_told_at_once(tmp_path: Path) -> None:
    lines = refusal(tmp_path, None, ["cluster.replicas=0", "run.seed=x", "scheduler.foo=1"]).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["cluster.replicas", "scheduler.foo", "run.seed"]


@pytest.mark.parametrize(
    ("arrival", "message"),
    [
        ("{stages: [{rate_per_s: 5}]}", "stages.0.duration_s: is missing"),
        ("{rate_series: [[0, 1], [2, x]]}", "rate_series.1.1: must be a number (got 'x')"),
        ("{rate_series: [[0, 1]]}", "rate_series: must have at least 2 entries (got 1)"),
    ],
)
def test_wrong_entries_are_not_called_missing(arrival: str, message: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, None, [f"workload.arrival={arrival}"])
    assert said == f"workload.arrival.{message}"


@pytest.mark.parametrize(("number", "allowed"), [(0, "at least 1 entry (got 0)"), (17, "at most 16 entries (got 17)")])
def test_how_many_entries_there_may_be(number: int, allowed: str, tmp_path: Path) -> None:
    classes = ", ".join(f"{{name: c{i}}}" for i in range(number))
    assert refusal(tmp_path, None, [f"workload.classes=[{classes}]"]) == f"workload.classes: must have {allowed}"


def test_a_long_value_is_not_repeated_whole(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, None, ["scheduler.router=" + "x" * 5000])) < 6000  # the router's own message
    assert len(refusal(tmp_path, None, ["scheduler.batching=" + "x" * 5000])) < 500
    assert len(refusal(tmp_path, None, ["x" * 5000])) < 500


@pytest.mark.parametrize(
    ("think_time", "said"),
    [
        ("-3", ": must be greater than or equal to 0 (got -3)"),
        ("{kind: zipf}", ".kind: must be one of 'uniform', 'exponential', 'lognormal' (got 'zipf')"),
        ("{kind: uniform, low_s: 5, high_s: 1}", ": high_s (1.0) must be at least low_s (5.0)"),
    ],
)
def test_of_several_forms_that_which_was_given_is_told(think_time: str, said: str, tmp_path: Path) -> None:
    workload = f"workload={{mode: closed, concurrency: 2, think_time_s: {think_time}}}"
    assert refusal(tmp_path, None, [workload]) == f"workload.think_time_s{said}"
