"""What summary.json holds: every field, its unit and its meaning, as a JSON Schema and for the reference page.

A run builds its summary of these; `scheduler/summary_sections.py` has the sections that the scheduler makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, SkipValidation

from pimserve.cluster.run.group_schema import Groups
from pimserve.scheduler.fleet import DECODE, PREFILL
from pimserve.scheduler.sections import Section, figure, text
from pimserve.scheduler.summary_sections import Figures, PoolsUse, PoolUse

SCHEMA_VERSION = 2


class Traffic(Section):
    """Bytes that pass between devices of a replica."""

    operator: str = text("what sends them")
    link: str = text("intra_node, inter_node, or between_groups")
    per: str = text("what they are counted per: token, or output")
    # A whole number stays one.
    bytes: SkipValidation[float] = figure("B", "sent by all devices of the replica for each of these")


class TraceRows(Section):
    """Rows of the trace that was replayed."""

    read: int = figure("rows", "of the file; little more than max_requests, where that is given")
    dropped: dict[str, Annotated[int, figure("rows", "not used")]] = text("rows that were not used, by reason")


class Precision(Section):
    """Data types in which devices hold the model."""

    weights: str = text("of dense weights")
    routed_weights: str | None = Field(None, description="of routed experts' weights")
    kv_cache: str = text("of the KV cache")


class Sharing(Section):
    """How the devices of a replica share the model."""

    devices_per_replica: int = figure("devices", "of one replica; of the first pool where there are two")
    parallelism: dict[str, Any] = text("how the devices of a replica share the model")
    costs: dict[str, Any] = text("setting of costs: ideal; or measured, with backend, version and what is projected")
    traffic: list[Traffic] = text(
        "bytes between devices, by operator and link; of all-reduces those that a ring sends, whichever way their time "
        "is of"
    )


class Holding(Section):
    """What a replica costs, and what its devices hold."""

    plan_digest: str = text("sha256 of the cost plan")
    weights_gb_per_device: float = figure(
        "GB", "weights on one device; where experts have devices of their own, on one of the others"
    )
    reserved_gb_per_device: float = figure("GB", "of one device's memory for neither weights nor KV cache")
    silicon_mm2: float | None = figure("mm2", "silicon that computes, of all devices; null: not known of all")
    tdp_w: float | None = figure("W", "power at which all devices are sold; null: not known of all")
    precision: Precision = text("data types")
    device_facts: dict[str, Any] = text(
        "what devices say of themselves, units in the names (docs/aimc.md); of the same ones"
    )
    groups: Groups | None = Field(
        None, description="with routed experts on devices of their own; of the first pool where there are two"
    )


class Named(Section):
    """What the devices are."""

    device: str = text("devices; names of both kinds where there are two")


class PoolFigures(PoolUse, Holding, Sharing, Named):
    """A pool of replicas, whole run."""


class Pools(PoolsUse):
    """Pools for prefill and decode."""

    prefill: PoolFigures = text("replicas that compute prompts and emit the first token")
    decode: PoolFigures = text("replicas that go on from there")


class Simulator(Section):
    """The simulator itself: the only wall-clock figures."""

    loop_s: float = figure("s", "wall clock of the engine's loop")
    process_s: float = figure("s", "wall clock since the process began")
    steps: int = figure("steps", "simulated")
    requests: int = figure("requests", "simulated")
    steps_per_s: float = figure("steps/s", "over loop_s")
    requests_per_s: float = figure("requests/s", "over loop_s")
    output_tokens_per_s: float = figure("tokens/s", "over loop_s")
    peak_memory_mb: float = figure("MB", "largest resident memory of the process")
    version: str = text("of pimserve")
    python: str = text("version")
    numpy: str = text("version")
    plugins: dict[str, Any] | None = Field(
        None, description="packages, with versions, of devices and routers that are not pimserve's own, by entry point"
    )
    trace_sha256: str | None = Field(None, description="sha256 of the file of the trace that was replayed")
    ended_at: str = text("when the run ended: ISO 8601, UTC")
    spread: dict[str, Any] | None = Field(None, description="of distributed runs: hosts, messages and audits")
    continued: bool | None = Field(None, description="with --checkpoint: whether the run went on from one")


class Cluster(Section):
    """What ran, and on how much."""

    schema_version: int = text("of this document")
    name: str = text("of the scenario")
    model: str = text("name")
    device: str = text("devices; names of both kinds where there are two")
    devices: int = figure("devices", "of all replicas")
    replicas: int = figure("replicas", "copies of the model")
    policy: str | None = Field(
        None, description="of the queue, by which requests were admitted (scheduler.policy); queue times are of it"
    )


class Origin(Section):
    """Where the requests came from."""

    seed: int = text("of arrivals, lengths and routing")
    workload: str = text("what was asked of the cluster, in words")
    trace_rows: TraceRows = text("rows of a replayed trace")
    scenario_digest: str = text("sha256 of the scenario with all defaults, and of its trace")


class ServedSummary(Figures, Holding, Origin, Sharing, Cluster):
    """The summary of a run that is over."""

    pools: Pools | None = Field(None, description="with pools for prefill and decode")
    warnings: list[str] = text("what belongs with every figure of the run")

    def by_pool(self) -> Mapping[str, PoolFigures | ServedSummary]:
        """What its replicas are, by pool; under the empty name where there are no pools."""
        return {"": self} if self.pools is None else {PREFILL: self.pools.prefill, DECODE: self.pools.decode}


class UnwrittenSummary(ServedSummary):
    """The summary of a run whose results are not in place."""

    simulator: Simulator = text("wall-clock figures")


class Summary(UnwrittenSummary):
    """summary.json."""

    results: str = text("the results folder")


def summary_schema() -> dict[str, Any]:
    """JSON Schema of summary.json; figures have their unit under `unit`, 1 for shares and ratios."""
    schema = Summary.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "pimserve summary"
    return schema
