"""Runs on replicas that are given by what a replica costs and holds."""

from dataclasses import dataclass, replace
from typing import Any

from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.device_models.plan import CostPlan
from pimserve.scheduler.conditional_disagg import ConditionalDisaggSpec
from pimserve.scheduler.fleet import DECODE, PREFILL, Pool
from pimserve.scheduler.handover import Link
from pimserve.scheduler.simulation import Served, simulate


@dataclass(frozen=True)
class Decode:
    """Replicas that take requests over after their first token, and the way to them."""

    plan: CostPlan
    kv_capacity_tokens: int
    replicas: int
    link: Link
    kv_groups: KvGroups = NO_WINDOWS
    conditional: ConditionalDisaggSpec | None = None


def simulate_on(
    plan: CostPlan,
    *,
    kv_capacity_tokens: int,
    kv_groups: KvGroups = NO_WINDOWS,
    replicas: int = 1,
    device_kv_bytes_per_token: float = 0.0,
    decode: Decode | None = None,
    kv_bytes_per_token: int = 1000,
    **how: Any,
) -> Served:
    """`simulate` on replicas of one kind, with those of `decode` behind them."""
    of_kv: dict[str, Any] = {"kv_groups": kv_groups, "kv_bytes_per_token": kv_bytes_per_token}
    pools = [Pool("" if decode is None else PREFILL, plan, kv_capacity_tokens, replicas, **of_kv)]
    pools = [replace(pool, device_kv_bytes_per_token=device_kv_bytes_per_token) for pool in pools]
    if decode is not None:
        tokens, rest = decode.kv_capacity_tokens, {"kv_groups": decode.kv_groups, "conditional": decode.conditional}
        pools.append(Pool(DECODE, decode.plan, tokens, decode.replicas, first=replicas, **rest))
        how["link"] = decode.link
    return simulate(pools, **how)
