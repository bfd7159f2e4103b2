"""What summary.json holds: every field, its unit and its meaning, as a JSON Schema and for the reference page.

A run writes plain data; nothing is converted by these classes. Tests hold the summaries of runs of all kinds against
them, in both directions.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


def _figure(unit: str, meaning: str) -> Any:  # noqa: ANN401 as pydantic's Field
    return Field(description=meaning, json_schema_extra={"unit": unit})


def _text(meaning: str) -> Any:  # noqa: ANN401 as pydantic's Field
    return Field(description=meaning)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Share = Annotated[float | int | None, _figure("1", "share, from 0 to 1")]
Joules = Annotated[float | None, _figure("J", "energy")]


class RejectedByReason(_Part):
    """Requests that no replica can serve, by what they are too long for."""

    max_model_len: int = _figure("requests", "whose prompt leaves no room for a token below max_model_len")
    kv_cache: int = _figure("requests", "whose prompt leaves no room for a token in the KV cache of a replica")


class Requests(_Part):
    """Requests of the whole run, but those that are measured."""

    total: int = _figure("requests", "that arrived")
    finished: int = _figure("requests", "that have all their tokens")
    rejected: int = _figure("requests", "that no replica can serve")
    rejected_by_reason: RejectedByReason = _text("these by reason")
    unfinished: int = _figure("requests", "that the end of the run left waiting or running")
    truncated: int = _figure("requests", "whose output was cut at max_model_len")
    preempted: int = _figure("requests", "that were preempted, once or more often")
    preemptions: int = _figure("preemptions", "of all requests")
    measured: int = _figure("requests", "that arrived in the measured window")
    measured_finished: int = _figure("requests", "of these that finished")
    measured_unfinished: int = _figure("requests", "of these that the end of the run left waiting or running")


class Window(_Part):
    """The measured part of the run."""

    start_s: float = _figure("s", "its start")
    end_s: float = _figure("s", "its end; in a closed loop the earliest of all replicas")
    length_s: float = _figure("s", "end_s - start_s")
    whole_run: bool = _text("whether there is neither warm-up nor cool-down")


class Throughput(_Part):
    """Rates inside the measured window."""

    requests_per_s: float | None = _figure(
        "requests/s", "requests that finished; null where none did, and none arrived"
    )
    output_tokens_per_s: float | None = _figure("tokens/s", "output tokens")
    output_tokens_per_s_per_device: float | None = _figure("tokens/s", "the same over the number of devices")
    output_tokens_per_s_per_mm2: float | None = _figure("tokens/s/mm2", "the same over silicon_mm2")


class Tokens(_Part):
    """Tokens of the whole run, but `output_in_window`."""

    prompt: int = _figure("tokens", "of prompts of requests that were not rejected")
    prompt_rejected: int = _figure("tokens", "of prompts of those that were")
    output: int = _figure("tokens", "emitted")
    output_in_window: int = _figure("tokens", "of these in the measured window")


class Distribution(_Part):
    """Nearest-rank percentiles of exact samples; of ITL, of a histogram with bins of 2^-12 of their value."""

    mean: float | None = _figure("s", "mean; null without samples")
    p50: float | None = _figure("s", "median")
    p90: float | None = _figure("s", "90th percentile")
    p99: float | None = _figure("s", "99th percentile")
    n: int = _figure("samples", "how many")


class OfRequests(Distribution):
    """A distribution over requests, of which the end of the run may have hidden some."""

    censored: int = _figure("requests", "that are left out, for the run ended before it was known")


class Latencies(_Part):
    """Latencies of requests that arrived in the measured window."""

    ttft: OfRequests = _text("time to first token, from arrival; requests that had it")
    tpot: OfRequests = _text("time per output token after the first; finished requests with two or more")
    itl: Distribution = _text("inter-token latency, one sample per gap that ends in the window")
    e2e: OfRequests = _text("from arrival to the last token; finished requests")
    queue: OfRequests = _text("from arrival until first scheduled")


class HalfWidths(_Part):
    """Half the widths of the intervals of a distribution."""

    mean: float | None = _figure("s", "of the mean")
    p50: float | None = _figure("s", "of the median")
    p90: float | None = _figure("s", "of the 90th percentile")
    p99: float | None = _figure("s", "of the 99th percentile")


class ThroughputIntervals(_Part):
    """Of rates inside the measured window."""

    output_tokens_per_s: float | None = _figure("tokens/s", "of output tokens")
    output_tokens_per_s_per_device: float | None = _figure("tokens/s", "the same over the number of devices")


class LatencyIntervals(_Part):
    """Of latencies of requests that arrived in the measured window."""

    ttft: HalfWidths = _text("of time to first token")
    tpot: HalfWidths = _text("of time per output token after the first")
    e2e: HalfWidths = _text("of the time from arrival to the last token")


class SloIntervals(_Part):
    """Of service-level objectives."""

    goodput_requests_per_s: float | None = _figure("requests/s", "of requests that met all limits")


class EnergyIntervals(_Part):
    """Of energy."""

    joules_per_output_token: float | None = _figure("J/token", "of active and passive energy per output token")


class Ci95(_Part):
    """Half the widths of 95 % confidence intervals by batch means, of the run's own noise; null: too few samples."""

    throughput: ThroughputIntervals = _text("rates")
    latency_s: LatencyIntervals = _text("latencies")
    slo: SloIntervals = _text("objectives")
    energy: EnergyIntervals = _text("energy")


class Slo(_Part):
    """Service-level objectives. A request that the end of the run cut off is censored where a limit had not passed."""

    limits: dict[str, Annotated[float, _figure("s", "upper limit")]] = _text("limits by name: ttft_s, tpot_s, e2e_s")
    met: dict[str, Share] = _text("of the measured requests of which it is known, the share that met each limit")
    known: dict[str, Annotated[int, _figure("requests", "known")]] = _text(
        "measured requests of which it is known, by latency, and whether they met all limits (all)"
    )
    censored: dict[str, Annotated[int, _figure("requests", "censored")]] = _text("those of which it is not, likewise")
    attainment: Share = _figure("1", "of the measured requests of which it is known, the share that met all limits")
    attainment_of_completed: Share = _figure("1", "of those that finished, the share that met all limits")
    goodput_requests_per_s: float | None = _figure(
        "requests/s", "measured requests that finished and met all limits; null without measured ones"
    )


class DramCompute(_Part):
    """Energy by where it goes."""

    dram: float = _figure("J", "moving data from and to DRAM")
    compute: float = _figure("J", "multiplying and adding")


class Energy(_Part):
    """Energy of all devices, whole run."""

    joules: float = _figure("J", "active and passive")
    active_joules: float = _figure("J", "of work")
    passive_joules: Joules = _figure("J", "that devices draw whether they work or not; null: not known, or left out")
    joules_per_output_token: Joules = _figure("J/token", "joules over tokens.output")
    active_joules_per_output_token: Joules = _figure("J/token", "active_joules over tokens.output")
    passive_joules_per_output_token: Joules = _figure("J/token", "passive_joules over tokens.output")
    tdp_joules_per_output_token: Joules = _figure("J/token", "if the devices drew their TDP all the time")
    passive_power: str = _text("counted; left out, as costs.passive_power asks; or not known of the devices")
    joules_by_category: dict[str, DramCompute] = _text("active energy by category of operators")


class Batch(_Part):
    """Steps of all replicas, whole run."""

    mean_requests: float | None = _figure("requests", "in a step, mean over steps")
    steps: int = _figure("steps", "executed")
    decode_only_share: Share = _figure("1", "of steps, those without prompts")


class Kv(_Part):
    """KV caches of all replicas, whole run."""

    capacity_tokens: int = _figure("tokens", "that they hold together; attention windows take of the same memory")
    mean_use: Share = _figure("1", "share in use, mean over time")
    peak_use: Share = _figure("1", "largest share in use, of any replica")


class InSystem(_Part):
    """Requests that wait or run, by which stability is judged."""

    at_last_arrival: int = _figure("requests", "in the system when the last one arrived, itself too")
    waiting_at_last_arrival: int = _figure("requests", "of these that waited")
    growth_per_arrival: float | None = _figure(
        "requests", "by which the system grew with each arrival after the warm-up; null in a closed loop, or of too few"
    )
    residence_times: float | None = _figure(
        "1", "how long requests arrived after the warm-up over the mean time in the system; null without any"
    )


class Traffic(_Part):
    """Bytes that pass between devices of a replica."""

    operator: str = _text("what sends them")
    link: str = _text("intra_node or inter_node")
    per: str = _text("what they are counted per: token, or output")
    bytes: float = _figure("B", "sent by all devices of the replica for each of these")


class TraceRows(_Part):
    """Rows of the trace that was replayed."""

    read: int = _figure("rows", "of the file")
    dropped: dict[str, Annotated[int, _figure("rows", "not used")]] = _text("rows that were not used, by reason")


class Precision(_Part):
    """Data types in which devices hold the model."""

    weights: str = _text("of dense weights")
    routed_weights: str | None = Field(None, description="of routed experts' weights")
    kv_cache: str = _text("of the KV cache")


class Placed(_Part):
    """What a replica is: of the run, or of each pool."""

    device: str = _text("devices; names of both kinds where there are two")
    devices: int = _figure("devices", "of all replicas")
    replicas: int = _figure("replicas", "copies of the model")
    devices_per_replica: int = _figure("devices", "of one replica; of the first pool where there are two")
    parallelism: dict[str, Any] = _text("how the devices of a replica share the model")
    costs: dict[str, Any] = _text("setting of costs: ideal; or measured, with backend, version and what is projected")
    traffic: list[Traffic] = _text(
        "bytes between devices, by operator and link; of all-reduces those that a ring sends, whichever way their time "
        "is of"
    )
    plan_digest: str = _text("sha256 of the cost plan")
    weights_gb_per_device: float = _figure("GB", "weights on one device")
    reserved_gb_per_device: float = _figure("GB", "of one device's memory for neither weights nor KV cache")
    silicon_mm2: float | None = _figure("mm2", "silicon that computes, of all devices; null: not known of all")
    tdp_w: float | None = _figure("W", "power at which all devices are sold; null: not known of all")
    precision: Precision = _text("data types")
    device_facts: dict[str, Any] = _text("what devices say of themselves, units in the names (docs/aimc.md)")


class PoolFigures(Placed):
    """A pool of replicas, whole run."""

    busy_share: Share = _figure("1", "share of time in which its replicas executed steps, mean")
    unit_busy_share: dict[str, Share] = _text("by unit, mean over devices")
    unit_busy_share_of_busiest_device: dict[str, Share] = _text("by unit, on the device where it is busiest")
    steps: int = _figure("steps", "executed")
    mean_requests: float | None = _figure("requests", "in a step, mean over steps")
    output_tokens: int = _figure("tokens", "emitted")
    kv: Kv = _text("its KV caches")
    joules: float = _figure("J", "active and passive energy")
    active_joules: float = _figure("J", "of work")
    passive_joules: Joules = _figure("J", "passive energy; null: not known, or left out")


class Handover(_Part):
    """KV caches on their way from prefill to decode replicas."""

    n: int = _figure("hand-overs", "that ended")
    bytes: int = _figure("B", "sent")
    held: int = _figure("hand-overs", "that had to wait for room in a decode replica")
    waiting_s: Distribution = _text("until the link was free")
    transfer_s: Distribution = _text("on the link")
    link_busy_share: dict[str, Share] = _text("of links of each pool")


class Pools(_Part):
    """Pools for prefill and decode."""

    prefill: PoolFigures = _text("replicas that compute prompts and emit the first token")
    decode: PoolFigures = _text("replicas that go on from there")
    handover: Handover = _text("what goes from one to the other")


class FaultThatTookPlace(_Part):
    """A simulated fault."""

    at_s: float = _figure("s", "when it began")
    replica: int = _text("number of the replica")
    device: int = _text("number of the device in its replica")
    kind: str = _text("fail, slow or leave")
    for_s: float | None = _figure("s", "how long; null: for good")
    factor: float | None = _figure("1", "of slow ones, how many times as long steps took")
    took_effect_s: float | None = _figure("s", "the end of the step that was under way; null: it changed nothing")
    step: int | None = _text("the replica's next step then")


class Slowdown(_Part):
    """From which step on a replica was slow."""

    replica: int = _text("its number")
    first_step: int = _text("first step")
    factor: float = _figure("1", "how many times as long steps took")


class FaultFigures(_Part):
    """Simulated faults, whole run."""

    events: list[FaultThatTookPlace] = _text("those that took place")
    replicas_left: bool = _text("whether in the end any replica took requests, or was to again")
    requeued: int = _figure("requests", "that another replica took over")
    recomputed_tokens: int = _figure("tokens", "of KV cache that were lost")
    down_replica_s: float = _figure("s", "that replicas were down, together")
    availability: Share = _figure("1", "share of time that replicas were up, mean")
    slowdowns: list[Slowdown] = _text("steps that took longer")


class StageThroughput(_Part):
    """Rates while a stage lasted."""

    requests_per_s: float | None = _figure("requests/s", "requests that finished")
    output_tokens_per_s: float | None = _figure("tokens/s", "output tokens of these requests")


class StageLatencies(_Part):
    """Latencies of requests that arrived in a stage."""

    ttft: OfRequests = _text("time to first token, from arrival; requests that had it")
    tpot: OfRequests = _text("time per output token after the first; finished requests with two or more")
    e2e: OfRequests = _text("from arrival to the last token; finished requests")
    queue: OfRequests = _text("from arrival until first scheduled")


class StageSlo(_Part):
    """Limits of requests that arrived in a stage."""

    attainment: Share = _figure("1", "of those of which it is known, the share that met all limits")
    censored: int = _figure("requests", "those of which it is not")


class StageFigures(_Part):
    """Of a rate series, from one step to the next; all of its stretches together where the series repeats.

    Only of the measured window, while requests arrive.
    """

    from_s: float = _figure("s", "its begin in the series")
    to_s: float = _figure("s", "its end in the series")
    rate_per_s: float = _figure("requests/s", "mean rate of the series in it")
    time_s: float = _figure("s", "how long it lasted in the window")
    requests: int = _figure("requests", "that arrived in it")
    offered_requests_per_s: float | None = _figure("requests/s", "requests over time_s")
    throughput: StageThroughput = _text("rates")
    latency_s: StageLatencies = _text("latencies")
    slo: StageSlo = _text("service-level objectives")


class Simulator(_Part):
    """The simulator itself: the only wall-clock figures."""

    loop_s: float = _figure("s", "wall clock of the engine's loop")
    process_s: float = _figure("s", "wall clock since the process began")
    steps: int = _figure("steps", "simulated")
    requests: int = _figure("requests", "simulated")
    steps_per_s: float = _figure("steps/s", "over loop_s")
    requests_per_s: float = _figure("requests/s", "over loop_s")
    output_tokens_per_s: float = _figure("tokens/s", "over loop_s")
    peak_memory_mb: float = _figure("MB", "largest resident memory of the process")
    version: str = _text("of pimserve")
    python: str = _text("version")
    numpy: str = _text("version")
    ended_at: str = _text("when the run ended: ISO 8601, UTC")
    spread: dict[str, Any] | None = Field(None, description="of distributed runs: hosts, messages and audits")
    continued: bool | None = Field(None, description="with --checkpoint: whether the run went on from one")


class Summary(Placed):
    """summary.json."""

    schema_version: int = _text("of this document")
    name: str = _text("of the scenario")
    model: str = _text("name")
    seed: int = _text("of arrivals, lengths and routing")
    workload: str = _text("what was asked of the cluster, in words")
    trace_rows: TraceRows = _text("rows of a replayed trace")
    scenario_digest: str = _text("sha256 of the scenario with all defaults, and of its trace")
    requests: Requests = _text("counts")
    window: Window = _text("what was measured")
    offered_requests_per_s: float | None = _figure("requests/s", "rate of arrivals; null in a closed loop")
    throughput: Throughput = _text("rates")
    tokens: Tokens = _text("counts")
    latency_s: Latencies = _text("distributions, in seconds")
    ci95: Ci95 = _text("how far the main figures may be off by the run's own noise, at the places that they have here")
    slo: Slo = _text("objectives")
    energy: Energy = _text("energy")
    batch: Batch = _text("steps")
    kv: Kv = _text("KV caches")
    time_share: dict[str, Share] = _text("of the time of steps, by category of operators")
    unit_busy_share: dict[str, Share] = _text("share of the run in which each unit worked, mean over devices")
    unit_busy_share_of_busiest_device: dict[str, Share] = _text("the same on the device where the unit is busiest")
    busy_share: Share = _figure("1", "share of the run in which replicas executed steps, mean")
    max_model_len: int = _figure("tokens", "of the longest request that is served")
    end_s: float = _figure("s", "when the last step ended, simulated; later where requests waited on without a step")
    stability: str = _text("saturated, steady or too short to tell: whether what came was served")
    in_system: InSystem = _text("requests that wait or run")
    digest: str = _text("sha256 of all executed steps and requests: equal digests mean the same bits")
    warnings: list[str] = _text("what belongs with every figure of the run")
    pools: Pools | None = Field(None, description="with pools for prefill and decode")
    faults: FaultFigures | None = Field(None, description="with simulated faults")
    stages: list[StageFigures] | None = Field(None, description="with an arrival rate that steps, by stage")
    results: str = _text("the results folder")
    simulator: Simulator = _text("wall-clock figures")


def summary_schema() -> dict[str, Any]:
    """JSON Schema of summary.json; figures have their unit under `unit`, 1 for shares and ratios."""
    schema = Summary.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "pimserve summary"
    return schema
