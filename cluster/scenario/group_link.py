"""The link between devices of attention and of experts: what a dispatch and a combine take, and what passes.

A token's vector goes to the devices of its experts, and comes back. Devices of attention share the sending evenly; at
the experts', the device that has most to receive counts. Both sides are busy at the same time, and the slower one sets
the time (MegaScale-Infer, arXiv 2504.02263, section 4: the maximum over both sides), beside a fixed latency. Which
device gets how much is what popularities make expect, layer by layer; the draw of a step does not change it.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from pimserve.arrays import FloatArray
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.placement_spec import GroupLinkSpec
from pimserve.device_models.kernels import FS_PER_US
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import Part, RowKind, Runs, Traffic
from pimserve.device_models.plan import FS_PER_S, RowTerm
from pimserve.device_models.routing import expert_share
from pimserve.device_models.split_experts import SplitExperts

_ID_BYTES = 4  # of a sampled token
_Direction = Literal["dispatch", "combine"]
_DIRECTIONS: tuple[_Direction, ...] = ("dispatch", "combine")


@dataclass(frozen=True, slots=True)
class Receivers:
    """Devices of experts, and what they get of a token in a MoE layer.

    `copies`: of a token's vector in one layer, all devices of the group together, in the mean over the layers;
    `busiest`: those of the device that gets most of them in its layer, likewise. `hits`: of each device, or group of
    devices that split experts, likewise. `gb_per_s`: of a device, one way.
    """

    devices: int
    copies: float
    busiest: float
    hits: tuple[float, ...]
    dispatch_bits: float
    gb_per_s: float

    @classmethod
    def of(
        cls, pool: PlacedPool, hits: FloatArray, spec: GroupLinkSpec, model: ModelSpec, gb_per_s: float | None
    ) -> Self:
        """Devices of a pool, of which those that hold experts get so much of a token, (laws, holders)."""
        term, devices = pool.plan.experts, pool.devices_per_replica
        assert not isinstance(term, SplitExperts | None)
        slices = 1 if term.weight_stationary else devices // term.groups
        narrow = model.routed_dtype.startswith("fp8") or term.weight_stationary
        return cls(
            devices,
            float(hits.sum(axis=1).mean()) * slices,
            float(hits.max(axis=1).mean()),
            tuple(hits.mean(axis=0).tolist()),
            spec.dispatch_bits or (8 if narrow else 16),
            gb_per_s or spec.gb_per_s,
        )

    def to_devices(self, needed: float, *, per_pick: bool) -> list[float]:
        """Copies of a token's vector that go to each of the devices in a MoE layer, `needed` ones in all."""
        even = self.copies * len(self.hits) / self.devices / sum(self.hits)  # devices of a holder share its copies
        copies = [self.hits[device * len(self.hits) // self.devices] * even for device in range(self.devices)]
        if needed == self.copies:
            return copies
        if per_pick:
            return [routed + (needed - self.copies) / self.devices for routed in copies]
        more = (needed - self.copies) / (self.devices - self.copies)
        return [routed + more * (1 - routed) for routed in copies]


class Passing(NamedTuple):
    """Bytes that a device of attention sends for each token of its share, or output, to one of the experts; or gets."""

    direction: Literal["dispatch", "combine"]
    rows: RowKind
    attention: int
    experts: int
    bytes_per_row: float


@dataclass(frozen=True, slots=True)
class GroupLink:
    """What passes between the groups of one replica.

    `receivers`: hot experts' devices, where there are some, then the experts', which have the model's other parts. What
    is not routed lies on `shared_by` of these, of which a vector needs all; data-parallel groups have `turns` at it.
    """

    spec: GroupLinkSpec
    model: ModelSpec
    senders: int
    receivers: tuple[Receivers, ...]
    shared_by: int
    turns: int

    @classmethod
    def of(
        cls,
        spec: GroupLinkSpec,
        model: ModelSpec,
        attention: PlacedPool,
        experts: PlacedPool,
        weights: Sequence[Sequence[float]],
    ) -> Self:
        """The link between two groups; `weights`: popularity of each expert, a row for all MoE layers or for each."""
        assert experts.plan.experts is not None
        assert model.moe is not None
        holders = [_holders(pool) for pool in experts.members]
        shares = [share for of_group in holders for share in of_group]
        hits = _hits(weights, model.moe.top_k, experts.plan.experts.slots, shares, per_pick=spec.copies == "per_pick")
        ends = np.cumsum([len(of_group) for of_group in holders])[:-1]
        speeds = (spec.hot_experts_gb_per_s, spec.experts_gb_per_s)[-len(holders) :]
        receivers = tuple(
            Receivers.of(pool, of_group, spec, model, speed)
            for pool, of_group, speed in zip(experts.members, np.split(hits, ends, axis=1), speeds, strict=True)
        )
        rest = experts.members[-1]
        turns = rest.plan.data_parallel
        shared_by = 1 if rest.plan.weight_stationary else rest.devices_per_replica // turns
        return cls(spec, model, attention.devices_per_replica, receivers, shared_by, turns)

    def terms(self, on_experts: Set[Part]) -> tuple[RowTerm, ...]:
        """Dispatch and combine in all layers that go to the experts' devices, and for the head if that is there."""
        moe_layers, dense_layers, rest = self.model.moe_layers, self.model.dense_layers, self.receivers[-1]
        terms = []
        for stage in _DIRECTIONS:
            routed = [(group, self._size(stage, group), *copies) for group, copies in self._needed(on_experts)]
            terms.append(self._term(stage, "moe_layers", moe_layers, routed))
            size = self._size(stage, rest)
            if "dense_ffn" in on_experts and dense_layers:
                terms.append(
                    self._term(stage, "dense_layers", dense_layers, [(rest, size, self.shared_by, 1 / self.turns)])
                )
            if "lm_head" in on_experts:
                vector, copies = (_ID_BYTES, 1.0) if stage == "combine" else (size, float(self.shared_by))
                terms.append(self._term(stage, "last", 1, [(rest, vector, copies, 1 / self.turns)]))
        return tuple(terms)

    def _term(
        self, stage: _Direction, runs: Runs, times: int, to: Sequence[tuple[Receivers, float, float, float]]
    ) -> RowTerm:
        """So many transfers, which take each row to groups of devices: (group, bytes of its vectors, copies of a row,
        those of its busiest device)."""
        sent = sum(size * copies for _, size, copies, _ in to) / self.senders / self.spec.gb_per_s
        received = max(size * busiest / group.gb_per_s for group, size, _, busiest in to)
        fixed = round(times * self.spec.latency_us * FS_PER_US)
        slope = round(times * max(sent, received) / 1e9 * FS_PER_S)
        rows: RowKind = "outputs" if runs == "last" else "tokens"
        name = f"{stage}, {runs.replace('_', ' ')}"
        return RowTerm(name, "communication", stage, rows, ((fixed, slope),), runs=runs, stage=stage)

    def traffic(self, on_experts: Set[Part]) -> tuple[Traffic, ...]:
        """Bytes and vectors that pass for each token, and for each output, in both directions."""
        traffic = []
        for stage in _DIRECTIONS:
            size, dense = self._size(stage, self.receivers[-1]), 0
            if "dense_ffn" in on_experts:
                dense = self.model.dense_layers * self.shared_by
            routed = [
                (self.model.moe_layers * copies, self._size(stage, group))
                for group, (copies, _) in self._needed(on_experts)
            ]
            sent = [*routed, (dense, size)]
            vectors = sum(copies for copies, _ in sent)
            moved = sum(copies * each for copies, each in sent)
            traffic.append(Traffic(stage, "tokens", moved, "between_groups", vectors))
            if "lm_head" in on_experts:
                back = (_ID_BYTES, 0.0) if stage == "combine" else (size * self.shared_by, self.shared_by)
                traffic.append(Traffic(stage, "outputs", back[0], "between_groups", back[1]))
        return tuple(traffic)

    def passing(self, on_experts: Set[Part]) -> list[Passing]:
        """The same from device to device, those of hot experts first: attention's share all rows evenly."""
        model, found, first = self.model, [], 0
        for group, (needed, _) in self._needed(on_experts):
            rest = self.shared_by / group.devices if group is self.receivers[-1] else 0.0
            dense = model.dense_layers * rest if "dense_ffn" in on_experts else 0.0
            copies_of = group.to_devices(needed, per_pick=self.spec.copies == "per_pick")
            for direction in _DIRECTIONS:
                size = self._size(direction, group)
                back = _ID_BYTES / group.devices if direction == "combine" else size * rest
                for sender in range(self.senders):
                    for receiver, copies in enumerate(copies_of, first):
                        vectors = model.moe_layers * copies + dense
                        found.append(Passing(direction, "tokens", sender, receiver, vectors * size))
                        if "lm_head" in on_experts and rest:
                            found.append(Passing(direction, "outputs", sender, receiver, back))
            first += group.devices
        return found

    def facts(self, on_experts: Set[Part]) -> dict[str, Any]:
        """What results say of the link."""
        needed, groups = [copies for _, copies in self._needed(on_experts)], self.receivers
        sent, bits = sum(copies for copies, _ in needed), {group.dispatch_bits for group in groups}
        all_bits = sum(group.dispatch_bits * copies for group, (copies, _) in zip(groups, needed, strict=True))
        return {
            "copies_per_token": sent,
            "copies_of_busiest_device": max(busiest for _, busiest in needed),
            "dispatch_bits": all_bits / sent if len(bits) > 1 else bits.pop(),
            "combine_bits": self.spec.combine_bits,
            "gb_per_s": self.spec.gb_per_s,
            "experts_gb_per_s": groups[-1].gb_per_s,
            "latency_us": self.spec.latency_us,
        }

    def _size(self, stage: _Direction, group: Receivers) -> float:
        """Bytes of a vector."""
        return self.model.hidden * (group.dispatch_bits if stage == "dispatch" else self.spec.combine_bits) / 8

    def _needed(self, on_experts: Set[Part]) -> list[tuple[Receivers, tuple[float, float]]]:
        """(copies of a token's vector, those of the busiest device) in a MoE layer, of each group.

        Devices with shared experts need every token whose turn is theirs, also those without a routed expert of it.
        """
        needed = [(group, (group.copies, group.busiest)) for group in self.receivers]
        if "shared_experts" not in on_experts or self.model.moe is None or not self.model.moe.shared_intermediate:
            return needed
        rest = self.receivers[-1]
        if self.spec.copies == "per_pick":
            needed[-1] = rest, (rest.copies + self.shared_by, rest.busiest + 1 / self.turns)
        else:
            without = 1 - sum(rest.hits) / len(rest.hits)
            more = self.shared_by * without, (1 - rest.busiest) / self.turns
            needed[-1] = rest, (rest.copies + more[0], rest.busiest + more[1])
        return needed


def _holders(pool: PlacedPool) -> list[int]:
    """Slots of each device, or group of them, that holds experts of a layer, as even as can be, in order."""
    term = pool.plan.experts
    assert not isinstance(term, SplitExperts | None)
    holders = term.groups
    if term.weight_stationary:  # chips that hold whole experts of a layer, or one that holds all of them
        holders = pool.devices_per_replica if pool.replica.parallelism.get("spread") == "experts" else 1
    ends = [term.physical_experts * holder // holders for holder in range(holders + 1)]
    return [end - begin for begin, end in pairwise(ends)]


def _hits(
    weights: Sequence[Sequence[float]],
    top_k: int,
    slots: Sequence[Sequence[int]],
    shares: Sequence[int],
    *,
    per_pick: bool,
) -> FloatArray:
    """(laws, holders): how often a token goes to each device, or group of them, that holds experts, so many slots each;
    at most once, or per pick.

    A pick of an expert with copies goes to any of them alike. The chance that no pick leads to one is the ratio of
    elementary symmetric polynomials of the weights with and without what leads there (as in `pick_probabilities`).
    """
    found = []
    for law in range(max(len(weights), len(slots))):
        row = np.asarray(weights[min(law, len(weights) - 1)], float)
        places = np.asarray(slots[min(law, len(slots) - 1)] if slots else range(len(row)))
        leads = np.zeros((len(shares), len(row)))
        np.add.at(leads, (np.repeat(np.arange(len(shares)), shares), places), 1)
        leads /= leads.sum(axis=0)
        if per_pick:
            found.append(leads @ np.asarray(expert_share(row.tolist(), top_k)))
        else:
            every = _symmetric(row, top_k)
            found.append([1 - _symmetric(row * (1 - lead), top_k) / every for lead in leads])
    return np.asarray(found)


def _symmetric(weights: FloatArray, degree: int) -> float:
    """Elementary symmetric polynomial."""
    sums = np.zeros(degree + 1)
    sums[0] = 1.0
    for weight in weights:
        sums[1:] += weight * sums[:-1].copy()
    return float(sums[degree])
