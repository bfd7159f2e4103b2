"""Attention on one group of devices and experts on another: a step's batch in micro-batches, which go round.

A micro-batch has attention of a layer, dispatch over the link, experts, combine over the link back, then attention of
the next layer. With one that is a sum; with as many as a round trip takes, one group hides behind the other
(MegaScale-Infer, arXiv 2504.02263, 4). `round_trips` says when they are where.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from pimserve.device_models.operators import Runs, Stage
from pimserve.device_models.round_trips import PartTimes
from pimserve.device_models.step import N, StepShape, least

BETWEEN = ("dispatch", "combine")  # in busy tables, the directions of the link between the groups
StageTimes = Mapping[tuple[Stage, Runs], N]  # of a micro-batch, by stage and by where in the pass


class Visit(NamedTuple):
    """What of a pass the devices of attention do before the experts' devices are called for, and what these do then."""

    layers: int
    dense_layers: int  # whose FFN is among them
    moe_layers: int
    calls: Runs


@dataclass(frozen=True)
class MicroBatches:
    """How a step's batch goes round between two groups of devices.

    Args:
        cuts: (tokens, micro-batches of a step with at least so many tokens), by ascending tokens. Where a step has
            fewer tokens than micro-batches, some are empty.
        counts: layers, dense layers and MoE layers of the model; times of row terms are multiples of them.
        visits: in the order of the pass.
        closing: layers, and dense ones among them, that attention's devices run after the last visit.
    """

    cuts: tuple[tuple[int, int], ...]
    counts: tuple[int, int, int]
    visits: tuple[Visit, ...]
    closing: tuple[int, int]

    @cached_property
    def rounds(self) -> tuple[tuple[Visit, int], ...]:
        """Visits that follow each other and are alike, and how many."""
        return tuple((visit, len(list(alike))) for visit, alike in groupby(self.visits))

    @cached_property
    def _counts(self) -> tuple[list[int], list[int]]:
        """Of each round, visits, and layers of each."""
        return [visits for _, visits in self.rounds], [visit.layers for visit, _ in self.rounds]

    @cached_property
    def _only_routed(self) -> bool:
        """Whether all visits are of MoE layers."""
        return all(visit.calls == "moe_layers" for visit in self.visits)

    @cached_property
    def parts(self) -> int:
        """The most micro-batches of a step."""
        return max(number for _, number in self.cuts)

    @cached_property
    def _from_tokens(self) -> list[int]:
        return [tokens for tokens, _ in self.cuts]

    def of_step(self, tokens: N) -> N:
        """Micro-batches of steps with so many tokens; 0: it has fewer than any cut."""
        if isinstance(tokens, int):
            place = bisect_right(self._from_tokens, tokens)
            return self.cuts[place - 1][1] if place else 0
        less, found = 0, 0 * tokens
        for from_tokens, number in self.cuts:
            found = found + (number - less) * (tokens >= from_tokens)
            less = number
        return found

    def repeats(self, runs: Runs) -> int:
        """How often in a pass something runs."""
        return {"layers": self.counts[0], "dense_layers": self.counts[1], "moe_layers": self.counts[2]}.get(runs, 1)

    def split(self, shape: StepShape[N], data_parallel: int, verify_tokens: int = 1) -> list[StepShape[N]]:
        """The micro-batches of steps or spans.

        Decoding requests are dealt out one by one, with all of their `verify_tokens` each, and have the mean context,
        or a token more; prompts are cut by tokens, as their attention is by time.
        """
        steps, requests, context, prefill, chunks, outputs, busiest, anchor, prefill_fs, *_ = shape
        n = self.of_step(verify_tokens * requests + prefill)
        nothing, divisor = 0 * requests, n + (n == 0)
        mean = context // (requests + (requests == 0))
        more = context - mean * requests
        beside = busiest - verify_tokens * -(-requests // data_parallel)  # prompts' of the busiest group
        completed = outputs - requests
        with_prompts = least([prefill, n])
        layer_fs = prefill_fs // self.counts[0]
        shapes = []
        for part in range(self.parts):
            here, short = part < n, n - 1 - part  # things are dealt out one by one, prompts from the last part on
            decodes = here * ((requests + short) // divisor)
            layer = (layer_fs + with_prompts - 1 - short) // (with_prompts + (with_prompts == 0))
            of_part = (
                decodes,
                mean * decodes + here * ((more + short) // divisor),
                here * ((chunks + part) // divisor),
                decodes + here * ((completed + part) // divisor),
            )
            shapes.append(
                StepShape(
                    steps,
                    *of_part[:2],
                    here * ((prefill + part) // divisor),
                    *of_part[2:],
                    verify_tokens * -(-decodes // data_parallel) + here * ((beside + part) // divisor),
                    here * ((anchor + part) // divisor),
                    here * (short < with_prompts) * self.counts[0] * layer,
                    nothing,  # energies are of the whole
                    nothing,
                    *of_part,  # groups share it evenly
                )
            )
        return shapes

    def rows(self, times: StageTimes[N]) -> list[N]:
        """How long row terms of a micro-batch take at each stage of each visit: as `part` has it.

        Args:
            times: of them, all repeats together; attention's own may be among them.
        """
        once = {key: time // self.repeats(key[1]) for key, time in times.items()}
        nothing = 0 * next(iter(times.values()))

        def of(stage: Stage, runs: Runs) -> N:
            return once.get((stage, runs), nothing)

        def attention(layers: int, dense_layers: int, moe_layers: int) -> N:
            dense, moe = dense_layers * of("attention", "dense_layers"), moe_layers * of("attention", "moe_layers")
            return layers * of("attention", "layers") + dense + moe

        rows: list[N] = [attention(*visit[:3]) for visit, _ in self.rounds]
        elsewhere: tuple[Stage, ...] = ("dispatch", "experts", "combine")
        rows += [of(stage, visit.calls) for stage in elsewhere for visit, _ in self.rounds]
        rows.append(attention(*self.closing, 0) + of("attention", "last"))
        return rows

    def part(self, rows: Sequence[Any], layer_fs: N, routed: Any) -> PartTimes[N]:  # noqa: ANN401
        """How long a micro-batch takes at each stage of each visit.

        Args:
            rows: of row terms: for each stage, an entry for each round; then of what attention's devices do last.
            layer_fs: attention of a layer that is not among them.
            routed: its routed experts, an entry for each MoE layer: numbers in a list, columns in an array (layers, n).
        """
        visits, layers = self._counts
        n = len(visits)
        if n == 1 and self._only_routed and not isinstance(layer_fs, np.ndarray) and not rows[2]:
            # The usual case, which an engine asks for in each step with prompts.
            attention, dispatch, _, combine, closing = rows
            attention += layers[0] * layer_fs
            return PartTimes(visits, [attention], [dispatch], routed, [combine], closing + self.closing[0] * layer_fs)
        beside = rows[2 * n : 3 * n]
        alone = isinstance(routed, list) and not any(beside)
        return PartTimes(
            visits,
            [time + count * layer_fs for time, count in zip(rows[:n], layers, strict=True)],
            rows[n : 2 * n],
            routed if self._only_routed and alone else self._computes(beside, routed),
            rows[3 * n : 4 * n],
            rows[-1] + self.closing[0] * layer_fs,
        )

    def sizes(self, requests: int, context: int, verify_tokens: int = 1) -> list[tuple[int, int]]:
        """Decoding requests of each micro-batch of a step that only decodes, and their contexts together."""
        n, (mean, more) = self.of_step(verify_tokens * requests), divmod(context, requests)
        sizes = [(requests + n - 1 - part) // n for part in range(min(n, requests))]
        return [(size, size * mean + (more + n - 1 - part) // n) for part, size in enumerate(sizes)]

    def _computes(self, beside: Sequence[Any], routed: Any) -> Any:  # noqa: ANN401 a list of numbers, or one array
        """Time of experts' devices by visit: of routed experts, and of what is beside them in visits of each round."""
        columns = not isinstance(routed, list)
        rounds: list[Any] = []
        at = 0
        for (visit, visits), time in zip(self.rounds, beside, strict=True):
            if visit.calls != "moe_layers":
                rounds.append(np.broadcast_to(time, (visits, routed.shape[1])) if columns else [time] * visits)
                continue
            layers = routed[at : at + visits]
            rounds.append(layers + time if columns else [time + layer for layer in layers] if time else layers)
            at += visits
        if len(rounds) == 1:
            return rounds[0]
        return np.concatenate(rounds) if columns else [time for times in rounds for time in times]
