"""What a target of the Duplex paper asks for, in keys (its `metric`), and for which setting (its `case`).

Files in the paper's own wording have it in their words instead; `duplex_wording` turns these into the same keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pimserve.cluster.scenario.steady_state import ClosedLoop
from pimserve.cluster.validation.duplex_loops import LatencyName, LatencyStatistic, ServedLoop, served_loop
from pimserve.cluster.validation.duplex_systems import MODELS, Cluster, ModelName, System, SystemName, build
from pimserve.cluster.validation.duplex_wording import read_wording
from pimserve.cluster.validation.targets import Target
from pimserve.errors import InputError, validation_error

MetricKind = Literal[
    "throughput_ratio",
    "energy_ratio",
    "energy_share",
    "time_share",
    "decoding_only_share",
    "latency_ratio",
    "loaded_latency_ratio",
    "sustained_rate",
    "fitting_batch",
    "edap",
    "op_per_byte",
    "energy_reduction",
    "latency_reduction",
    "latency_speed_up",
]
_NEEDED: dict[MetricKind, tuple[str, ...]] = {
    "energy_share": ("part",),
    "time_share": ("part",),
    "op_per_byte": ("part",),
    "latency_ratio": ("latency", "statistic"),
    "loaded_latency_ratio": ("latency", "statistic", "baseline_qps"),
    "energy_reduction": ("over",),
    "latency_reduction": ("latency", "statistic", "over"),
    "latency_speed_up": ("latency", "statistic", "over"),
}
_OVER_SETTINGS = ("throughput_ratio", *(kind for kind, keys in _NEEDED.items() if "over" in keys))

StageKind = Literal["decoding-only", "mixed"]

# Table I and section VI: the clusters that the models run on, where a case does not say.
CLUSTERS = {
    "Mixtral": Cluster(1, 4),
    "OPT": Cluster(1, 4),
    "Llama3": Cluster(1, 4),
    "GLaM": Cluster(1, 8),
    "Grok1": Cluster(2, 8),
}
_KEYS = ("model", "cluster", "batch", "Lin", "Lout", "system", "baseline", "stage", "qps")
_KEYS_OF_OTHER_QUANTITIES = ("scope", "gemm", "opb", "unit", "operator", "op", "layer", "component")

_Devices = Annotated[int, Field(gt=0, le=64)]
_Count = Annotated[int, Field(gt=0, le=10**6)]
_Length = Annotated[int, Field(gt=1, le=10**6)]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(_Keys):
    """Closed loops over which a figure is the most, the least or the mean. `lengths`: Lin = Lout; None: the paper's."""

    statistic: Literal["up-to", "max", "min", "mean"]
    models: Annotated[tuple[ModelName, ...], Field(min_length=1)]
    batches: Annotated[tuple[_Count, ...], Field(min_length=1)]
    lengths: Annotated[tuple[_Length, ...], Field(min_length=1)] | None = None


class Metric(_Keys):
    """What a target asks for, beside the setting of its `case`.

    `figure`: of the paper. `part`: of energy, of a stage's time, or of a stage's operators. `mixed`: the stage of an
    Op/B. `nodes` and `devices_per_node`: None for the cluster that the model has in the paper. `capacity_limit`:
    whether the batch is cut to the requests whose KV cache fits.
    """

    kind: MetricKind
    figure: int | None = None
    system: SystemName = "GPU"
    baseline: SystemName = "GPU"
    nodes: _Devices | None = None
    devices_per_node: _Devices | None = None
    capacity_limit: bool = True
    part: str | None = None
    mixed: bool = False
    latency: LatencyName | None = None
    statistic: LatencyStatistic | None = None
    baseline_qps: Annotated[float, Field(gt=0, lt=1e6)] | None = None
    over: Settings | None = None

    @property
    def systems(self) -> tuple[SystemName, SystemName]:
        """The system and what it is compared with."""
        return self.system, self.baseline

    @property
    def of_latency(self) -> tuple[LatencyName, LatencyStatistic] | None:
        """The latency that is compared and its statistic; None where its kind compares none."""
        if self.latency is None or self.statistic is None or "latency" not in _NEEDED.get(self.kind, ()):
            return None
        return self.latency, self.statistic

    @property
    def cluster(self) -> Cluster | None:
        """The devices, where the target says them."""
        if self.nodes is None or self.devices_per_node is None:
            return None
        return Cluster(self.nodes, self.devices_per_node)

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        if missing := [key for key in _NEEDED.get(self.kind, ()) if getattr(self, key) is None]:
            raise ValueError(f"{self.kind} needs {', '.join(missing)}")
        if self.over is not None and self.kind not in _OVER_SETTINGS:
            raise ValueError(f"over goes with {', '.join(_OVER_SETTINGS)} (got {self.kind})")
        if (self.nodes is None) != (self.devices_per_node is None):
            raise ValueError("nodes and devices_per_node go together")
        return self


def read_metric(target: Target) -> Metric:
    """What a target asks for: its `metric`, or what its words say.

    Raises:
        InputError: a key is unknown or its value out of range, or the words are not understood.
    """
    keys = read_wording(target) if target.metric is None else target.metric
    try:
        return Metric.model_validate(keys)
    except ValidationError as error:
        raise InputError(target.where, str(validation_error("metric", error, Metric))) from None


@dataclass(frozen=True, slots=True)
class Case:
    """One setting. `unlimited`: the batch is taken as given even where its KV cache would not fit."""

    model: str
    cluster: Cluster
    loop: ClosedLoop
    stage: StageKind | None
    qps: float | None
    unlimited: bool

    def system(self, name: SystemName) -> System:
        """A system on the case's devices."""
        return build(self.model, self.cluster, name)

    def served(self, name: SystemName) -> ServedLoop:
        """A system in the case's loop."""
        return served_loop(self.model, self.cluster, name, self.loop, unlimited=self.unlimited)

    def fitting(self, name: SystemName) -> ServedLoop:
        """A system in the case's loop, with the requests that fit."""
        return served_loop(self.model, self.cluster, name, self.loop)


def read_case(target: Target, metric: Metric) -> Case:
    """The setting of a target.

    Raises:
        InputError: something is missing, out of range or unknown.
    """
    case = target.case
    model = case.get("model")
    if model not in MODELS:
        raise InputError(target.where, f"unknown case.model {model!r} (known: {', '.join(MODELS)})")
    loop = ClosedLoop(_count(target, "batch", 1), _count(target, "Lin", 1), _count(target, "Lout", 2))
    stage = case.get("stage")
    if stage not in (None, "decoding-only", "mixed"):
        raise InputError(target.where, f"unknown case.stage {stage!r} (known: decoding-only, mixed)")
    qps = case.get("qps")
    if qps is not None and (not isinstance(qps, int | float) or isinstance(qps, bool) or not 0 < qps < 1e6):
        raise InputError(target.where, f"case.qps must be a number above 0 (got {qps!r})")
    return Case(
        model=model,
        cluster=metric.cluster or CLUSTERS[model],
        loop=loop,
        stage=stage,
        qps=qps,
        unlimited=not metric.capacity_limit,
    )


def ignored_keys(target: Target) -> list[str]:
    """Keys of a target's case that mean nothing here, and change nothing."""
    return [key for key in target.case if key not in _KEYS + _KEYS_OF_OTHER_QUANTITIES]


def describe(target: Target) -> str:
    """A target's settings as one line of text."""
    case = target.case
    if case.get("scope") == "aggregate":
        return "over several settings"
    if "unit" in case:
        return f"{case['unit']}, {case.get('gemm', 'GEMM')} = {case.get('opb')}"
    parts = [str(case[key]) for key in ("model", "cluster") if key in case]
    if "batch" in case:
        parts.append(f"batch {case['batch']}")
    if "Lin" in case:
        parts.append(f"Lin {case['Lin']} Lout {case.get('Lout')}")
    if case.get("stage"):
        parts.append(f"{case['stage']} stage")
    if case.get("qps"):
        parts.append(f"{case['qps']} req/s")
    if case.get("system"):
        parts.append(str(case["system"]) + (f" / {case['baseline']}" if case.get("baseline") else ""))
    return ", ".join(parts)


def _count(target: Target, key: str, least: int) -> int:
    value = target.case.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 10**6:
        raise InputError(target.where, f"case.{key} must be a whole number from {least} to 1000000 (got {value!r})")
    return value
