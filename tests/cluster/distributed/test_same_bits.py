"""The same scenario gives the same bits wherever its shards and devices live: the whole summary and the digest.

Hosts live in threads here, with real gRPC between them; tests/e2e has them in processes and Ray actors.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pimserve.cluster.base.rpc.statuses import DeviceMismatchError
from pimserve.cluster.distributed.deployment import Distributed, host_specs
from pimserve.cluster.distributed.devices import device_host
from pimserve.cluster.distributed.devices.book import ReplicaBook
from pimserve.cluster.distributed.devices.exchange import KvBook
from pimserve.cluster.distributed.devices.ledgers import DeviceLedger, ledgers_of
from pimserve.cluster.distributed.hosts.hosting import Endpoint, HostSpec
from pimserve.cluster.distributed.run_spread import DeviceMode, Spread
from pimserve.cluster.run.checkpoint import CheckpointFolder
from pimserve.cluster.scenario.document import Scenario, load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.scheduler.control import RunView
from tests.cluster.documents import run

TOKEN = "the token of this test"
REQUESTS = 24
IN_LOCKSTEP = 200  # steps: more take too long
BRIEFLY = "run.max_time_s=0.4"  # instead
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


class Threads:
    """Hosts in threads of this process."""

    def __init__(self, specs: list[HostSpec]) -> None:
        self.recoveries: list[tuple[str, float]] = []
        self._hosts = {}
        self._endpoints = {}
        for spec in specs:
            module, _, name = spec.factory.partition(":")
            self._hosts[spec.name] = host = getattr(importlib.import_module(module), name)(**spec.arguments)
            self._endpoints[spec.name] = Endpoint(f"127.0.0.1:{host.start('127.0.0.1:0')}", 0, 0)

    def endpoint(self, name: str) -> Endpoint:
        return self._endpoints[name]

    def endpoints(self) -> dict[str, Endpoint]:
        return self._endpoints

    def replace(self, name: str, _generation: int) -> Endpoint:
        raise AssertionError(f"{name} was lost")

    def stop(self) -> None:
        for host in self._hosts.values():
            host.stop(0)


DIE = [
    "mixtral on duplex, ep",
    "bursts to the least loaded",
    "sessions",
    "users who think",
    "at most two in flight",
    "prefill on h100, decode on duplex",
    "experts on h100, two micro-batches",
    "hot experts on h100, cold ones on aimc",
    "mixed pools whose replicas fail",
    "devices that fail, slow down and leave",
    "pools whose replicas fail, slow down and leave",
    "a router by what caches say, and tiers",
]
WHERE = [Spread(2), Spread(2, "planned", 3), Spread(1, "planned"), Spread(1, "lockstep", 2)]
DYING = [
    pytest.param(name, spread, id=f"{name}-{spread}", marks=() if one % len(WHERE) == other else pytest.mark.deep)
    for one, name in enumerate(DIE)
    for other, spread in enumerate(WHERE)
]


class Killed(BaseException):
    """Stands for the end of the process."""


class DiesAfter:
    """Ends windows every 0.05 s of simulated time, and dies in one."""

    def __init__(self, window: int) -> None:
        self.window = window

    def next_barrier_fs(self, now_fs: int) -> int:
        return now_fs + 50 * 10**12

    def ended(self, view: RunView) -> None:
        pass

    def barrier(self, view: RunView) -> None:
        if view.window == self.window:
            raise Killed


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key not in {"results", "simulator"}}


def spreads(replicas: int, devices: int) -> Iterator[Spread]:
    """For so many replicas of so many devices. In threads of one process, two lockstep actors a replica are enough."""
    for shards in (1, 2, 4):
        if shards <= replicas:
            yield Spread(shards)
    yield Spread(1, "planned", audit_share=1.0)
    if replicas > 1:
        yield Spread(2, "planned", 3)
    yield Spread(1, "lockstep", -(-devices // 2))


def run_there(
    scenario: Scenario, spread: Spread, out: Path, control: DiesAfter | None = None, checkpoints: Path | None = None
) -> dict[str, Any]:
    """The summary of a run on fresh hosts."""
    prepared = prepare(scenario)
    hosts = Threads(host_specs(prepared, spread, TOKEN))
    parts = Distributed(hosts, spread, prepared, TOKEN)
    try:
        return run(prepared, out, runtime=parts, control=control, checkpoints=checkpoints)
    finally:
        parts.close()
        hosts.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.deep if name in DEEP else ()) for name in SCENARIOS],
)
def test_same_bits_everywhere(name: str, tmp_path: Path) -> None:
    scenario = load_scenario(None, [f"workload.num_requests={REQUESTS}", *SCENARIOS[name]])
    prepared = prepare(scenario)
    here = run(prepared, tmp_path / "here")
    assert here["batch"]["steps"]
    for number, spread in enumerate(spreads(prepared.replicas, prepared.pools[0].devices_per_replica)):
        if spread.devices == "lockstep" and here["batch"]["steps"] > IN_LOCKSTEP:
            briefly = [f"workload.num_requests={REQUESTS}", *SCENARIOS[name], BRIEFLY]
            scenario_there = load_scenario(None, briefly)
            expected = run(prepare(scenario_there), tmp_path / "briefly")
        else:
            scenario_there, expected = scenario, here
        there = run_there(scenario_there, spread, tmp_path / str(number))
        assert figures(there) == figures(expected), spread


def test_devices_are_actors_of_their_own_in_lockstep(tmp_path: Path) -> None:
    changes = [*SCENARIOS["every layer drawn"], "cluster.tensor_parallel=1", "run.max_time_s=0.1"]
    scenario = load_scenario(None, changes)
    spread = Spread(1, "lockstep")
    assert len(host_specs(prepare(scenario), spread, TOKEN)) == 4
    here = run(prepare(scenario), tmp_path / "here")
    there = run_there(scenario, spread, tmp_path / "there")
    assert figures(there) == figures(here)
    wire = {row["kind"]: row for row in there["simulator"]["spread"]["wire"]}
    for kind in ("dispatch", "combine"):
        assert 0 < wire[kind]["inside_count"] < wire[kind]["count"]
        assert wire[kind]["inside_bytes"] == 0 < wire[kind]["bytes"]
        assert wire[kind]["messages"] == 4 * 3 * there["batch"]["steps"]
    devices = np.load(tmp_path / "there" / "devices.npy")
    assert devices["actor"].tolist() == [f"devices-{number}" for number in range(4)]
    assert devices["output_tokens"].sum() == there["tokens"]["output"]
    assert devices["dispatch_sent_bytes"].sum() == wire["dispatch"]["bytes"]


@pytest.mark.parametrize("mode", ["planned", "lockstep"])
def test_attention_and_experts_are_different_actors(mode: DeviceMode, tmp_path: Path) -> None:
    name = "experts on h100, three micro-batches, every layer drawn"
    scenario = load_scenario(None, [*SCENARIOS[name], "run.max_time_s=0.1"])
    there = run_there(scenario, Spread(1, mode), tmp_path / "there")
    devices = np.load(tmp_path / "there" / "devices.npy")
    assert devices["group"].tolist() == ["attention"] * 2 + ["experts"] * 2
    assert devices["kind"].tolist() == ["duplex"] * 2 + ["h100"] * 2
    hosts = [0, 1, 2, 3] if mode == "lockstep" else [0, 0, 1, 1]
    assert devices["actor"].tolist() == [f"devices-{number}" for number in hosts]
    attention, experts = devices[:2], devices[2:]
    assert (experts["dispatch_received"] > 0).all()
    assert (experts["combine_sent_bytes"] > 0).all()
    assert not attention["dispatch_received"].any()
    assert not experts["dispatch_sent"].any()
    for column in ("computed_tokens", "output_tokens", "peak_kv_blocks"):
        assert (attention[column] > 0).all()
        assert not experts[column].any()
    assert not attention["experts_busy_s"].any()
    wire = {row["kind"]: row for row in there["simulator"]["spread"]["wire"]}
    for kind in ("dispatch", "combine"):
        assert (wire[kind]["inside_count"], wire[kind]["inside_bytes"]) == (0, 0)
        assert wire[kind]["messages"] == (4 * there["batch"]["steps"] if mode == "lockstep" else 1)


@pytest.mark.parametrize("mode", ["planned", "lockstep"])
@pytest.mark.parametrize(
    "name", ["hot experts on h100, cold ones on aimc", "other experts are hot in each layer, every layer drawn"]
)
def test_hot_and_cold_experts_are_different_actors(name: str, mode: DeviceMode, tmp_path: Path) -> None:
    scenario = load_scenario(None, [*SCENARIOS[name], "cluster.replicas=1", "faults=null", "run.max_time_s=0.1"])
    prepared = prepare(scenario)
    sizes = [member.devices_per_replica for member in prepared.pools[0].members]
    there = run_there(scenario, Spread(1, mode), tmp_path / "there")
    assert figures(there) == figures(run(prepared, tmp_path / "here"))
    devices = np.load(tmp_path / "there" / "devices.npy")
    attention, hot, cold = (devices[devices["group"] == name] for name in ("attention", "hot_experts", "experts"))
    assert [len(attention), len(hot), len(cold)] == sizes
    actors = [set(of_group["actor"].tolist()) for of_group in (attention, hot, cold)]
    assert len(actors[0] | actors[1] | actors[2]) == (sum(sizes) if mode == "lockstep" else 3)
    assert [of_group["kind"][0] for of_group in (hot, cold)] == [m.label for m in prepared.pools[0].members[1:]]
    for experts in (hot, cold):
        assert (experts["dispatch_received_bytes"] > 0).all()
        assert (experts["combine_sent_bytes"] > 0).all()
        assert (experts["compute_joules"] > 0).all()
        assert (experts["experts_busy_s"] > 0).all()
        assert not experts["dispatch_sent"].any()
        assert not experts["peak_kv_blocks"].any()
    assert not attention["experts_busy_s"].any()


@pytest.mark.parametrize("figure", ["outputs", "kv_blocks", "energy_pj"])
def test_a_device_that_has_one_unit_more_fails_the_run(
    figure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_more(book: ReplicaBook, kv: KvBook) -> list[DeviceLedger]:
        first, *others = ledgers_of(book, kv)
        value = getattr(first, figure)
        more = value + 1 if isinstance(value, int) else {**value, ("moe", "dram"): value["moe", "dram"] + 1}
        return [replace(first, **{figure: more}), *others]

    monkeypatch.setattr(device_host, "ledgers_of", one_more)
    scenario = load_scenario(None, ["workload.num_requests=2", "run.warmup_s=0", "run.max_time_s=0.3"])
    with pytest.raises(DeviceMismatchError, match=r"replica 0, all devices: .* by the engine"):
        run_there(scenario, Spread(1, "planned"), tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "spread"), DYING)
def test_a_run_that_dies_goes_on_to_the_same_bits(
    name: str, spread: Spread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its coordinator dies, and its hosts with it, between windows in which all have something in hand."""
    monkeypatch.setattr(CheckpointFolder, "due", lambda _: True)
    briefly = ["run.max_time_s=0.9"] if spread.devices == "lockstep" else []
    scenario = load_scenario(None, [f"workload.num_requests={REQUESTS}", *SCENARIOS[name], *briefly])
    here = run(prepare(scenario), tmp_path / "here")
    out, kept = tmp_path / "out", tmp_path / "kept"
    for window in (2, 9, 15):
        with pytest.raises(Killed):
            run_there(scenario, spread, out, DiesAfter(window), kept)
    there = run_there(scenario, spread, out, DiesAfter(-1), kept)
    assert there["simulator"]["continued"]
    assert figures(there) == figures(here)
