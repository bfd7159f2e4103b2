"""Routed experts on the devices of a replica: what each dispatches to the others, and what these make of it.

A device learns what its experts have to do from what the others send it, and from nothing else:

- with exact routing, for each step and layer the copies for each of its experts. Its group works out time and energy
  from their sums and sends them back; a layer takes as long as its slowest group;
- with pooled routing, where an outcome stands for all layers together, the tokens of each sender and the number of the
  outcome, which the receiver looks up in its own pools; it sends back the time.

Where experts have devices of their own, those of attention dispatch, in micro-batches, and results come back to them
(`mixed_experts`, with pooled routing).

What passes from device to device are matrices of whole numbers, a row for each span of steps. As every device knows
the gate's draw, it can say at once in which layer a message differs from it, and of whom it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.cluster.distributed.devices.flows import Dispatch
from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts
from pimserve.device_models.evaluate import parts_of
from pimserve.device_models.experts import FEATURES, GROUP_FEATURES, ExpertTerm
from pimserve.device_models.routing import ExpertPools
from pimserve.device_models.step import StepShape
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.exact import exact_sum
from pimserve.scheduler.ledger import PooledSpans

SENT, RESULT = np.dtype("<i4"), np.dtype("<i8")  # of the matrices that are dispatched, and come back
_EXPERTS_FS = FEATURES.index("time_fs")
_TIME, _DRAM, _COMPUTE = (GROUP_FEATURES.index(name) for name in ("time_fs", "dram_pj", "compute_pj"))
Matrix = NDArray[Any]
Pair = tuple[int, int]  # sending and receiving device


class Work(NamedTuple):
    """What routed experts took in spans.

    `features`: (n, features), of the replica. `own_fs`: time that each device here had for its own experts; `own_pj`:
    its part of the DRAM and of the compute energy; empty where an outcome does not tell one device from another.
    """

    features: IntArray
    own_fs: Mapping[int, int]
    own_pj: Mapping[int, Pair]


class PooledExperts:
    """Experts of a replica with pooled routing.

    Args:
        costs: the replica's costs, at some speed.
        dispatch: what passes between its devices.
        devices: those that are on this host.
    """

    sent_width, result_width = 2, 1

    def __init__(self, costs: ReplicaCosts, dispatch: Dispatch, devices: Sequence[int]) -> None:
        self._spans = PooledSpans(costs)
        self._senders = dispatch.senders
        self._devices = devices

    def result_rows(self, span_steps: NDArray[np.integer[Any]]) -> int:
        """Rows of what comes back for spans of so many steps."""
        return len(span_steps)

    def senders(self, devices: Sequence[int]) -> list[int]:
        """Those of these devices that dispatch."""
        return list(devices)

    def receivers(self, devices: Sequence[int]) -> list[int]:
        """Of these devices, those to which something is sent; the others get the same as the one before."""
        return list(devices[:1])

    def layer_picks(self, sent: Mapping[Pair, Matrix], steps: IntArray) -> dict[Pair, IntArray]:
        """Nothing passes between groups of devices."""
        return {}

    def draw(self, spans: StepShape[IntArray], first_steps: IntArray) -> PooledTurn:
        """What the gate says to spans, (n,) each; `first_steps`: numbers of their first steps."""
        return PooledTurn(self._spans, self._senders, self._devices, spans.tokens, first_steps, spans.steps)


class PooledTurn:
    """Spans of which tokens are dispatched, looked up and sent back."""

    picks: IntArray | None = None

    def __init__(
        self,
        spans: PooledSpans,
        senders: int,
        devices: Sequence[int],
        tokens: IntArray,
        first_steps: IntArray,
        steps: IntArray,
    ) -> None:
        self._spans, self._devices = spans, devices
        self._tokens, self._steps = tokens, steps
        self._outcomes = spans.outcomes(first_steps)
        each = np.arange(senders)[:, None]
        tokens_of = tokens // senders + (each < tokens % senders)
        self._sent = np.stack([tokens_of, np.broadcast_to(self._outcomes, tokens_of.shape)], axis=2).astype(SENT)
        self._features: IntArray | None = None  # of what came

    def sent(self, sender: int, receiver: int) -> Matrix:
        """(n, 2): tokens of a sender, and the number of the outcome."""
        return np.asarray(self._sent[sender])

    def sent_name(self, receiver: int, column: int) -> str:
        """What a column of `sent` is."""
        return ("tokens in all layers", "number of the outcome of all layers")[column]

    def compute(self, came: Mapping[Pair, Matrix]) -> None:
        """Look up what came."""
        matrices = list(came.values())
        tokens = np.asarray(np.sum([matrix[:, 0] for matrix in matrices], axis=0, dtype=np.int64))
        self._features = self._spans.features(tokens, matrices[0][:, 1].astype(np.int64), self._steps)

    def result(self, sender: int) -> Matrix:
        """(n, 1): time of the experts of a span, fs."""
        return self._computed()[:, :1]

    def result_name(self, sender: int, column: int) -> str:
        """What a column of `result` is."""
        return "fs of the experts in all layers"

    def work(self, results: Mapping[int, Matrix]) -> Work:
        """What the replica's experts take: what the slowest device says."""
        features = self._computed().copy()
        features[:, _EXPERTS_FS] = np.max([matrix[:, 0] for matrix in results.values()], axis=0)
        return Work(features, dict.fromkeys(self._devices, exact_sum(features[:, _EXPERTS_FS])), {})

    def _computed(self) -> IntArray:
        if self._features is None:  # a span that was executed before
            self._features = self._spans.features(self._tokens, self._outcomes, self._steps)
        return self._features


class ExactExperts:
    """Experts of a replica of which every layer of every step is drawn.

    Args:
        costs: the replica's costs, at some speed.
        dispatch: what passes between its devices.
        devices: those that are on this host.
    """

    def __init__(self, costs: ReplicaCosts, dispatch: Dispatch, devices: Sequence[int]) -> None:
        assert costs.pools is not None
        self.pools: ExpertPools = costs.pools
        term = costs.pools.term
        assert isinstance(term, ExpertTerm | CrossbarExperts)  # a pool is refused otherwise
        self.term = term
        self.costs = costs
        self.dispatch = dispatch
        self.devices = devices
        self.per_group = self.term.physical_experts // self.term.groups
        self.ways = self.term.ways
        self.parts = 1 if costs.plan.micro_batches is None else costs.plan.micro_batches.parts
        self.sent_width = self.parts * self.term.layers * self.per_group
        self.result_width = self.parts * self.term.layers * self.ways * len(GROUP_FEATURES)

    def result_rows(self, span_steps: NDArray[np.integer[Any]]) -> int:
        """Rows of what comes back for spans of so many steps."""
        return len(span_steps)

    def senders(self, devices: Sequence[int]) -> list[int]:
        """Those of these devices that dispatch."""
        return self.dispatch.of_senders(devices)

    def receivers(self, devices: Sequence[int]) -> list[int]:
        """Of these devices, those to which something is sent: the first of each group, as the others get the same."""
        firsts: dict[int, int] = {}
        for device in self.dispatch.of_experts(devices):
            firsts.setdefault(self.dispatch.group_of(device), device)
        return list(firsts.values())

    def layer_picks(self, sent: Mapping[Pair, Matrix], steps: IntArray) -> dict[Pair, IntArray]:
        """Between groups of devices, picks by MoE layer, (layers,), to the first device of each expert group."""
        if not self.dispatch.over_link:
            return {}
        firsts = range(self.dispatch.first, self.dispatch.end, self.dispatch.slices)
        shape = -1, self.term.layers, self.per_group
        return {
            pair: matrix.reshape(shape).sum(axis=(0, 2), dtype=np.int64)
            for pair, matrix in sent.items()
            if pair[1] in firsts
        }

    def draw(self, spans: StepShape[IntArray], first_steps: IntArray) -> ExactTurn:
        """The gate's draw for single steps, (n,) each; `first_steps`: their numbers."""
        return ExactTurn(self, spans, first_steps)

    def named(self, part: int, layer: int) -> str:
        """A MoE layer, of a micro-batch where a step has several."""
        return f"MoE layer {layer}" + (f", micro-batch {part}" if self.parts > 1 else "")


class ExactTurn:
    """Steps of which copies are dispatched, computed and sent back."""

    def __init__(self, experts: ExactExperts, steps: StepShape[IntArray], numbers: IntArray) -> None:
        self._experts = experts
        self._steps = steps
        term, dispatch = experts.term, experts.dispatch
        here = sorted({dispatch.group_of(device) for device in dispatch.of_experts(experts.devices)})
        tokens = np.stack([part.tokens for part in parts_of(experts.costs.plan, steps)], axis=1)
        self._draws = tokens.shape  # steps and micro-batches
        shape = tokens.size, dispatch.senders, term.layers, term.groups, experts.per_group
        self._counts = np.empty((shape[0], *shape[2:]), np.int64)
        outgoing = {device: np.empty((shape[0], *shape[2:]), SENT) for device in dispatch.of_senders(experts.devices)}
        incoming = {group: np.empty((*shape[:3], shape[4]), SENT) for group in here}
        self.picks: IntArray | None = np.zeros(len(dispatch.sender), np.int64)
        for place, t in enumerate(tokens.ravel().tolist()):
            step, part = divmod(place, tokens.shape[1])
            counts = experts.pools.exact_counts(t, experts.costs.replica, int(numbers[step]), part)
            copies = dispatch.copies(counts).reshape(shape[1:])
            self.picks += dispatch.of_cells(copies.sum(axis=(1, 3)))
            self._counts[place] = counts.reshape(shape[2:])
            for device, block in outgoing.items():
                block[place] = copies[device]
            for group, block in incoming.items():
                block[place] = copies[:, :, group]
        self._outgoing, self._incoming = outgoing, incoming
        layers = self._counts.reshape(-1, *shape[3:])
        self._results = term.group_features(layers)  # (ways, draws x layers, groups, group features), by the draw
        self._own = {group: self._results[:, :, group] for group in here}

    def sent(self, sender: int, receiver: int) -> Matrix:
        """(n, micro-batches x layers x experts of the receiver): copies, layer by layer."""
        group = self._experts.dispatch.group_of(receiver)
        outgoing = self._outgoing.get(sender)
        block = self._incoming[group][:, sender] if outgoing is None else outgoing[:, :, group]
        return block.reshape(self._draws[0], -1)

    def sent_name(self, receiver: int, column: int) -> str:
        """What a column of `sent` is."""
        experts = self._experts
        which, place = divmod(column, experts.per_group)
        part, layer = divmod(which, experts.term.layers)
        slot = experts.dispatch.group_of(receiver) * experts.per_group + place
        slots = experts.term.slots
        expert = slots[layer % len(slots)][slot] if slots else slot
        return f"copies for expert {expert} in {experts.named(part, layer)}"

    def compute(self, came: Mapping[Pair, Matrix]) -> None:
        """Work out the experts here from the copies that came for them."""
        experts = self._experts
        for group in self._own:
            blocks = [matrix for (_, to), matrix in came.items() if experts.dispatch.group_of(to) == group]
            tokens = np.sum(blocks, axis=0, dtype=np.int64).reshape(-1, 1, experts.per_group)
            self._own[group] = experts.term.group_features(tokens)[:, :, 0]

    def result(self, sender: int) -> Matrix:
        """(n, micro-batches x layers x ways x group features) of the experts of a device's group."""
        group = self._experts.dispatch.group_of(sender)
        features = self._own[group] if group in self._own else self._results[:, :, group]
        by_draw = features.reshape(self._experts.ways, len(self._counts), -1, len(GROUP_FEATURES))
        return np.ascontiguousarray(by_draw.transpose(1, 2, 0, 3)).reshape(self._draws[0], -1)

    def result_name(self, sender: int, column: int) -> str:
        """What a column of `result` is."""
        experts = self._experts
        which, rest = divmod(column, experts.ways * len(GROUP_FEATURES))
        part, layer = divmod(which, experts.term.layers)
        group, feature = experts.dispatch.group_of(sender), GROUP_FEATURES[rest % len(GROUP_FEATURES)]
        return f"{feature} of expert group {group} in {experts.named(part, layer)}"

    def work(self, results: Mapping[int, Matrix]) -> Work:
        """What the replica's experts take: in each layer what the slowest group says.

        Devices to which results do not come back have those of others from the draw.
        """
        experts, term, n = self._experts, self._experts.term, len(self._counts)
        dispatch = experts.dispatch
        if not results:
            results = {first: self.result(first) for first in range(dispatch.first, dispatch.end, dispatch.slices)}
        of_group = {dispatch.group_of(device): matrix for device, matrix in results.items()}
        stacked = np.stack([of_group[group] for group in range(term.groups)])
        shaped = stacked.reshape(term.groups, n * term.layers, experts.ways, len(GROUP_FEATURES)).transpose(2, 1, 0, 3)
        layers = term.merged(shaped).reshape(*self._draws, term.layers, -1)
        own_fs, own_pj = dict.fromkeys(experts.devices, 0), {}
        # Rounded and shared out step by step, so that it does not hang on which steps come together.
        of_steps = term.taken(shaped).reshape(self._draws[0], -1, term.groups, len(GROUP_FEATURES)).sum(axis=1)
        for device in dispatch.of_experts(experts.devices):
            group, part = divmod(device - dispatch.first, dispatch.slices)
            alone = np.zeros((self._draws[0], len(FEATURES)), np.int64)
            alone[:, _EXPERTS_FS] = of_steps[:, group, _TIME]
            own_fs[device] = exact_sum(experts.pools.scaled(alone)[:, _EXPERTS_FS])
            whole, rest = np.divmod(of_steps[:, group], dispatch.slices)
            shares = whole + (part < rest)
            own_pj[device] = exact_sum(shares[:, _DRAM]), exact_sum(shares[:, _COMPUTE])
        return Work(experts.costs.features_of_layers(self._steps, layers), own_fs, own_pj)
