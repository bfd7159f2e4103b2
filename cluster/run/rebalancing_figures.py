"""What rebalancing experts during a run took: moves, bytes, time and energy, and how even it made their load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pimserve.cluster.run.programming_figures import programming_caveats, programming_facts
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts
from pimserve.device_models.expert_layout import Slots, layer_loads
from pimserve.device_models.expert_moves import Layouts, sent_and_received
from pimserve.device_models.experts import ExpertTerm
from pimserve.device_models.model import BYTES_PER_ELEMENT
from pimserve.device_models.plan import FS_PER_S, PJ_PER_J
from pimserve.device_models.rebalancing import begins_at, layouts_around, rebalances

_BYTES_PER_GB = 10**9


def rebalancing_facts(prepared: Prepared, pool: PlacedPool, layouts: int) -> dict[str, Any]:
    """Of one replica; empty where nothing is rebalanced.

    `times`: layouts that took effect. `experts_moved`: weights of an expert of a layer that came to a group of devices
    without them. `imbalance_before` and `imbalance_after`: load of the busiest group over the mean, in the mean over
    layouts and layers, by the popularities of the time at which a layout takes effect, of the layout before and of the
    new one. What else there is hangs on whether weights are moved, or programmed anew.

    Args:
        prepared: what ran.
        pool: of the replica.
        layouts: how many followed the first one.
    """
    term, drift = pool.plan.experts, prepared.routing.drift
    if not rebalances(term) or drift is None:
        return {}
    facts: dict[str, Any] = {"interval_s": term.rebalance_every * drift.interval_fs / FS_PER_S, "times": layouts}
    if not layouts:
        return facts
    routing, seed = prepared.routing, prepared.scenario.run.seed
    found, imbalance = [], []
    for number in range(1, layouts + 1):
        found.append(layouts_around(term, routing, seed, number))
        epoch = begins_at(term, number)
        loads = routing.expected_loads(term.experts, term.top_k, seed, range(epoch, epoch + 1)).tolist()
        imbalance.append([_imbalance(slots, loads, term) for slots in found[-1]])
    if isinstance(term, ExpertTerm):
        facts |= _moving_facts(prepared, pool, term, found)
    else:
        facts |= programming_facts(term, found, pool.members[-1].replica.expert_programming)
    before_mean, after_mean = np.mean(imbalance, axis=0).tolist()
    return {**facts, "imbalance_before": before_mean, "imbalance_after": after_mean}


def _moving_facts(prepared: Prepared, pool: PlacedPool, term: ExpertTerm, layouts: Sequence[Layouts]) -> dict[str, Any]:
    """What weights take that move over links.

    `longest_transfer_s`: of one layout, until the busiest device has sent and received its part, over the slowest of
    the links that there are. `joules`: part of the energy of the run.
    """
    model, cluster = prepared.model, prepared.scenario.of_pool(pool.name).cluster
    assert model.moe is not None
    if pool.groups:
        cluster = cluster.of_group("experts")
    holders = pool.members[-1]
    slices = holders.devices_per_replica // term.groups
    expert_bytes = model.moe.expert_parameters(model.hidden) * BYTES_PER_ELEMENT[model.routed_dtype]
    links = [holders.device.spec.link_gb_per_s, *([cluster.node_gb_per_s] if cluster.nodes > 1 else [])]
    moves = [sent_and_received(term, each) for each in layouts]
    moved = sum(int(received.sum()) for _, received in moves)
    busiest = max(int(np.maximum(sent, received).max()) for sent, received in moves)
    return {
        "experts_moved": moved,
        "gb_moved": moved * expert_bytes / _BYTES_PER_GB,
        "longest_transfer_s": busiest * expert_bytes / slices / (min(links) * _BYTES_PER_GB),
        "joules": moved * term.move_pj / PJ_PER_J,
    }


def rebalancing_caveats(facts: Mapping[str, Any]) -> Iterator[str]:
    """What must be read beside the figures of a run, in sentences; `facts` as `rebalancing_facts` gives them."""
    if not facts.get("experts_moved"):
        return
    if "gb_moved" not in facts:
        yield from programming_caveats(facts)
        return
    yield (
        f"rebalancing experts moved {facts['gb_moved']:.3g} GB in each replica beside its steps, which neither wait "
        f"for it nor share bandwidth with it; the energy has its {facts['joules']:.3g} J, as if writing took what "
        "reading takes, and links drew nothing"
    )
    if facts["longest_transfer_s"] > facts["interval_s"]:
        yield (
            f"a new layout of experts takes up to {facts['longest_transfer_s']:.3g} s to move, longer than "
            f"cluster.expert_placement.rebalance.interval_s, {facts['interval_s']:g} s: real ones would come later"
        )


def _imbalance(slots: Sequence[Slots], loads: Sequence[Sequence[float]], term: ExpertTerm | CrossbarExperts) -> float:
    """Load of the busiest group over the mean, in the mean over layers."""
    of_groups = layer_loads(slots, loads)
    of_groups = of_groups.reshape(len(of_groups), term.groups, -1).sum(axis=2)
    return float((of_groups.max(axis=1) / of_groups.mean(axis=1)).mean())
