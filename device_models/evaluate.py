"""What steps cost by a plan: the one place that says what a plan means.

`evaluate` gives time, energy and busy time of steps by operator and unit, for numbers and columns alike; `DecodeSpan`
is the time of n decode steps in closed form. Plans are of two kinds, which differ in the `StepTiming` of their layers
and in nothing else: operators one after the other (`serial`), and tokens one behind the other (`pipeline`). Where
experts have devices of their own, that is the time of attention's devices for each micro-batch, and `micro_batches`
says which is where when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.experts import FEATURES, LINK_FS, MIXED_FEATURES, MORE_UNITS, RoutedExperts
from pimserve.device_models.micro_batches import BETWEEN
from pimserve.device_models.operators import RowKind, Runs, Stage
from pimserve.device_models.plan import ChunkShape, CostPlan, DecodeWay, RowTerm, StepTiming
from pimserve.device_models.step import (
    Amount,
    N,
    OperatorTime,
    StageTime,
    StepCosts,
    StepShape,
    StepTuple,
    busiest_counts,
    least,
    over_span,
    row_counts,
    seen_tokens,
)


def units_of(plan: CostPlan) -> tuple[str, ...]:
    """What a plan keeps busy: units of its devices, links, and the host."""
    between = () if plan.micro_batches is None else BETWEEN
    return tuple(dict.fromkeys((*plan.units, *plan.timing.links, *between, *(term.unit for term in plan.rows))))


def parts_of(plan: CostPlan, shape: StepShape[N]) -> list[StepShape[N]]:
    """The micro-batches of steps or spans; the whole of them where experts have no devices of their own."""
    if plan.micro_batches is None:
        return [shape]
    return plan.micro_batches.split(shape, plan.data_parallel, plan.verify_tokens)


def stage_times(plan: CostPlan, part: StepShape[N]) -> dict[tuple[Stage, Runs], N]:
    """Time of attention and of row terms of a micro-batch, by stage and by where in the pass, all repeats together."""
    every, busiest = counts_of(plan, part)
    times: dict[tuple[Stage, Runs], N] = {("attention", "layers"): plan.timing.layers_fs(part)}
    for term in plan.rows_of_parts:
        time = term.time_fs((busiest if term.stage == "attention" else every)[term.rows])
        key = term.stage, term.runs
        times[key] = times[key] + time if key in times else time
    return times


def step_of(
    timing: StepTiming,
    decodes: int,
    context: int,
    chunks: Sequence[ChunkShape],
    outputs: int,
    chunk_cost: Callable[[ChunkShape], tuple[int, int, int]],
    verify_tokens: int = 1,
) -> StepTuple[int]:
    """The fields of `StepShape` for one step; `chunk_cost` gives those of `CostPlan.chunk_cost`."""
    times, tokens, dram, compute = [], 0, 0, 0
    for chunk in chunks:
        time, chunk_dram, chunk_compute = chunk_cost(chunk)
        times.append(time)
        tokens += chunk[0]
        dram += chunk_dram
        compute += chunk_compute
    busiest, anchor, prefill_fs = timing.prefill(decodes, chunks, times, verify_tokens)
    n, paced = len(chunks), (decodes, context, len(chunks), outputs)
    return 1, decodes, context, tokens, n, outputs, busiest, anchor, prefill_fs, dram, compute, *paced


def shape_of(
    plan: CostPlan, decodes: int, context: int, chunks: Sequence[ChunkShape] = (), outputs: int | None = None
) -> StepShape[int]:
    """One step with `decodes` requests that attend to `context` tokens in all, and chunks of prompts.

    `outputs`: tokens that it emits; None: one of each decoding request.
    """
    emitted = decodes if outputs is None else outputs
    return StepShape(*step_of(plan.timing, decodes, context, chunks, emitted, plan.chunk_cost, plan.verify_tokens))


def counts_of(plan: CostPlan, shape: StepShape[N]) -> tuple[dict[RowKind, N], dict[RowKind, N]]:
    """What row terms count in a step: of all data-parallel groups, and of the slowest one."""
    every = row_counts(plan.tokens_of(shape), plan.sampled_of(shape), shape.decodes, shape.chunks)
    tokens = shape.busiest_tokens if plan.timing.rows_of_busiest else every["tokens"]
    sampled = plan.sampled(shape.paced_outputs, shape.paced_decodes, shape.paced_chunks)
    paced = row_counts(tokens, sampled, shape.paced_decodes, shape.paced_chunks)
    busiest = busiest_counts(paced, tokens, plan.data_parallel)
    if plan.shared_rows:
        busiest |= {"all_tokens": every["tokens"], "all_decodes": every["decodes"]}
    return every, busiest


def way_of(plan: CostPlan, shape: StepShape[int]) -> DecodeWay:
    """The way in which a step runs decode attention."""
    return plan.decode_ways[plan.timing.taken(shape).index(1)]


def evaluate(plan: CostPlan, shape: StepShape[N], experts: Sequence[N] | None = None) -> StepCosts[N]:
    """What steps cost.

    Args:
        plan: of one replica.
        shape: a step, or columns of steps or spans, (n,) each.
        experts: of routed experts each of their features, and of MIXED_FEATURES where the plan has micro-batches, in a
            step or summed over a span; None: they are left out.
    """
    costs: StepCosts[N] = StepCosts()
    for part in parts_of(plan, shape):
        costs.extend(plan.timing.costs(part))
        _row_terms(plan, plan.rows_of_parts, part, costs)
        _decode_attention(plan, part, costs)
    if plan.rows_once:
        _row_terms(plan, plan.rows_once, shape, costs)
    costs.prefill_fs = shape.prefill_fs
    costs.energy.append(Amount(("attention_prefill", "dram"), 1, shape.prefill_dram_pj))
    costs.energy.append(Amount(("attention_prefill", "compute"), 1, shape.prefill_compute_pj))
    if experts is not None and plan.experts is not None:
        add_experts(plan.experts, experts, costs)
    return costs


def experts_rows(plan: CostPlan, shape: StepShape[N]) -> StepCosts[N]:
    """What of that is of row terms on the experts' devices, where these are others than attention's."""
    costs: StepCosts[N] = StepCosts()
    terms = [term for term in plan.rows_of_parts if term.stage == "experts"]
    for part in parts_of(plan, shape):
        _row_terms(plan, terms, part, costs)
    return costs


def add_experts(term: RoutedExperts, features: Sequence[N], costs: StepCosts[N]) -> None:
    """Add routed experts, one entry for each of their features, and of MIXED_FEATURES, to what steps cost."""
    mixed = len(features) > len(term.features)
    entry = dict(zip((*term.features, *MIXED_FEATURES) if mixed else term.features, features, strict=True))
    costs.operators.append(OperatorTime("routed experts", "moe", entry["time_fs"]))
    if mixed:
        costs.operators.append(OperatorTime("dispatch and combine", "communication", entry["link_fs"]))
        of: tuple[tuple[StageTime, str], ...] = (("experts", "time_fs"), ("link", "link_fs"), ("work", "station_fs"))
        costs.stages += [Amount(name, 1, entry[feature]) for name, feature in of]
    for unit, place in zip(term.units, ("first", "second", *MORE_UNITS), strict=False):
        mean = entry[f"{place}_busy_fs"]
        costs.busy.append(Amount(("moe", unit.unit), 1, mean))
        costs.behind.append(Amount(unit.unit, 1, entry[f"{place}_of_busiest_fs"] - mean))
    costs.energy.append(Amount(("moe", "dram"), 1, entry["dram_pj"]))
    costs.energy.append(Amount(("moe", "compute"), 1, entry["compute_pj"]))


def step_fs(timing: StepTiming, shape: StepTuple[N], rows_fs: N, experts_fs: N) -> N:
    """Time of single steps, given that of their row terms and that of their routed experts."""
    return rows_fs + timing.layers_fs(shape) + experts_fs


def step_times(
    plan: CostPlan, spans: StepShape[IntArray], steps: StepShape[IntArray], experts: IntArray | None
) -> IntArray:
    """(m,): time of every single step of spans, worked out one by one.

    Args:
        plan: of one replica.
        spans: (n,) each.
        steps: (m,) each, their single steps, as `each_step` has them.
        experts: (m, features) of routed experts in them.
    """
    if plan.micro_batches is not None:
        time = once_fs(plan, steps)
        for part in parts_of(plan, steps):
            attention = (fs for (stage, _), fs in stage_times(plan, part).items() if stage == "attention")
            time = sum(attention, time)
        if experts is None:
            return time
        return time + experts[:, FEATURES.index("time_fs")] + experts[:, LINK_FS]
    _, counts = counts_of(plan, spans)
    rows_fs = plan.rows_fs(counts["tokens"], counts["outputs"], counts["decodes"], counts["prompts"])
    if plan.shared_rows:
        rows_fs = rows_fs + plan.shared_rows_fs(counts["all_tokens"], counts["all_decodes"])
    experts_fs = np.zeros_like(steps.steps) if experts is None else experts[:, FEATURES.index("time_fs")]
    return step_fs(plan.timing, steps, np.repeat(rows_fs, spans.steps), experts_fs)


def once_fs(plan: CostPlan, shape: StepShape[N]) -> N:
    """Time before the micro-batches of single steps begin."""
    if not plan.rows_once:
        return 0 * shape.steps
    _, busiest = counts_of(plan, shape)
    return sum([term.time_fs(busiest[term.rows]) for term in plan.rows_once], 0 * shape.steps)


def _row_terms(plan: CostPlan, terms: Sequence[RowTerm], shape: StepShape[N], costs: StepCosts[N]) -> None:
    """Add row terms to what steps cost; experts and links with devices of their own have busy time and energy here, and
    time where a step waits for them."""
    every, busiest = counts_of(plan, shape)
    for term in terms:
        here = term.stage == "attention"
        time = term.time_fs((busiest if here else every)[term.rows]) * shape.steps
        if here:
            costs.operators.append(OperatorTime(term.name, term.category, time))
        costs.busy.append(Amount((term.category, term.unit), 1, time))
        energy, rows = term.energy, every[term.rows]
        # Requests are spread over the groups, and one without any reads no weights; what groups share is read once.
        most = plan.data_parallel if here and term not in plan.shared_rows else 1
        groups = least([rows, every["requests"], 0 * rows + most])
        costs.energy += [
            Amount((term.category, "dram"), energy.dram_const, groups * shape.steps),
            Amount((term.category, "dram"), energy.dram_per_row, rows * shape.steps),
            Amount((term.category, "compute"), energy.compute_per_row, rows * shape.steps),
        ]


def _decode_attention(plan: CostPlan, shape: StepShape[N], costs: StepCosts[N]) -> None:
    """Add what decode attention takes of units and energy; a span takes one way in all of its steps.

    Units are busy as in the slowest data-parallel group, which others wait for; energy is of all.
    """
    busiest = -(-shape.paced_decodes // plan.data_parallel) * shape.steps
    end = shape.last

    def seen_in_span(window: int | None, decodes: N, context: N, last_context: N) -> N:
        first, last = (seen_tokens(window, decodes, at) for at in (context, last_context))
        return over_span(shape.steps, first, last)

    for way, here in zip(plan.decode_ways, plan.timing.taken(shape), strict=True):
        for term in way.terms:
            window = term.window_tokens
            seen = here * seen_in_span(window, shape.decodes, shape.context, end.context)
            paced = seen
            if plan.data_parallel > 1:
                paced = here * seen_in_span(window, shape.paced_decodes, shape.paced_context, end.paced_context)
            costs.busy.append(Amount(("attention_decode", term.unit), term.slope, paced))
            costs.busy.append(Amount(("attention_decode", term.unit), term.per_request, here * busiest))
            costs.energy.append(Amount(("attention_decode", "dram"), term.dram_per_token, seen))
            costs.energy.append(Amount(("attention_decode", "compute"), term.compute_per_token, seen))


class Span(Protocol):
    """Decode steps that follow each other."""

    @property
    def steps(self) -> int:
        """How many there are."""

    @property
    def busiest_tokens(self) -> int:
        """Of each step, in the slowest data-parallel group."""

    def duration_fs(self, steps: int) -> int:
        """Time of the first so many steps."""

    def first_reaching(self, limit_fs: int, most: int, duration_fs: int) -> tuple[int, int]:
        """(n, time of n steps) for the smallest n of at most `most` whose time is at least `limit_fs`.

        `duration_fs` is the time of `most` steps, which is more than `limit_fs`.
        """


class DecodeSpan(NamedTuple):
    """Time of decode steps that follow each other, in closed form.

    Step number k of them takes `first_fs` + k x `growth_fs`, and what its experts take: `experts`[i] is the time of
    those of the first i steps of a sequence in which the span begins at `at` (empty: there are none).
    """

    steps: int  # for which that holds
    busiest_tokens: int  # of each step, in the slowest data-parallel group
    first_fs: int
    growth_fs: int
    experts: Sequence[int] = ()
    at: int = 0

    def duration_fs(self, steps: int) -> int:
        """Time of the first so many steps."""
        _, _, first, growth, experts, at = self
        time = steps * first + growth * (steps * (steps - 1) // 2)
        return time + experts[at + steps] - experts[at] if experts else time

    def first_reaching(self, limit_fs: int, most: int, duration_fs: int) -> tuple[int, int]:
        """(n, time of n steps) for the smallest n of at most `most` whose time is at least `limit_fs`.

        `duration_fs` is the time of `most` steps, which is more than `limit_fs`.
        """
        mean = duration_fs // most
        n = max(1, limit_fs * most // duration_fs)
        time, less = self.duration_fs(n), 0
        while time < limit_fs:
            less, n = n, min(most, n + 1 + (limit_fs - time) // (mean + 1))
            time = self.duration_fs(n)
        while n - 1 > less:
            before = self.duration_fs(n - 1)
            if before < limit_fs:
                break
            n, time = n - 1, before
        return n, time
