"""KV cache sizes that vLLM resolved on start-up, against ours with measured costs.

Most rows are of llm-d-planner (docs/accuracy/vllm-v0.19.0-accuracy-report.md, accuracy/results/v0.19.0; Apache-2.0):
vLLM 0.19.0 on H100, utilisation 0.95, 8,192 tokens and 1,024 requests at most (its defaults there).
"""

from __future__ import annotations

from typing import Any

import pytest

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.pools import place_pool, routing_of

TOLERANCE = 0.05
SERVER = {"memory_utilization": 0.95, "max_num_batched_tokens": 8192, "max_num_seqs": 1024}


def described(name: str, layers: int, hidden: int, vocab: int, heads: int, kv_heads: int, inner: int) -> dict[str, Any]:
    return {
        "name": name,
        "title": name,
        "layers": layers,
        "hidden": hidden,
        "vocab": vocab,
        "attention": {"kind": "gqa", "heads": heads, "kv_heads": kv_heads, "head_dim": 128},
        "ffn": {"intermediate": inner},
        "max_model_len_tokens": 8192,
        "dense_dtype": "bf16",
        "kv_dtype": "bf16",
    }


def capacity(model: Any, devices: int, scheduler: dict[str, Any], device: Any = "h100") -> int:
    scenario = Scenario.model_validate(
        {
            "model": model,
            "cluster": {"device": device, "devices_per_node": devices},
            "scheduler": scheduler,
            "costs": {"setting": "measured"},
        }
    )
    loaded = scenario.load_model()
    return place_pool(scenario, "", loaded, routing_of(scenario, loaded)).kv_capacity_tokens


@pytest.mark.parametrize(
    ("model", "devices", "resolved"),
    [
        ("llama-3.1-8b", 1, 476_016),
        ("llama-3.1-8b", 2, 1_044_688),
        ("llama-3.1-8b", 4, 2_209_792),
        ("mixtral-8x7b", 2, 465_936),
        ("qwen3-30b-a3b", 1, 168_288),
        (described("codellama-7b", 32, 4096, 32016, 32, 32, 11008), 1, 126_256),
        (described("qwen2.5-7b", 28, 3584, 152064, 28, 4, 18944), 1, 1_096_000),
        (described("qwen2.5-7b", 28, 3584, 152064, 28, 4, 18944), 2, 2_390_592),
        (described("qwen2.5-72b", 80, 8192, 152064, 64, 8, 29568), 4, 481_296),
        (described("phi-4", 40, 5120, 100352, 40, 10, 17920), 1, 241_568),
        (described("qwen3-8b", 36, 4096, 151936, 32, 8, 12288), 1, 418_688),
        ({**described("granite-3.1-8b", 40, 4096, 49155, 32, 8, 12800), "tied_embeddings": True}, 1, 384_432),
    ],
)
def test_capacity_is_what_vllm_resolved(model: Any, devices: int, resolved: int) -> None:
    assert capacity(model, devices, SERVER) == pytest.approx(resolved, rel=TOLERANCE)


def test_capacity_on_a_card_of_24_gib() -> None:
    device = {"preset": "h100", "memory_gb": "24 GiB", "memory_gb_per_s": 1008, "peak_tflop_per_s": {"bf16": 165}}
    scheduler = {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "memory_utilization": 0.9}
    assert capacity("llama-3.1-8b", 1, scheduler, device) == pytest.approx(41_408, rel=TOLERANCE)


@pytest.mark.parametrize("requests", [256, 1024])
def test_capacity_of_two_h100_with_a_model_of_32_billion(requests: int) -> None:
    """307,328 tokens; how many requests the server took at most is not known."""
    scheduler = {"max_num_seqs": requests, "max_num_batched_tokens": 8192, "memory_utilization": 0.9}
    assert capacity("qwen3-32b", 2, scheduler) == pytest.approx(307_328, rel=TOLERANCE)


def test_a_newer_server_on_another_gpu() -> None:
    """vLLM 0.31 on an A100 whose driver reports 79.25 GiB: 460,496 tokens at a utilisation of 0.92."""
    scheduler = {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "memory_utilization": 0.92}
    device = {"preset": "a100", "memory_gb": "79.71 GiB"}
    assert capacity("llama-3.1-8b", 1, scheduler, device) == pytest.approx(460_496, rel=TOLERANCE)
