"""What must be read beside the figures of a run, each in a sentence.

Requests turned away or cut off, saturation; what is not known of devices, or not like others; power; faults.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from pimserve.cluster.base.figures import WHY_REJECTED, count, figure, named, share
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.config import VTC, SchedulerSpec
from pimserve.scheduler.outcomes import ALL
from pimserve.scheduler.policy import BLIND_TO_PRIORITY, BUILT_IN_POLICIES, PRIORITY
from pimserve.scheduler.router_spec import PrefixRouterSpec
from pimserve.scheduler.stability import SATURATED, TOO_SHORT
from pimserve.scheduler.summary_sections import Autoscaling, ConditionalDisagg, Figures, InSystem, Requests

_CUT_OFF = 0.01  # share of the requests from which on their absence shows in a latency's tail
_IDLE = 0.5  # busy share of a pool below which few can have waited for it
_BACKLOG, _BACKLOG_SHARE = 10, 0.1  # waiting when the last one arrived: requests, and of those in the system


def caveats(figures: Figures, limits_tokens: Mapping[str, int]) -> Iterator[str]:
    """The sentences, gravest first.

    Args:
        figures: of a run.
        limits_tokens: most tokens of a request, by the reason for which longer ones are rejected.
    """
    requests = figures.requests
    if not requests.finished and requests.total:
        yield _nothing_finished(requests, _why_unfinished(figures))
    if requests.total and not requests.measured:
        yield "no request arrived in the measured window: latencies and SLO are of none"
    if requests.rejected:
        yield _rejected(figures, limits_tokens)
    if requests.measured_unfinished > _CUT_OFF * requests.measured:
        yield _cut_off(figures)
    if requests.truncated > _CUT_OFF * requests.measured:
        where = "at max_model_len, or what the KV cache holds if that is less, or at max_tokens"
        yield f"{requests.truncated} of {requests.measured} outputs were cut {where}"
    if figures.stability == SATURATED:
        yield _saturated(figures.in_system)
    elif figures.stability == TOO_SHORT and _backlog(figures.in_system):
        yield _too_short(figures.in_system)
    if figures.pools is not None and figures.pools.conditional_disagg is not None:
        yield from _split(figures.pools.conditional_disagg, figures.pools.prefill.busy_share)


def caveats_of_devices(figures: Figures, tdp_w: float | None, pools: Sequence[PlacedPool]) -> Iterator[str]:
    """What hangs on the devices: passive power and precision, more power than they are sold for, simulated faults.

    Args:
        figures: of a run.
        tdp_w: power at which all devices are sold, where it is known.
        pools: what it ran on.
    """
    energy, end_s = figures.energy, figures.end_s
    without = {each.label: each.plan.passive for pool in pools if pool.plan.passive is None for each in pool.members}
    if without and energy.passive_power != "left_out":
        unknown, beside = (
            " and ".join(label for label, passive in without.items() if (passive is None) == missing)
            for missing in (True, False)
        )
        too = f", and without that of {beside} in the same replicas" if beside else ""
        yield f"passive power of {unknown} is not known: the energy is without it{too}"
    held = [asdict(pool.replica.precision) for pool in pools]
    for key in held[0]:
        if any(types[key] != held[0][key] for types in held):
            yield f"{named(key)} of the pools differ in precision: {' and '.join(str(types[key]) for types in held)}"
    if tdp_w and end_s and energy.joules > tdp_w * end_s:  # no limit of power slows devices down here
        watts = energy.joules / end_s
        yield f"mean power, {watts:,.0f} W, exceeds the devices' TDP, {tdp_w:,.0f} W: real ones would slow down"
    if any(pool.plan.data_parallel > pool.plan.engine_cores for pool in pools):
        yield (
            "data-parallel groups share one queue, token budget and KV cache evenly, as experts have devices of their "
            "own: a long prompt leaves the others' devices idle"
        )
    if figures.autoscaling is not None and not _always_there(figures.autoscaling, pools):
        why = "replicas joined and left" if figures.autoscaling.decisions else "some replicas never joined"
        yield (
            f"{why}: busy shares, KV use, and output tokens/s per device and per mm2 are of all replicas and the whole "
            "run (autoscaling.device_s: how long devices were there)"
        )
    if figures.faults is not None:
        yield f"faults were simulated: {len(figures.faults.events)} took place"


def caveats_of_policy(scenario: Scenario) -> Iterator[str]:
    """What the order in which requests were admitted, and the router that sent them, leave out."""
    policy, classes = scenario.scheduler.policy, scenario.workload.classes or ()
    if policy in BLIND_TO_PRIORITY and len({each.priority for each in classes}) > 1:
        yield f"priorities of classes have no effect: scheduler.policy is {policy}"
    if policy != VTC and any(each.tenant_weight > 1 for each in classes):
        yield f"weights of tenants have no effect: scheduler.policy is {policy}"
    yield from _idle_keys_of_policies(scenario.scheduler)
    yield from _unseen_by_early_rejection(scenario.scheduler)
    # Of what is shared, and the same for all replicas, no router hears.
    router, tiers = scenario.scheduler.router, [tier for tier in scenario.scheduler.kv_tiers if not tier.shared]
    of_each = " of each replica" if scenario.scheduler.shares_tier else ""
    for key in router.idle_weights(len(tiers)) if isinstance(router, PrefixRouterSpec) else ():
        there = f"one tier{of_each}, {tiers[0].name}" if tiers else f"no tier{of_each}"
        yield f"scheduler.router.{key} has no effect: scheduler.kv_tiers has {there}"


_OF_POLICIES = {"ageing_s": PRIORITY, "input_token_weight": VTC, "output_token_weight": VTC}


def _idle_keys_of_policies(spec: SchedulerSpec) -> Iterator[str]:
    """Keys that were set, and that another built-in policy than that of the scenario goes by."""
    for key, policy in _OF_POLICIES.items():
        if spec.policy in BUILT_IN_POLICIES - {policy} and getattr(spec, key) != type(spec).model_fields[key].default:
            yield f"scheduler.{key} has no effect: it is of policy {policy}, and scheduler.policy is {spec.policy}"


def caveats_of_reserves(
    spec: SchedulerSpec, workload: Workload, pools: Sequence[PlacedPool], most_tokens: int
) -> Iterator[str]:
    """Requests that reserve all that one may have, as they do not declare less.

    Args:
        spec: scheduler settings.
        workload: with what requests declare.
        pools: what it ran on; the last one decodes.
        most_tokens: that a request may have.
    """
    if spec.kv_admission != "no_evict":
        return
    declared = np.zeros_like(workload.input_tokens) if workload.max_tokens is None else workload.max_tokens
    alike = int(((declared == 0) | (workload.input_tokens + declared >= most_tokens)).sum())
    cache = pools[-1].kv_cache(spec, most_tokens)
    blocks = cache.blocks_of(most_tokens, prompt=True)
    at_once = cache.blocks // blocks
    if alike and at_once < spec.max_num_seqs:
        undeclared = "no max_tokens" if not declared.any() else "no max_tokens, or more than fits"
        whose = "a replica" if pools[-1].plan.engine_cores == 1 else "a data-parallel group"
        yield (
            f"kv_admission: no_evict reserves {count(blocks)} of {count(cache.blocks)} KV blocks for each of the "
            f"{count(alike)} requests that declare {undeclared}: {whose} runs {count(at_once)} of them at once; set "
            "workload.max_tokens"
        )


def caveats_of_host_memory(spec: SchedulerSpec, pools: Sequence[PlacedPool], most_tokens: int) -> Iterator[str]:
    """Memory below the KV cache that is too small for anything; arguments as of `caveats_of_reserves`."""
    for pool in pools:
        cache = pool.kv_cache(spec, most_tokens)
        if cache.swap is not None and not cache.swap.blocks:
            yield (
                f"scheduler.swap_space_gb holds no KV block, which has {pool.block_bytes(spec.block_size) / 1e9:.3g} "
                "GB on a device: preempted requests are computed again"
            )
        for tier in () if cache.tiers is None else cache.tiers.all:
            if tier.capacity == 0:
                yield (
                    f"scheduler.kv_tiers: {tier.spec.name} holds no KV block, which has {tier.block_bytes / 1e9:.3g} GB"
                )


def caveats_of_prefixes(spec: SchedulerSpec, workload: Workload, pools: Sequence[PlacedPool]) -> Iterator[str]:
    """What prompts have in common, and is computed or sent all the same; or is not known."""
    if workload.prefixes is not None and not spec.enable_prefix_caching:
        yield "prompts begin alike, and all of each is computed: scheduler.enable_prefix_caching is false"
    if workload.prefixes is None and spec.enable_prefix_caching:
        yield "scheduler.enable_prefix_caching finds nothing: the workload does not say what prompts have in common"
    elif spec.enable_prefix_caching and len(pools) > 1:
        yield "KV caches are handed over whole, also what of them the decode replica has in its prefix cache"
    if spec.prefix_cache_retention_interval and not pools[0].kv_groups.windowed:  # 0 is what vLLM has by default
        yield (
            "scheduler.prefix_cache_retention_interval has no effect: no layer of the model has an attention window "
            "(vLLM refuses it)"
        )


def caveats_of_drafts(spec: SchedulerSpec, pools: Sequence[PlacedPool]) -> Iterator[str]:
    """What is assumed of drafts."""
    if spec.speculative is not None:
        yield (
            f"scheduler.speculative: that a step gives a request {spec.speculative.expected_tokens:.3g} tokens in the "
            "mean is assumed; ITL is from step to step, TPOT over all tokens"
        )
        if spec.speculative.method == "mtp":
            yield (
                "scheduler.speculative, method mtp: the layer that drafts is assumed to be like the model's last one, "
                "also where the model was published without such a layer"
            )
        if any(pool.groups and pool.draft_layers for pool in pools):
            yield (
                f"scheduler.speculative, method {spec.speculative.method}: what drafts is assumed to be on attention's "
                "devices as a whole, its routed experts with it"
            )


def _unseen_by_early_rejection(spec: SchedulerSpec) -> Iterator[str]:
    """That prompts wait for decodes, which the prediction of a TTFT leaves out; a declared rate may stand for steps of
    decodes between those of prompts, and none for the rest of a batch."""
    if not spec.early_rejection or spec.mixes:
        return
    if spec.batching == "decode_first":
        unseen = "prompts wait until all that decode have their last token: max_queued_requests bounds the queue"
    elif spec.prefill_tokens_per_s is None:
        unseen = "the rate that it sees is of steps of prompts, without those of decodes between: set a lower one, "
        unseen += "scheduler.prefill_tokens_per_s"
    else:
        return
    yield f"scheduler.early_rejection takes too many with batching: {spec.batching}: {unseen}"


def _always_there(scaled: Autoscaling, pools: Sequence[PlacedPool]) -> bool:
    """Whether every replica was there all the time."""
    replicas = sum(pool.replicas for pool in pools)
    return scaled.mean_replicas is None or (not scaled.decisions and math.isclose(scaled.mean_replicas, replicas))


def _why_unfinished(figures: Figures) -> str:
    """What happened to the requests that neither finished nor were rejected."""
    if figures.faults is None or figures.faults.replicas_left:
        return "were cut off by the end of the run"
    return "were never served to the end, as no replica was left to take requests"


def _nothing_finished(requests: Requests, why_unfinished: str) -> str:
    parts = ((requests.rejected, "were rejected"), (requests.unfinished, why_unfinished))
    total = count(requests.total)
    said = [f"{count(number)} of {total} {what}" for number, what in parts if number]
    return f"no request finished: {', '.join(said)}"


def _rejected(figures: Figures, limits_tokens: Mapping[str, int]) -> str:
    requests, tokens = figures.requests, figures.tokens
    of_tokens = share(tokens.prompt_rejected / (tokens.prompt + tokens.prompt_rejected))
    reasons = [
        f"{count(number)} {WHY_REJECTED[reason]}"
        + (f" ({count(limits_tokens[reason])} tokens)" if reason in limits_tokens else "")
        for reason, number in requests.rejected_by_reason
        if number
    ]
    return (
        f"{count(requests.rejected)} of {count(requests.total)} requests were rejected, with {of_tokens} of the "
        f"prompt tokens: {', '.join(reasons)}"
    )


def _cut_off(figures: Figures) -> str:
    unfinished, measured = figures.requests.measured_unfinished, figures.requests.measured
    said = (
        f"{count(unfinished)} of {count(measured)} measured requests ({share(unfinished / measured)}) "
        f"{_why_unfinished(figures)}: latencies leave out what is not known of them"
    )
    censored = figures.slo.censored.get(ALL)
    return said + (f", and SLO attainment {count(censored)} of them (censored)" if censored else "")


def _split(split: ConditionalDisagg, busy_share: float | None) -> Iterator[str]:
    """Where prompts were computed, if all were in one pool, or stayed for a queue that was none."""
    long, idle = split.remote + split.prefill_queue, busy_share is not None and busy_share < _IDLE
    rule = "cluster.pools.conditional_disagg"
    if not split.remote:
        yield f"{rule} sent no prompt to the prefill pool, whose replicas did nothing"
    elif not split.short_prompt + split.prefill_queue:
        yield f"{rule} kept no prompt on a decode replica: all went to the prefill pool"
    elif idle and split.prefill_queue > _CUT_OFF * long:
        yield (
            f"{rule} kept {count(split.prefill_queue)} longer prompts for the queue of a prefill pool that was busy "
            f"for {share(busy_share)} of the time: whoever is sent there counts as waiting until it reports "
            "(scheduler.report_interval_s); a shorter interval, or a longer max_prefill_queue_size, sends more there"
        )


def _backlog(in_system: InSystem) -> bool:
    """Whether so many wait that saturation is likely; ordinary short runs go without a warning."""
    waiting = in_system.waiting_at_last_arrival
    return waiting >= _BACKLOG and waiting > _BACKLOG_SHARE * in_system.at_last_arrival


def _too_short(in_system: InSystem) -> str:
    return (
        "too short to tell whether it is saturated: "
        f"{count(in_system.waiting_at_last_arrival)} of the {count(in_system.at_last_arrival)} requests in the "
        "system waited when the last one arrived; latencies may grow with the length of the run"
    )


def _saturated(in_system: InSystem) -> str:
    return (
        f"saturated: {count(in_system.at_last_arrival)} requests were in the system when the last one arrived, "
        f"{count(in_system.waiting_at_last_arrival)} of them waiting, and it kept "
        f"{figure(in_system.growth_per_arrival)} of each that arrived; latencies grow with the length of the run"
    )
