"""The scenario document: model, cluster, costs, scheduler, routing, workload, SLO, run, output and faults.

One pydantic schema gives the checks, their messages and the JSON Schema. Units stand in the field names, or in the
value ("400 GB/s").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pimserve.cluster.scenario.cluster_fields import Entry
from pimserve.cluster.scenario.cluster_spec import ClusterSpec, PoolSpec
from pimserve.cluster.scenario.descriptions import read_yaml, with_descriptions, with_trace_beside
from pimserve.cluster.scenario.interconnect import Interconnect
from pimserve.cluster.scenario.length_files import with_length_files
from pimserve.cluster.scenario.number_tables import with_tables
from pimserve.cluster.scenario.placement_spec import GROUP_NAMES, GroupName
from pimserve.cluster.scenario.routing_spec import RoutingSpec
from pimserve.cluster.scenario.unread_files import UnreadFiles
from pimserve.device_models.catalogue import model_of, no_truth_for_a_number, parse_document
from pimserve.device_models.device import Device, ExpertDecision
from pimserve.device_models.kernels import Backend
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError, shortened, together, tried, validation_error
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.traces import find_trace, format_of
from pimserve.loadgen.workload import WorkloadSpec, parse_trace_argument
from pimserve.quantity import PositiveSeconds, Seconds
from pimserve.scheduler.autoscaling import AutoscalingSpec
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.faults import FaultSpec
from pimserve.scheduler.fleet import DECODE, PREFILL
from pimserve.scheduler.percentiles import PERCENTILES, Percent

MOST_DEVICES = 1024  # of a node that are tried where their number is left open
_POOLS_REPORT_S = 0.1


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CostSpec(_Section):
    """Whether devices are ideal or as measured, and what counts beside the layers themselves."""

    setting: Literal["ideal", "measured"] = Field(
        "ideal",
        description="ideal: datasheet and the papers' constants; measured: kernels and host as timed with a backend",
    )
    backend: Backend | None = Field(None, description="with setting: measured, whose kernels; default: vllm")
    kernels: dict[str, Any] | None = Field(
        None,
        description="with setting: measured, changes to the kernels of the catalogue, such as {step: {host_us: 300}}",
    )
    lm_head: bool = Field(True, description="the product with the vocabulary (the Duplex paper leaves it out)")
    expert_decision: ExpertDecision = Field(
        "exact",
        description="who runs what on devices with two units: exact, as their times say, never slower than either "
        "alone; paper_table, by the Duplex paper's table for experts and its choice for attention",
    )
    passive_power: bool = Field(
        True, description="energy that devices draw whether they work or not (the Duplex paper leaves it out)"
    )
    collectives: Literal["best", "ring"] = Field(
        "best",
        description="with setting: ideal, all-reduces inside a node; best: as a ring, in one shot or in two, what is "
        "fastest for the size; ring: as a ring, as the Duplex paper has it",
    )

    @model_validator(mode="after")
    def _backend_is_measured(self) -> Self:
        if self.setting == "measured" and self.collectives == "ring":
            raise ValueError("collectives: ring goes with setting: ideal; measured ones take the fastest algorithm")
        for key, value in (("backend", self.backend), ("kernels", self.kernels)):
            if self.setting == "ideal" and value is not None:
                raise ValueError(f"{key} goes with setting: measured")
        return self

    @property
    def measured_with(self) -> Backend | None:
        """The backend whose measurements count; None for ideal devices."""
        return None if self.setting == "ideal" else self.backend or "vllm"


class RunSpec(_Section):
    """Seed, what part of the run is measured, and when it stops."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="of arrivals, lengths and routing of experts")
    warmup_s: Seconds = Field(0.0, description="requests that arrive earlier are not measured")
    cooldown_s: Seconds = Field(
        0.0, description="nor those that arrive in this time before the last arrival (open loop)"
    )
    max_time_s: PositiveSeconds | None = Field(
        None,
        description="simulated time after which no step starts; requests then unfinished have "
        "missed the limits that have passed, and are censored for the others",
    )


class OutputSpec(_Section):
    """What the results folder holds, and of which percentiles results tell."""

    steps: bool = Field(True, description="write steps.npy, the per-step table")
    percentiles: Annotated[tuple[Percent, ...], Field(min_length=1, max_length=20)] = Field(
        PERCENTILES, description="of latencies, in per cent, such as [50, 95, 99, 99.9]"
    )

    @field_validator("percentiles")
    @classmethod
    def _ascending(cls, percentiles: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(percentiles)))


def _or_null(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"$ref": schema.pop("$ref")}, {"type": "null"}]


class Scenario(_Section):
    """A model, the cluster that serves it, and the traffic."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field(
        "default", description="of the run, and of its results folder"
    )
    model: Entry = Field(
        "mixtral-8x7b",
        description="a model of the catalogue, or a YAML file (looked for in the scenario's folder, then in the "
        "working folder), or {preset: either, ...changes}, or a full description",
    )
    cluster: ClusterSpec = ClusterSpec()
    costs: CostSpec = CostSpec()
    scheduler: SchedulerSpec = SchedulerSpec()
    routing: RoutingSpec = RoutingSpec()
    workload: WorkloadSpec = Field(default_factory=lambda: WorkloadSpec.model_validate({}))
    slo: Annotated[SloSpec, BeforeValidator(lambda given: {} if given is None else given)] = Field(
        SloSpec(), description="limits of latencies; null: none", json_schema_extra=_or_null
    )
    run: RunSpec = RunSpec()
    output: OutputSpec = OutputSpec()
    faults: FaultSpec | None = None
    autoscaling: AutoscalingSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _pools_report(cls, document: object) -> object:
        if not isinstance(document, Mapping):
            return document
        cluster, scheduler = document.get("cluster"), document.get("scheduler", {})
        if not isinstance(cluster, Mapping) or cluster.get("pools") is None or not isinstance(scheduler, Mapping):
            return document
        return {**document, "scheduler": {"report_interval_s": _POOLS_REPORT_S, **scheduler}}

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the pools; requests come to the first one."""
        return ("",) if self.cluster.pools is None else (PREFILL, DECODE)

    def of_pool(self, name: str) -> Scenario:
        """The scenario as if the replicas of that pool were all there are."""
        if not name and self.cluster.pools is None:
            return self
        if self.cluster.pools is None or name not in self.pools:
            raise InputError("cluster.pools", f"there is no pool {name!r}")
        pool: PoolSpec = getattr(self.cluster.pools, name)
        changes = {key: value for key in PoolSpec.model_fields if (value := getattr(pool, key)) is not None}
        cluster = self.cluster.model_copy(update={**changes, "pools": None})
        return self.model_copy(update={"cluster": cluster})

    def of_group(self, group: GroupName) -> Scenario:
        """The scenario as if the devices of one of its groups were all that a replica has."""
        return self.model_copy(update={"cluster": self.cluster.of_group(group)})

    def load_model(self) -> ModelSpec:
        """The model, from the catalogue or as described."""
        return model_of(self.model, "model")

    def load_device(self) -> Device:
        """The device, from the catalogue or as described."""
        document = self.cluster.device
        try:
            device = load_device(document, "cluster.device")
        except InputError as error:
            if error.where.startswith("device"):  # the catalogue does not know where its names were asked for
                raise InputError(f"cluster.{error.where}", error.message) from None
            raise
        if not isinstance(document, str):
            no_truth_for_a_number("cluster.device", document, device.spec)
        return device

    def interconnect(self, device: Device) -> Interconnect:
        """Links between the devices."""
        cluster = self.cluster
        return Interconnect(
            link_gb_per_s=device.spec.link_gb_per_s,
            link_latency_us=device.spec.link_latency_us,
            one_shot_latency_us=device.spec.one_shot_latency_us if self.costs.collectives == "best" else None,
            node_gb_per_s=cluster.node_gb_per_s,
            node_latency_us=cluster.node_latency_us,
            dispatch_us=cluster.dispatch_us,
            dispatch=cluster.dispatch,
        )

    def resolved(self) -> dict[str, Any]:
        """The scenario with all defaults and catalogue entries written out; it runs the same as this one.

        Without `cluster.device` where every pool has a device of its own.
        """
        document = self.model_dump(mode="json", exclude_none=True)
        document["model"] = self.load_model().model_dump(mode="json", exclude_none=True)
        cluster, pools = document["cluster"], self.cluster.pools
        if pools is not None and pools.prefill.device is not None and pools.decode.device is not None:
            del cluster["device"]
        else:
            cluster["device"] = _description(self)
        for place, scenario in (
            (cluster, self),
            *((cluster["pools"][name], self.of_pool(name)) for name in self.pools if name),
        ):
            if "device" in place and place is not cluster:
                place["device"] = _description(scenario)
            for group in GROUP_NAMES if "placement" in place else ():
                if "device" in (of_group := place["placement"].get(group, {})):
                    of_group["device"] = _description(scenario.of_group(group))
        speculative = self.scheduler.speculative
        if speculative is not None and speculative.model is not None:
            draft = model_of(speculative.model, "scheduler.speculative.model")
            document["scheduler"]["speculative"]["model"] = draft.model_dump(mode="json", exclude_none=True)
        if (trace := self.workload.trace) is not None:  # readable from any folder
            resolved = {"path": str(find_trace(trace.path).resolve()), "format": format_of(trace).name}
            document["workload"]["trace"] |= resolved
        return document


def _description(scenario: Scenario) -> dict[str, Any]:
    """Its device, written out."""
    return scenario.load_device().spec.model_dump(mode="json", exclude_none=True)


def load_scenario(path: Path | None, overrides: Sequence[str] = (), trace: str | None = None) -> Scenario:
    """Read a scenario.

    Args:
        path: YAML file; None for the embedded defaults (Mixtral-8x7B on 4 Duplex devices, Azure-like traffic).
        overrides: "path=value" each, the value in YAML.
        trace: "PATH" or "FORMAT:PATH" of a trace to replay in place of the workload's arrivals and lengths.

    Raises:
        InputError: the file, or a value in it, is not acceptable; `devices_per_node: auto` finds no number.
    """
    if path is None:
        return _scenario_of({}, overrides, trace, [Path()])
    document = parse_document(read_yaml(path, "a scenario"), str(path))
    return _scenario_of(with_trace_beside(document, path.parent), overrides, trace, [path.parent, Path()])


def parse_scenario(text: str, place: str, overrides: Sequence[str] = (), trace: str | None = None) -> Scenario:
    """The same of a text (YAML), which may name no files that describe its model and devices; `place` names it."""
    return _scenario_of(parse_document(text, place), overrides, trace, None)


def _scenario_of(
    document: dict[str, Any], overrides: Sequence[str], trace: str | None, folders: Sequence[Path] | None
) -> Scenario:
    wrong: list[InputError] = []
    if trace is not None:
        parsed = tried(wrong, partial(parse_trace_argument, trace))
        spec = None if parsed is None else parsed.model_dump(mode="json", exclude_none=True)
        workload = document.get("workload")
        known = workload if isinstance(workload, dict) else {}
        kept = {k: v for k, v in known.items() if k in {"mode", "concurrency", "stagger"}}
        document = {**document, "workload": {**kept, "trace": spec}}
    for override in overrides:
        document = tried(wrong, partial(overridden, document, override)) or document
    unread = UnreadFiles()
    document = with_length_files(with_tables(document, folders, unread), folders, unread)
    wrong += unread.wrong
    described = tried(wrong, partial(with_descriptions, document, folders))
    try:
        scenario = Scenario.model_validate(document if described is None else described)
    except ValidationError as error:
        raise together([*wrong, *unread.others(validation_error("", error, Scenario))]) from None
    if wrong:
        raise together(wrong)
    no_truth_for_a_number("", document, scenario)
    if any(scenario.of_pool(name).cluster.has_open_sizes for name in scenario.pools):
        from pimserve.cluster.scenario.sizing import sized  # noqa: PLC0415 it knows what a scenario is, and devices

        return sized(scenario)
    return scenario


def json_schema() -> dict[str, Any]:
    """JSON Schema of the scenario document."""
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "pimserve scenario"}
    return {**Scenario.model_json_schema(), **about}


def overridden(document: dict[str, Any], override: str) -> dict[str, Any]:
    """The document with "path=value" applied; a preset's name on the way becomes {preset: name}.

    Raises:
        InputError: it is not of that form, or what is on the way has no keys.
    """
    where = f"--set {shortened(override)}"
    path, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", path.strip()):
        raise InputError(where, "must be path=value, such as cluster.replicas=2")
    if "\n" in text:
        raise InputError(where, "must be a single line")
    try:
        value = parse_document(f"value: {text}", "")["value"]
    except InputError as error:
        raise InputError(where, error.message) from None
    changed = dict(document)
    place = changed
    *parents, last = re.split(r"\.(?!\d)", path.strip())  # ttft_p99.9_s is one key
    for depth, key in enumerate(parents):
        inner = place.get(key, _default_of(parents[: depth + 1]))
        if isinstance(inner, str) and key in {"model", "device"}:
            inner = {"preset": inner}
        if inner is not None and not isinstance(inner, Mapping):
            raise InputError(where, f"{'.'.join(parents[: depth + 1])} is {inner!r}, which has no keys")
        place[key] = place = dict(inner or {})
    place[last] = value
    return changed


def _default_of(path: list[str]) -> str | None:
    """What an absent key stands for, where overriding below it must keep that: the default model and device."""
    defaults = {("model",): Scenario.model_fields["model"], ("cluster", "device"): ClusterSpec.model_fields["device"]}
    field = defaults.get(tuple(path))
    return None if field is None else field.default
