"""What a target of the Duplex paper asks for, in keys: its `metric`.

Files in the paper's own wording have it in their words instead; `duplex_wording` turns these into the same keys.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pimserve.cluster.validation.duplex_loops import LatencyName, LatencyStatistic
from pimserve.cluster.validation.duplex_systems import Cluster, ModelName, SystemName
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
