"""The cluster section of a scenario: devices, how each replica's devices share the model, links, and pools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from pimserve.cluster.scenario.dispatch import Transport
from pimserve.cluster.scenario.expert_placement import ExpertPlacementSpec
from pimserve.device_models.operators import Parallelism
from pimserve.errors import InputError
from pimserve.quantity import GigabytesPerSecond, Microseconds

Count = Annotated[int, Field(gt=0, le=4096)]


def _is_auto(value: object) -> str | None:
    """Tag of a number, which has no place in the paths of errors, or of auto."""
    return "" if not isinstance(value, str) else "auto" if value == "auto" else None


Devices = Annotated[
    Annotated[Count, Tag("")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(_is_auto, custom_error_type="devices", custom_error_message="must be a whole number, or auto"),
]


def _name_or_mapping(value: object) -> object:
    if not isinstance(value, str | dict):
        raise ValueError("must be a name of the catalogue, a YAML file, or a mapping of keys to values")  # noqa: TRY004 pydantic wants ValueError
    return value


Entry = Annotated[str | dict[str, Any], BeforeValidator(_name_or_mapping)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolSpec(_Section):
    """Replicas of a pool, of devices of any kind; what is left out is as in `cluster`."""

    device: Entry | None = Field(None, description="as `cluster.device`")
    replicas: Count | None = Field(None, description="copies of the model in this pool")
    nodes: Count | None = Field(None, description="nodes of one replica")
    devices_per_node: Devices | None = Field(None, description="as `cluster.devices_per_node`")
    tensor_parallel: Count | None = Field(None, description="devices that split attention and dense layers")
    experts: Literal["ep", "tp"] | None = Field(None, description="as `cluster.experts`")
    expert_placement: ExpertPlacementSpec | None = Field(None, description="as `cluster.expert_placement`")


class HandoverSpec(_Section):
    """The way of KV caches from prefill to decode replicas."""

    gb_per_s: GigabytesPerSecond = Field(50.0, description="bandwidth of a replica's link to the other pool, one way")
    latency_us: Microseconds = Field(10.0, description="until the first byte is there")


class PoolsSpec(_Section):
    """Replicas that compute prompts and emit the first token, and others that go on from there.

    With pools, `scheduler.report_interval_s` is 0.1 unless the scenario says otherwise.
    """

    prefill: PoolSpec = PoolSpec()
    decode: PoolSpec = PoolSpec()
    handover: HandoverSpec = HandoverSpec()


class ClusterSpec(_Section):
    """Devices, how each replica's devices share the model, and the links between them."""

    device: Entry = Field(
        "duplex",
        description="a device of the catalogue, or a YAML file (looked for in the scenario's folder, then in the "
        "working folder), or {preset: either, ...changes}, or a full description with `kind`",
    )
    replicas: Count = Field(1, description="copies of the model, each on its own devices")
    nodes: Count = Field(1, description="nodes of one replica")
    devices_per_node: Devices = Field(
        4,
        description="devices of each node; auto: the fewest that hold the model, and in their KV cache a request of "
        "the longest length (scheduler.max_model_len, else the model's)",
    )
    tensor_parallel: Count | None = Field(
        None, description="devices that split attention and dense layers; default: the devices of a node"
    )
    experts: Literal["ep", "tp"] | None = Field(
        None,
        description="ep: whole experts spread over all devices; tp: every expert sliced over the devices of a node; "
        "left out, the device decides: ep where devices fetch weights, and AIMC chips as their `spread` says",
    )
    expert_placement: ExpertPlacementSpec | None = Field(
        None, description="which expert is on which devices; left out: in order, as many on each group of devices"
    )
    node_gb_per_s: GigabytesPerSecond = Field(50.0, description="bandwidth between nodes, one way per device")
    node_latency_us: Microseconds = Field(0.5, description="a hop between nodes")
    dispatch_us: Microseconds = Field(15.0, description="fixed cost of one dispatch or combine of tokens between nodes")
    dispatch: Transport = Field(
        "forward",
        description="forward: a token's vector goes once to each other node that holds an expert of it, and is passed "
        "on inside (as DeepEP does); direct: once to each such device; per_pick: once for each expert outside its "
        "data-parallel group (as the Duplex paper counts)",
    )
    pools: PoolsSpec | None = Field(None, description="replicas for prefill, and others for decode")

    @property
    def split(self) -> Parallelism:
        """How one replica's devices share the model.

        Raises:
            InputError: the number of devices is still left open (`load_scenario` fills it in).
        """
        devices = self.devices_per_node
        if devices == "auto":
            raise InputError("cluster.devices_per_node", "must be a number here (got auto)")
        copies = 0 if self.expert_placement is None else self.expert_placement.redundant_experts
        return Parallelism(self.nodes, devices, self.tensor_parallel or devices, self.experts or "ep", copies)
