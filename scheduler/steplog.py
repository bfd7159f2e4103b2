"""What a replica has executed: a row per span of steps, digested in numpy as it comes.

The engine hands over few integers per span; everything else (step times, inter-token latencies, time and energy per
operator and unit, the digest) is worked out here from the same plan, thousands of rows at a time. The times must add
up to the engine's clock to the femtosecond, which is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.experts import FEATURES
from pimserve.device_models.operators import CATEGORIES, Category
from pimserve.device_models.operators import Rows as RowKind
from pimserve.device_models.pipeline import PipelineColumns, PipelineTerm
from pimserve.device_models.plan import (
    FS_PER_PS,
    FS_PER_S,
    HOST,
    LINK,
    PJ_PER_J,
    CostPlan,
    DecodeWay,
    RowTerm,
    busiest_counts,
    row_counts,
)
from pimserve.scheduler.attention import attention_columns, fastest, seen_columns
from pimserve.scheduler.control import Ledger
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.digest import ChainDigest
from pimserve.scheduler.exact import exact_dot, exact_sum
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.step_batches import StepBatches, active_pj

IntArray = NDArray[np.int64]


class Rows(NamedTuple):
    """Columns of the log, (n,) each; a row is a span of equal steps, in which contexts grow."""

    begin_ps: IntArray  # of the first step, whole picoseconds: femtoseconds leave 64 bit after 2.6 hours
    begin_rest_fs: IntArray  # and what is left of it
    steps: IntArray
    decodes: IntArray  # decoding requests in each step
    context: IntArray  # tokens that they attend to in the first step; grows by `decodes` a step
    prefill_tokens: IntArray
    chunks: IntArray
    outputs: IntArray  # tokens that each step emits
    busiest_tokens: IntArray  # tokens of the busiest data-parallel group; in a pipeline, those that queue
    anchor_tokens: IntArray  # in a pipeline, tokens of the longest prompt
    prefill_fs: IntArray  # prefill attention of the busiest group; in a pipeline, what the step waits for it
    prefill_dram_pj: IntArray
    prefill_compute_pj: IntArray
    blocks_begin: IntArray  # KV blocks in use during the first step
    blocks_end: IntArray  # and during the last
    duration_fs: IntArray  # of all steps together


_STEP = np.dtype(
    [("duration_fs", np.int64), ("context", np.int64), ("decodes", np.int32), ("prefill_tokens", np.int32)]
)
_ROWS_PER_FLUSH = 8192
_ROWS_PER_SLICE = 1024
_STEPS_PER_FLUSH = 2**19
_NO_BOUND = 2**62 * FS_PER_PS
STEP_TOKENS = tuple(2**power for power in range(15))  # upper bounds of the buckets in which steps are counted
_SUMS = (
    *("clock_fs", "steps", "busy_fs", "chain_fs", "tokens", "window_tokens", "batch_steps", "mixed_steps"),
    *("spans", "computed_tokens", "prompt_tokens"),
    *("twice_block_fs", "peak_blocks", "_pipeline_prefill_fs"),
)


class Steps(NamedTuple):
    """Columns per step, (n,) each."""

    duration_fs: IntArray
    decodes: IntArray
    context: IntArray
    attention_fs: IntArray  # decode and prefill attention, as long as the step waits for them
    experts: IntArray | None  # (n, features), columns as in `experts.FEATURES`
    pipeline: PipelineColumns | None


_STEPS_COLUMN = Rows._fields.index("steps")


def expand(costs: ReplicaCosts, rows: Rows, first_step: int) -> Steps:
    """The single steps of `rows`, the first of which is the replica's step number `first_step`."""
    plan = costs.plan
    n = rows.steps
    begins = np.cumsum(n) - n
    number = np.arange(int(n.sum()))
    decodes = np.repeat(rows.decodes, n)
    context = np.repeat(rows.context - begins * rows.decodes, n) + number * decodes
    _, busiest = _row_counts(plan, rows)
    whole = np.zeros(len(n), np.int64)
    for row_term in plan.rows:
        whole += _row_time(row_term, busiest[row_term.rows])
    if plan.pipeline is not None:
        columns = plan.pipeline.columns(
            decodes,
            context,
            np.repeat(rows.outputs, n),
            queued=np.repeat(rows.busiest_tokens, n),
            anchor=np.repeat(rows.anchor_tokens, n),
            prefill_fs=np.repeat(rows.prefill_fs, n),
        )
        duration = np.repeat(whole + plan.pipeline.fixed_fs, n)
        duration += columns.slots_fs + columns.attention_fs + columns.wait_fs
        return Steps(duration, decodes, context, columns.attention_fs, None, columns)
    attention = fastest(attention_columns(plan, decodes, context, np.repeat(rows.prefill_fs, n)))
    duration = np.repeat(whole, n) + attention
    experts = None
    if plan.experts is not None:
        experts = costs.experts_features(np.repeat(rows.decodes + rows.prefill_tokens, n), first_step + number)
        duration += experts[:, 0]
    return Steps(duration, decodes, context, attention, experts, None)


def _begin_fs(rows: Rows, index: int) -> int:
    return int(rows.begin_ps[index]) * FS_PER_PS + int(rows.begin_rest_fs[index])


def _row_counts(plan: CostPlan, rows: Rows) -> tuple[dict[RowKind, IntArray], dict[RowKind, IntArray]]:
    """What row terms count in a step of each row: of all data-parallel groups, and of the busiest one."""
    every = row_counts(rows.decodes + rows.prefill_tokens, rows.outputs, rows.decodes, rows.chunks)
    tokens = rows.busiest_tokens if plan.pipeline is None else every["tokens"]
    return every, busiest_counts(every, tokens, plan.data_parallel)


def _row_time(term: RowTerm, n: IntArray) -> IntArray:
    ways = [
        np.maximum.reduce([const + slope * n for const, slope in pieces])
        for pieces in (term.pieces, *term.alternatives)
    ]
    return np.asarray(np.minimum.reduce(ways) * (n > 0))


def _seen_total(rows: Rows, window: int | None) -> int:
    """Context tokens that layers of a window see in all steps, summed over decoding requests."""
    return exact_sum(seen_columns(window, rows.decodes, rows.context, rows.steps))


def _taken(plan: CostPlan, rows: Rows) -> list[NDArray[np.bool_]]:
    """By way to run decode attention, the rows that take it: all of a row's steps take one."""
    if plan.other_decode is None:
        return [np.ones(len(rows.steps), bool)]
    first, second = attention_columns(plan, rows.decodes, rows.context, rows.prefill_fs)
    return [first <= second, second < first]


def by_way(plan: CostPlan, rows: Rows) -> list[tuple[DecodeWay, Rows]]:
    """The ways that decode attention is run in, and the rows that take each."""
    if plan.other_decode is None:
        return [(way, rows) for way in plan.decode_ways]
    taken = zip(plan.decode_ways, _taken(plan, rows), strict=True)
    return [(way, Rows(*(column[mask] for column in rows))) for way, mask in taken]


def count_decode(
    plan: CostPlan, rows: Rows, unit_fs: dict[str, int], energy_pj: dict[tuple[Category, str], int]
) -> None:
    """Add unit time, fs, and energy, pJ, of decode attention of some rows."""
    for way, mine in by_way(plan, rows):
        share = exact_dot(-(-mine.decodes // plan.data_parallel), mine.steps)
        for term in way.terms:
            total = _seen_total(mine, term.window_tokens)
            unit_fs[term.unit] += term.slope * total + term.per_request * share
            energy_pj["attention_decode", "dram"] += term.dram_per_token * total
            energy_pj["attention_decode", "compute"] += term.compute_per_token * total


class StepLog:
    """Sink of one replica's spans.

    Args:
        costs: the replica's costs.
        window_fs: steps that end in [start, end) count in latencies and tokens.
        on_flush: called with each block of rows, (n, columns of Rows), and the numbers of their first steps (n,).
        rows_per_flush: how many rows are digested together at most; None: as many as is fastest.
    """

    def __init__(
        self,
        costs: ReplicaCosts,
        window_fs: tuple[int, int],
        on_flush: Callable[[IntArray, IntArray], None] | None = None,
        rows_per_flush: int | None = None,
    ) -> None:
        self.costs = costs
        self.window_fs = window_fs
        self.on_flush = on_flush
        self._rows_per_flush = rows_per_flush or _ROWS_PER_FLUSH
        self.clock_fs = 0
        self.steps = 0
        self.busy_fs = 0
        self.chain_fs = 0  # of anchors, in a pipeline
        self.tokens = 0  # emitted
        self.spans = 0
        self.computed_tokens = 0  # that passed through the layers
        self.prompt_tokens = 0  # those of them that are of prompts
        self.window_tokens = 0
        self.itl = DurationHistogram()
        self.durations = DurationHistogram()  # of steps
        self.batches = StepBatches()
        self.step_tokens = np.zeros(len(STEP_TOKENS) + 1, np.int64)  # steps by how many tokens they compute
        self.category_fs = dict.fromkeys(CATEGORIES, 0)
        self.energy_pj = {(category, kind): 0 for category in CATEGORIES for kind in ("dram", "compute")}
        links = () if costs.plan.pipeline is not None else (LINK,)  # pipelines have them in their chain
        host = (HOST,) if any(term.unit == HOST for term in costs.plan.rows) else ()
        self._unit_fs = dict.fromkeys((*costs.plan.units, *links, *host), 0)
        self.batch_steps = 0  # sum over steps of requests in the step
        self.mixed_steps = 0
        self.twice_block_fs = 0  # twice the time integral of KV blocks in use: halving is left to the end
        self.peak_blocks = 0
        self._pipeline_prefill_fs = 0
        experts, pipeline = costs.plan.experts, costs.plan.pipeline
        # What the mean device is behind the one that has most to do in each layer of experts, and what each of a
        # pipeline's devices that may have most to do has done.
        self._behind_fs = dict.fromkeys([each.unit for each in experts.units] if experts is not None else (), 0)
        self._device_fs = [0] * (len(pipeline.device_loads) if pipeline is not None else 0)
        self._hash = ChainDigest()
        self._rows: list[tuple[int, ...]] = []
        self._gaps: list[tuple[int, int]] = []  # between tokens, that no step shows, and how many of each
        self._pending_steps = 0

    def span(self, row: tuple[int, ...]) -> None:
        """Take one row."""
        self._rows.append(row)
        self._pending_steps += row[_STEPS_COLUMN]
        if self._pending_steps > _STEPS_PER_FLUSH or len(self._rows) >= self._rows_per_flush:
            self.flush()

    def resumed(self, gap_fs: int, at_fs: int) -> None:
        """Take the time between two tokens of a request that was preempted or moved between them."""
        if self.window_fs[0] <= at_fs < self.window_fs[1]:
            self._gaps.append((gap_fs, 1))

    def joined(self, gaps_fs: Sequence[int], step_fs: int, at_fs: int) -> None:
        """Take the times since their last tokens of requests that decode in a step for the first time, and its own."""
        if self.window_fs[0] <= at_fs < self.window_fs[1]:
            self._gaps += [(gap_fs, 1) for gap_fs in gaps_fs]
            self._gaps.append((step_fs, -len(gaps_fs)))  # which the step counts for every request

    def use(self, costs: ReplicaCosts) -> None:
        """What comes from here on costs this, on the same units."""
        self.flush()
        self.costs = costs

    def issued_all(self, at_fs: int) -> None:
        """A closed loop has issued its last request: the measured window ends, unless all of the run is measured."""
        if self.window_fs[0] > 0:
            self.window_fs = (self.window_fs[0], at_fs)

    @property
    def unit_fs(self) -> dict[str, int]:
        """Busy time of each unit."""
        found = dict(self._unit_fs)
        pipeline = self.costs.plan.pipeline
        for load in pipeline.loads if pipeline is not None else ():
            found[load.unit] += load.prefill_fs(self._pipeline_prefill_fs)
        return found

    @property
    def busiest_unit_fs(self) -> dict[str, int]:
        """Busy time of each unit on the device that has most to do.

        Of a pipeline's devices that is one for the whole run; of groups of routed experts, the one that each layer
        waits for.
        """
        found = {unit: busy + self._behind_fs.get(unit, 0) for unit, busy in self.unit_fs.items()}
        pipeline = self.costs.plan.pipeline
        if pipeline is not None:
            for load, busy in zip(pipeline.device_loads, self._device_fs, strict=True):
                found[load.unit] = max(found[load.unit], busy + load.prefill_fs(self._pipeline_prefill_fs))
        return found

    def digest(self) -> str:
        """Digest of every executed step, independent of how steps were grouped in spans."""
        self.flush()
        return self._hash.hexdigest()

    def ledger(self, replica: int) -> Ledger:
        """What the replica of that number has done so far."""
        self.flush()
        passive = self.costs.plan.passive
        working = self.busy_fs - self.unit_fs.get(HOST, 0)  # a device rests while the host is at work
        passive_pj = None if passive is None else passive.energy_pj(self.clock_fs - working, working, self.chain_fs)
        return Ledger(
            replica=replica,
            steps=self.steps,
            spans=self.spans,
            computed_tokens=self.computed_tokens,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.tokens,
            busy_s={unit: busy / FS_PER_S for unit, busy in self.unit_fs.items()},
            busiest_s={unit: busy / FS_PER_S for unit, busy in self.busiest_unit_fs.items()},
            operator_s={category: time / FS_PER_S for category, time in self.category_fs.items()},
            joules={key: energy / PJ_PER_J for key, energy in self.energy_pj.items()},
            passive_joules=None if passive_pj is None else passive_pj / PJ_PER_J,
            idle_w=0.0 if passive is None else passive.idle_uw / 1e6,
            clock_fs=self.clock_fs,
            itl=self.itl,
            durations=self.durations,
            step_tokens=self.step_tokens.copy(),
        )

    def state(self) -> dict[str, Any]:
        """All that was added up so far, as JSON can hold it."""
        self.flush()
        return {
            **{name: getattr(self, name) for name in _SUMS},
            "window_fs": list(self.window_fs),
            "category_fs": dict(self.category_fs),
            "energy_pj": [[*key, value] for key, value in self.energy_pj.items()],
            "unit_fs": dict(self._unit_fs),
            "behind_fs": dict(self._behind_fs),
            "device_fs": list(self._device_fs),
            "itl": self.itl.state(),
            "durations": self.durations.state(),
            "batches": self.batches.state(),
            "step_tokens": self.step_tokens.tolist(),
            "hash": self._hash.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name in _SUMS:
            setattr(self, name, state[name])
        low, high = state["window_fs"]
        self.window_fs = (low, high)
        self.category_fs.update(state["category_fs"])
        self.energy_pj.update({(category, kind): value for category, kind, value in state["energy_pj"]})
        self._unit_fs.update(state["unit_fs"])
        self._behind_fs.update(state["behind_fs"])
        self._device_fs[:] = state["device_fs"]
        self.itl.restore(state["itl"])
        self.durations.restore(state["durations"])
        self.batches.restore(state["batches"])
        self.step_tokens[:] = state["step_tokens"]
        self._hash.restore(state["hash"])

    def flush(self) -> None:
        """Digest the rows taken so far."""
        if self._gaps:
            gaps, counts = np.array(self._gaps, np.int64).T
            self.itl.add(gaps, counts)
            self._gaps = []
        if not self._rows:
            return
        # In slices, between which other threads get a turn: a query of the run may wait.
        slices = range(0, len(self._rows), _ROWS_PER_SLICE)
        block = np.concatenate([np.array(self._rows[i : i + _ROWS_PER_SLICE], np.int64) for i in slices])
        rows = Rows(*np.ascontiguousarray(block.T))
        first_steps = self.steps + np.cumsum(rows.steps) - rows.steps
        self.digest_rows(rows)
        if self.on_flush is not None:
            self.on_flush(block, first_steps)
        self._rows = []
        self._pending_steps = 0

    def digest_rows(self, rows: Rows) -> None:
        """Add up rows that come after all that were taken before."""
        steps = expand(self.costs, rows, self.steps)
        busy = exact_sum(steps.duration_fs)
        if busy != exact_sum(rows.duration_fs):
            raise AssertionError("the step log's times differ from the engine's clock")
        begins = np.cumsum(rows.steps) - rows.steps
        self._count(rows, steps, begins)
        self._row_terms(rows)
        prefill = exact_sum(rows.prefill_fs)
        pipeline = self.costs.plan.pipeline
        if pipeline is not None and steps.pipeline is not None:
            self._pipeline(pipeline, rows, steps.pipeline)
        # Side by side, decode attention counts for what it outlasts prefill attention.
        self.category_fs["attention_prefill"] += prefill
        self.category_fs["attention_decode"] += exact_sum(steps.attention_fs) - prefill
        self._attention(rows, prefill)
        if steps.experts is not None:
            self._experts(steps.experts)
        emitted = rows.outputs * rows.steps
        plan = self.costs.plan
        every, _ = _row_counts(plan, rows)
        energy_pj = active_pj(plan, rows, every, _taken(plan, rows), steps.experts)
        self.batches.add(self.steps + begins, rows.begin_ps, emitted, energy_pj)
        record = np.empty(len(steps.duration_fs), _STEP)
        record["duration_fs"], record["context"] = steps.duration_fs, steps.context
        record["decodes"] = steps.decodes
        record["prefill_tokens"] = 0
        record["prefill_tokens"][begins] = rows.prefill_tokens
        self._hash.update(record.data)
        self.steps += len(record)
        self.spans += len(rows.steps)
        self.busy_fs += busy
        self.clock_fs = _begin_fs(rows, -1) + int(rows.duration_fs[-1])

    def _row_terms(self, rows: Rows) -> None:
        """Time, energy and unit time of row terms."""
        plan = self.costs.plan
        every, busiest = _row_counts(plan, rows)
        for term in plan.rows:
            time = exact_dot(_row_time(term, busiest[term.rows]), rows.steps)
            self.category_fs[term.category] += time
            self._unit_fs[term.unit] += time
            energy = term.energy
            wanted = every[term.rows]
            processed = exact_dot(wanted, rows.steps)
            # Requests are spread over the groups; a group without any reads no weights.
            groups = int((np.minimum(plan.data_parallel, np.minimum(wanted, every["requests"])) * rows.steps).sum())
            self.energy_pj[term.category, "dram"] += energy.dram_const * groups + energy.dram_per_row * processed
            self.energy_pj[term.category, "compute"] += energy.compute_per_row * processed

    def _count(self, rows: Rows, steps: Steps, begins: IntArray) -> None:
        """Latencies, tokens, batch and KV use."""
        low, high = self.window_fs
        begins_fs, ends_fs = _begin_fs(rows, 0), _begin_fs(rows, -1) + int(rows.duration_fs[-1])
        if low <= begins_fs and ends_fs < high:
            self.itl.add(steps.duration_fs, steps.decodes)
            self.window_tokens += int((rows.outputs * rows.steps).sum())
        elif low < ends_fs and high > begins_fs:
            inside = self._inside(rows, steps, begins)
            self.itl.add(steps.duration_fs[inside], steps.decodes[inside])
            self.window_tokens += int(np.repeat(rows.outputs, rows.steps)[inside].sum())
        self.tokens += exact_dot(rows.outputs, rows.steps)
        computed = rows.decodes + rows.prefill_tokens
        self.computed_tokens += exact_dot(computed, rows.steps)
        self.prompt_tokens += exact_dot(rows.prefill_tokens, rows.steps)
        self.durations.add(steps.duration_fs)
        size = np.searchsorted(STEP_TOKENS, computed)
        self.step_tokens += np.bincount(size, weights=rows.steps, minlength=len(self.step_tokens)).astype(np.int64)
        self.batch_steps += int(((rows.decodes + rows.chunks) * rows.steps).sum())
        self.mixed_steps += int((rows.chunks > 0).sum())
        self.peak_blocks = max(self.peak_blocks, int(rows.blocks_end.max()))
        # Blocks grow evenly enough inside a span for the mean of its ends.
        self.twice_block_fs += exact_dot(rows.duration_fs, rows.blocks_begin + rows.blocks_end)

    def _inside(self, rows: Rows, steps: Steps, begins: IntArray) -> NDArray[np.bool_]:
        """Per step: whether it ends in the window."""
        passed = np.cumsum(steps.duration_fs)  # may wrap; differences inside a row do not
        in_row = passed - np.repeat((passed - steps.duration_fs)[begins], rows.steps)
        in_row += np.repeat(rows.begin_rest_fs, rows.steps)
        end_ps = np.repeat(rows.begin_ps, rows.steps) + in_row // FS_PER_PS
        rest_fs = in_row % FS_PER_PS
        found = np.ones(len(end_ps), bool)
        for bound, after in ((self.window_fs[0], True), (self.window_fs[1], False)):
            ps, rest = divmod(min(bound, _NO_BOUND), FS_PER_PS)
            reached = (end_ps > ps) | ((end_ps == ps) & (rest_fs >= rest))
            found &= reached if after else ~reached
        return found

    def _pipeline(self, pipeline: PipelineTerm, rows: Rows, columns: PipelineColumns) -> None:
        """Time of anchors and queues, and unit time."""
        steps = len(columns.wait_fs)
        slots = exact_sum(columns.slots_fs)
        self.chain_fs += steps * pipeline.fixed_fs + slots + exact_sum(columns.attention_fs)
        for category, time in pipeline.chain:
            self.category_fs[category] += steps * time
        for index, station in enumerate(pipeline.stations):
            self.category_fs[station.category] += exact_sum(columns.wait_fs[columns.station == index])
        tokens = rows.decodes + rows.prefill_tokens
        self.category_fs[pipeline.prompt_category] += slots
        processed, outputs = exact_dot(tokens, rows.steps), exact_dot(rows.outputs, rows.steps)
        decoded = exact_dot(rows.decodes, rows.steps)
        seen = [_seen_total(rows, window) for window in pipeline.windows]
        self._pipeline_prefill_fs += exact_sum(rows.prefill_fs)
        for load in pipeline.loads:
            self._unit_fs[load.unit] += load.busy_fs(processed, outputs, decoded, seen)
        for index, load in enumerate(pipeline.device_loads):
            self._device_fs[index] += load.busy_fs(processed, outputs, decoded, seen)

    def _attention(self, rows: Rows, prefill_fs: int) -> None:
        """Energy and unit time of attention."""
        plan = self.costs.plan
        count_decode(plan, rows, self._unit_fs, self.energy_pj)
        if plan.prefill and plan.pipeline is None:
            self._unit_fs[plan.prefill[0].unit] += prefill_fs
        self.energy_pj["attention_prefill", "dram"] += exact_sum(rows.prefill_dram_pj)
        self.energy_pj["attention_prefill", "compute"] += exact_sum(rows.prefill_compute_pj)

    def _experts(self, features: IntArray) -> None:
        """Time, energy and unit time of routed experts, columns as in FEATURES."""
        term = self.costs.plan.experts
        assert term is not None
        time, *busy, dram, compute = (exact_sum(features[:, column]) for column in range(len(FEATURES)))
        self.category_fs["moe"] += time
        for unit, mean, most in zip(term.units, busy[:2], busy[2:], strict=False):
            self._unit_fs[unit.unit] += mean
            self._behind_fs[unit.unit] += most - mean
        self.energy_pj["moe", "dram"] += dram
        self.energy_pj["moe", "compute"] += compute
