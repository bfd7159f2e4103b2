"""A model on devices: memory that is left for the KV cache, and the plan that results."""

from dataclasses import replace

import pytest

from pimserve.cluster.scenario.interconnect import Interconnect
from pimserve.cluster.scenario.placement import PlacedPool, place
from pimserve.device_models.catalogue import load_model, model_names
from pimserve.device_models.device import Demand
from pimserve.device_models.operators import (
    Experts,
    Gemm,
    Parallelism,
    kv_bytes_per_token_per_device,
    operators_of,
    weight_bytes_per_device,
)
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError

LINKS = Interconnect(link_gb_per_s=450, link_latency_us=3, node_gb_per_s=50, node_latency_us=5, dispatch_us=15)
ONE = Parallelism()


def placed(model: str, split: Parallelism = ONE, device: str = "h100", **changes: float | bool) -> PlacedPool:
    return place(load_device(device), LINKS, Demand(load_model(model), split, **changes))  # type: ignore[arg-type]


def test_the_kv_cache_gets_what_weights_leave() -> None:
    pool = placed("llama-3.1-8b", memory_utilization=0.9)
    weights = 8_030_261_248 * 2
    per_token = 2 * 32 * 8 * 128 * 2  # keys and values, 32 layers of 8 heads of 128 elements of 2 bytes
    assert pool.replica.weight_bytes_per_device == weights
    assert pool.kv_capacity_tokens == int((80 * 2**30 * 0.9 - weights) / per_token)


def test_tensor_parallel_devices_hold_a_share_of_both() -> None:
    one, four = placed("llama-3.1-8b"), placed("llama-3.1-8b", Parallelism(1, 4, 4))
    assert four.replica.weight_bytes_per_device == one.replica.weight_bytes_per_device / 4
    left_on_four = 80 * 2**30 * 0.9 - four.replica.weight_bytes_per_device
    assert four.kv_capacity_tokens == int(left_on_four / (131072 / 4))


def test_data_parallel_groups_have_a_cache_each() -> None:
    one, two = placed("llama-3.1-8b"), placed("llama-3.1-8b", Parallelism(1, 2, 1))
    assert two.kv_capacity_tokens == 2 * one.kv_capacity_tokens
    assert two.plan.data_parallel == 2


def test_more_devices_than_kv_heads_hold_copies() -> None:
    # 8 KV heads on 16 devices: one on each, every one twice.
    model = load_model("llama-3-70b")
    eight, sixteen = Parallelism(1, 8, 8), Parallelism(1, 16, 16)
    assert kv_bytes_per_token_per_device(model, sixteen) == kv_bytes_per_token_per_device(model, eight)
    # So are the weights that make them: 80 layers of keys and values of one head of 128.
    copies = weight_bytes_per_device(model, sixteen) - weight_bytes_per_device(model, eight) / 2
    assert copies == pytest.approx(80 * 2 * 128 * 8192 * 2 / 2)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("tensor", [1, 4, 8, 16])
def test_a_device_holds_at_least_what_its_operators_read(name: str, tensor: int) -> None:
    model, split = load_model(name), Parallelism(2, 8, tensor)
    try:
        operators = operators_of(model, split)
    except InputError:
        pytest.skip("heads do not divide")
    read = sum(op.layers * op.k * op.n * op.weight_bytes_per_element for op in operators if isinstance(op, Gemm))
    experts = [op for op in operators if isinstance(op, Experts)]
    read += sum(
        e.layers * e.experts / e.groups / e.slices * e.matrices * e.hidden * e.intermediate * e.weight_bytes_per_element
        for e in experts
    )
    assert read <= weight_bytes_per_device(model, split) <= model.weight_bytes


def test_windowed_layers_take_blocks_as_requests_come() -> None:
    model = load_model("gpt-oss-120b")
    none, many = placed("gpt-oss-120b", device="b200"), placed("gpt-oss-120b", device="b200", max_num_seqs=2**20)
    per_token = 2 * 8 * 64 * 2 * 18  # of either group of 18 layers
    assert model.kv_bytes_per_token == per_token
    assert none.kv_capacity_tokens == many.kv_capacity_tokens
    left = load_device("b200").memory_bytes * 0.9 - none.replica.weight_bytes_per_device
    assert none.kv_capacity_tokens == int(left / per_token)


def test_the_utilization_is_of_all_memory() -> None:
    some, all_of_it = placed("llama-3.1-8b", memory_utilization=0.5), placed("llama-3.1-8b", memory_utilization=1.0)
    assert (all_of_it.kv_capacity_tokens - some.kv_capacity_tokens) * 131072 == pytest.approx(
        40 * 2**30, abs=2 * 131072
    )


def test_what_does_not_fit_says_what_it_needs() -> None:
    with pytest.raises(InputError) as refused:
        placed("mixtral-8x7b")
    message = str(refused.value)
    assert message.startswith("cluster: mixtral-8x7b does not fit: weights take 93.4 GB of each device's")
    assert message.endswith("usable 77.3 GB (1 x h100); use more devices, more tensor parallelism or a smaller model")


def test_the_links_cost_is_added_to_the_devices_plan() -> None:
    split = Parallelism(1, 4, 4)
    plan = placed("llama-3.1-8b", split).plan
    links = [term for term in plan.rows if term.category == "communication"]
    assert [term.name for term in links] == ["all-reduce"]
    free = place(load_device("h100"), replace(LINKS, link_latency_us=0), Demand(load_model("llama-3.1-8b"), split))
    # Two all-reduces per layer, of 6 hops of 3 us.
    assert plan.rows_fs(1, 1, 0, 0) - free.plan.rows_fs(1, 1, 0, 0) == 2 * 32 * 6 * 3 * 10**9


def test_the_product_with_the_vocabulary_can_be_left_out() -> None:
    plan, without = placed("llama-3.1-8b").plan, placed("llama-3.1-8b", lm_head=False).plan
    assert {term.name for term in plan.rows} - {term.name for term in without.rows} == {"lm head"}
    assert plan.digest() != without.digest()


def test_devices_may_share_a_model_in_their_own_way() -> None:
    assert placed("llama-3.1-8b", Parallelism(1, 4, 4)).replica.parallelism == {
        "nodes": 1,
        "devices_per_node": 4,
        "tensor": 4,
        "experts": "ep",
    }
    chips = placed("mixtral-8x7b", Parallelism(1, 6, 6), "aimc-realistic").replica
    assert chips.parallelism == {"spread": "layers"}
    assert chips.facts["preset"] == "aimc-realistic"
    assert any("passive power is assumed" in warning for warning in chips.warnings)
