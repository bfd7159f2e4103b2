"""The link between devices of attention and of experts: what a dispatch and a combine take, and what passes.

A token's vector goes to the devices of its experts, and comes back. Devices of attention share the sending evenly; at
the experts', the device that has most to receive counts. Both sides are busy at the same time, and the slower one sets
the time (MegaScale-Infer, arXiv 2504.02263, section 4: the maximum over both sides), beside a fixed latency. Which
device gets how much is what popularities make expect, layer by layer; the draw of a step does not change it.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
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

_ID_BYTES = 4  # of a sampled token


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

    `copies`: of a token's vector in one layer, all devices of its experts together, in the mean over the layers;
    `busiest`: those of the device that gets most of them in its layer, likewise. `hits`: of each device, or group of
    devices that split experts, likewise. What is not routed lies on `shared_by` devices, of which a vector needs all;
    data-parallel groups have `turns` at it.
    """

    spec: GroupLinkSpec
    model: ModelSpec
    senders: int
    receivers: int
    copies: float
    busiest: float
    dispatch_bits: float
    shared_by: int
    turns: int
    hits: tuple[float, ...]

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
        term, moe = experts.plan.experts, model.moe
        assert term is not None
        assert moe is not None
        devices, turns = experts.devices_per_replica, experts.plan.data_parallel
        slices, holders, shared_by = devices // term.groups, term.groups, devices // turns
        if term.weight_stationary:  # chips that hold whole experts of a layer, or one that holds all of them
            slices, holders, shared_by = 1, devices if experts.replica.parallelism.get("spread") == "experts" else 1, 1
        hits = _hits(weights, moe.top_k, term.slots, holders, per_pick=spec.copies == "per_pick")
        narrow = model.routed_dtype.startswith("fp8") or term.weight_stationary
        return cls(
            spec,
            model,
            attention.devices_per_replica,
            devices,
            copies=float(hits.sum(axis=1).mean()) * slices,
            busiest=float(hits.max(axis=1).mean()),
            dispatch_bits=spec.dispatch_bits or (8 if narrow else 16),
            shared_by=shared_by,
            turns=turns,
            hits=tuple(hits.mean(axis=0).tolist()),
        )

    def terms(self, on_experts: Set[Part]) -> tuple[RowTerm, ...]:
        """Dispatch and combine in all layers that go to the experts' devices, and for the head if that is there."""
        moe_layers, dense_layers = self.model.moe_layers, self.model.dense_layers
        terms = []
        for stage, bits in self._directions():
            size = self.model.hidden * bits / 8
            terms.append(self._term(stage, "moe_layers", moe_layers, size, *self._needed(on_experts)))
            if "dense_ffn" in on_experts and dense_layers:
                terms.append(self._term(stage, "dense_layers", dense_layers, size, self.shared_by, 1 / self.turns))
            if "lm_head" in on_experts:
                vector, copies = (_ID_BYTES, 1.0) if stage == "combine" else (size, float(self.shared_by))
                terms.append(self._term(stage, "last", 1, vector, copies, 1 / self.turns))
        return tuple(terms)

    def _term(
        self, stage: Literal["dispatch", "combine"], runs: Runs, times: int, size: float, copies: float, busiest: float
    ) -> RowTerm:
        """So many transfers of vectors of `size` bytes, of which each row has `copies`, `busiest` of one device."""
        spec = self.spec
        sent, received = copies / self.senders / spec.gb_per_s, busiest / (spec.experts_gb_per_s or spec.gb_per_s)
        fixed = round(times * spec.latency_us * FS_PER_US)
        slope = round(times * size * max(sent, received) / 1e9 * FS_PER_S)
        rows: RowKind = "outputs" if runs == "last" else "tokens"
        name = f"{stage}, {runs.replace('_', ' ')}"
        return RowTerm(name, "communication", stage, rows, ((fixed, slope),), runs=runs, stage=stage)

    def traffic(self, on_experts: Set[Part]) -> tuple[Traffic, ...]:
        """Bytes and vectors that pass for each token, and for each output, in both directions."""
        traffic = []
        for stage, bits in self._directions():
            size = self.model.hidden * bits / 8
            layers = self.model.moe_layers * self._needed(on_experts)[0]
            layers += self.model.dense_layers * self.shared_by if "dense_ffn" in on_experts else 0
            traffic.append(Traffic(stage, "tokens", layers * size, "between_groups", layers))
            if "lm_head" in on_experts:
                sent = (_ID_BYTES, 0.0) if stage == "combine" else (size * self.shared_by, self.shared_by)
                traffic.append(Traffic(stage, "outputs", sent[0], "between_groups", sent[1]))
        return tuple(traffic)

    def passing(self, on_experts: Set[Part]) -> list[Passing]:
        """The same from device to device: attention's share all rows evenly."""
        model, found = self.model, []
        dense_layers = model.dense_layers if "dense_ffn" in on_experts else 0
        to_devices = self._to_devices(self._needed(on_experts)[0])
        evenly = self.shared_by / self.receivers
        for direction, bits in self._directions():
            size = model.hidden * bits / 8
            for sender in range(self.senders):
                for receiver, copies in enumerate(to_devices):
                    vectors = model.moe_layers * copies + dense_layers * evenly
                    found.append(Passing(direction, "tokens", sender, receiver, vectors * size))
                    if "lm_head" in on_experts:
                        back = _ID_BYTES / self.receivers if direction == "combine" else size * evenly
                        found.append(Passing(direction, "outputs", sender, receiver, back))
        return found

    def _to_devices(self, needed: float) -> list[float]:
        """Copies of a token's vector that go to each of the experts' devices in a MoE layer, `needed` ones in all."""
        even = self.copies * len(self.hits) / self.receivers / sum(self.hits)  # devices of a holder share its copies
        copies = [self.hits[device * len(self.hits) // self.receivers] * even for device in range(self.receivers)]
        if needed == self.copies:
            return copies
        if self.spec.copies == "per_pick":
            return [routed + (needed - self.copies) / self.receivers for routed in copies]
        more = (needed - self.copies) / (self.receivers - self.copies)
        return [routed + more * (1 - routed) for routed in copies]

    def facts(self, on_experts: Set[Part]) -> dict[str, Any]:
        """What results say of the link."""
        copies, busiest = self._needed(on_experts)
        return {
            "copies_per_token": copies,
            "copies_of_busiest_device": busiest,
            "dispatch_bits": self.dispatch_bits,
            "combine_bits": self.spec.combine_bits,
            "gb_per_s": self.spec.gb_per_s,
            "experts_gb_per_s": self.spec.experts_gb_per_s or self.spec.gb_per_s,
            "latency_us": self.spec.latency_us,
        }

    def _directions(self) -> tuple[tuple[Literal["dispatch", "combine"], float], ...]:
        return ("dispatch", self.dispatch_bits), ("combine", self.spec.combine_bits)

    def _needed(self, on_experts: Set[Part]) -> tuple[float, float]:
        """(copies of a token's vector, those of the busiest device) in a MoE layer.

        Devices with shared experts need every token whose turn is theirs, also those without a routed expert of it.
        """
        if "shared_experts" not in on_experts or self.model.moe is None or not self.model.moe.shared_intermediate:
            return self.copies, self.busiest
        if self.spec.copies == "per_pick":
            return self.copies + self.shared_by, self.busiest + 1 / self.turns
        without = 1 - sum(self.hits) / len(self.hits)
        return self.copies + self.shared_by * without, self.busiest + (1 - self.busiest) / self.turns


def _hits(
    weights: Sequence[Sequence[float]], top_k: int, slots: Sequence[Sequence[int]], holders: int, *, per_pick: bool
) -> FloatArray:
    """(laws, holders): how often a token goes to each device, or group of them, that holds experts; at most once, or
    per pick.

    A pick of an expert with copies goes to any of them alike. The chance that no pick leads to one is the ratio of
    elementary symmetric polynomials of the weights with and without what leads there (as in `pick_probabilities`).
    """
    found = []
    for law in range(max(len(weights), len(slots))):
        row = np.asarray(weights[min(law, len(weights) - 1)], float)
        places = np.asarray(slots[min(law, len(slots) - 1)] if slots else range(len(row)))
        shares = [len(places) * holder // holders for holder in range(holders + 1)]  # as even as can be, in order
        leads = np.zeros((holders, len(row)))
        np.add.at(leads, (np.repeat(np.arange(holders), np.diff(shares)), places), 1)
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
