"""`scheduler.kv_blocks` and `reserve_gb`: sizes of the KV cache that a user states, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.pools import place_pool, routing_of
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from tests.cluster.documents import serve
from tests.examples import examples

MIXTRAL = {"cluster": {"device": "h100"}}
CARD = {"preset": "h100", "memory_gb": "24 GiB"}
SMALL = {
    "num_requests": 3,
    "arrival": {"process": "constant", "rate_per_s": 1},
    "lengths": {"input": {"kind": "fixed", "tokens": 100}, "output": {"kind": "fixed", "tokens": 10}},
}


def placed(document: dict[str, Any]) -> PlacedPool:
    scenario = Scenario.model_validate(document)
    model = scenario.load_model()
    return place_pool(scenario, "", model, routing_of(scenario, model))


def tokens(document: dict[str, Any]) -> int:
    return placed(document).kv_capacity_tokens


def card(**scheduler: Any) -> dict[str, Any]:
    return {"model": "llama-3.1-8b", "cluster": {"device": CARD, "devices_per_node": 1}, "scheduler": scheduler}


def test_blocks_are_those_that_are_asked_for() -> None:
    summary, _ = serve(prepare(Scenario.model_validate({**card(kv_blocks=2588), "workload": SMALL})))
    assert summary["kv"]["capacity_tokens"] == 41_408


def test_blocks_are_of_each_data_parallel_group() -> None:
    cluster = {"device": "h100", "devices_per_node": 4, "tensor_parallel": 2}
    document = {"model": "llama-3.1-8b", "cluster": cluster, "scheduler": {"kv_blocks": 100}}
    assert tokens(document) == 2 * 100 * 16


@pytest.mark.parametrize("device", ["h100", "duplex", "aimc-realistic"])
def test_no_more_blocks_than_memory_holds(device: str) -> None:
    devices = 6 if device.startswith("aimc") else 4
    document = {"cluster": {"device": device, "devices_per_node": devices}, "scheduler": {"kv_blocks": 2**30}}
    with pytest.raises(
        InputError, match=r"scheduler\.kv_blocks: must be at most [0-9]+, the blocks of 16 tokens"
    ) as error:
        placed(document)
    most = int(str(error.value).split("at most ")[1].split(",")[0])
    assert tokens({**document, "scheduler": {"kv_blocks": most}}) == 16 * most
    with pytest.raises(InputError, match=f"must be at most {most},"):
        placed({**document, "scheduler": {"kv_blocks": most + 1}})


def test_blocks_beyond_the_share_that_is_used_are_allowed() -> None:
    """A log's own figure may lie a little above our estimate."""
    assert tokens(card(kv_blocks=3500)) == 56_000 > tokens(card())


@pytest.mark.parametrize("device", ["h100", "duplex", "aimc-realistic"])
def test_what_is_reserved_is_taken_from_the_cache(device: str) -> None:
    devices = 6 if device.startswith("aimc") else 4
    document: dict[str, Any] = {"cluster": {"device": device, "devices_per_node": devices}}
    free = placed(document)
    taken = placed({**document, "scheduler": {"reserve_gb": "10 GB"}})
    assert free.replica.reserved_bytes_per_device == 0
    assert taken.replica.reserved_bytes_per_device == 10e9
    assert taken.kv_capacity_tokens < free.kv_capacity_tokens


def test_reserve_is_in_gigabytes_of_each_device() -> None:
    taken = tokens(card()) - tokens(card(reserve_gb=1))
    assert taken == pytest.approx(1e9 / 131_072, abs=1)
    measured = {**card(reserve_gb=0), "costs": {"setting": "measured"}}
    assert tokens(measured) == tokens(card())


def test_a_summary_says_what_is_reserved() -> None:
    summary, _ = serve(
        prepare(Scenario.model_validate({**card(), "costs": {"setting": "measured"}, "workload": SMALL}))
    )
    assert summary["reserved_gb_per_device"] == pytest.approx(1.64, abs=0.02)
    ideal, _ = serve(prepare(Scenario.model_validate({**card(), "workload": SMALL})))
    assert ideal["reserved_gb_per_device"] == 0


def test_an_ideal_device_says_when_that_makes_a_difference() -> None:
    (warning,) = placed(card()).replica.warnings
    assert "54,415 tokens of KV cache a serving engine has room for 41,899" in warning
    assert "scheduler.reserve_gb or costs.setting: measured" in warning
    assert not placed(card(reserve_gb=0)).replica.warnings
    assert not placed(MIXTRAL).replica.warnings


def test_larger_steps_leave_less() -> None:
    def measured(**scheduler: Any) -> int:
        return tokens({**card(**scheduler), "costs": {"setting": "measured"}})

    assert measured(max_num_batched_tokens=4096) < measured(max_num_batched_tokens=2048)
    assert measured(max_num_seqs=512) < measured(max_num_seqs=256) < measured(max_num_seqs=128)


def gpt_oss(requests: int, **scheduler: Any) -> dict[str, Any]:
    """gpt-oss-120b beside 5.38 GiB for its KV cache, for which vLLM's log says 78,384 tokens in all of its layers."""
    settings = {"memory_utilization": 1.0, "max_num_seqs": requests, "max_num_batched_tokens": max(2048, requests)}
    return {
        "model": "gpt-oss-120b",
        "cluster": {"device": {"preset": "h100", "memory_gb": 70.96708}, "devices_per_node": 1},
        "scheduler": {**settings, **scheduler},
    }


def test_windows_take_no_memory_before_requests_come() -> None:
    sizes = {tokens(gpt_oss(requests)) for requests in (1, 256, 1024, 2560, 3000, 100_000)}
    assert len(sizes) == 1
    # A block of vLLM's is of one of two groups of 18 layers; it counts a token as one block of each.
    blocks = placed(gpt_oss(256)).kv_blocks(16)
    assert blocks // 2 * 16 == pytest.approx(78_384, rel=0.001)


@pytest.mark.parametrize("requests", [256, 3000])
def test_requests_hold_their_windows_only(requests: int) -> None:
    lengths = {"input": {"kind": "fixed", "tokens": 1000}, "output": {"kind": "fixed", "tokens": 10}}
    workload = {"num_requests": 5, "arrival": {"process": "constant", "rate_per_s": 1}, "lengths": lengths}
    summary, served = serve(prepare(Scenario.model_validate({**gpt_oss(requests), "workload": workload})))
    assert summary["requests"]["finished"] == 5
    rows = served.logs[0].peak_blocks
    assert rows == 2 * 63  # while the prompt is computed, in one chunk
    assert summary["kv"]["peak_use"] == rows / served.pools[0].kv_blocks(16)


def test_a_long_request_has_most_of_the_cache() -> None:
    """vLLM: 1.17 requests of 131,072 tokens."""
    scheduler = Scenario.model_validate(gpt_oss(256)).scheduler
    pool = placed(gpt_oss(256))
    windows = 16 * (-(-(128 - 2 + 2048) // 16) + 1)
    assert pool.request_tokens(scheduler) == pool.kv_blocks(16) * 16 - windows
    assert pool.request_tokens(scheduler) / 131_072 == pytest.approx(1.17, abs=0.02)
    whole_prompts = scheduler.model_copy(update={"batching": "stage"})
    assert pool.request_tokens(whole_prompts) == pool.kv_blocks(16) // 2 * 16


def test_a_share_of_what_is_free_is_taken_last() -> None:
    """TensorRT-LLM's fraction is of what weights and the rest leave; vLLM's of all memory."""
    trtllm = {**card(memory_utilization=0.5), "costs": {"setting": "measured", "backend": "trtllm"}}
    all_of_it = {**card(memory_utilization=1.0), "costs": {"setting": "measured", "backend": "trtllm"}}
    assert tokens(trtllm) == pytest.approx(tokens(all_of_it) / 2, abs=1)
    vllm = {**card(memory_utilization=1.0), "costs": {"setting": "measured"}}
    assert tokens(all_of_it) == tokens(vllm)
    with pytest.raises(InputError, match="does not fit"):
        placed({**card(memory_utilization=0.5), "costs": {"setting": "measured"}})


@examples(25)
@given(blocks=st.integers(40, 400), size=st.integers(1, 4), every=st.integers(2, 9), parallel=st.sampled_from([1, 2]))
def test_a_replica_has_the_blocks_that_are_stated(blocks: int, size: int, every: int, parallel: int) -> None:
    """Also where a block is of fewer tokens than there are groups of layers, and one more token is several blocks."""
    document = {
        "model": {"preset": "gpt-oss-120b", "attention": {"window_every": every}},
        "cluster": {"device": "h100", "devices_per_node": 2 * parallel, "tensor_parallel": 2},
        "scheduler": {"kv_blocks": blocks, "block_size": size},
    }
    pool = placed(document)
    assert pool.kv_blocks(size) == blocks * parallel
    fewer = pool.kv_groups.pool_blocks(pool.kv_capacity_tokens - 1, size)
    assert fewer < blocks * parallel <= pool.kv_groups.pool_blocks(pool.kv_capacity_tokens, size)


def test_blocks_that_are_not_one_for_each_group_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"the KV cache has 1 blocks of 16 tokens, and a request needs 2, one for each"
    ):
        placed(gpt_oss(256, kv_blocks=1)).kv_blocks(16)


def test_padded_groups_count_in_what_an_ideal_device_does_not_reserve() -> None:
    """Of 37 layers 25 see everything, in three groups as large as that of the 12 with a window."""
    document = gpt_oss(256)
    document["model"] = {"preset": "gpt-oss-120b", "layers": 37, "attention": {"window_every": 3}}
    document["cluster"]["device"]["memory_gb"] = 74
    ideal = placed(document)
    kept = placed({**document, "costs": {"setting": "measured"}})
    (warning,) = ideal.replica.warnings
    told = int(warning.split("room for ")[1].split(", since")[0].replace(",", ""))
    assert told == pytest.approx(kept.kv_capacity_tokens, abs=1)


def test_a_request_as_long_as_the_limit_is_served_where_groups_do_not_divide_the_blocks() -> None:
    document = {
        "model": {"preset": "gpt-oss-120b", "attention": {"window_every": 4}},
        "cluster": {"device": "h100", "devices_per_node": 2},
        "scheduler": {"kv_blocks": 103, "max_num_batched_tokens": 64, "max_num_seqs": 8, "max_model_len": 480},
        "workload": {
            **SMALL,
            "lengths": {"input": {"kind": "fixed", "tokens": 470}, "output": {"kind": "fixed", "tokens": 10}},
        },
    }
    summary, _ = serve(prepare(Scenario.model_validate(document)))
    assert summary["requests"]["finished"] == 3
    document["scheduler"]["max_model_len"] = 481
    with pytest.raises(InputError, match=r"481 exceeds the 480 tokens that the KV cache holds for a request"):
        serve(prepare(Scenario.model_validate(document)))
