"""Steps, as cost plans describe them, and what they cost: numbers for one step, or columns for many alike.

All that works on both is written once. A row of columns is a step, or a span: steps that follow each other and differ
in that contexts grow by a token per decoding request, and in how tokens fall on experts. Within a span everything but
the experts grows evenly (`StepTiming.decode_span` says how long one can be), so that sums follow from both ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np

from pimserve.arrays import BoolArray, IntArray
from pimserve.device_models.operators import Category, RowKind

N = TypeVar("N", int, IntArray)
K = TypeVar("K")
BusyKey = tuple[Category, str]  # of a unit
EnergyKey = tuple[Category, Literal["dram", "compute"]]
StageTime = Literal["experts", "link", "work"]
LINK = "link"  # in busy tables, where links are told apart from units


def least(values: Sequence[N]) -> N:
    """The least of numbers; of columns, element by element."""
    if isinstance(values[0], int):
        return min(values)
    return np.asarray(reduce(np.minimum, values))


def most(values: Sequence[N]) -> N:
    """The most of numbers; of columns, element by element."""
    if isinstance(values[0], int):
        return max(values)
    return np.asarray(reduce(np.maximum, values))


def greater(one: N, other: N) -> N:
    """The greater of two numbers; of columns, element by element."""
    if isinstance(one, int):
        return one if one > other else other
    return np.asarray(np.maximum(one, other))


def where(condition: bool | BoolArray, yes: N, no: N) -> N:
    """One of two numbers; of columns, element by element."""
    if isinstance(yes, int):
        return yes if condition else no
    return np.asarray(np.where(condition, yes, no))


def over_span(steps: N, first: N, last: N) -> N:
    """Sum over the steps of a span of what grows evenly from `first` to `last`."""
    grown: N = steps * (last - first)
    return steps * first + grown // 2


def seen_tokens(window: int | None, requests: N, context: N) -> N:
    """Context tokens that layers of a window (None: all of the context) see in a step, over all decoding requests.

    min(context, window x requests): exact when all contexts are shorter than the window or all are longer, an upper
    bound otherwise.
    """
    return context if window is None else least([context, window * requests])


def row_counts(tokens: N, outputs: N, decodes: N, prompts: N) -> dict[RowKind, N]:
    """What row terms of each kind count."""
    return {
        "tokens": tokens,
        "outputs": outputs,
        "decodes": decodes,
        "prompts": prompts,
        "requests": decodes + prompts,
        "all_tokens": tokens,
        "all_decodes": decodes,
    }


def busiest_counts(every: dict[RowKind, N], tokens: N, data_parallel: int) -> dict[RowKind, N]:
    """Of counts of data-parallel groups that are all like one, those of that, which has `tokens`.

    (Where groups share prompts evenly, by their number: if lengths differ, one with many short ones has more of them.)
    What counts all groups is here as if there were none but that.
    """
    return row_counts(
        tokens,
        -(-every["outputs"] // data_parallel),
        -(-every["decodes"] // data_parallel),
        -(-every["prompts"] // data_parallel),
    )


# A StepShape, or as plain as the engine makes one for each step.
StepTuple = tuple[N, N, N, N, N, N, N, N, N, N, N, N, N, N, N]


class StepShape(NamedTuple, Generic[N]):
    """What steps consist of.

    Time is that of the slowest data-parallel group, as if all were like it: `paced_...` is what it has, times their
    number. Where groups share what there is evenly, and where there is one, these are the numbers of all.
    """

    steps: N  # of the span; 1 where there are prompts
    decodes: N  # decoding requests
    context: N  # tokens that they attend to, in the first step of a span
    prefill_tokens: N
    chunks: N  # of prompts
    outputs: N  # tokens that a step emits
    busiest_tokens: N  # of the slowest data-parallel group; in a pipeline, those that queue
    anchor_tokens: N  # in a pipeline, those of the longest prompt; 0 in steps without prompts
    prefill_fs: N  # prefill attention of the slowest group; in a pipeline, what the step waits for it
    prefill_dram_pj: N  # of all groups
    prefill_compute_pj: N
    paced_decodes: N
    paced_context: N
    paced_chunks: N
    paced_outputs: N

    @property
    def tokens(self) -> N:
        """Computed in a step without drafts; with them, `CostPlan.tokens_of`."""
        return self.decodes + self.prefill_tokens

    @property
    def last(self) -> StepShape[N]:
        """The last step of a span, in place of the first."""
        more = self.steps - 1
        return self._replace(
            context=self.context + more * self.decodes, paced_context=self.paced_context + more * self.paced_decodes
        )


_PACED = slice(StepShape._fields.index("paced_decodes"), None)


def each_step(spans: StepShape[IntArray]) -> StepShape[IntArray]:
    """The single steps of spans, one after the other; energies of prompts, which take no time, are 0."""
    n = spans.steps
    number = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)

    def constant(value: int) -> IntArray:
        return np.broadcast_to(np.int64(value), number.shape)  # which takes no memory

    def repeated(column: IntArray) -> IntArray:
        return np.repeat(column, n) if column.any() else constant(0)

    def each(decodes: IntArray, context: IntArray, chunks: IntArray, outputs: IntArray) -> tuple[IntArray, ...]:
        decoding = np.repeat(decodes, n)
        contexts = number * decoding
        contexts += np.repeat(context, n)
        return decoding, contexts, repeated(chunks), np.repeat(outputs, n)

    every = spans.decodes, spans.context, spans.chunks, spans.outputs
    paced = spans[_PACED]
    decodes, context, chunks, outputs = of_every = each(*every)
    alike = all(map(np.array_equal, every, paced))
    return StepShape(
        constant(1),
        decodes,
        context,
        repeated(spans.prefill_tokens),
        chunks,
        outputs,
        busiest_tokens=np.repeat(spans.busiest_tokens, n),
        anchor_tokens=repeated(spans.anchor_tokens),
        prefill_fs=repeated(spans.prefill_fs),
        prefill_dram_pj=constant(0),
        prefill_compute_pj=constant(0),
        **dict(zip(StepShape._fields[_PACED], of_every if alike else each(*paced), strict=True)),
    )


class OperatorTime(NamedTuple, Generic[N]):
    """How long steps wait for an operator, fs."""

    name: str
    category: Category
    time_fs: N


class Amount(NamedTuple, Generic[K, N]):
    """`coefficient` (fs or pJ), so many times. Apart, since their product may leave the 64 bit of a column."""

    key: K
    coefficient: int
    times: N


@dataclass(slots=True)
class StepCosts(Generic[N]):
    """What steps cost; rows that are spans, in all of their steps together.

    Args:
        operators: whose times add up to that of the step.
        busy: time of units of a device, by category and unit, but for prefill attention,
        prefill_fs: of which units have the parts that the loads of `StepTiming` say.
        energy: of all devices, by category and kind.
        chain_fs: time in which only the anchor's chain is under way, in a pipeline.
        loads: time of those devices of a pipeline that may have most to do, by place in `device_loads`.
        behind: what the mean device is behind the one with most to do in each layer of experts, by unit.
        stages: where experts have devices of their own: what of the time attention's devices wait for "experts" and for
            the "link", and the time for which the experts' devices are at "work".
    """

    operators: list[OperatorTime[N]] = field(default_factory=list)
    busy: list[Amount[BusyKey, N]] = field(default_factory=list)
    prefill_fs: N | None = None
    energy: list[Amount[EnergyKey, N]] = field(default_factory=list)
    chain_fs: N | None = None
    loads: list[Amount[int, N]] = field(default_factory=list)
    behind: list[Amount[str, N]] = field(default_factory=list)
    stages: list[Amount[StageTime, N]] = field(default_factory=list)

    def extend(self, other: StepCosts[N]) -> None:
        """Add what the layers of another micro-batch of the same steps cost."""
        self.operators += other.operators
        self.busy += other.busy
        self.loads += other.loads
        if other.chain_fs is not None:
            self.chain_fs = other.chain_fs if self.chain_fs is None else self.chain_fs + other.chain_fs

    @property
    def duration_fs(self) -> N:
        """Time of the step, or of the span."""
        return sum([operator.time_fs for operator in self.operators[1:]], self.operators[0].time_fs)
