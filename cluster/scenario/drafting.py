"""Speculative decoding on the devices of a pool: what drafts cost there, and what memory they take.

Where routed experts have devices of their own, a model that drafts is whole on those of attention, its experts too.
"""

from __future__ import annotations

from dataclasses import replace

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.interconnect import Interconnect
from pimserve.cluster.scenario.placement import PlacedPool, place
from pimserve.device_models.catalogue import model_of
from pimserve.device_models.device import Demand, Device, kv_pool_bytes_per_token
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import ALL_PARTS, weight_bytes_per_device
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.routing import ExpertPools, Routing
from pimserve.device_models.verifying import mtp_layer, with_draft_share, with_drafts
from pimserve.errors import InputError
from pimserve.scheduler.config import SchedulerSpec

WHERE = "scheduler.speculative"


def with_speculation(
    pool: PlacedPool, scenario: Scenario, device: Device, links: Interconnect, demand: Demand
) -> PlacedPool:
    """The pool with drafts in its steps, and in its memory; itself where nothing is drafted, as without attention.

    Raises:
        InputError: that is not modelled on these devices, or there is no room for the model that drafts.
    """
    spec = scenario.scheduler.speculative
    if spec is None or "attention" not in demand.parts:
        return pool
    _check(pool, demand, cached=scenario.scheduler.enable_prefix_caching)
    drafts, seed, groups = spec.num_speculative_tokens, scenario.run.seed, demand.split.data
    alone = _whole(replace(demand, verify_tokens=1))
    unlimited = scenario.scheduler.model_copy(update={"kv_blocks": None})
    if spec.draft_time_share is not None:
        if demand.parts != ALL_PARTS:
            raise InputError(
                f"{WHERE}.draft_time_share",
                "is not modelled with experts on devices of their own: use method mtp, or name the model that drafts",
            )
        plain = place(device, links, alone, unlimited).plan
        routing = scenario.routing.for_model(demand.model)
        share, most = drafts * spec.draft_time_share, groups * demand.max_num_seqs
        return replace(pool, plan=with_draft_share(pool.plan, plain, _pools(plain, routing, seed), share, most))
    if spec.method == "ngram":
        return pool
    where = WHERE if spec.method == "mtp" else f"{WHERE}.model"
    if spec.method == "mtp":
        model = mtp_layer(demand.model)
        weights, slots = demand.expert_weights[-1:], demand.expert_slots[-1:]
        routing = Routing(popularity="given", weights=weights) if weights else Routing()
    else:
        assert spec.model is not None
        model = model_of(spec.model, where)
        weights, slots, routing = (), (), Routing()
    if model.windowed_layers:
        raise InputError(where, f"{model.name} has layers with attention windows, which is not modelled")
    fitted = replace(alone, model=model, expert_weights=weights, expert_slots=slots)
    draft = _placed_beside(device, links, fitted, unlimited, demand.model.name, where)
    most = min(demand.max_step_tokens, scenario.scheduler.max_step_tokens(demand.model.max_model_len_tokens))
    plan = with_drafts(pool.plan, draft.plan, _pools(draft.plan, routing, seed), drafts, groups * most)
    token_bytes = model.attention.kv_elements * draft.replica.precision.kv_bits / 8 * model.layers
    pool = replace(pool, plan=plan, draft_layers=model.layers, draft_kv_bytes_per_token=token_bytes)
    return _beside(pool, demand, model, _weight_bytes(demand, fitted, mtp=spec.method == "mtp"), where)


def _placed_beside(
    device: Device, links: Interconnect, fitted: Demand, scheduler: SchedulerSpec, target: str, where: str
) -> PlacedPool:
    """The model that drafts, alone on the devices of its target.

    Raises:
        InputError: it does not go there.
    """
    try:
        return place(device, links, fitted, scheduler)
    except InputError as error:
        if error.where.partition(".")[0] != "cluster":
            raise
        why = error.message if error.where == "cluster" else str(error)
        raise InputError(where, f"cannot draft on the devices of {target}: {why}") from None


def _check(pool: PlacedPool, demand: Demand, *, cached: bool) -> None:
    name, plan = pool.label, pool.plan
    if plan.verify_tokens != demand.verify_tokens or plan.pipeline is not None:
        raise InputError(WHERE, f"is not modelled on devices of this kind ({name}); use a GPU or Duplex")
    if pool.kv_groups.windowed and cached:
        raise InputError(
            WHERE,
            f"is not modelled together with enable_prefix_caching for {demand.model.name}, which has attention "
            "windows: leave one of both out",
        )


def _pools(plan: CostPlan, routing: Routing, seed: int) -> ExpertPools | None:
    return None if plan.experts is None else ExpertPools(plan.experts, routing, seed)


def _whole(demand: Demand) -> Demand:
    """The same of all parts of a model, whose experts have no copies where the target's are elsewhere."""
    if demand.parts == ALL_PARTS:
        return demand
    return replace(demand, parts=ALL_PARTS, split=replace(demand.split, redundant_experts=0))


def _weight_bytes(demand: Demand, draft: Demand, *, mtp: bool) -> float:
    """Bytes of one device that the model which drafts takes; embedding and head of a layer of multi-token prediction
    are the target's, whose head may be elsewhere."""
    model, split = draft.model, draft.split
    whole = weight_bytes_per_device(model, split)
    if not mtp:
        return whole
    layer = weight_bytes_per_device(model.model_copy(update={"layers": 2}), split) - whole
    if "lm_head" in demand.parts:
        return layer
    return layer + whole - weight_bytes_per_device(model, split, ALL_PARTS - {"lm_head"})


def _beside(pool: PlacedPool, demand: Demand, model: ModelSpec, weight_bytes: float, where: str) -> PlacedPool:
    """The pool with a model that drafts beside the target: its weights, and its KV cache of the same tokens.

    Raises:
        InputError: there is no room for it.
    """
    split = demand.split
    per_token = kv_pool_bytes_per_token(demand.model, split)
    with_draft = per_token + kv_pool_bytes_per_token(model, split)

    def left(tokens: int) -> int:
        return int((tokens * per_token / split.data - weight_bytes) * split.data / with_draft)

    replica = replace(pool.replica, weight_bytes_per_device=pool.replica.weight_bytes_per_device + weight_bytes)
    if pool.kv_blocks_override is not None:
        most = pool.device.fit(replace(demand, memory_utilization=1.0, reserve_gb=0.0)).kv_capacity_tokens
        if left(most) < pool.kv_capacity_tokens:
            raise InputError(
                "scheduler.kv_blocks",
                f"beside {model.name}, which drafts, memory holds {max(0, left(most)):,} tokens of KV cache",
            )
        return replace(pool, replica=replica)
    tokens = left(pool.kv_capacity_tokens)
    if tokens < 1:
        raise InputError(
            where,
            f"no room for {model.name}, which drafts ({weight_bytes / 1e9:.1f} GB of each device), beside "
            f"{demand.model.name} and a KV cache for both ({split.devices} x {pool.label}); use more devices, more "
            "tensor parallelism, or drafts that take less memory",
        )
    return replace(pool, kv_capacity_tokens=tokens, replica=replica)
