"""What a run's figures are: the sections of summary.json that the scheduler makes, with units and meanings.

The cluster adds what the replicas are (`cluster/run/summary_schema.py`). The order of fields is that of the file.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


def figure(unit: str, meaning: str) -> Any:  # noqa: ANN401 as pydantic's Field
    """A field that is a figure, in that unit."""
    return Field(description=meaning, json_schema_extra={"unit": unit})


def text(meaning: str) -> Any:  # noqa: ANN401 as pydantic's Field
    """A field that is no figure."""
    return Field(description=meaning)


class Section(BaseModel):
    """A part of the summary."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)

    def document(self) -> dict[str, Any]:
        """As JSON holds it; parts that do not apply to the run are absent."""
        return self.model_dump(exclude_unset=True)

    def set_parts(self) -> dict[str, Any]:
        """Its parts, by name, without those that do not apply."""
        return {name: part for name, part in self if name in self.model_fields_set}


Share = Annotated[float | int | None, figure("1", "share, from 0 to 1")]
Joules = Annotated[float | None, figure("J", "energy")]


class RejectedByReason(Section):
    """Requests that no replica can serve, by what they are too long for."""

    max_model_len: int = figure("requests", "whose prompt leaves no room for a token below max_model_len")
    kv_cache: int = figure("requests", "whose prompt leaves no room for a token in the KV cache of a replica")


class Requests(Section):
    """Requests of the whole run, but those that are measured."""

    total: int = figure("requests", "that arrived")
    finished: int = figure("requests", "that have all their tokens")
    rejected: int = figure("requests", "that no replica can serve")
    rejected_by_reason: RejectedByReason = text("these by reason")
    unfinished: int = figure("requests", "that the end of the run left waiting or running")
    truncated: int = figure("requests", "whose output was cut at max_model_len")
    preempted: int = figure("requests", "that were preempted, once or more often")
    preemptions: int = figure("preemptions", "of all requests")
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


class Distribution(Section):
    """Nearest-rank percentiles of exact samples; of ITL, of a histogram with bins of 2^-12 of their value."""

    mean: float | None = figure("s", "mean; null without samples")
    p50: float | None = figure("s", "median")
    p90: float | None = figure("s", "90th percentile")
    p99: float | None = figure("s", "99th percentile")
    n: int = figure("samples", "how many")


class OfRequests(Distribution):
    """A distribution over requests, of which the end of the run may have hidden some."""

    censored: int = figure("requests", "that are left out, for the run ended before it was known")


class Latencies(Section):
    """Latencies of requests that arrived in the measured window."""

    ttft: OfRequests = text("time to first token, from arrival; requests that had it")
    tpot: OfRequests = text("time per output token after the first; finished requests with two or more")
    itl: Distribution = text("inter-token latency, one sample per gap that ends in the window")
    e2e: OfRequests = text("from arrival to the last token; finished requests")
    queue: OfRequests = text("from arrival until first scheduled")


class HalfWidths(Section):
    """Half the widths of the intervals of a distribution."""

    mean: float | None = figure("s", "of the mean")
    p50: float | None = figure("s", "of the median")
    p90: float | None = figure("s", "of the 90th percentile")
    p99: float | None = figure("s", "of the 99th percentile")


class ThroughputIntervals(Section):
    """Of rates inside the measured window."""

    output_tokens_per_s: float | None = figure("tokens/s", "of output tokens")
    output_tokens_per_s_per_device: float | None = figure("tokens/s", "the same over the number of devices")


class LatencyIntervals(Section):
    """Of latencies of requests that arrived in the measured window."""

    ttft: HalfWidths = text("of time to first token")
    tpot: HalfWidths = text("of time per output token after the first")
    e2e: HalfWidths = text("of the time from arrival to the last token")


class SloIntervals(Section):
    """Of service-level objectives."""

    goodput_requests_per_s: float | None = figure("requests/s", "of requests that met all limits")


class EnergyIntervals(Section):
    """Of energy."""

    joules_per_output_token: float | None = figure("J/token", "of active and passive energy per output token")


class Ci95(Section):
    """Half the widths of 95 % confidence intervals by batch means, of the run's own noise; null: too few samples."""

    throughput: ThroughputIntervals = text("rates")
    latency_s: LatencyIntervals = text("latencies")
    slo: SloIntervals = text("objectives")
    energy: EnergyIntervals = text("energy")


class Slo(Section):
    """Service-level objectives. A request that the end of the run cut off is censored where a limit had not passed."""

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


class DramCompute(Section):
    """Energy by where it goes."""

    dram: float = figure("J", "moving data from and to DRAM")
    compute: float = figure("J", "multiplying and adding")


class Energy(Section):
    """Energy of all devices, whole run."""

    joules: float = figure("J", "active and passive")
    active_joules: float = figure("J", "of work")
    passive_joules: Joules = figure("J", "that devices draw whether they work or not; null: not known, or left out")
    joules_per_output_token: Joules = figure("J/token", "joules over tokens.output")
    active_joules_per_output_token: Joules = figure("J/token", "active_joules over tokens.output")
    passive_joules_per_output_token: Joules = figure("J/token", "passive_joules over tokens.output")
    joules_by_category: dict[str, DramCompute] = text("active energy by category of operators")
    tdp_joules_per_output_token: Joules = figure("J/token", "if the devices drew their TDP all the time")
    passive_power: str = text("counted; left out, as costs.passive_power asks; or not known of the devices")


class Batch(Section):
    """Steps of all replicas, whole run."""

    mean_requests: float | None = figure("requests", "in a step, mean over steps")
    steps: int = figure("steps", "executed")
    decode_only_share: Share = figure("1", "of steps, those without prompts")


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
    transfer_s: Distribution = text("on the link")
    link_busy_share: dict[str, Share] = text("of links of each pool")


class PoolsUse(Section):
    """Pools for prefill and decode."""

    prefill: PoolUse = text("replicas that compute prompts and emit the first token")
    decode: PoolUse = text("replicas that go on from there")
    handover: Handover = text("what goes from one to the other")


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


class StageThroughput(Section):
    """Rates while a stage lasted."""

    requests_per_s: float | None = figure("requests/s", "requests that finished")
    output_tokens_per_s: float | None = figure("tokens/s", "output tokens of these requests")


class StageLatencies(Section):
    """Latencies of requests that arrived in a stage."""

    ttft: OfRequests = text("time to first token, from arrival; requests that had it")
    tpot: OfRequests = text("time per output token after the first; finished requests with two or more")
    e2e: OfRequests = text("from arrival to the last token; finished requests")
    queue: OfRequests = text("from arrival until first scheduled")


class StageSlo(Section):
    """Limits of requests that arrived in a stage."""

    attainment: Share = figure("1", "of those of which it is known, the share that met all limits")
    censored: int = figure("requests", "those of which it is not")


class StageFigures(Section):
    """Of a rate series, from one step to the next; all of its stretches together where the series repeats.

    Only of the measured window, while requests arrive.
    """

    from_s: float = figure("s", "its begin in the series")
    to_s: float = figure("s", "its end in the series")
    rate_per_s: float = figure("requests/s", "mean rate of the series in it")
    time_s: float = figure("s", "how long it lasted in the window")
    requests: int = figure("requests", "that arrived in it")
    offered_requests_per_s: float | None = figure("requests/s", "requests over time_s")
    throughput: StageThroughput = text("rates")
    latency_s: StageLatencies = text("latencies")
    slo: StageSlo = text("service-level objectives")


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
    stages: list[StageFigures] | None = Field(None, description="with an arrival rate that steps, by stage")
