"""Tables of the replicas of a run that goes on, for the terminal. All fit 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from rich.console import Group, RenderableType

from pimserve.cluster.base.figures import count, figure, named, share
from pimserve.cluster.cli.terminal import FittedTable
from pimserve.cluster.client.answers import Replicas
from pimserve.cluster.client.replica_answers import RouterState

MOST_REPLICAS = 40  # rows; --json has all
_BYTES_PER_GB = 10**9


def replica_table(replicas: Replicas) -> RenderableType:
    """Queue and batch of every replica."""
    cached = any(state.prefix_cache for state in replicas.replicas)
    names = ["running", "waiting", "decoding", "context", "KV", *(["prefix hits"] if cached else []), "steps", "left"]
    table = FittedTable("replica", "", *names, left=2, keys=2)
    for state in replicas.replicas[:MOST_REPLICAS]:
        table.add_row(
            f"{state.replica}",
            " ".join(part for part in (state.pool, "" if state.up else "down") if part),
            count(state.running),
            count(state.waiting),
            count(state.decoding),
            count(state.context_tokens),
            share(state.kv_blocks_used / state.kv_blocks if state.kv_blocks else None),
            *([share(state.prefix_cache.hit_ratio if state.prefix_cache else None)] if cached else []),
            count(state.steps),
            count(state.left),
        )
    more = len(replicas.replicas) - MOST_REPLICAS
    parts: list[RenderableType] = [table, *([f"and {count(more)} more"] if more > 0 else [])]
    if any(state.kv_tiers for state in replicas.replicas):
        parts += ["", tier_state_table(replicas)]
    if any(state.preemptions_by_cause for state in replicas.replicas):
        parts += ["", preemption_table(replicas)]
    if any(state.spec_decode for state in replicas.replicas):
        parts += ["", draft_state_table(replicas)]
    if replicas.router is not None:
        parts += ["", routed_table(replicas.router)]
    return Group(*parts)


def tier_state_table(replicas: Replicas) -> RenderableType:
    """What the tiers below each replica's prefix cache found and moved so far, and hold."""
    table = FittedTable("replica", "tier", "hits", "read, GB", "written, GB", "blocks", "of", "evicted", left=2, keys=2)
    for state in replicas.replicas[:MOST_REPLICAS]:
        for tier in state.kv_tiers.tiers if state.kv_tiers else ():
            table.add_row(
                f"{state.replica}",
                tier.name,
                share(tier.hit_ratio),
                figure(tier.read_bytes / _BYTES_PER_GB),
                figure(tier.written_bytes / _BYTES_PER_GB),
                count(tier.kept_blocks),
                "any number" if tier.capacity_blocks is None else count(tier.capacity_blocks),
                count(tier.evicted_blocks),
            )
    return table


def preemption_table(replicas: Replicas) -> RenderableType:
    """How often replicas preempted requests so far, and what was done; of causes that there were."""
    found = {state.replica: asdict(each) for state in replicas.replicas if (each := state.preemptions_by_cause)}
    causes = [cause for cause in next(iter(found.values())) if any(each[cause] for each in found.values())]
    table = FittedTable("replica", "preemptions", *map(named, causes))
    for replica, by_cause in list(found.items())[:MOST_REPLICAS]:
        table.add_row(f"{replica}", count(sum(by_cause.values())), *(count(by_cause[cause]) for cause in causes))
    return table


def draft_state_table(replicas: Replicas) -> RenderableType:
    """What came of each replica's drafts so far."""
    table = FittedTable("replica", "draft tokens", "accepted", "acceptance rate", "acceptance length")
    for state in replicas.replicas[:MOST_REPLICAS]:
        if (drafts := state.spec_decode) is not None:
            table.add_row(
                f"{state.replica}",
                count(drafts.draft_tokens),
                count(drafts.accepted_tokens),
                share(drafts.acceptance_rate),
                figure(drafts.mean_acceptance_length_tokens),
            )
    return table


def routed_table(router: RouterState) -> RenderableType:
    """Where the router sent requests so far, and why: a column for each reason."""
    reasons = sorted(router.by_reason_requests)
    table = FittedTable("routed to", "requests", *reasons)

    def add(label: str, requests: int, by_reason: Mapping[str, int]) -> None:
        table.add_row(label, count(requests), *(count(by_reason.get(reason, 0)) for reason in reasons))

    add("all", router.requests, router.by_reason_requests)
    for each in router.replicas[:MOST_REPLICAS]:
        add(f"replica {each.replica}", each.requests, each.by_reason_requests)
    return table
