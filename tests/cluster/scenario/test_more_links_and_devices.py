"""More of a resource never hurts: bandwidth of links, lower latency, and devices of a node.

Twice the devices of a tensor-parallel group, inside a node, never make a step slower for models of 9e9 weights per
token and more. It is no law below: there a second device can save less time than its two all-reduces a layer take. Nor
is it one for a second node, whose dispatch and combine have a fixed cost in every MoE layer. Tests below hold both.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.interconnect import Interconnect
from pimserve.cluster.scenario.placement import place
from pimserve.device_models.catalogue import device_names, load_model, model_names
from pimserve.device_models.device import Demand, Device, OperatorDevice
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.expert_picks import draw_counts, pick_probabilities
from pimserve.device_models.operators import Parallelism, operators_of
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError
from tests.examples import examples

DEVICES = [name for name in device_names() if isinstance(load_device(name), OperatorDevice)]
LAW_FROM = 9e9  # weights that a token uses
LARGE = [name for name in model_names() if load_model(name).active_parameters >= LAW_FROM]
# Nodes, devices per node, tensor parallelism.
LAYOUTS = [(1, 8, 8), (1, 8, 2), (1, 8, 1), (2, 8, 8), (2, 8, 4), (2, 8, 1), (2, 4, 8), (4, 2, 4)]


def links_of(device: Device, **settings: object) -> Interconnect:
    collectives = settings.pop("collectives", "best")
    return Scenario.model_validate({"cluster": settings, "costs": {"collectives": collectives}}).interconnect(device)


def communication_fs(links: Interconnect, model: str, split: Parallelism, tokens: int) -> int:
    terms = links.compile(operators_of(load_model(model), split), split)
    return sum(term.time_fs(tokens) for term in terms)


def layouts(model: str) -> list[Parallelism]:
    found = []
    for shape in LAYOUTS:
        for experts in ("ep", "tp"):
            split = Parallelism(*shape, experts)  # type: ignore[arg-type]
            try:
                operators_of(load_model(model), split)
            except InputError:
                continue
            found.append(split)
    assert found
    return found


@pytest.mark.parametrize("model", model_names())
@given(
    st.sampled_from(DEVICES),
    st.sampled_from(["forward", "direct", "per_pick"]),
    st.sampled_from(["best", "ring"]),
    st.integers(1, 20_000),
    st.floats(1, 100),
    st.data(),
)
@examples(15)
def test_faster_links_never_slow_a_step(model, device, way, collectives, tokens, factor, data):
    split = data.draw(st.sampled_from(layouts(model)))
    links = links_of(load_device(device), dispatch=way, collectives=collectives)
    before = communication_fs(links, model, split, tokens)
    for figure in (
        "link_gb_per_s",
        "node_gb_per_s",
        "link_latency_us",
        "node_latency_us",
        "dispatch_us",
        "one_shot_latency_us",
    ):
        now = getattr(links, figure)
        if now is not None:
            better = replace(links, **{figure: now * factor if figure.endswith("per_s") else now / factor})
            assert communication_fs(better, model, split, tokens) <= before
    assert communication_fs(links_of(load_device(device), dispatch=way), model, split, tokens) <= before


@pytest.mark.parametrize("model", [name for name in model_names() if load_model(name).moe])
def test_the_default_transport_crosses_least_between_nodes(model):
    ways = [links_of(load_device("h100"), dispatch=way) for way in ("forward", "direct")]
    for split in layouts(model):
        sent = [
            sum(
                each.bytes_per_row
                for each in links.traffic(operators_of(load_model(model), split), split)
                if (each.operator, each.link) == ("dispatch and combine", "inter_node")
            )
            for links in ways
        ]
        assert sent[0] <= sent[1] * (1 + 1e-12)


@cache
def plan(device: str, model: str, split: Parallelism, collectives: str = "best") -> CostPlan | None:
    """None where the model does not divide or fit."""
    made = load_device(device)
    try:
        return place(made, links_of(made, collectives=collectives), Demand(load_model(model), split)).plan
    except InputError:
        return None


@cache
def expert_counts(model: str, tokens: int) -> np.ndarray:
    moe = load_model(model).moe
    assert moe is not None
    picks = pick_probabilities(np.ones(moe.experts), moe.top_k)
    return draw_counts(np.random.default_rng(0), picks, tokens, 4)


def step_fs(cost: CostPlan, model: str, decodes: int, context: int, prompt: int) -> int:
    chunks = [(prompt, 0)] if prompt else []
    time = evaluate(cost, shape_of(cost, decodes, decodes * context, chunks, decodes + len(chunks))).duration_fs
    if cost.experts is not None:
        layers = cost.experts.layer_features(expert_counts(model, decodes + prompt))[:, 0]
        time += cost.experts.layers * int(layers.mean())
    return time


STEPS = st.tuples(st.integers(0, 256), st.integers(1, 8000), st.sampled_from([0, 1, 16, 64, 200, 512, 1024, 8192]))


@pytest.mark.parametrize("model", LARGE)
@given(st.sampled_from(DEVICES), st.sampled_from([1, 2, 4]), st.sampled_from(["ep", "tp"]), STEPS)
@examples(40)
def test_twice_the_devices_of_a_node_never_slow_a_step(model, device, devices, experts, step):
    decodes, context, prompt = step
    if not decodes + prompt:
        return
    few, many = (plan(device, model, Parallelism(1, n, n, experts)) for n in (devices, 2 * devices))
    if few is not None and many is not None:
        assert step_fs(many, model, decodes, context, prompt) <= step_fs(few, model, decodes, context, prompt)


def test_the_law_is_of_the_large_models_and_of_these():
    assert {"mixtral-8x7b", "glam-143b", "grok-1", "opt-66b", "llama-3-70b"} <= set(LARGE)  # of the Duplex paper
    small = set(model_names()) - set(LARGE)
    assert small == {
        *("gpt-oss-20b", "gpt-oss-120b", "gpt2-large", "gpt2-medium", "llama-3.1-8b", "megatron-1.2b", "qwen3-30b-a3b"),
        *("switch-like-2b", "switch-like-51b", "switch-like-7b"),
    }


def split_time(cost: CostPlan, model: str, step: tuple[int, int, int]) -> tuple[int, int]:
    """(everything but collectives, collectives) of a step, fs."""
    links = tuple(term for term in cost.rows if term.category == "communication")
    rest = replace(cost, rows=tuple(term for term in cost.rows if term not in links))
    whole, alone = step_fs(cost, model, *step), step_fs(rest, model, *step)
    return alone, whole - alone


@pytest.mark.parametrize(
    ("device", "model", "step"),
    [
        ("b200", "gpt2-medium", (1, 100, 0)),
        ("b200", "qwen3-30b-a3b", (1, 100, 0)),
        ("b200", "gpt-oss-120b", (1, 100, 0)),
    ],
)
def test_below_it_a_second_device_saves_less_than_its_all_reduces_take(device, model, step):
    one, two = (plan(device, model, Parallelism(1, n, n)) for n in (1, 2))
    assert one is not None
    assert two is not None
    (alone, none), (halved, reduces) = split_time(one, model, step), split_time(two, model, step)
    assert none == 0
    assert halved < alone  # what is computed gets faster,
    assert reduces > alone - halved  # and by less than this


def test_a_second_node_costs_a_dispatch_and_a_combine_in_every_layer():
    model = "qwen3-30b-a3b"
    one, two = (plan("h100", model, Parallelism(nodes, 8, 4)) for nodes in (1, 2))
    assert one is not None
    assert two is not None
    few, many = (1, 100, 0), (256, 8000, 0)
    assert step_fs(two, model, *few) > step_fs(one, model, *few)
    assert step_fs(two, model, *many) < step_fs(one, model, *many)
    fixed_fs = 2 * 48 * (15 - 3) * 10**9  # beside one hop inside a node
    assert split_time(two, model, few)[1] - split_time(one, model, few)[1] > 0.95 * fixed_fs
