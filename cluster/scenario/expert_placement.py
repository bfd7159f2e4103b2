"""Which expert is on which devices of a replica, as a scenario says it, and how evenly that spreads their load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Self, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from pimserve.arrays import FloatArray
from pimserve.device_models.expert_layout import ExpertOrder, Slots, layer_loads, layout
from pimserve.device_models.expert_picks import expert_share
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import Parallelism
from pimserve.device_models.popularity_walk import Drift
from pimserve.device_models.routing import Routing
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.quantity import MAX_TIME_S, Quantity

_WHERE = "cluster.expert_placement"
_Expert = Annotated[int, Field(ge=0, lt=2**16)]


def _by_layer(slots: object) -> bool:
    """Whether there is a list of slots for each layer."""
    return isinstance(slots, list | tuple) and any(isinstance(row, list | tuple) for row in slots)


_Table = Annotated[
    Annotated[tuple[_Expert, ...], Tag("<for all layers>")]
    | Annotated[tuple[tuple[_Expert, ...], ...], Tag("<by layer>")],
    Discriminator(lambda slots: "<by layer>" if _by_layer(slots) else "<for all layers>"),
]


class RebalanceSpec(BaseModel):
    """Layouts that follow popularities as they drift, each balanced by the loads of an interval.

    In the interval after that its weights move over the links while steps go on, which do not wait for them; it holds
    from the end of that one on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    interval_s: Annotated[float, Quantity("s", least=1e-2, most=MAX_TIME_S)] = Field(
        description="simulated time between two layouts, a multiple of `routing.drift.interval_s`"
    )


class ExpertPlacementSpec(BaseModel):
    """Which routed expert is on which devices of a replica; where devices place experts themselves, it is refused.

    Copies of an expert share its tokens evenly.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: ExpertOrder = Field(
        "contiguous",
        description="contiguous: experts by number, as many on each group of devices, then the copies; round_robin: "
        "dealt to the groups in turns; popularity: balanced by the loads that `routing` makes expect, as EPLB does",
    )
    redundant_experts: Annotated[int, Field(ge=0, le=2**16)] = Field(
        0, description="copies of hot experts in each MoE layer, beside the first ones (vLLM: num_redundant_experts)"
    )
    rebalance: RebalanceSpec | None = Field(
        None, description="with order: popularity and `routing.drift`, new layouts during the run; left out: none"
    )
    slots: _Table | None = Field(
        None,
        description="in place of an order: the expert in each slot, group of devices by group, or a list of these for "
        "each MoE layer",
    )
    file: str | None = Field(
        None,
        description="slots, from a CSV, JSON or NPY file: a row for all MoE layers, or one for each (looked for in the "
        "scenario's folder, then in the working folder)",
    )

    @model_validator(mode="after")
    def _own_table_alone(self) -> Self:
        if self.slots is not None and self.order != "contiguous":
            raise ValueError("slots stand in place of an order: leave one of both out")
        if self.rebalance is not None and self.order != "popularity":
            raise ValueError("rebalance goes with order: popularity")
        if self.file is not None:
            raise ValueError("a file is read with the scenario's own file only: give slots")
        return self

    def rebalance_every(self, drift: Drift | None) -> int:
        """Steps of the drift between two layouts; 0: there is one.

        Raises:
            InputError: popularities do not change, or in other intervals.
        """
        if self.rebalance is None:
            return 0
        where = f"{_WHERE}.rebalance"
        if drift is None:
            raise InputError(where, "popularities of experts do not change: give routing.drift, or leave it out")
        every, rest = divmod(round(self.rebalance.interval_s * PS_PER_S), drift.interval_ps)
        if rest or not every:
            raise InputError(
                f"{where}.interval_s",
                f"must be a multiple of routing.drift.interval_s, {drift.interval_ps / PS_PER_S:g} s "
                f"(got {self.rebalance.interval_s:g} s)",
            )
        return every

    def slots_of(self, model: ModelSpec, split: Parallelism, weights: Sequence[Sequence[float]]) -> tuple[Slots, ...]:
        """The expert in each slot, a row for all MoE layers or for each; empty: experts in order.

        Args:
            model: the model.
            split: how the devices of a replica share it.
            weights: popularity of each expert, a row for all MoE layers or for each.

        Raises:
            InputError: the model has no routed experts, these do not divide, or the own table is none of them.
        """
        if model.moe is None:
            raise InputError(_WHERE, f"{model.name} has no routed experts: leave it out")
        experts, redundant = model.moe.experts, self.redundant_experts
        groups = split.expert_groups(experts)
        if redundant > experts * (groups - 1):
            raise InputError(
                f"{_WHERE}.redundant_experts",
                f"at most {experts * (groups - 1)} copies make sense, one of each expert on each of the {groups} "
                f"groups of devices (got {redundant})",
            )
        if self.slots is not None:
            return self._own(model, experts)
        if self.order == "contiguous" and not redundant:
            return ()
        even = self.order == "round_robin" and not redundant
        loads = [[1.0] * experts] if even else [expert_share(row, model.moe.top_k) for row in weights]
        return _shortest(tuple(layout(self.order, load, groups, redundant) for load in loads), experts)

    def _own(self, model: ModelSpec, experts: int) -> tuple[Slots, ...]:
        """The own table, checked."""
        rows = cast("tuple[Slots, ...]", self.slots if _by_layer(self.slots) else (self.slots,))
        if len(rows) not in {1, model.moe_layers}:
            message = f"{len(rows)} lists of slots for {model.moe_layers} MoE layers of {model.name}"
            raise InputError(f"{_WHERE}.slots", f"{message}; give one for all, or one for each")
        for layer, row in enumerate(rows):
            where = f"{_WHERE}.slots.{layer}" if _by_layer(self.slots) else f"{_WHERE}.slots"
            self._check(row, experts, where)
        return _shortest(rows, experts)

    def _check(self, row: Slots, experts: int, where: str) -> None:
        for slot, expert in enumerate(row):
            if expert >= experts:
                raise InputError(f"{where}.{slot}", f"must be an expert from 0 to {experts - 1} (got {expert})")
        copies = Counter(row)
        missing = [expert for expert in range(experts) if not copies[expert]]
        if not missing and len(row) == experts + self.redundant_experts:
            return
        found = []
        if twice := [expert for expert in range(experts) if copies[expert] > 1]:
            at = [str(slot) for slot, expert in enumerate(row) if expert == twice[0]]
            found.append(f"expert {twice[0]} is in slots {' and '.join(at)}")
        if missing:
            found.append(f"expert {missing[0]} is in none")
        raise InputError(
            where,
            f"{', '.join([*found, f'{len(row)} slots'])}; give each of the {experts} experts a slot, and as many more "
            f"as redundant_experts says ({self.redundant_experts})",
        )


def expert_weights(model: ModelSpec, routing: Routing, seed: int, epoch: int = 0) -> tuple[tuple[float, ...], ...]:
    """Popularity of each routed expert, a row for all MoE layers or for each; of a model without any, none.

    With `routing.drift`, after so many of its intervals.
    """
    if model.moe is None:
        return ()
    return tuple(map(tuple, routing.expert_weights(model.moe.experts, seed, epoch).tolist()))


def placement_facts(
    spec: ExpertPlacementSpec,
    model: ModelSpec,
    split: Parallelism,
    weights: Sequence[Sequence[float]],
    slots: Sequence[Slots],
) -> dict[str, Any]:
    """How evenly experts spread their load, for a summary.

    `picks_per_token`: expected in a layer, on a group of devices in the mean, and on the busiest one; `imbalance`: the
    ratio of both, in the mean over MoE layers and in the worst one; `contiguous`: of experts in order without copies,
    where these spread evenly over the devices.
    """
    assert model.moe is not None
    loads = [expert_share(row, model.moe.top_k) for row in weights]
    groups = split.expert_groups(model.moe.experts)
    busiest = _busiest(slots, loads, groups)
    mean = model.moe.top_k / groups
    facts = {
        "order": "own table" if spec.slots is not None else spec.order,
        "redundant_experts": spec.redundant_experts,
        "groups": groups,
        "picks_per_token": mean,
        "picks_per_token_of_busiest": float(busiest.mean()),
        "imbalance": float(busiest.mean()) / mean,
        "imbalance_of_worst_layer": float(busiest.max()) / mean,
    }
    try:
        alone = replace(split, redundant_experts=0).expert_groups(model.moe.experts)
    except InputError:  # there is no such layout
        return facts
    mean = model.moe.top_k / alone
    busiest = _busiest((), loads, alone)
    return {
        **facts,
        "imbalance_contiguous": float(busiest.mean()) / mean,
        "imbalance_of_worst_layer_contiguous": float(busiest.max()) / mean,
    }


def copies_together(slots: Sequence[Slots], groups: int) -> list[str]:
    """What is to be said of copies that are beside another of the same expert: sentences.

    Args:
        slots: the expert in each, a row for all MoE layers or for each.
        groups: of devices, that hold as many slots each.
    """
    found = [
        (layer, expert, [slot for slot, held in enumerate(row) if held == expert and slot // room == group])
        for layer, row in enumerate(slots)
        for room in [len(row) // groups]
        for group in range(groups)
        for expert, times in Counter(row[group * room : (group + 1) * room]).items()
        if times > 1
    ]
    if not found:
        return []
    layer, expert, at = found[0]
    where = f" of MoE layer {layer}" if len(slots) > 1 else ""
    more = f", and {len(found) - 1:,} more like it" if len(found) > 1 else ""
    return [
        f"{_WHERE}: slots {' and '.join(map(str, at))}{where} hold expert {expert} on the same devices{more}: copies "
        "there take memory, read their weights again and relieve no device"
    ]


def _busiest(slots: Sequence[Slots], loads: Sequence[Sequence[float]], groups: int) -> FloatArray:
    """(layers,): load of the busiest group of devices."""
    of_slots = layer_loads(slots, loads)
    return np.asarray(of_slots.reshape(len(of_slots), groups, -1).sum(axis=2).max(axis=1))


def _shortest(rows: tuple[Slots, ...], experts: int) -> tuple[Slots, ...]:
    """Rows that are all the same once, and none of experts in order."""
    if len(set(rows)) > 1:
        return rows
    return () if rows[0] == tuple(range(experts)) else rows[:1]
