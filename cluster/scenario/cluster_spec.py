"""The cluster section of a scenario: devices, how each replica's devices share the model, links, and pools."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pimserve.cluster.scenario.cluster_fields import AssumedLink, Count, Devices, Entry
from pimserve.cluster.scenario.dispatch import Transport
from pimserve.cluster.scenario.expert_placement import ExpertPlacementSpec
from pimserve.cluster.scenario.placement_spec import GroupName, GroupSpec, PlacementSpec
from pimserve.device_models.operators import Parallelism
from pimserve.errors import InputError
from pimserve.quantity import GigabytesPerSecond, Microseconds
from pimserve.scheduler.conditional_disagg import ConditionalDisaggSpec


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
    placement: PlacementSpec | None = Field(None, description="as `cluster.placement`")


class HandoverSpec(AssumedLink):
    """The way of KV caches from prefill to decode replicas."""

    usual = (50.0, 10.0)

    gb_per_s: GigabytesPerSecond | None = Field(
        None,
        description="bandwidth of a replica's link to the other pool, one way; default: 50, and results say that it is "
        "assumed",
    )
    latency_us: Microseconds | None = Field(
        None, description="until the first byte is there; default: 10, and results say that it is assumed"
    )
    overlap: Literal["none", "layers"] = Field(
        "none",
        description="none: a cache leaves when its prompt is computed; layers: each layer's part, when that layer is",
    )


class PoolsSpec(_Section):
    """Replicas that compute prompts and emit the first token, and others that go on from there.

    With pools, `scheduler.report_interval_s` is 0.1 unless the scenario says otherwise.
    """

    prefill: PoolSpec = PoolSpec()
    decode: PoolSpec = PoolSpec()
    handover: HandoverSpec = HandoverSpec()
    conditional_disagg: ConditionalDisaggSpec | None = Field(
        None, description="which prompts stay on decode replicas; left out: none"
    )


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
    placement: PlacementSpec | None = Field(
        None, description="routed experts on devices of their own in each replica; left out: on those of attention"
    )
    pools: PoolsSpec | None = Field(None, description="replicas for prefill, and others for decode")

    @property
    def two_groups(self) -> PlacementSpec | None:
        """The placement of experts on devices of their own; None: they are with attention."""
        return None if self.placement is None or self.placement.experts == "attention" else self.placement

    def of_group(self, group: GroupName) -> ClusterSpec:
        """The section as if a group's devices were all that a replica has."""
        assert self.placement is not None
        spec = getattr(self.placement, group)
        changes = {} if group == "attention" else {"devices_per_node": "auto", "tensor_parallel": None}
        changes |= {key: value for key in GroupSpec.model_fields if (value := getattr(spec, key)) is not None}
        return self.model_copy(update={**changes, "placement": None})

    @property
    def has_open_sizes(self) -> bool:
        """Whether a number of devices, or of hot experts, is left open."""
        if self.two_groups is None:
            return self.devices_per_node == "auto"
        hot = self.two_groups.hot_experts
        open_count = hot is not None and hot.count == "auto"
        return open_count or any(self.of_group(each).devices_per_node == "auto" for each in self.two_groups.groups)

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
