"""Scenarios that are run wherever their shards and devices may live, a few seconds each."""

from __future__ import annotations

REQUESTS = 24
OF_LAYERS = [[1.0 + (expert + layer) % 8 for expert in range(8)] for layer in range(32)]  # other ones are hot in each
SCENARIOS: dict[str, list[str]] = {
    "mixtral on duplex, tp": ["cluster.experts=tp"],
    "mixtral on duplex, ep": ["cluster.experts=ep", "cluster.replicas=2"],
    "mixtral on duplex, two nodes": ["cluster.nodes=2", "cluster.replicas=4"],
    "mixtral on h100": ["cluster.device=h100", "cluster.replicas=2"],
    "mixtral on bank-pim": ["cluster.device=duplex-bank-pim"],
    "mixtral on bankgroup-pim": ["cluster.device=duplex-bankgroup-pim", "cluster.replicas=3"],
    "mixtral on logic-pim": ["cluster.device=logic-pim"],
    "mixtral on aimc": ["cluster.device=aimc-realistic", "cluster.devices_per_node=6"],
    "gpt2 on aimc": ["model=gpt2-medium", "cluster.device=aimc-silicon", "cluster.devices_per_node=1"],
    "gpt2 on two aimc replicas": ["model=gpt2-large", "cluster.device=aimc-nand", "cluster.devices_per_node=1",
                                  "cluster.replicas=2"],
    "glam on duplex": ["model=glam-143b", "cluster.devices_per_node=8"],
    "qwen on duplex": ["model=qwen3-30b-a3b", "cluster.replicas=2"],
    "llama on h100, as measured": ["model=llama-3.1-8b", "cluster.device=h100", "cluster.devices_per_node=1",
                                   "costs.setting=measured", "cluster.replicas=4"],
    "llama on a100, as measured with trtllm": ["model=llama-3.1-70b", "cluster.device=a100", "costs.setting=measured",
                                               "costs.backend=vllm"],
    "mixtral on h200, as measured": ["cluster.device=h200", "costs.setting=measured", "cluster.replicas=2"],
    "opt on duplex": ["model=opt-66b", "cluster.replicas=2"],
    "longest gaps and percentiles": ["cluster.replicas=2", "slo={itl_max_s: 0.012, itl_p99.9_s: 1}",
                                     "output.percentiles=[5, 99.9]"],
    "classes": ["cluster.replicas=3", "workload.classes=[{name: a, slo: {ttft_s: 0.02}}, {name: b, share: 2, "
                "priority: 1, lengths: {input: {kind: fixed, tokens: 99}, output: {kind: geometric, mean: 60}}}]"],
    "classes by priority": [
        "cluster.replicas=2", "scheduler={policy: priority, ageing_s: 0.05, max_num_seqs: 2}",
        "workload.classes=[{name: a, priority: 1}, {name: b, share: 2, priority: -1}]",
    ],
    "overload": [
        "cluster.replicas=2", "scheduler={max_num_seqs: 2, max_queued_requests: 3, early_rejection: true, "
        "early_rejection_ttft_s: 0.3}", "workload.arrival.rate_per_s=100", "workload.arrival.process=poisson",
    ],
    "windows of attention": ["model=gpt-oss-120b", "cluster.device=h100"],
    "whole prompts": ["scheduler.batching=stage", "scheduler.kv_admission=oracle", "cluster.replicas=2"],
    "prompts first": [
        "scheduler={batching: prefill_first, max_num_batched_tokens: 300, max_num_seqs: 20}", "cluster.replicas=2",
        "workload.arrival={process: poisson, rate_per_s: 40}", "slo={itl_max_s: 0.012}",
        "faults={detection_s: 0.05, events: [{at_s: 0.3, replica: 0, kind: fail, for_s: 0.15}]}",
    ],
    "decodes first": ["scheduler={batching: decode_first, max_num_seqs: 4}", "cluster.replicas=2"],
    "short of memory": ["model=llama-3.1-70b", "cluster.devices_per_node=2", "scheduler.memory_utilization=0.87",
                        "workload.arrival.process=poisson", "workload.arrival.rate_per_s=100"],
    "every layer drawn": ["routing.mode=exact", "workload.num_requests=6", "run.warmup_s=0"],
    "skewed experts": ["routing.popularity=zipf", "routing.zipf_exponent=0.8", "cluster.replicas=2"],
    "hot experts with copies": ["cluster.nodes=2", "cluster.tensor_parallel=4", "routing.popularity=zipf",
                                "routing.zipf_exponent=1.0",
                                "cluster.expert_placement={order: popularity, redundant_experts: 8}"],
    "hot experts with copies, every layer drawn": [
        "routing={popularity: zipf, zipf_exponent: 1.0, mode: exact}", "cluster.tensor_parallel=2",
        "cluster.expert_placement={order: popularity, redundant_experts: 4}", "workload.num_requests=6",
        "run.warmup_s=0",
    ],
    "popularities that drift": [
        "routing={popularity: zipf, zipf_exponent: 1.0, drift: {interval_s: 0.3, sigma: 0.5}}", "cluster.replicas=2",
        "cluster.tensor_parallel=2",
        "faults.events=[{at_s: 0.4, replica: 1, kind: slow, factor: 1.5, for_s: 0.5}]",
    ],
    "popularities that drift, every layer drawn": [
        "routing={popularity: zipf, zipf_exponent: 1.0, mode: exact, drift: {interval_s: 0.3, sigma: 0.5}}",
        "cluster.tensor_parallel=2",
        "cluster.expert_placement={order: popularity, redundant_experts: 4, rebalance: {interval_s: 0.3}}",
        "workload.num_requests=6", "run.warmup_s=0",
    ],
    "experts that are rebalanced": [
        "routing={popularity: zipf, zipf_exponent: 1.0, drift: {interval_s: 0.2, sigma: 0.5}}", "cluster.replicas=2",
        "cluster.nodes=2", "cluster.expert_placement={order: popularity, rebalance: {interval_s: 0.4}}",
    ],
    "prefix caches": [
        "cluster.replicas=2", "scheduler={enable_prefix_caching: true, kv_blocks: 300, block_size: 16}",
        "workload.prefix={groups: 4, shared_tokens: 500, zipf_theta: 1}",
        "workload.arrival={process: poisson, rate_per_s: 40}",
        "faults={detection_s: 0.05, events: [{at_s: 0.3, replica: 0, kind: fail, for_s: 0.15}]}",
    ],
    "a router by what caches say, and tiers": [
        "cluster.replicas=3", "scheduler={enable_prefix_caching: true, kv_blocks: 300, router: {name: dynamo}, "
        "report_interval_s: 0.03, kv_tiers: [{name: host, capacity_gb: 0.1, gb_per_s: 1}, "
        "{name: disk, gb_per_s: 0.1, write: back}]}", "workload.prefix={groups: 4, shared_tokens: 500, zipf_theta: 1}",
        "workload.arrival={process: poisson, rate_per_s: 40}",
        "faults={detection_s: 0.05, events: [{at_s: 0.3, replica: 0, kind: fail, for_s: 0.15}]}",
    ],
    "prefix caches of sessions": [
        "workload={arrival: {process: poisson, rate_per_s: 20}, sessions: {turns: {kind: geometric, mean: 3}, "
        "num_sessions: 8, context: accumulate}}", "cluster.replicas=2", "scheduler.enable_prefix_caching=true",
    ],
    "prefix caches in pools": [
        "cluster.pools={prefill: {device: h100, replicas: 2}, decode: {device: duplex, replicas: 2}}",
        "scheduler={enable_prefix_caching: true, kv_blocks: 300}", "workload.prefix={groups: 4, shared_tokens: 500}",
        "workload.arrival={process: poisson, rate_per_s: 20}",
    ],
    "drafts beside prefix caches": [
        "cluster.replicas=2", "scheduler={enable_prefix_caching: true, kv_blocks: 300, block_size: 16, "
        "speculative: {method: mtp, num_speculative_tokens: 3, acceptance: 0.7}}",
        "workload.prefix={groups: 4, shared_tokens: 500, zipf_theta: 1}",
        "workload.arrival={process: poisson, rate_per_s: 40}",
        "faults={detection_s: 0.05, events: [{at_s: 0.3, replica: 0, kind: fail, for_s: 0.15}]}",
    ],
    "drafts in data-parallel groups beside prefix caches": [
        "cluster.replicas=2", "cluster.tensor_parallel=2", "scheduler={enable_prefix_caching: true, kv_blocks: 300, "
        "speculative: {method: mtp, num_speculative_tokens: 2, acceptance: 0.7}}",
        "workload.prefix={groups: 4, shared_tokens: 500}", "workload.arrival={process: poisson, rate_per_s: 40}",
        "faults.events=[{at_s: 0.1, replica: 0, kind: slow, factor: 1.5}]",
    ],
    "drafts in pools beside prefix caches": [
        "cluster.pools={prefill: {device: h100, replicas: 2}, decode: {device: duplex, tensor_parallel: 2, "
        "replicas: 2}}", "workload.prefix={groups: 4, shared_tokens: 500}",
        "scheduler={enable_prefix_caching: true, kv_blocks: 300, speculative: {method: mtp, num_speculative_tokens: 2, "
        "acceptance: 0.7}}", "workload.arrival={process: poisson, rate_per_s: 20}",
        "faults={detection_s: 0.05, events: [{at_s: 0.3, replica: 2, kind: fail, for_s: 0.2}]}",
    ],
    "shortest predicted first": ["cluster.replicas=2", "scheduler.policy=sjf", "scheduler.prediction_error=0.5",
                                 "scheduler.max_num_seqs=2"],
    "fair share by tenant": [
        "cluster.replicas=2", "scheduler.policy=vtc", "scheduler.max_num_seqs=2", "workload.classes="
        "[{name: chat, share: 2}, {name: batch, share: 1}]",
    ],
    "a closed loop": ["workload={mode: closed, concurrency: 5, num_requests: 20}", "cluster.replicas=4"],
    "users who think": [
        "workload={mode: closed, concurrency: 5, num_requests: 20, think_time_s: {kind: exponential, mean_s: 0.05}}",
        "cluster.replicas=4",
    ],
    "sessions": [
        "workload={arrival: {process: poisson, rate_per_s: 20}, sessions: {turns: {kind: geometric, mean: 3}, "
        "num_sessions: 8, think_time_s: {kind: exponential, mean_s: 0.05}}}", "cluster.replicas=2",
    ],
    "two sessions at a time": [
        "workload={sessions: {turns: {kind: geometric, mean: 3}, num_sessions: 8, max_active: 2, "
        "think_time_s: {kind: exponential, mean_s: 0.05}}}", "cluster.replicas=2",
    ],
    "at most two in flight": ["workload.max_concurrency=2", "cluster.replicas=2"],
    "bursts to the least loaded": ["cluster.replicas=4", "scheduler.router=least_outstanding",
                                   "scheduler.report_interval_s=0.5", "workload.arrival.process=gamma",
                                   "workload.arrival.rate_per_s=40", "workload.arrival.cv=3"],
    "prefill on h100, decode on duplex": [
        "cluster.pools={prefill: {device: h100, replicas: 2}, decode: {device: duplex, replicas: 2}}",
        "workload.arrival={process: poisson, rate_per_s: 20}",
    ],
    "devices that fail, slow down and leave": [
        "cluster.replicas=3",
        "workload.arrival={process: poisson, rate_per_s: 40}",
        "faults={detection_s: 0.05, events: [{at_s: 0.1, replica: 0, kind: fail, for_s: 0.15}, "
        "{at_s: 0.15, replica: 1, kind: slow, factor: 1.5, for_s: 0.15}, {at_s: 0.2, replica: 2, kind: leave}]}",
    ],
    "groups that wait with prompts": [
        "cluster.nodes=2", "cluster.replicas=2", "workload.arrival={process: poisson, rate_per_s: 40}",
        "scheduler.attention_dp_balance={timeout_iters: 8, batching_wait_iters: 2}",
    ],
    "as many replicas as a limit of TTFT asks for": [
        "cluster.replicas=3", "workload.arrival={process: poisson, rate_per_s: 60}", "slo={ttft_p90_s: 0.01}",
        "autoscaling.replicas={metric: ttft_p90_s, interval_s: 0.1, start_up_s: 0.05, stabilization_s: 0}",
    ],
    "pools of which some prompts stay on decode replicas": [
        "cluster.pools={prefill: {device: h100, replicas: 2}, decode: {device: duplex, replicas: 2}, "
        "conditional_disagg: {max_local_prefill_tokens: 300}}",
    ],
    "pools whose replicas fail, slow down and leave": [
        "cluster.pools={prefill: {device: h100, replicas: 2}, decode: {device: duplex, replicas: 2}, "
        "handover: {gb_per_s: 1}}",
        "workload.arrival={process: poisson, rate_per_s: 40}",
        "faults={detection_s: 0.05, events: [{at_s: 0.2, replica: 0, kind: fail, for_s: 0.3}, "
        "{at_s: 0.3, replica: 2, kind: fail, for_s: 0.2}, {at_s: 0.45, replica: 3, kind: slow, factor: 1.5}, "
        "{at_s: 0.6, replica: 1, kind: leave}, {at_s: 0.7, replica: 3, kind: fail, for_s: 0.1}]}",
    ],
    "experts on aimc": [
        "cluster={device: duplex, devices_per_node: 2, replicas: 2, placement: {experts: {device: aimc-realistic}, "
        "micro_batches: 1}}",
    ],
    "experts on aimc that are programmed anew": [
        "cluster={device: duplex, devices_per_node: 1, replicas: 2, placement: {experts: {device: {preset: "
        "aimc-realistic, spread: experts, tiers: 192}, devices_per_node: 4}, micro_batches: 2}}",
        "cluster.expert_placement={order: popularity, redundant_experts: 4, rebalance: {interval_s: 0.4}}",
        "routing={popularity: zipf, zipf_exponent: 1.0, drift: {interval_s: 0.2, sigma: 0.5}}",
    ],
    "experts that are cut over aimc chips": [
        "cluster={device: duplex, devices_per_node: 1, replicas: 2, placement: {experts: {device: {preset: "
        "aimc-realistic, spread: experts, tiers: 32}, devices_per_node: 20}, micro_batches: 2}}",
        "cluster.expert_placement={order: popularity, redundant_experts: 2, rebalance: {interval_s: 0.4}}",
        "routing={popularity: zipf, zipf_exponent: 1.0, drift: {interval_s: 0.2, sigma: 0.5}}",
    ],
    "experts on h100, two micro-batches": [
        "cluster={device: duplex, devices_per_node: 2, replicas: 2, placement: {experts: {device: h100}, "
        "micro_batches: 2}}",
        "workload.arrival={process: poisson, rate_per_s: 40}",
        "faults={detection_s: 0.05, events: [{at_s: 0.1, replica: 0, kind: fail, for_s: 0.15}, "
        "{at_s: 0.15, replica: 1, kind: slow, factor: 1.5, for_s: 0.15}]}",
    ],
    "drafts, experts on h100, two micro-batches": [
        "cluster={device: h100, devices_per_node: 4, tensor_parallel: 2, replicas: 2, placement: {experts: {device: "
        "h100}, lm_head: experts, micro_batches: 2}}", "workload.arrival={process: poisson, rate_per_s: 40}",
        "scheduler.speculative={method: mtp, num_speculative_tokens: 2, acceptance: 0.7}",
        "faults={detection_s: 0.05, events: [{at_s: 0.1, replica: 0, kind: fail, for_s: 0.15}, "
        "{at_s: 0.15, replica: 1, kind: slow, factor: 1.5, for_s: 0.15}]}",
    ],
    "drafts, hot experts on h100, cold ones on aimc, every layer drawn": [
        "cluster={device: duplex, devices_per_node: 2, placement: {hot_experts: {device: h100, devices_per_node: 1, "
        "count: 2}, experts: {device: aimc-realistic}, micro_batches: 3}}",
        "routing={popularity: zipf, zipf_exponent: 1.0, mode: exact}", "workload.num_requests=6", "run.warmup_s=0",
        "scheduler.speculative={method: mtp, num_speculative_tokens: 3, acceptance: 0.7}",
    ],
    "drafts in mixed pools": [
        "cluster.pools={prefill: {device: h100, replicas: 2}, decode: {device: h100, devices_per_node: 2, replicas: 2, "
        "placement: {experts: {device: h100}, micro_batches: 2}}}",
        "scheduler.speculative={method: mtp, num_speculative_tokens: 1, acceptance: 0.7}",
        "workload.arrival={process: poisson, rate_per_s: 20}",
    ],
    "experts on h100, three micro-batches, every layer drawn": [
        "cluster={device: duplex, devices_per_node: 2, placement: {experts: {device: h100}, micro_batches: 3}}",
        "routing={popularity: zipf, zipf_exponent: 1.0, mode: exact}", "workload.num_requests=6", "run.warmup_s=0",
    ],
    "experts on aimc, as many micro-batches as are worth it, every layer drawn": [
        "cluster={device: duplex, devices_per_node: 2, placement: {experts: {device: aimc-realistic}}}",
        "routing.mode=exact", "workload.num_requests=6", "run.warmup_s=0",
        "faults.events=[{at_s: 0.1, replica: 0, kind: slow, factor: 1.5}]",
    ],
    "experts with copies on gpus, popularities that drift": [
        "cluster={device: duplex, devices_per_node: 2, replicas: 2, placement: {experts: {device: h100, "
        "devices_per_node: 4, experts: ep}, micro_batches: 2}}",
        "routing={popularity: zipf, zipf_exponent: 1.0, drift: {interval_s: 0.3, sigma: 0.5}}",
        "cluster.expert_placement={order: popularity, redundant_experts: 4}",
    ],
    "dense layers, shared experts and head with the routed ones": [
        "model=deepseek-v3",
        "cluster={device: b200, devices_per_node: 2, tensor_parallel: 1, placement: {experts: {device: h200, "
        "devices_per_node: 8, tensor_parallel: 4}, micro_batches: 2, dense_ffn: experts, shared_experts: experts, "
        "lm_head: experts}}",
    ],
    "prefill on h100, decode on duplex with experts on h100": [
        "cluster.pools={prefill: {device: h100, replicas: 2}, decode: {device: duplex, devices_per_node: 2, "
        "replicas: 2, placement: {experts: {device: h100}, micro_batches: 2}}}",
        "workload.arrival={process: poisson, rate_per_s: 20}",
    ],
    "mixed pools whose replicas fail": [
        "cluster.pools={prefill: {device: h100, replicas: 2}, decode: {device: duplex, devices_per_node: 2, "
        "replicas: 2, placement: {experts: {device: aimc-realistic}, micro_batches: 2}}, handover: {gb_per_s: 1}}",
        "workload.arrival={process: poisson, rate_per_s: 40}",
        "faults={detection_s: 0.05, events: [{at_s: 0.2, replica: 0, kind: fail, for_s: 0.3}, "
        "{at_s: 0.3, replica: 2, kind: fail, for_s: 0.2}, {at_s: 0.45, replica: 3, kind: slow, factor: 1.5}]}",
    ],
    "hot experts on h100, cold ones on aimc": [
        "cluster={device: duplex, devices_per_node: 2, replicas: 2, placement: {hot_experts: {device: h100, "
        "devices_per_node: 1, count: 2}, experts: {device: {preset: aimc-realistic, spread: experts}}, "
        "micro_batches: 2}}",
        "routing={popularity: zipf, zipf_exponent: 1.0}", "workload.arrival={process: poisson, rate_per_s: 40}",
        "faults={detection_s: 0.05, events: [{at_s: 0.1, replica: 0, kind: fail, for_s: 0.15}, "
        "{at_s: 0.15, replica: 1, kind: slow, factor: 1.5, for_s: 0.15}]}",
    ],
    "hot experts on duplex, cold ones on aimc, every layer drawn": [
        "cluster={device: h100, devices_per_node: 2, placement: {hot_experts: {device: duplex, devices_per_node: 2, "
        "experts: tp, count: 3}, experts: {device: aimc-realistic}, micro_batches: 1}}",
        "routing={popularity: zipf, zipf_exponent: 1.0, mode: exact}", "workload.num_requests=6", "run.warmup_s=0",
        "faults.events=[{at_s: 0.1, replica: 0, kind: slow, factor: 1.5}]",
    ],
    "other experts are hot in each layer": [
        "cluster={device: duplex, devices_per_node: 2, placement: {hot_experts: {device: b200, devices_per_node: 2, "
        "experts: ep, count: 2}, experts: {device: h100, devices_per_node: 4, experts: tp}, micro_batches: 1}}",
        f"routing={{popularity: given, weights: {OF_LAYERS}}}",
    ],
    "other experts are hot in each layer, every layer drawn": [
        "cluster={device: duplex, devices_per_node: 2, placement: {hot_experts: {device: b200, devices_per_node: 2, "
        "experts: ep, count: 2}, experts: {device: h100, devices_per_node: 2}, micro_batches: 2}}",
        "cluster.expert_placement.order=popularity", "workload.num_requests=6", "run.warmup_s=0",
        f"routing={{popularity: given, mode: exact, weights: {OF_LAYERS}}}",
    ],
    "hot experts that cool down as popularities drift": [
        "cluster={device: duplex, devices_per_node: 2, replicas: 2, placement: {hot_experts: {device: h100, "
        "devices_per_node: 1, count: 2}, experts: {device: aimc-realistic}, micro_batches: 2}}",
        "routing={popularity: zipf, zipf_exponent: 1.0, drift: {interval_s: 0.3, sigma: 0.5}}",
    ],
    "dense layers, shared experts and head with the cold ones": [
        "model=deepseek-v3",
        "cluster={device: b200, devices_per_node: 2, tensor_parallel: 1, placement: {hot_experts: {device: b200, "
        "devices_per_node: 2, count: 32}, experts: {device: h200, devices_per_node: 8, tensor_parallel: 4}, "
        "micro_batches: 2, dense_ffn: experts, shared_experts: experts, lm_head: experts}}",
        "routing={popularity: zipf, zipf_exponent: 1.0}",
    ],
    "prefill on h100, decode on duplex with hot experts on h100": [
        "cluster.pools={prefill: {device: h100, replicas: 2}, decode: {device: duplex, devices_per_node: 2, "
        "replicas: 2, placement: {hot_experts: {device: h100, devices_per_node: 1, count: 2}, "
        "experts: {device: aimc-realistic}, micro_batches: 2}}}",
        "routing={popularity: zipf, zipf_exponent: 1.0}", "workload.arrival={process: poisson, rate_per_s: 20}",
    ],
    "stopped": ["cluster.replicas=2", "run.max_time_s=3", "workload.arrival.process=constant",
                "workload.arrival.rate_per_s=20"],
}  # fmt: skip
DEEP = {name for name in SCENARIOS if name.endswith(", every layer drawn")} | {
    *(name for name in SCENARIOS if name.startswith(("gpt2", "opt", "glam", "qwen", "llama", "mixtral"))),
    "a closed loop",
    "at most two in flight",
    "classes by priority",
    "dense layers, shared experts and head with the cold ones",
    "drafts beside prefix caches",
    "drafts in mixed pools",
    "experts on aimc",
    "experts on aimc that are programmed anew",
    "experts that are cut over aimc chips",
    "experts that are rebalanced",
    "mixed pools whose replicas fail",  # which also die below
    "experts with copies on gpus, popularities that drift",
    "hot experts that cool down as popularities drift",
    "other experts are hot in each layer",
    "prefill on h100, decode on duplex",
    "prefill on h100, decode on duplex with experts on h100",
    "prefill on h100, decode on duplex with hot experts on h100",
    "classes",
    "overload",
    "popularities that drift",
    "prefix caches",
    "shortest predicted first",
    "skewed experts",
}  # of which much is in others
DEEP -= {"mixtral on duplex, ep", "mixtral on aimc", "mixtral on h200, as measured", "llama on h100, as measured"}
