"""Rules, work and task graph of the event-driven model: what `graph_builder` builds and `schedule` runs."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Several
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.aimc.event.operations import OperationTable
from pimserve.errors import InputError

NO_RESOURCE = -1


@dataclass(frozen=True, slots=True)
class Rules:
    """Where the reference simulator departs from physics, one switch each; the defaults are physical."""

    experts_wait_for_router: bool = True
    routing_per_sequence: bool = True
    random_token_ids: bool = True
    read_positions: bool = True
    combine_at_hidden: bool = True
    """Sums of experts' results are of size hidden, not of the FFN's width."""
    kv_writes: bool = True
    dram_contention: bool = True
    """Cache reads and writes of a chip queue for its memory, and a read overlaps its computation."""
    skip_unread_prompt: bool = True
    """In the last layer, prompt tokens but the last end at the inputs of attention."""
    sizes_by_payload: bool = True
    """Hops and sums over row blocks are of the rows or columns that a chunk uses, not of a full tier width."""
    logits_by_chunk: bool = True
    """Logits hop to the sampler like any result, not all in one hop of a tier's width."""
    reference_accounting: bool = False
    """FLOPs of attention, and peak memory, as the reference simulator counts them."""


PHYSICAL = Rules()
COMPAT = Rules(**{switch.name: not switch.default for switch in fields(Rules)})  # the other way, all of them


@dataclass(frozen=True, slots=True)
class Sequence:
    """Work of one sequence, which starts at time zero.

    The first step computes `prompt` tokens after `context` tokens that the KV cache already holds; it and each of the
    `generate - 1` steps after it, of one token each, end with a generated token. The attention of step i spans
    context + prompt + i tokens, so one decode step whose attention spans c tokens is Sequence(1, 1, c - 1).
    With `generate` 0 the prompt is computed and no token sampled: a chunk of a longer prompt.
    """

    prompt: int
    generate: int
    context: int = 0

    def __post_init__(self) -> None:
        if self.prompt < 1:
            raise InputError("sequence.prompt", f"must be at least 1 (got {self.prompt})")
        for name in ("generate", "context"):
            if getattr(self, name) < 0:
                raise InputError(f"sequence.{name}", f"must not be negative (got {getattr(self, name)})")

    @property
    def steps(self) -> int:
        """Passes through the network."""
        return max(1, self.generate)


@dataclass(frozen=True, slots=True)
class Resources:
    """Numbers of what tasks occupy: tiles first, then of each chip the digital units, attention units and memory."""

    tiles: int
    chips: int

    @property
    def digital(self) -> int:
        """First digital pool; chip c has this + c."""
        return self.tiles

    @property
    def attention(self) -> int:
        """First attention pool."""
        return self.tiles + self.chips

    @property
    def dram(self) -> int:
        """First memory."""
        return self.tiles + 2 * self.chips


@dataclass(frozen=True, slots=True)
class Stamp:
    """Some tasks as a pattern: numbers count from the first of them. `heads` wait for what comes before the pattern,
    and what comes after it waits for `results`.
    """

    operation: array[int]
    resource: array[int]
    chunk: array[int]
    src: NDArray[np.int32]
    dst: NDArray[np.int32]
    heads: NDArray[np.int32]
    results: tuple[int, ...]


@dataclass(slots=True)
class TaskGraph:
    """Tasks in flat columns; a task waits for all its predecessors.

    Per task: `operation` of the table (what it does, and its cost), `resource` (see Resources, or NO_RESOURCE for what
    never queues) and `rank` (its sequence, then its token: the lowest goes first). Per edge: `src` before `dst`; the
    order of a task's edges breaks ties among tasks that it makes ready. `chunk`: for MVMs the chunk's number in its
    matrix and `matrix` its matrix, else -1. `layer` of attention tasks.
    """

    table: OperationTable
    resources: Resources
    operation: array[int] = field(default_factory=lambda: array("i"))
    resource: array[int] = field(default_factory=lambda: array("i"))
    rank: array[int] = field(default_factory=lambda: array("i"))
    src: array[int] = field(default_factory=lambda: array("i"))
    dst: array[int] = field(default_factory=lambda: array("i"))
    matrix: array[int] = field(default_factory=lambda: array("i"))
    chunk: array[int] = field(default_factory=lambda: array("i"))
    layer: dict[int, int] = field(default_factory=dict)
    samplers: list[list[int]] = field(default_factory=list)
    """Per sequence, the tasks that end its steps with a token."""

    def add(self, operation: int, resource: int, rank: int, after: Several[int], layer: int | None = None) -> int:
        """A task that waits for those of `after`; its number."""
        task = len(self.operation)
        self.operation.append(operation)
        self.resource.append(resource)
        self.rank.append(rank)
        self.matrix.append(-1)
        self.chunk.append(-1)
        self.src.extend(after)
        self.dst.extend([task] * len(after))
        if layer is not None:
            self.layer[task] = layer
        return task

    def stamp(self, stamp: Stamp, matrix: int, rank: int, after: Several[int]) -> list[int]:
        """The pattern's tasks; numbers of its results. Each head waits for all of `after`."""
        first, size = len(self.operation), len(stamp.operation)
        self.operation.extend(stamp.operation)
        self.resource.extend(stamp.resource)
        self.chunk.extend(stamp.chunk)
        self.rank.extend(array("i", [rank]) * size)
        self.matrix.extend(array("i", [matrix]) * size)
        heads = stamp.heads + np.int32(first)
        for task in after:
            self.src.extend(array("i", [task]) * len(heads))
            self.dst.frombytes(heads.tobytes())
        self.src.frombytes((stamp.src + np.int32(first)).tobytes())
        self.dst.frombytes((stamp.dst + np.int32(first)).tobytes())
        return [first + result for result in stamp.results]
