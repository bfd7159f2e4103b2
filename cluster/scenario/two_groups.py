"""Replicas on groups of devices: attention with the KV cache on one, routed experts on another, or on two others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pimserve.cluster.scenario.device_groups import parts_in
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.expert_placement import expert_weights
from pimserve.cluster.scenario.group_link import GroupLink
from pimserve.cluster.scenario.one_group import place_experts, place_one
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.placement_spec import PlacementSpec
from pimserve.device_models.device import Precision
from pimserve.device_models.mixed_plan import mixed_plan
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.plan import FS_PER_S
from pimserve.device_models.rebalancing import placed_at
from pimserve.device_models.routing import ExpertPools, Routing
from pimserve.errors import InputError
from pimserve.scheduler.mixed_costs import make_costs

_WHERE = "cluster.placement"
_AUTO = (1, 2, 3, 4)  # micro-batches that are tried
_AUTO_BATCHES = tuple(2**power for power in range(13))  # decoding requests with which they are tried
Cuts = tuple[tuple[int, int], ...]  # as `MicroBatches` has them
_AUTO_CONTEXT = 2048  # tokens of each, at most


def place_two_groups(scenario: Scenario, model: ModelSpec, routing: Routing) -> PlacedPool:
    """Replicas with attention and experts on groups of their own.

    Raises:
        InputError: a group does not hold its part, or there are more micro-batches than requests.
    """
    spec = scenario.cluster.two_groups
    assert spec is not None
    attention = place_one(scenario, "attention", model, routing)
    experts = place_experts(scenario, model, routing)
    most = scenario.scheduler.max_num_seqs
    if spec.micro_batches != "auto" and spec.micro_batches > most:
        raise _too_many(spec.micro_batches, f"scheduler.max_num_seqs, the {most} requests of the largest batch", most)
    link = link_between(scenario, model, routing, attention, experts)
    if spec.micro_batches != "auto":
        return _joined(spec, link, attention, experts, ((1, spec.micro_batches),))
    try:
        cuts, tried = _tried(scenario, spec, link, attention, experts, routing)
    except OverflowError as error:  # an energy, as times are bounded
        raise InputError(f"{_WHERE}.experts.device", f"{error}; is the unit of an energy wrong?") from None
    pool = _joined(spec, link, attention, experts, cuts)
    placement = {**pool.replica.facts["placement"], "micro_batches_auto": tried}
    return replace(pool, replica=replace(pool.replica, facts={**pool.replica.facts, "placement": placement}))


def check_filled(scenario: Scenario, *, dealt_out: bool) -> None:
    """Refuse more micro-batches than the workload has requests that decode at once on a replica: some would always be
    empty then.

    Args:
        scenario: with attention and experts on groups of their own.
        dealt_out: whether users of a closed loop stay with a replica each.

    Raises:
        InputError: there are.
    """
    spec, workload, replicas = scenario.cluster.two_groups, scenario.workload, scenario.cluster.replicas
    assert spec is not None
    if spec.micro_batches == "auto":
        return
    for key, at_once in (("concurrency", workload.concurrency), ("max_concurrency", workload.max_concurrency)):
        if at_once is None:
            continue
        over = replicas if key == "concurrency" and dealt_out else 1
        most = -(-at_once // over)
        if spec.micro_batches > most:
            said = f"{at_once} over {over} replicas, {most} at once on one" if over > 1 else f"{at_once} at once"
            remedy = f", or workload.{key} of {spec.micro_batches * over} or more"
            raise _too_many(spec.micro_batches, f"workload.{key}, {said}", most, remedy)


def _too_many(micro_batches: int, exceeds: str, most: int, remedy: str = "") -> InputError:
    return InputError(
        f"{_WHERE}.micro_batches", f"{micro_batches} exceeds {exceeds}: use at most {most}, or auto{remedy}"
    )


def link_between(
    scenario: Scenario,
    model: ModelSpec,
    routing: Routing,
    attention: PlacedPool,
    experts: PlacedPool,
    epoch: int = 0,
) -> GroupLink:
    """The link between the groups of a replica of the scenario's only pool, after so many steps of the drift."""
    spec, seed, term = scenario.cluster.two_groups, scenario.run.seed, experts.plan.experts
    assert spec is not None
    assert term is not None
    weights, slots = expert_weights(model, routing, seed, epoch), placed_at(term, routing, seed, epoch).slots
    return GroupLink.of(spec.link, model, attention, experts, spec.on_experts, weights, slots)


def _tried(
    scenario: Scenario,
    spec: PlacementSpec,
    link: GroupLink,
    attention: PlacedPool,
    experts: PlacedPool,
    routing: Routing,
) -> tuple[Cuts, dict[str, Any]]:
    """(how steps are cut by their tokens, the step times that this is from).

    Tried are batches of decoding requests up to the largest that scheduler and KV cache allow, with one exact draw of
    the experts each. The number with the shortest step, the smallest of these, is taken up to the next batch.
    """
    seed, (full, context) = scenario.run.seed, full_batch(scenario, attention)
    batches = [*(requests for requests in _AUTO_BATCHES if requests < full), full]
    steps_s: dict[int, dict[int, float]] = {requests: {} for requests in batches}
    outcomes: ExpertPools | None = None
    for number in _AUTO:
        plan = _joined(spec, link, attention, experts, ((1, number),)).plan
        assert plan.experts is not None
        outcomes = outcomes or ExpertPools(plan.experts, routing, seed)
        costs = make_costs(plan, outcomes, replica=0, seed=seed, exact=True)
        for requests in batches:
            if number <= requests:
                span = costs.decode_span(0, requests, requests * context, 1)
                steps_s[requests][number] = span.duration_fs(1) / FS_PER_S
    best = [min(steps_s[requests], key=steps_s[requests].__getitem__) for requests in batches]
    sizes = [1, *(scenario.scheduler.verify_tokens * requests for requests in batches[1:])]
    changes = [place == 0 or number != best[place - 1] for place, number in enumerate(best)]
    cuts = tuple(cut for cut, change in zip(zip(sizes, best, strict=True), changes, strict=True) if change)
    table = {str(requests): {str(m): seconds for m, seconds in times.items()} for requests, times in steps_s.items()}
    return cuts, {"context_tokens": context, "step_s": table}


def full_batch(scenario: Scenario, pool: PlacedPool) -> tuple[int, int]:
    """(requests, context of each) of the largest batch with which something is tried that is left open."""
    context = min(_AUTO_CONTEXT, pool.request_tokens(scenario.scheduler))
    held = pool.kv_tokens(scenario.scheduler.block_size) // context
    return max(1, min(scenario.scheduler.max_num_seqs, held)), context


def _joined(spec: PlacementSpec, link: GroupLink, attention: PlacedPool, experts: PlacedPool, cuts: Cuts) -> PlacedPool:
    """Both groups as one pool."""
    plan = mixed_plan(
        link.model,
        attention.plan,
        experts.plan,
        link.terms(),
        link.routed,
        on_experts=spec.on_experts,
        cuts=cuts,
    )
    own, other = attention.replica, experts.replica
    facts: dict[str, Any] = {
        **own.facts,
        "placement": {
            "micro_batches": max(number for _, number in cuts),
            "micro_batches_by_tokens": cuts,
            "on_experts": sorted(spec.on_experts),
            "link": link.facts(),
            "experts": dict(other.facts),
        },
    }
    replica = replace(
        own,
        precision=_precision(spec, link.model, own.precision, other.precision),
        facts=facts,
        warnings=tuple(dict.fromkeys((*own.warnings, *other.warnings))),
        traffic=(*own.traffic, *other.traffic, *link.traffic()),
    )
    return replace(
        attention,
        plan=plan,
        label=f"{attention.label} + {experts.label}",
        devices_per_replica=attention.devices_per_replica + experts.devices_per_replica,
        replica=replica,
        groups=(attention, experts),
    )


def _precision(spec: PlacementSpec, model: ModelSpec, attention: Precision, experts: Precision) -> Precision:
    """In what both groups hold the model: dense weights in the data types of all that have some."""
    held = [attention.weights]
    if set(parts_in(model, spec.on_experts)) != {"routed_experts"}:
        held.append(experts.weights)
    return replace(attention, weights=" + ".join(dict.fromkeys(held)), routed_weights=experts.routed_weights)
