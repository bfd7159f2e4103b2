"""What a run's figures are: the sections of summary.json that the scheduler makes, with units and meanings.

The cluster adds what the replicas are (`cluster/run/summary_schema.py`). The order of fields is that of the file.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pimserve.scheduler.interval_sections import Ci95
from pimserve.scheduler.latency_sections import AtPercentile, Distribution, Latencies
from pimserve.scheduler.part_sections import ClassFigures, RouterFigures, StageFigures
from pimserve.scheduler.sections import Joules, Section, Share, figure, text
from pimserve.scheduler.tier_sections import KvTiersUse


class RejectedByReason(Section):
    """Requests that were rejected, by what they are too long for, or by what the replica was too busy for."""

    max_model_len: int = figure("requests", "whose prompt leaves no room for a token below max_model_len")
    kv_cache: int = figure("requests", "whose prompt leaves no room for a token in the KV cache of a replica")
    queue_full: int = figure("requests", "for which there was no room in the queue: max_queued_requests")
    predicted_ttft: int = figure("requests", "whose first token would have come too late: early_rejection")


class PreemptionsByCause(Section):
    """Preemptions, all as the KV cache was full when others grew, by what was done, and if the swap space was full."""

    recompute: int = figure("preemptions", "to compute all again, by setting, or as the prompt was not computed yet")
    swap: int = figure("preemptions", "by swap to host memory")
    swap_space_full: int = figure("preemptions", "to compute all again, as the swap space was full, too")


class Requests(Section):
    """Requests of the whole run, but those that are measured."""

    total: int = figure("requests", "that arrived")
    finished: int = figure("requests", "that have all their tokens")
    rejected: int = figure("requests", "that no replica can serve, or was free enough to serve")
    rejected_by_reason: RejectedByReason = text("these by reason")
    unfinished: int = figure("requests", "that the end of the run left waiting or running")
    truncated: int = figure("requests", "whose output was cut at max_model_len or at max_tokens")
    preempted: int = figure("requests", "that were preempted, once or more often")
    preemptions: int = figure("preemptions", "of all requests, as the KV cache was full when others grew")
    preemptions_by_cause: PreemptionsByCause = text("these by cause")
    swaps: int = figure("preemptions", "of these by swap to host memory; after the others all is computed again")
    measured: int = figure("requests", "that arrived in the measured window")
    measured_finished: int = figure("requests", "of these that finished")
    measured_unfinished: int = figure("requests", "of these that the end of the run left waiting or running")


class Window(Section):
    """The measured part of the run."""

    start_s: float = figure("s", "its start")
    end_s: float = figure("s", "its end; in a closed loop the earliest of all replicas")
    length_s: float = figure("s", "end_s - start_s")
    whole_run: bool = text("whether there is neither warm-up nor cool-down")


class Throughput(Section):
    """Rates inside the measured window."""

    requests_per_s: float | None = figure("requests/s", "requests that finished; null where none did, and none arrived")
    output_tokens_per_s: float | None = figure("tokens/s", "output tokens")
    output_tokens_per_s_per_device: float | None = figure("tokens/s", "the same over the number of devices")
    output_tokens_per_s_per_mm2: float | None = figure("tokens/s/mm2", "the same over silicon_mm2")


class Tokens(Section):
    """Tokens of the whole run, but `output_in_window`."""

    prompt: int = figure("tokens", "of prompts of requests that were not rejected")
    prompt_rejected: int = figure("tokens", "of prompts of those that were")
    output: int = figure("tokens", "emitted")
    output_in_window: int = figure("tokens", "of these in the measured window")


class Slo(Section):
    """Service-level objectives; with classes, each request counts by the limits of its own.

    A request that the end of the run cut off is censored where a limit had not passed.
    """

    limits: dict[str, Annotated[float, figure("s", "upper limit")]] = text("limits by name: ttft_s, tpot_s, e2e_s")
    met: dict[str, Share] = text("of the measured requests of which it is known, the share that met each limit")
    known: dict[str, Annotated[int, figure("requests", "known")]] = text(
        "measured requests of which it is known, by latency, and whether they met all limits (all)"
    )
    censored: dict[str, Annotated[int, figure("requests", "censored")]] = text("those of which it is not, likewise")
    attainment: Share = figure("1", "of the measured requests of which it is known, the share that met all limits")
    attainment_of_completed: Share = figure("1", "of those that finished, the share that met all limits")
    goodput_requests_per_s: float | None = figure(
        "requests/s", "measured requests that finished and met all limits; null without measured ones"
    )
    at_percentiles: dict[str, AtPercentile] | None = Field(
        None, description="limits at a percentile by name, such as ttft_p99_s; attainment knows nothing of them"
    )


class DramCompute(Section):
    """Energy by where it goes."""

    dram: float = figure("J", "moving data from and to DRAM")
    compute: float = figure("J", "multiplying and adding; of expert_rebalancing, programming crossbars")


class Energy(Section):
    """Energy of all devices, whole run."""

    joules: float = figure("J", "active and passive")
    active_joules: float = figure("J", "of work")
    passive_joules: Joules = figure("J", "that devices draw whether they work or not; null: not known, or left out")
    joules_per_output_token: Joules = figure("J/token", "joules over tokens.output")
    active_joules_per_output_token: Joules = figure("J/token", "active_joules over tokens.output")
    passive_joules_per_output_token: Joules = figure("J/token", "passive_joules over tokens.output")
    joules_by_category: dict[str, DramCompute] = text(
        "active energy by category of operators; expert_rebalancing: of bringing experts to where new layouts have them"
    )
    tdp_joules_per_output_token: Joules = figure("J/token", "if the devices drew their TDP all the time")
    passive_power: str = text("counted; left out, as costs.passive_power asks; or not known of the devices")


class Batch(Section):
    """Steps of all replicas, whole run."""

    mean_requests: float | None = figure("requests", "in a step, mean over steps")
    steps: int = figure("steps", "executed")
    decode_only_share: Share = figure("1", "of steps, those without prompts")
    group_wait_share: Share = Field(
        None,
        description="with data-parallel groups: of their time in steps, what they waited for the slowest, mean",
        json_schema_extra={"unit": "1"},
    )


class Kv(Section):
    """KV caches of all replicas, whole run."""

    capacity_tokens: int = figure("tokens", "that layers without windows hold; windows take blocks of the same pool")
    mean_use: Share = figure("1", "share in use, mean over time")
    peak_use: Share = figure("1", "largest share in use, of any replica")


class InSystem(Section):
    """Requests that wait or run, by which stability is judged."""

    at_last_arrival: int = figure("requests", "in the system when the last one arrived, itself too")
    waiting_at_last_arrival: int = figure("requests", "of these that waited")
    growth_per_arrival: float | None = figure(
        "requests", "by which the system grew with each arrival after the warm-up; null in a closed loop, or of too few"
    )
    residence_times: float | None = figure(
        "1", "how long requests arrived after the warm-up over the mean time in the system; null without any"
    )


class PoolUse(Section):
    """What a pool of replicas did, whole run."""

    replicas: int = figure("replicas", "copies of the model")
    devices: int = figure("devices", "of all replicas")
    busy_share: Share = figure("1", "share of time in which its replicas executed steps, mean")
    unit_busy_share: dict[str, Share] = text("by unit, mean over devices")
    unit_busy_share_of_busiest_device: dict[str, Share] = text("by unit, on the device where it is busiest")
    steps: int = figure("steps", "executed")
    mean_requests: float | None = figure("requests", "in a step, mean over steps")
    output_tokens: int = figure("tokens", "emitted")
    kv: Kv = text("its KV caches")
    joules: float = figure("J", "active and passive energy")
    active_joules: float = figure("J", "of work")
    passive_joules: Joules = figure("J", "passive energy; null: not known, or left out")


class Handover(Section):
    """KV caches on their way from prefill to decode replicas."""

    n: int = figure("hand-overs", "that ended")
    bytes: int = figure("B", "sent")
    held: int = figure("hand-overs", "that had to wait for room in a decode replica")
    lost: int = figure("hand-overs", "that began and that failures ended; in none of the other figures")
    waiting_s: Distribution = text("until the link was free")
    transfer_s: Distribution = text("on the link, after the first token")
    link_busy_share: dict[str, Share] = text("of links of each pool")
    overlapped_s: Distribution | None = Field(
        None, description="where caches leave layer by layer: from when one begins to until its prompt is computed"
    )


class ConditionalDisagg(Section):
    """Where prompts were computed that may be computed in either pool; of requests that came again, the last time."""

    remote: int = figure("requests", "that went to the prefill pool")
    short_prompt: int = figure("requests", "that stayed on decode replicas, as their prompts are short")
    prefill_queue: int = figure("requests", "that stayed there, as enough waited for the prefill pool")


class PoolsUse(Section):
    """Pools for prefill and decode."""

    prefill: PoolUse = text("replicas that compute prompts and emit the first token")
    decode: PoolUse = text("replicas that go on from there")
    handover: Handover = text("what goes from one to the other")
    conditional_disagg: ConditionalDisagg | None = Field(
        None, description="with cluster.pools.conditional_disagg: where prompts were computed"
    )


class SizeDecision(Section):
    """A pool gets more replicas, or fewer."""

    at_s: float = figure("s", "when that was decided")
    pool: str = text("of which pool; empty: of the only one")
    before: int = figure("replicas", "there, or starting")
    after: int = figure("replicas", "from then on")
    metric: float | None = figure(
        "1", "the metric: a mean over those before, or a latency over its limit; null: a change at a stated time"
    )


class Autoscaling(Section):
    """Replicas that joined and left while the run went on."""

    decisions: list[SizeDecision] = text("that changed a size, by time")
    replica_s: float = figure("s", "in which replicas were there, starting or finishing what they had, of all together")
    device_s: float = figure("s", "the same times the devices of a replica")
    mean_replicas: float | None = figure("replicas", "replica_s over the run's time")
    most_replicas: int = figure("replicas", "that were wanted at once, of all pools together")
    requeued: int = figure("requests", "that waited on replicas that left, or that faults lost, and were routed again")


class FaultThatTookPlace(Section):
    """A simulated fault."""

    at_s: float = figure("s", "when it began")
    replica: int = text("number of the replica")
    device: int = text("number of the device in its replica")
    kind: str = text("fail, slow or leave")
    for_s: float | None = figure("s", "how long; null: for good")
    factor: float | None = figure("1", "of slow ones, how many times as long steps took")
    took_effect_s: float | None = figure("s", "the end of the step that was under way; null: it changed nothing")
    step: int | None = text("the replica's next step then")


class Slowdown(Section):
    """From which step on a replica was slow."""

    replica: int = text("its number")
    first_step: int = text("first step")
    factor: float = figure("1", "how many times as long steps took")


class FaultFigures(Section):
    """Simulated faults, whole run."""

    events: list[FaultThatTookPlace] = text("those that took place")
    replicas_left: bool = text("whether in the end any replica, of each pool, took requests, or was to again")
    requeued: int = figure("requests", "that another replica took over")
    recomputed_tokens: int = figure("tokens", "of KV cache that were lost")
    down_replica_s: float = figure("s", "that replicas were down, together")
    availability: Share = figure("1", "share of time that replicas were up, mean")
    slowdowns: list[Slowdown] = text("steps that took longer")


class PrefixCache(Section):
    """Prefix caches of all replicas, over the whole run."""

    queried_tokens: int = figure("tokens", "looked up: of requests when they were admitted")
    hit_tokens: int = figure("tokens", "of these that were cached, and not computed")
    hit_ratio: float | None = figure("1", "hit_tokens / queried_tokens; null if nobody was admitted")
    evicted_blocks: int = figure("blocks", "of KV cache that were forgotten, as others needed them")
    cached_blocks: int = figure("blocks", "that can be found by their tokens when the run ends")
    preempted_queried_tokens: int = figure("tokens", "looked up by requests that came back after a preemption; apart")
    preempted_hit_tokens: int = figure("tokens", "of these that were cached, mostly what they had themselves")


class SpecDecode(Section):
    """Drafts of tokens that steps verified, of all replicas, over the whole run."""

    drafts: int = figure("requests", "decoding, in all steps together, that had drafts")
    draft_tokens: int = figure("tokens", "drafted")
    accepted_tokens: int = figure("tokens", "of these that became part of outputs")
    acceptance_rate: float | None = figure("1", "accepted_tokens / draft_tokens; null if nothing was drafted")
    mean_acceptance_length: float | None = figure(
        "tokens", "that a step gave a decoding request, its own one with them: 1 + accepted_tokens / drafts"
    )


class Swap(Section):
    """Preemption by swap on all replicas, over the whole run."""

    moved_bytes: float = figure("bytes", "of KV blocks that were copied to host memory and back, on all devices")
    waited_s: float = figure("s", "in which replicas computed nothing, as steps waited for these copies")
    space_bytes: float = figure("bytes", "of host memory for KV blocks of all devices")


class SessionFigures(Section):
    """Sessions of several turns, of the whole run; a turn that is rejected has ended as it arrived."""

    total: int = figure("sessions", "of which a turn has arrived")
    finished: int = figure("sessions", "of which all turns have ended")
    mean_turns: float | None = figure("requests", "turns of a session that have arrived, mean")
    most_turns: int = figure("requests", "of the session with most")
    duration_s: Distribution = text(
        "from the first turn's arrival, or from when it was due, until the last one's end, of those that finished"
    )


class Figures(Section):
    """The figures of a run."""

    requests: Requests = text("counts")
    window: Window = text("what was measured")
    offered_requests_per_s: float | None = figure("requests/s", "rate of arrivals; null in a closed loop")
    throughput: Throughput = text("rates")
    tokens: Tokens = text("counts")
    latency_s: Latencies = text("distributions, in seconds")
    slo: Slo = text("objectives")
    ci95: Ci95 = text("how far the main figures may be off by the run's own noise, at the places that they have here")
    energy: Energy = text("energy")
    batch: Batch = text("steps")
    kv: Kv = text("KV caches")
    time_share: dict[str, Share] = text("of the time of steps, by category of operators")
    unit_busy_share: dict[str, Share] = text("share of the run in which each unit worked, mean over devices")
    unit_busy_share_of_busiest_device: dict[str, Share] = text("the same on the device where the unit is busiest")
    busy_share: Share = figure("1", "share of the run in which replicas executed steps, mean")
    max_model_len: int = figure("tokens", "of the longest request that is served")
    end_s: float = figure("s", "when the last step ended, simulated; later where requests waited on without a step")
    stability: str = text("saturated, steady or too short to tell: whether what came was served")
    in_system: InSystem = text("requests that wait or run")
    digest: str = text("sha256 of all executed steps and requests: equal digests mean the same bits")
    pools: PoolsUse | None = Field(None, description="with pools for prefill and decode")
    faults: FaultFigures | None = Field(None, description="with simulated faults")
    autoscaling: Autoscaling | None = Field(None, description="with replicas that join and leave")
    stages: list[StageFigures] | None = Field(None, description="with an arrival rate that steps, by stage")
    sessions: SessionFigures | None = Field(None, description="with requests that follow on others")
    prefix_cache: PrefixCache | None = Field(None, description="with scheduler.enable_prefix_caching")
    kv_tiers: KvTiersUse | None = Field(None, description="with scheduler.kv_tiers")
    spec_decode: SpecDecode | None = Field(None, description="with scheduler.speculative")
    router: RouterFigures | None = Field(None, description="with several replicas, where a router sends requests")
    swap: Swap | None = Field(None, description="with scheduler.preemption: swap")
    client_queue_time_s: Distribution | None = Field(
        None,
        description="with a cap on requests in flight, how long those waited at the client that were sent; with one on "
        "active sessions, how long those that have begun waited for it",
    )
    classes: list[ClassFigures] | None = Field(
        None, description="with classes of requests, in their order; requests injected into the run have none"
    )
