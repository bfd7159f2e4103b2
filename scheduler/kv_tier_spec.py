"""Tiers of the prefix cache below the devices' memory, as a scenario describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pimserve.quantity import GigabytesPerSecond, Microseconds, ReservedGigabytes

DEVICE = "device"  # what the tier above all of them is called


class KvTierSpec(BaseModel):
    """Memory that keeps KV blocks: a host's, a disk, a remote store; of each replica, or of all together.

    `write`: "through" writes a block when it is computed (vLLM's OffloadingConnector, LMCache), "back" when it is
    forgotten in the tier above (SGLang HiCache has both).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = Field(description="such as host, disk or remote")
    shared: bool = Field(
        False,
        description="one for all replicas, in pools for those for prefill, which find what any of them wrote (Mooncake "
        "Store, a remote backend of LMCache); capacity_gb and gb_per_s are then of all together. The last tier only, "
        "and with all replicas in one shard",
    )
    capacity_gb: ReservedGigabytes | None = Field(
        None, description="GB for KV blocks of a replica, all its devices together; default: endless"
    )
    gb_per_s: GigabytesPerSecond | None = Field(
        None,
        description="bandwidth between a replica's devices, together, and the tier, which carries one transfer after "
        "the other, whatever its direction; default: endless",
    )
    latency_us: Microseconds = Field(0.0, description="until the first byte of what is read is there")
    write: Literal["through", "back"] = Field(
        "through",
        description="through: blocks are written when they are computed; back: when the tier above drops them",
    )


def check_tiers(tiers: Sequence[KvTierSpec], *, cached: bool) -> None:
    """Refuse tiers of nothing, and names that do not tell them apart.

    Args:
        tiers: from the first below the device on.
        cached: whether there is a prefix cache above them.

    Raises:
        ValueError: says what is wrong.
    """
    if tiers and not cached:
        raise ValueError("kv_tiers need enable_prefix_caching: true; without it, no block is found again")
    names = [tier.name for tier in tiers]
    if above := [tier.name for tier in tiers[:-1] if tier.shared]:
        remedy = f"leave shared out of {above[0]}" if tiers[-1].shared else f"put {above[0]} behind {names[-1]}"
        raise ValueError(f"kv_tiers: only the last one may be shared; {remedy}")
    if len({DEVICE, *names}) <= len(names):
        raise ValueError(f"kv_tiers need names that differ from each other and from '{DEVICE}' (got {names})")
