"""Which parts of a model are on which group of a replica's devices, as a scenario says it."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from pimserve.cluster.scenario.cluster_fields import AssumedLink, Count, Devices, Entry, is_auto
from pimserve.device_models.operators import ALL_PARTS, Part
from pimserve.quantity import GigabytesPerSecond, Microseconds

Group = Literal["attention", "experts"]  # where parts of a model may be put
GROUPS: tuple[Group, ...] = get_args(Group)
GroupName = Literal["attention", "hot_experts", "experts"]
GROUP_NAMES: tuple[GroupName, ...] = get_args(GroupName)
MOST_MICRO_BATCHES = 8

_Bits = Annotated[float, Field(ge=1, le=32)]
_MicroBatches = Annotated[
    Annotated[int, Field(ge=1, le=MOST_MICRO_BATCHES), Tag("")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(is_auto, custom_error_type="parts", custom_error_message="must be a whole number, or auto"),
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GroupSpec(_Section):
    """Devices of a group, of any kind; what is left out is as in `cluster`."""

    device: Entry | None = Field(None, description="as `cluster.device`")
    nodes: Count | None = Field(None, description="as `cluster.nodes`")
    devices_per_node: Devices | None = Field(
        None,
        description="as `cluster.devices_per_node`, and of experts auto; auto: the fewest that hold the group's parts",
    )
    tensor_parallel: Count | None = Field(None, description="as `cluster.tensor_parallel`")
    experts: Literal["ep", "tp"] | None = Field(None, description="as `cluster.experts`, of the experts' devices")


class HotExpertsSpec(GroupSpec):
    """Devices that hold the most popular experts of each MoE layer, beside those of `experts`, which hold all others.

    Both work at once, and a layer waits for the slower.
    """

    count: Devices = Field(
        "auto",
        description="hot experts of a layer; auto: of several numbers that the devices hold, the one with which steps "
        "of a full batch of decoding requests are shortest",
    )


def _form(value: object) -> str | None:
    if isinstance(value, str):
        return "<word>" if value == "attention" else None
    return "<devices>"


_Experts = Annotated[
    Annotated[GroupSpec, Tag("<devices>")] | Annotated[Literal["attention"], Tag("<word>")],
    Discriminator(
        _form, custom_error_type="form", custom_error_message="must be a mapping of keys to values, or attention"
    ),
]


class GroupLinkSpec(AssumedLink):
    """The link over which tokens go to the devices of their experts, and come back.

    A dispatch, or a combine, takes the latency, and the time of the bytes on the device of either side that has most
    of them to send or to receive.
    """

    usual = (50.0, 5.0)

    gb_per_s: GigabytesPerSecond | None = Field(
        None, description="bandwidth of a device of attention, one way; default: 50, and results say that it is assumed"
    )
    experts_gb_per_s: GigabytesPerSecond | None = Field(
        None, description="of a device of the experts, one way; default: the same"
    )
    hot_experts_gb_per_s: GigabytesPerSecond | None = Field(
        None, description="of a device of the hot experts, one way; default: as a device of attention"
    )
    latency_us: Microseconds | None = Field(
        None,
        description="fixed cost of one dispatch, and of one combine; default: 5, and results say that it is assumed",
    )
    dispatch_bits: _Bits | None = Field(
        None, description="of an element that is dispatched; default: 8 to experts in fp8 or on crossbars, else 16"
    )
    combine_bits: _Bits = Field(16, description="of an element that comes back")
    copies: Literal["per_device", "per_pick"] = Field(
        "per_device",
        description="per_device: a token's vector goes once to each device that has experts of it, and comes back "
        "summed up; per_pick: once for each expert (as MegaScale-Infer counts)",
    )


class PlacementSpec(_Section):
    """Groups of devices in each replica: one with attention and the KV cache, the other with routed experts, or with
    the cold ones beside a third with the hot ones."""

    attention: GroupSpec = Field(GroupSpec(), description="devices with attention, KV cache, gates and embeddings")
    experts: _Experts = Field(
        description="devices with the routed experts; attention: those that have attention, as without `placement`"
    )
    hot_experts: HotExpertsSpec | None = Field(
        None, description="devices with the most popular experts; left out: all are on those of `experts`"
    )
    link: GroupLinkSpec = Field(GroupLinkSpec(), description="between the groups")
    micro_batches: _MicroBatches = Field(
        "auto",
        description="parts of a step's batch that alternate between the groups; auto: of 1 to 4, by the tokens of the "
        "step, the number with which steps are shortest",
    )
    dense_ffn: Group = Field("attention", description="where FFNs of dense layers are")
    shared_experts: Group = Field("attention", description="where shared experts are")
    lm_head: Group = Field("attention", description="where the product with the vocabulary is")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.experts == "attention":
            elsewhere = [
                part for part in ("dense_ffn", "shared_experts", "lm_head") if getattr(self, part) == "experts"
            ]
            if elsewhere:
                raise ValueError(f"{elsewhere[0]}: experts has no devices of its own with experts: attention")
            if self.hot_experts is not None:
                raise ValueError(
                    "hot_experts go beside experts on devices of their own: give these in place of attention"
                )
            if self.micro_batches not in {"auto", 1}:
                raise ValueError(
                    "micro_batches go round between two groups, and experts: attention has one: leave it out"
                )
            for key, default in (("attention", GroupSpec()), ("link", GroupLinkSpec())):
                if getattr(self, key) != default:
                    raise ValueError(f"{key} has no effect with experts: attention: leave it out")
        if self.link.hot_experts_gb_per_s is not None and self.hot_experts is None:
            raise ValueError("link.hot_experts_gb_per_s has no effect without hot_experts: leave it out")
        if self.attention.experts is not None:
            raise ValueError("attention.experts has no effect, as routed experts are not there: leave it out")
        return self

    @property
    def on_experts(self) -> frozenset[Part]:
        """Parts of the model that are with the routed experts."""
        movable: tuple[Part, ...] = ("dense_ffn", "shared_experts", "lm_head")
        return frozenset(part for part in movable if getattr(self, part) == "experts") | {"routed_experts"}

    @property
    def groups(self) -> tuple[GroupName, ...]:
        """Groups of devices that there are."""
        return tuple(group for group in GROUP_NAMES if group != "hot_experts" or self.hot_experts is not None)

    def parts_of(self, group: GroupName) -> frozenset[Part]:
        """Parts of the model that are on a group; of the routed experts, those that are hot, or not."""
        if group == "hot_experts":
            return frozenset({"routed_experts"})
        return self.on_experts if group == "experts" else ALL_PARTS - self.on_experts
