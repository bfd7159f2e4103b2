"""What a summary says of replicas whose routed experts are on devices of their own: of both groups, and the link."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from pimserve.scheduler.sections import Joules, Section, Share, figure, text

TIMES = {  # parts of a group's time, as people call them
    "working": "working",
    "other_group": "waiting for the other group",
    "link": "waiting for the link",
    "work": "without a step",
}


class GroupTimeShares(Section):
    """What the devices of a group did with the run's time, mean over replicas; the shares add up to 1.

    What a step waits for links is its time less that of the same schedule over links that take none, and both groups
    wait as long. What attention's devices wait for the experts is the rest of the step in which they do not work, and
    the other way round. Devices of hot and of cold experts count as one group, which works while any of them does.
    """

    working: Share = figure("1", "share of the run in which they worked, with the links among them")
    other_group: Share = figure("1", "in which they waited for the other group")
    link: Share = figure("1", "in which they waited for what was on its way between the groups")
    work: Share = figure("1", "in which there was no step, or the host was still at it")


class DeviceFigures(Section):
    """Devices of a group, or those of one kind."""

    device: str = text("what they are")
    devices: int = figure("devices", "of all replicas")
    devices_per_replica: int = figure("devices", "of one replica")
    parallelism: dict[str, Any] = text("how those of a replica share what the group has")
    weights_gb_per_device: float = figure(
        "GB", "weights in memory of one device, in the mean; 0 where crossbars hold them"
    )
    silicon_mm2: float | None = figure("mm2", "silicon that computes, of all devices; null: not known")
    tdp_w: float | None = figure("W", "power at which all devices are sold; null: not known")
    passive_joules: Joules = figure("J", "that they draw whether they work or not; null: not known, or left out")
    device_facts: dict[str, Any] = text("what they say of themselves, units in the names (docs/aimc.md)")


class KindFigures(DeviceFigures):
    """Devices of hot experts, or of cold ones."""

    group: str = text("hot_experts, or experts")


class GroupFigures(DeviceFigures):
    """A group of devices."""

    parts: list[str] = text("parts of the model that they have; attention: with KV cache, gates and embeddings")
    reserved_gb_per_device: float = figure("GB", "of one device's memory for neither weights nor KV cache")
    kv_gb_per_device: float = figure("GB", "KV cache of one device, copies of heads among it")
    shares_of_time: GroupTimeShares = text("what they did with the time of the run")
    kinds: list[KindFigures] | None = Field(
        None, description="of both kinds, where hot experts have devices of their own"
    )


class LinkDirection(Section):
    """What went over the link in one direction, whole run.

    Which device gets how much is what popularities make expect, and no draw.
    """

    bytes: float = figure("B", "sent by all devices of all replicas")
    tokens: float = figure("tokens", "whose vectors were sent, one for each layer and each device that they went to")
    bits: float = figure("bit", "of an element of a vector, in the mean")
    busy_share: Share = figure("1", "share of the run in which it was busy, mean over replicas")


class GroupLinkFigures(Section):
    """The link between the groups."""

    gb_per_s: float = figure("GB/s", "bandwidth of a device of attention, one way")
    experts_gb_per_s: float = figure("GB/s", "of a device of the experts, one way")
    latency_us: float = figure("us", "fixed time of one dispatch, and of one combine")
    copies_per_token: float = figure(
        "copies", "of a token's vector that go to experts in a MoE layer, mean over layers"
    )
    copies_of_busiest_device: float = figure("copies", "of these, to the device that gets most of them in its layer")
    dispatch: LinkDirection = text("from attention to experts")
    combine: LinkDirection = text("and back")


class TriedBatch(Section):
    """Steps that decode a batch, with one exact draw of the experts."""

    requests: int = figure("requests", "of the batch")
    step_s: dict[str, Annotated[float, figure("s", "time of a step")]] = text("by number of micro-batches")


class TriedMicroBatches(Section):
    """How numbers of micro-batches were chosen."""

    context_tokens: int = figure("tokens", "of context of each request")
    batches: list[TriedBatch] = text("step times of batches up to the largest")


class MicroBatchFigures(Section):
    """Parts of a step's batch that alternate between the groups."""

    most: int = figure("micro-batches", "of a step")
    from_tokens: list[int] = text("tokens of a step from which it is cut into so many micro-batches as `numbers` says")
    numbers: list[int] = text("micro-batches, for each of `from_tokens`")
    tried: TriedMicroBatches | None = Field(None, description="with micro_batches: auto")


class Groups(Section):
    """Replicas with attention and routed experts on groups of devices of their own, whole run."""

    attention: GroupFigures = text("devices with attention and the KV cache")
    experts: GroupFigures = text("devices with the routed experts")
    link: GroupLinkFigures = text("between both")
    micro_batches: MicroBatchFigures = text("of a step's batch")
