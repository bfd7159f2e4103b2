"""The sign of what llm-d measured of a tier in the host's memory, on a replica and a working set of a size for tests.

Their W1 and W3 (llm-d, guides/pd-disaggregation/benchmark-results/vllm-gpt-oss-120b-h200-multi-tier.md): prompts of
which none comes again, and groups of five that share most of it, 1.32 times as many tokens as the devices keep, in
stages of rising rates. p90 of the latency at the last one: 40.3 s without the tier, and 3.51 s where the router knows
of it; 12.5 s where it does not. There is one replica here, so that routers do not matter.

Their W2, documents of which 0.77 times as many tokens come again as the devices keep, tells no more than that a tier
gains nothing there: in one run each, as many requests a second (4.303 without and 4.305 with it), but a mean latency of
13.9 and 16.7 s, with 19 and 35 requests timed out; the report warns of reading more into it. Here such a tier is
written and never read, and copies hold up no step, so that nothing changes; one whose link is slower than computing is
read all the same, and hurts. The fleet itself, whose model has attention windows, is among the measured ones
(`llm-d-pressure` and `llm-d-documents` of cluster/validation/fleet_cases.json).
"""

from pathlib import Path
from typing import Any

import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from tests.cluster.documents import run

BLOCKS, BLOCK = 400, 128
GROUPS, OF_GROUP, SHARED, OWN = 25, 5, 2048, 128


def serve(
    folder: Path, prompts: list[str], tier: str | None, *, blocks: int = BLOCKS, gb_per_s: float = 50
) -> dict[str, Any]:
    """The summary of a run on one H100."""
    host = f"{{name: host, capacity_gb: 100 GiB, gb_per_s: {gb_per_s}, latency_us: 20, write: {tier}}}"
    tiers = "[]" if tier is None else f"[{host}]"
    scheduler = f"block_size: {BLOCK}, kv_blocks: {blocks}, max_model_len: 4096, max_num_batched_tokens: 4096"
    common = [
        "model=llama-3.1-8b",
        "cluster={device: h100, devices_per_node: 1}",
        f"scheduler={{enable_prefix_caching: true, {scheduler}, kv_tiers: {tiers}}}",
        f"workload.num_requests={4 * GROUPS * OF_GROUP}",
        "workload.lengths.output={kind: fixed, tokens: 32}",
    ]
    return run(prepare(load_scenario(None, [*common, *prompts])), folder)


AGAIN = [
    f"workload.prefix={{groups: {GROUPS}, prompts_per_group: {OF_GROUP}, shared_tokens: {SHARED}, own_tokens: {OWN}}}"
]
NEVER = [f"workload.lengths.input={{kind: fixed, tokens: {SHARED + OWN}}}"]


def test_the_working_set_is_that_of_the_measurement() -> None:
    tokens = GROUPS * (SHARED + OF_GROUP * OWN)
    assert tokens / (BLOCKS * BLOCK) == pytest.approx(1.32, abs=0.01)


def test_a_tier_does_nothing_where_no_prompt_comes_again(tmp_path: Path) -> None:
    without = serve(tmp_path / "without", [*NEVER, "workload.arrival.rate_per_s=15"], None)
    with_tier = serve(tmp_path / "with", [*NEVER, "workload.arrival.rate_per_s=15"], "through")
    assert with_tier["digest"] == without["digest"]
    assert with_tier["kv_tiers"]["tiers"][0]["hit_tokens"] == 0


@pytest.mark.parametrize("write", ["through", "back"])
def test_a_tier_saves_a_working_set_that_the_device_does_not_hold(tmp_path: Path, write: str) -> None:
    """The more so, the more prompts come; where computing what was forgotten is too much, it decides."""
    gains = []
    for rate in (10, 80):
        arrivals = [*AGAIN, f"workload.arrival.rate_per_s={rate}"]
        p90_s = [serve(tmp_path / f"{rate}{tier}", arrivals, tier)["latency_s"]["e2e"]["p90"] for tier in (None, write)]
        gains.append(p90_s[0] / p90_s[1])
    assert 1 < gains[0] < 2 < gains[1]


def test_tiers_of_prefill_replicas_save_it_likewise(tmp_path: Path) -> None:
    prompts = [
        *AGAIN,
        "cluster.pools={prefill: {replicas: 1}, decode: {replicas: 1}}",
        "workload.arrival.rate_per_s=40",
    ]
    means_s = [serve(tmp_path / f"{tier}", prompts, tier)["latency_s"]["ttft"]["mean"] for tier in (None, "through")]
    assert means_s[0] > 1.3 * means_s[1]


def test_a_tier_gains_nothing_where_the_device_holds_what_comes_again(tmp_path: Path) -> None:
    arrivals, enough = [*AGAIN, "workload.arrival.rate_per_s=10"], 4 * BLOCKS
    without = serve(tmp_path / "without", arrivals, None, blocks=enough)
    with_tier = serve(tmp_path / "with", arrivals, "through", blocks=enough)
    assert with_tier["digest"] == without["digest"]
    (host,) = with_tier["kv_tiers"]["tiers"]
    assert host["written_bytes"] > host["read_bytes"] == 0


def test_a_tier_hurts_where_computing_is_faster_than_reading(tmp_path: Path) -> None:
    """Though more is found: 17 MB of each block, 8 ms on the link, are computed in a third of that."""
    arrivals = [*AGAIN, "workload.arrival.rate_per_s=10"]
    without = serve(tmp_path / "without", arrivals, None)
    with_tier = serve(tmp_path / "with", arrivals, "through", gb_per_s=2)
    assert with_tier["prefix_cache"]["hit_ratio"] > without["prefix_cache"]["hit_ratio"]
    assert with_tier["latency_s"]["ttft"]["mean"] > 1.5 * without["latency_s"]["ttft"]["mean"]
