"""A step on a device whose weights stay where they are: tokens pass through it one behind the other.

There is no matrix product over a batch; every token needs its own matrix-vector products, so a step is a pipeline. One
token (the anchor: a decoding request with the mean context, or the last token of the longest prompt) takes the chain of
all its operations; the other tokens queue for the busiest station, a resource of which the replica has few. With W the
work that they bring there,

    time = chain of the anchor + max over stations of W,

the shape of the bound T1 + (B - 1) w for B equal requests. All times are integers in femtoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.operators import Category

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Station:
    """A resource that tokens queue for: the work of one token, and per context token that it sees.

    `per_context` has an entry for each of the pipeline's windows.
    """

    name: str
    category: Category
    per_token: int
    per_context: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """Busy time that work leaves on a unit, for the busy shares: per token, sampled output and context token seen.

    `prefill`: the unit also computes prefill attention.
    """

    unit: str
    per_token: int
    per_output: int
    per_context: tuple[int, ...]
    prefill: bool = False


@dataclass(frozen=True, slots=True)
class PipelineTerm:
    """How tokens of a step pass through a replica.

    `chain` is one token's way by category, but for attention to its context, which takes `chain_per_context` for each
    context token that it sees. `windows` are the attention windows of groups of layers (None: all of the context).
    Tokens of a prompt follow each other at `per_prompt_token`, of which the category is `prompt_category`.
    """

    windows: tuple[int | None, ...]
    chain: tuple[tuple[Category, int], ...]
    chain_per_context: tuple[int, ...]
    stations: tuple[Station, ...]
    per_prompt_token: int
    prompt_category: Category
    loads: tuple[Load, ...]

    @property
    def fixed_fs(self) -> int:
        """One token's way without attention to its context."""
        return sum(time for _, time in self.chain)

    def seen(self, requests: int, context: int) -> list[int]:
        """Context tokens that layers of each window see, summed over the decoding requests."""
        return [context if window is None else min(context, window * requests) for window in self.windows]

    def span(self, requests: int, context: int, steps: int) -> tuple[int, int, int]:
        """(time of the first step, growth per step, steps) of decode steps that the same station bounds.

        Contexts grow by one token per request and step. `steps` is cut where another station takes over; the caller
        cuts it where a window fills.
        """
        first = self.fixed_fs
        growth = 0
        queued = []
        for window, per_token, seen in zip(
            self.windows, self.chain_per_context, self.seen(requests, context), strict=True
        ):
            mean = seen // requests
            first += per_token * mean
            grows = window is None or context < window * requests
            growth += per_token * grows
            queued.append((seen - mean, (requests - 1) * grows))
        others = requests - 1
        lines = [
            (
                station.per_token * others
                + sum([s * q for s, (q, _) in zip(station.per_context, queued, strict=True)]),
                sum([s * g for s, (_, g) in zip(station.per_context, queued, strict=True)]),
            )
            for station in self.stations
        ]
        work, slope = max(lines)
        for other, other_slope in lines:
            if other_slope > slope:
                steps = min(steps, (work - other) // (other_slope - slope) + 1)
        return first + work, growth + slope, steps

    def mixed_fs(self, requests: int, context: int, others: int, prefill_fs: int) -> int:
        """Time of a step with prompts: the longest is the anchor and takes `prefill_fs` beyond one token's chain.

        `others` counts all other tokens, decoding ones among them.
        """
        seen = self.seen(requests, context)
        work = max(
            station.per_token * others + sum([s * x for s, x in zip(station.per_context, seen, strict=True)])
            for station in self.stations
        )
        return self.fixed_fs + prefill_fs + work

    def prefill(self, requests: int, chunks: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """(others, prefill fs) of a step's prompts, given as (tokens, attention fs), beside `requests` decoding ones.

        Attention of prompts runs one after the other.
        """
        anchor = max(chunks, key=lambda chunk: self.per_prompt_token * chunk[0] + chunk[1])
        others = requests + sum([tokens for tokens, _ in chunks]) - anchor[0]
        return others, self.per_prompt_token * (anchor[0] - 1) + sum([attention for _, attention in chunks])

    def columns(
        self, requests: IntArray, context: IntArray, others: IntArray, prefill_fs: IntArray, prompts: NDArray[np.bool_]
    ) -> PipelineColumns:
        """The same for many steps, (n,) each; `prompts` says which have any."""
        anchor = np.where(prompts, prefill_fs, 0)
        queued = []
        for window, per_token in zip(self.windows, self.chain_per_context, strict=True):
            seen = context if window is None else np.minimum(context, window * requests)
            mean = np.where(prompts, 0, seen // np.maximum(requests, 1))
            anchor = anchor + per_token * mean
            queued.append(seen - mean)
        tokens = np.where(prompts, others, requests - 1)
        work = np.stack(
            [
                station.per_token * tokens + sum(s * q for s, q in zip(station.per_context, queued, strict=True))
                for station in self.stations
            ]
        )
        return PipelineColumns(anchor, work.max(axis=0), work.argmax(axis=0))


@dataclass(frozen=True, slots=True)
class PipelineColumns:
    """Per step, (n,): the anchor's time beyond the fixed chain, the others' work, and the station that bounds it."""

    anchor_fs: IntArray
    work_fs: IntArray
    station: IntArray


@dataclass(frozen=True, slots=True)
class StaticPower:
    """Power that a replica draws whatever it does, in microwatts.

    `idle_uw` while no step runs, `step_uw` in steps. `chain_uw` is saved in steps while only the anchor's chain is
    under way: chips that it has not reached, or has left, rest.
    """

    idle_uw: int
    step_uw: int
    chain_uw: int = 0

    def energy_pj(self, idle_fs: int, step_fs: int, chain_fs: int) -> int:
        """Energy over these times."""
        return (self.idle_uw * idle_fs + self.step_uw * step_fs - self.chain_uw * chain_fs) // 10**9
