"""The link between devices of attention and of experts: what a dispatch and a combine take, and what passes.

What hangs on routed experts is `RoutedLink`. Beside it, FFNs of dense layers, shared experts and the LM head may be
with the experts, and need vectors of all tokens, or outputs.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Self

from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.placement_spec import GroupLinkSpec
from pimserve.device_models.kernels import FS_PER_US
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import Part, RowKind, Runs, Traffic
from pimserve.device_models.plan import FS_PER_S, RowTerm
from pimserve.device_models.routed_link import DIRECTIONS, Direction, LinkEnd, RoutedLink
from pimserve.device_models.split_experts import SplitExperts

_ID_BYTES = 4  # of a sampled token


class Passing(NamedTuple):
    """Bytes that a device of attention sends for each token of its share, or output, to one of the experts; or gets."""

    direction: Direction
    rows: RowKind
    attention: int
    experts: int
    bytes_per_row: float


@dataclass(frozen=True, slots=True)
class GroupLink:
    """What passes between the groups of one replica.

    `on_experts`: parts of the model that the experts' devices have. `routed`: what hangs on routed experts. Of each of
    its ends, `dispatch_bits` are those of an element, and `devices` how many there are. What is not routed lies on
    `shared_by` of the devices of the last one, of which a vector needs all; data-parallel groups have `turns` at it.
    """

    spec: GroupLinkSpec
    model: ModelSpec
    on_experts: frozenset[Part]
    routed: RoutedLink
    dispatch_bits: tuple[float, ...]
    devices: tuple[int, ...]
    shared_by: int
    turns: int

    @classmethod
    def of(
        cls,
        spec: GroupLinkSpec,
        model: ModelSpec,
        attention: PlacedPool,
        experts: PlacedPool,
        on_experts: Set[Part],
        weights: Sequence[Sequence[float]],
        slots: Sequence[Sequence[int]],
    ) -> Self:
        """The link between two groups.

        Args:
            spec: as the scenario has it.
            model: the model.
            attention: devices of attention.
            experts: those of the experts.
            on_experts: parts of the model that these have.
            weights: popularity of each expert, a row for all MoE layers or for each.
            slots: the expert in each slot, likewise.
        """
        assert model.moe is not None
        rest = experts.members[-1]
        turns = rest.plan.data_parallel
        shared_by = 1 if rest.plan.weight_stationary else rest.devices_per_replica // turns
        shares = "shared_experts" in on_experts and model.moe.shared_intermediate
        speeds = (spec.hot_experts_gb_per_s, spec.experts_gb_per_s)[-len(experts.members) :]
        ends = tuple(
            _end(pool, spec, model, speed, shared_by if shares and pool is rest else 0, turns)
            for pool, speed in zip(experts.members, speeds, strict=True)
        )
        routed = RoutedLink(
            layers=model.moe_layers,
            top_k=model.moe.top_k,
            per_pick=spec.copies == "per_pick",
            senders=attention.devices_per_replica,
            gb_per_s=spec.resolved_gb_per_s,
            latency_us=spec.resolved_latency_us,
            ends=ends,
        ).at(weights, slots)
        devices = tuple(pool.devices_per_replica for pool in experts.members)
        bits = tuple(_dispatch_bits(pool, spec, model) for pool in experts.members)
        return cls(spec, model, frozenset(on_experts), routed, bits, devices, shared_by, turns)

    def terms(self) -> tuple[RowTerm, ...]:
        """Dispatch and combine in all layers that go to the experts' devices, and for the head if that is there."""
        terms = []
        for direction in DIRECTIONS:
            size, dense_layers = self._size(direction), self.model.dense_layers
            terms.append(_term(direction, "moe_layers", self.routed.time_fs(direction)))
            if "dense_ffn" in self.on_experts and dense_layers:
                terms.append(_term(direction, "dense_layers", self._whole_fs(dense_layers, size, self.shared_by)))
            if "lm_head" in self.on_experts:
                vector, copies = (_ID_BYTES, 1.0) if direction == "combine" else (size, float(self.shared_by))
                terms.append(_term(direction, "last", self._whole_fs(1, vector, copies)))
        return tuple(terms)

    def traffic(self) -> tuple[Traffic, ...]:
        """Bytes and vectors that pass for each token, and for each output, in both directions."""
        traffic = []
        for direction in DIRECTIONS:
            size, dense = self._size(direction), 0
            if "dense_ffn" in self.on_experts:
                dense = self.model.dense_layers * self.shared_by
            sent = [*self.routed.passing(direction), (dense, size)]
            vectors = sum(copies for copies, _ in sent)
            moved = sum(copies * each for copies, each in sent)
            traffic.append(Traffic(direction, "tokens", moved, "between_groups", vectors))
            if "lm_head" in self.on_experts:
                back = (_ID_BYTES, 0.0) if direction == "combine" else (size * self.shared_by, self.shared_by)
                traffic.append(Traffic(direction, "outputs", back[0], "between_groups", back[1]))
        return tuple(traffic)

    def passing(self) -> list[Passing]:
        """The same from device to device, those of hot experts first: attention's share all rows evenly."""
        model, found, first = self.model, [], 0
        for number, devices in enumerate(self.devices):
            rest = self.shared_by / devices if number == len(self.devices) - 1 else 0.0
            dense = model.dense_layers * rest if "dense_ffn" in self.on_experts else 0.0
            for direction in DIRECTIONS:
                copies_of = self.routed.to_devices(direction, number, devices)
                size = self.routed.passing(direction)[number][1]
                back = _ID_BYTES / devices if direction == "combine" else size * rest
                for sender in range(self.routed.senders):
                    for receiver, of_device in enumerate(copies_of, first):
                        vectors = model.moe_layers * of_device + dense
                        found.append(Passing(direction, "tokens", sender, receiver, vectors * size))
                        if "lm_head" in self.on_experts and rest:
                            found.append(Passing(direction, "outputs", sender, receiver, back))
            first += devices
        return found

    def facts(self) -> dict[str, Any]:
        """What results say of the link."""
        bits, sent = self.dispatch_bits, sum(each.to_all[0] for each in self.routed.copies)
        all_bits = sum(of_end * each.to_all[0] for of_end, each in zip(bits, self.routed.copies, strict=True))
        return {
            "copies_per_token": sent,
            "copies_of_busiest_device": max(each.busiest[0] for each in self.routed.copies),
            "dispatch_bits": all_bits / sent if len(set(bits)) > 1 else bits[0],
            "combine_bits": self.spec.combine_bits,
            "gb_per_s": self.spec.resolved_gb_per_s,
            "experts_gb_per_s": self.routed.ends[-1].gb_per_s,
            "latency_us": self.spec.resolved_latency_us,
        }

    def _size(self, direction: Direction) -> float:
        """Bytes of a vector of what is not routed."""
        return self.routed.ends[-1].vector_bytes[DIRECTIONS.index(direction)]

    def _whole_fs(self, times: int, size: float, copies: float) -> tuple[int, int]:
        """Of so many transfers, which take each row to all devices that share what is not routed: (fixed, of a row)."""
        sent = size * copies / self.routed.senders / self.spec.resolved_gb_per_s
        received = size * (1 / self.turns) / self.routed.ends[-1].gb_per_s
        return round(times * self.spec.resolved_latency_us * FS_PER_US), round(
            times * max(sent, received) / 1e9 * FS_PER_S
        )


def _term(direction: Direction, runs: Runs, time_fs: tuple[int, int]) -> RowTerm:
    rows: RowKind = "outputs" if runs == "last" else "tokens"
    name = f"{direction}, {runs.replace('_', ' ')}"
    return RowTerm(name, "communication", direction, rows, (time_fs,), runs=runs, stage=direction)


def _end(
    pool: PlacedPool, spec: GroupLinkSpec, model: ModelSpec, gb_per_s: float | None, shared_by: int, turns: int
) -> LinkEnd:
    """Devices of experts of a pool."""
    term, devices = pool.plan.experts, pool.devices_per_replica
    assert not isinstance(term, SplitExperts | None)
    on_chips = _chips_per_expert(pool)
    return LinkEnd(
        holders=tuple(_holders(pool)),
        slices=on_chips if term.weight_stationary else devices // term.groups,
        vector_bytes=(model.hidden * _dispatch_bits(pool, spec, model) / 8, model.hidden * spec.combine_bits / 8),
        gb_per_s=gb_per_s or spec.resolved_gb_per_s,
        shared_by=shared_by,
        turns=turns,
        back=1 / on_chips,
    )


def _dispatch_bits(pool: PlacedPool, spec: GroupLinkSpec, model: ModelSpec) -> float:
    """Of an element on its way to devices of a pool."""
    narrow = model.routed_dtype.startswith("fp8") or pool.plan.weight_stationary
    return spec.dispatch_bits or (8 if narrow else 16)


def _chips_per_expert(pool: PlacedPool) -> int:
    """Chips that an expert is cut over, where weights stay on them."""
    return int(pool.replica.parallelism.get("chips_per_expert", 1))


def _holders(pool: PlacedPool) -> list[int]:
    """Slots of each device, or group of them, that holds experts of a layer, as even as can be, in order."""
    term = pool.plan.experts
    assert not isinstance(term, SplitExperts | None)
    holders = term.groups
    if term.weight_stationary:  # chips that hold experts of a layer, or one that holds all of them
        spread = pool.replica.parallelism.get("spread") == "experts"
        holders = pool.devices_per_replica // _chips_per_expert(pool) if spread else 1
    ends = [term.physical_experts * holder // holders for holder in range(holders + 1)]
    return [end - begin for begin, end in pairwise(ends)]
