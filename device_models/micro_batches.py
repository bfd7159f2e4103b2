"""Attention on one group of devices and experts on another: when the parts of a step are where.

A step's batch is cut into micro-batches, which go round: attention of a layer, dispatch over the link, experts,
combine over the link back, then attention of the next layer. The two groups and the two directions of the link each
take one micro-batch at a time, in their order, and a micro-batch waits for its own previous layer. With one that is a
sum; with as many as a round trip takes, one group hides behind the other (MegaScale-Infer, arXiv 2504.02263, 4).

Experts are drawn, so that layers differ in time: a step's time is that of the event schedule, in max and plus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.operators import Runs, Stage
from pimserve.device_models.step import N, StepShape, least, where

BETWEEN = ("dispatch", "combine")  # in busy tables, the directions of the link between the groups
StageTimes = Mapping[tuple[Stage, Runs], N]  # of a micro-batch, by stage and by where in the pass


class Visit(NamedTuple):
    """What of a pass the devices of attention do before the experts' devices are called for, and what these do then."""

    layers: int
    dense_layers: int  # whose FFN is among them
    moe_layers: int
    calls: Runs


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """How a step's batch goes round between two groups of devices.

    Args:
        from_tokens: a step of at least so many tokens is cut into 1, 2, ... micro-batches; ascending. Where it has
            fewer tokens than these, some are empty.
        counts: layers, dense layers and MoE layers of the model; times of row terms are multiples of them.
        visits: in the order of the pass.
        closing: layers, and dense ones among them, that attention's devices run after the last visit.
    """

    from_tokens: tuple[int, ...]
    counts: tuple[int, int, int]
    visits: tuple[Visit, ...]
    closing: tuple[int, int]

    @property
    def parts(self) -> int:
        """The most micro-batches of a step."""
        return len(self.from_tokens)

    def of_step(self, tokens: N) -> N:
        """Micro-batches of steps with so many tokens."""
        return sum([1 * (tokens >= least_tokens) for least_tokens in self.from_tokens], 0 * tokens)

    def repeats(self, runs: Runs) -> int:
        """How often in a pass something runs."""
        return {"layers": self.counts[0], "dense_layers": self.counts[1], "moe_layers": self.counts[2]}.get(runs, 1)

    def split(self, shape: StepShape[N], data_parallel: int) -> list[StepShape[N]]:
        """The micro-batches of steps or spans.

        Decoding requests are dealt out one by one, and have the mean context, or a token more; prompts are cut by
        tokens, as their attention is by time.
        """
        n = self.of_step(shape.tokens)
        mean = shape.context // (shape.decodes + (shape.decodes == 0))
        more = shape.context - mean * shape.decodes
        beside = shape.busiest_tokens - -(-shape.decodes // data_parallel)  # prompts' of the busiest group
        completed = shape.outputs - shape.decodes
        with_prompts = least([shape.prefill_tokens, n])
        shapes = []
        for part in range(self.parts):
            first, last = 0 * n + part, n - 1 - part  # prompts are dealt from the last micro-batch on
            decodes = _share(shape.decodes, first, n)
            shapes.append(
                StepShape(
                    steps=shape.steps,
                    decodes=decodes,
                    context=mean * decodes + _share(more, first, n),
                    prefill_tokens=_share(shape.prefill_tokens, last, n),
                    chunks=_share(shape.chunks, last, n),
                    outputs=decodes + _share(completed, last, n),
                    busiest_tokens=-(-decodes // data_parallel) + _share(beside, last, n),
                    anchor_tokens=_share(shape.anchor_tokens, last, n),
                    prefill_fs=self.counts[0] * _share(shape.prefill_fs // self.counts[0], last, with_prompts),
                    prefill_dram_pj=0 * decodes,  # of the whole
                    prefill_compute_pj=0 * decodes,
                )
            )
        return shapes

    def times(self, times: StageTimes[N], routed: Sequence[N]) -> PartTimes[N]:
        """How long a micro-batch takes at each stage of each visit.

        Args:
            times: of its row terms and its attention, all repeats together.
            routed: of its routed experts, an entry for each MoE layer.
        """
        once = {key: time // self.repeats(key[1]) for key, time in times.items()}
        nothing = 0 * next(iter(times.values()))

        def of(stage: Stage, runs: Runs) -> N:
            return once.get((stage, runs), nothing)

        def attention(layers: int, dense_layers: int, moe_layers: int) -> N:
            dense, moe = dense_layers * of("attention", "dense_layers"), moe_layers * of("attention", "moe_layers")
            return layers * of("attention", "layers") + dense + moe

        layer = iter(routed)
        before = {visit: attention(*visit[:3]) for visit in dict.fromkeys(self.visits)}
        calls = [visit.calls for visit in self.visits]
        return PartTimes(
            [before[visit] for visit in self.visits],
            [of("dispatch", runs) for runs in calls],
            [of("experts", runs) + (next(layer) if runs == "moe_layers" else nothing) for runs in calls],
            [of("combine", runs) for runs in calls],
            attention(*self.closing, 0) + of("attention", "last"),
        )

    def sizes(self, requests: int, context: int) -> list[tuple[int, int]]:
        """Decoding requests of each micro-batch of a step that only decodes, and their contexts together."""
        parts, (mean, more) = self.of_step(requests), divmod(context, requests)
        shares = ((_share(requests, part, parts), _share(more, part, parts)) for part in range(min(parts, requests)))
        return [(size, size * mean + rest) for size, rest in shares]

    def decoding(self, fixed: PartTimes[Any], layer_fs: N, routed: Sequence[N]) -> PartTimes[N]:
        """The same for one of decoding requests, given what does not hang on their contexts or on chance.

        Args:
            fixed: without decode attention and routed experts.
            layer_fs: decode attention of a layer.
            routed: of its routed experts, an entry for each MoE layer.
        """
        layer = iter(routed)
        return PartTimes(
            [time + visit.layers * layer_fs for time, visit in zip(fixed.attention, self.visits, strict=True)],
            fixed.dispatch,  # as numbers, which go with columns
            [
                time + next(layer) if visit.calls == "moe_layers" else time
                for time, visit in zip(fixed.experts, self.visits, strict=True)
            ],
            fixed.combine,
            fixed.closing + self.closing[0] * layer_fs,
        )


class PartTimes(NamedTuple, Generic[N]):
    """How long a micro-batch takes at each stage, fs: an entry for each visit, and what attention's devices do last."""

    attention: list[N]
    dispatch: list[N]
    experts: list[N]
    combine: list[N]
    closing: N

    @property
    def attention_fs(self) -> N:
        """On attention's devices."""
        return sum(self.attention, self.closing)

    @property
    def experts_fs(self) -> N:
        """On the experts' devices."""
        return sum(self.experts[1:], self.experts[0])

    @property
    def link_fs(self) -> N:
        """On the link, there and back."""
        return sum(self.dispatch, self.combine[0]) + sum(self.combine[1:], 0 * self.closing)

    @property
    def whole_fs(self) -> N:
        """One stage after the other."""
        return self.attention_fs + self.experts_fs + self.link_fs

    @property
    def free_links(self) -> PartTimes[N]:
        """The same over links that take no time."""
        nothing = [0 * self.closing] * len(self.dispatch)
        return self._replace(dispatch=nothing, combine=nothing)


def schedule_fs(parts: Sequence[PartTimes[N]]) -> N:
    """Time of a step by its event schedule, for numbers or columns of steps.

    Args:
        parts: its micro-batches, in order. Each stage takes them in this order, visit by visit, one at a time; those of
            a visit start with attention when they have come back from the one before.
    """
    if len(parts) == 1:
        return parts[0].whole_fs
    closing = [part.closing for part in parts]
    if isinstance(closing[0], int):
        return _schedule(parts, closing)
    return np.asarray(_schedule_columns(parts, closing))


def _schedule(parts: Sequence[PartTimes[int]], closing: Sequence[int]) -> int:
    """For numbers; plain comparisons, since an engine asks for each step with prompts."""
    attention = dispatch = experts = combine = 0  # until when each stage is taken
    back = [0] * len(parts)  # when a micro-batch has come back, of all so far
    for visit in zip(*(zip(*part[:4], strict=True) for part in parts), strict=True):
        for (attend, send, compute, send_back), returned in zip(visit, back[-len(parts) :], strict=True):
            attention = (returned if returned > attention else attention) + attend
            dispatch = (attention if attention > dispatch else dispatch) + send
            experts = (dispatch if dispatch > experts else experts) + compute
            combine = (experts if experts > combine else combine) + send_back
            back.append(combine)
    for last, returned in zip(closing, back[-len(parts) :], strict=True):
        attention = (returned if returned > attention else attention) + last
    return attention


def _schedule_columns(parts: Sequence[PartTimes[IntArray]], closing: Sequence[IntArray]) -> IntArray:
    """The same for columns, (n,) each."""
    attention, dispatch, experts = (np.zeros_like(closing[0]) for _ in range(3))
    back = [np.zeros_like(closing[0]) for _ in parts]
    combine: IntArray = back[-1]
    for visit in range(len(parts[0].attention)):
        for place, part in enumerate(parts):
            np.maximum(attention, back[place], out=attention)
            attention += part.attention[visit]
            np.maximum(dispatch, attention, out=dispatch)
            dispatch += part.dispatch[visit]
            np.maximum(experts, dispatch, out=experts)
            experts += part.experts[visit]
            combine = np.maximum(combine, experts) + part.combine[visit]
            back[place] = combine
    for place, last in enumerate(closing):
        np.maximum(attention, back[place], out=attention)
        attention += last
    return attention


def _share(whole: N, part: N, parts: N) -> N:
    """What a micro-batch has of things that are dealt out one by one to so many; nothing beyond these."""
    share: N = (whole + parts - 1 - part) // (parts + (parts == 0))
    return where((part >= 0) & (part < parts), share, 0 * share)
