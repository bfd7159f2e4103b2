"""What a replica has executed: a row per span of steps, digested in numpy as it comes.

The engine hands over few integers per span; everything else (step times, inter-token latencies, time and energy per
operator and unit, the digest) is worked out here from the same plan, thousands of rows at a time. The times must add
up to the engine's clock to the femtosecond, which is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pimserve.arrays import BoolArray, IntArray
from pimserve.device_models.evaluate import add_experts, evaluate, step_times
from pimserve.device_models.pipeline import PassivePower
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S, HOST, PJ_PER_J
from pimserve.device_models.step import StepCosts, StepShape, each_step
from pimserve.scheduler.control import Ledger
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.digest import ChainDigest
from pimserve.scheduler.exact import exact_dot, exact_sum
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.longest_gaps import LongestGaps
from pimserve.scheduler.step_batches import StepBatches, active_pj
from pimserve.scheduler.totals import CostTotals


class SpanColumns(NamedTuple):
    """Columns of the log, (n,) each; a row is a span of equal steps, in which contexts grow."""

    begin_ps: IntArray  # of the first step, whole picoseconds: femtoseconds leave 64 bit after 2.6 hours
    begin_rest_fs: IntArray  # and what is left of it
    steps: IntArray
    decodes: IntArray  # decoding requests in each step
    context: IntArray  # tokens that they attend to in the first step; grows by `decodes` a step
    prefill_tokens: IntArray
    chunks: IntArray
    outputs: IntArray  # tokens that each step emits
    busiest_tokens: IntArray  # tokens of the slowest data-parallel group; in a pipeline, those that queue
    anchor_tokens: IntArray  # in a pipeline, tokens of the longest prompt
    prefill_fs: IntArray  # prefill attention of the slowest group; in a pipeline, what the step waits for it
    prefill_dram_pj: IntArray
    prefill_compute_pj: IntArray
    paced_decodes: IntArray  # the number of data-parallel groups times what the slowest has
    paced_context: IntArray  # grows by `paced_decodes` a step
    paced_chunks: IntArray
    paced_outputs: IntArray
    blocks_begin: IntArray  # KV blocks in use during the first step
    blocks_end: IntArray  # and during the last
    duration_fs: IntArray  # of all steps together

    @property
    def shape(self) -> StepShape[IntArray]:
        """What each row consists of."""
        return StepShape(*self[_SHAPE])

    def first_steps(self, first_step: int) -> IntArray:
        """The number of each row's first step, where rows follow each other and the first begins with `first_step`."""
        return first_step + np.cumsum(self.steps) - self.steps


_SHAPE = slice(SpanColumns._fields.index(StepShape._fields[0]), SpanColumns._fields.index(StepShape._fields[-1]) + 1)
_STEP = np.dtype([("duration_fs", "i8"), ("context", "i8"), ("decodes", "i4"), ("prefill_tokens", "i4")])
_ROWS_PER_FLUSH = 8192
_STEPS_PER_FLUSH = 3 * 2**14  # columns of more do not stay in the cache, and take new memory each time
_NO_BOUND = (2**63 - 1) * FS_PER_PS  # no step ends later
STEP_TOKENS = tuple(2**power for power in range(15))  # upper bounds of the buckets in which steps are counted
_SUMS = (
    *("clock_fs", "steps", "busy_fs", "chain_fs", "tokens", "window_tokens", "batch_steps", "mixed_steps", "spans"),
    *("computed_tokens", "prompt_tokens", "twice_block_fs", "waited_fs", "peak_blocks"),
)


class Steps(NamedTuple):
    """Columns per step, (n,) each."""

    duration_fs: IntArray
    decodes: IntArray
    context: IntArray
    experts: IntArray | None  # (n, features), columns as in `RoutedExperts.features`, and of MIXED_FEATURES


_STEPS_COLUMN = SpanColumns._fields.index("steps")
_ROW = struct.Struct(f"={len(SpanColumns._fields)}q")


def expand(costs: ReplicaCosts, rows: SpanColumns, first_steps: IntArray) -> Steps:
    """The single steps of `rows`, worked out one by one; `first_steps` (n,) are the numbers of each row's first."""
    spans = rows.shape
    steps = each_step(spans)
    experts = None
    if costs.plan.experts is not None:
        begins = np.cumsum(rows.steps) - rows.steps
        number = np.arange(len(steps.steps)) + np.repeat(first_steps - begins, rows.steps)
        experts = costs.experts_features(steps, number)
    return Steps(step_times(costs.plan, spans, steps, experts), steps.decodes, steps.context, experts)


def _begin_fs(rows: SpanColumns, index: int) -> int:
    return int(rows.begin_ps[index]) * FS_PER_PS + int(rows.begin_rest_fs[index])


class StepLog(CostTotals):
    """Sink of one replica's spans.

    Args:
        costs: the replica's costs.
        window_fs: steps that end in [start, end) count in latencies and tokens.
        on_flush: called with each block of rows, (n, fields of SpanColumns), and the numbers of their first steps (n,).
        rows_per_flush: how many rows are digested together at most; None: as many as is fastest.
        longest_gaps: whether the longest gap between tokens of each request is kept.
    """

    __slots__ = ("_bytes_per_flush", "_pending_steps", "_rows")  # as `EngineCore` has some

    def __init__(
        self,
        costs: ReplicaCosts,
        window_fs: tuple[int, int],
        on_flush: Callable[[IntArray, IntArray], None] | None = None,
        rows_per_flush: int | None = None,
        *,
        longest_gaps: bool = False,
    ) -> None:
        super().__init__(costs.plan)
        self.costs = costs
        self.window_fs = window_fs
        self.on_flush = on_flush
        self._bytes_per_flush = (rows_per_flush or _ROWS_PER_FLUSH) * _ROW.size
        self.clock_fs = self.steps = self.spans = self.busy_fs = 0
        self.chain_fs = 0  # of anchors, in a pipeline
        self.away_fs = 0  # of the run, as known at its end: when the replica was not there at all
        self.tokens = 0  # emitted
        self.computed_tokens = 0  # that passed through the layers
        self.prompt_tokens = 0  # those of them that are of prompts
        self.window_tokens = 0
        self.itl = DurationHistogram()
        self.durations = DurationHistogram()  # of steps
        self.batches = StepBatches()
        self.longest = LongestGaps(wanted=longest_gaps)
        self.step_tokens = np.zeros(len(STEP_TOKENS) + 1, np.int64)  # steps by how many tokens they compute
        self.batch_steps = 0  # sum over steps of requests in the step
        self.mixed_steps = 0
        self.waited_fs = 0  # by data-parallel groups for the slowest one, together
        self.twice_block_fs = 0  # twice the time integral of KV blocks in use: halving is left to the end
        self.peak_blocks = 0
        experts = costs.plan.experts
        # What the mean device is behind the one that has most to do in each layer of experts, and what each of a
        # pipeline's devices that may have most to do has done, but for prefill attention.
        self._behind_fs = dict.fromkeys([unit.unit for unit in experts.units] if experts is not None else (), 0)
        self._device_loads = costs.plan.timing.device_loads
        self._device_fs = [0] * len(self._device_loads)
        self._hash = ChainDigest()
        self._rows = bytearray()  # packed
        # Gaps between tokens that no step shows: the first step of their span, their length, and how many there are.
        self._gaps: list[tuple[int, int, int]] = []
        self._pending_steps = 0

    def span(self, row: tuple[int, ...]) -> None:
        """Take one row.

        Raises:
            OverflowError: it does not fit 64 bit.
        """
        try:
            self._rows += _ROW.pack(*row)
        except struct.error as error:
            raise OverflowError("a span of steps does not fit 64 bit") from error
        self._pending_steps += row[_STEPS_COLUMN]
        if self._pending_steps > _STEPS_PER_FLUSH or len(self._rows) >= self._bytes_per_flush:
            self.flush()

    def resumed(self, gap_fs: int, at_fs: int) -> None:
        """Take the time between two tokens of a request that was preempted or moved between them."""
        if self.window_fs[0] <= at_fs < self.window_fs[1]:
            self._gaps.append((self.steps + self._pending_steps, gap_fs, 1))

    def joined(self, gaps_fs: Sequence[int], step_fs: int, at_fs: int) -> None:
        """Take the times since their last tokens of requests that decode in a step for the first time, and its own."""
        if self.window_fs[0] <= at_fs < self.window_fs[1]:
            step = self.steps + self._pending_steps
            self._gaps += [(step, gap_fs, 1) for gap_fs in gaps_fs]
            self._gaps.append((step, step_fs, -len(gaps_fs)))  # which the step counts for every request

    def use(self, costs: ReplicaCosts) -> None:
        """What comes from here on costs this, on the same units."""
        self.flush()
        self.costs = costs

    def issued_all(self, at_fs: int) -> None:
        """A closed loop has issued its last request: the measured window ends, unless all of the run is measured."""
        if self.window_fs[0] > 0:
            self.window_fs = (self.window_fs[0], at_fs)

    @property
    def busiest_unit_fs(self) -> dict[str, int]:
        """Busy time of each unit on the device that has most to do.

        Of a pipeline's devices that is one for the whole run; of groups of routed experts, the one that each layer
        waits for.
        """
        most = {unit: busy + self._behind_fs.get(unit, 0) for unit, busy in self.unit_fs.items()}
        for load, busy in zip(self._device_loads, self._device_fs, strict=True):
            most[load.unit] = max(most[load.unit], busy + load.prefill_fs(self._prefill_fs))
        return most

    @property
    def sampled_rows(self) -> int:
        """Rows of its steps that were multiplied with the vocabulary, as `CostPlan.sampled_of` counts them."""
        decodes = (self.computed_tokens - self.prompt_tokens) // self.costs.plan.verify_tokens
        return self.costs.plan.sampled(self.tokens, decodes, self.batch_steps - decodes)

    def digest(self) -> str:
        """Digest of every executed step, independent of how steps were grouped in spans."""
        self.flush()
        return self._hash.hexdigest()

    def ledger(self, replica: int) -> Ledger:
        """What the replica of that number has done so far."""
        self.flush()
        passive, drawn_pj = self.costs.plan.passive, passive_pj([self], self.clock_fs)
        return Ledger(
            replica=replica,
            steps=self.steps,
            spans=self.spans,
            computed_tokens=self.computed_tokens,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.tokens,
            sampled_rows=self.sampled_rows,
            busy_s={unit: busy / FS_PER_S for unit, busy in self.unit_fs.items()},
            busiest_s={unit: busy / FS_PER_S for unit, busy in self.busiest_unit_fs.items()},
            operator_s={category: time / FS_PER_S for category, time in self.category_fs.items()},
            joules={key: energy / PJ_PER_J for key, energy in self.energy_pj.items()},
            passive_joules=None if drawn_pj is None else drawn_pj / PJ_PER_J,
            idle_w=0.0 if passive is None else passive.idle_uw / 1e6,
            clock_fs=self.clock_fs,
            itl=self.itl,
            durations=self.durations,
            longest=self.longest,
            step_tokens=self.step_tokens.copy(),
            step_s=self.busy_fs / FS_PER_S,
            stage_s={stage: time / FS_PER_S for stage, time in self.stage_fs.items()},
            link_more=self.link_more,
        )

    def state(self) -> dict[str, Any]:
        """All that was added up so far, as JSON can hold it."""
        self.flush()
        return {
            **{name: getattr(self, name) for name in _SUMS},
            **super().state(),
            "window_fs": list(self.window_fs),
            "behind_fs": dict(self._behind_fs),
            "device_fs": list(self._device_fs),
            "itl": self.itl.state(),
            "durations": self.durations.state(),
            "batches": self.batches.state(),
            "longest": self.longest.state(),
            "step_tokens": self.step_tokens.tolist(),
            "hash": self._hash.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        super().restore(state)
        for name in _SUMS:
            setattr(self, name, state[name])
        self.window_fs = tuple(state["window_fs"])
        self._behind_fs.update(state["behind_fs"])
        self._device_fs[:] = state["device_fs"]
        self.itl.restore(state["itl"])
        self.durations.restore(state["durations"])
        self.batches.restore(state["batches"])
        self.longest.restore(state["longest"])
        self.step_tokens[:] = state["step_tokens"]
        self._hash.restore(state["hash"])

    def flush(self) -> None:
        """Digest the rows taken so far."""
        if self._gaps:
            self._add_gaps(*np.array(self._gaps, np.int64).T)
            self._gaps = []
        if not self._rows:
            return
        block = np.frombuffer(self._rows, np.int64).reshape(-1, len(SpanColumns._fields))
        rows = SpanColumns(*np.ascontiguousarray(block.T))
        first_steps = rows.first_steps(self.steps)
        self.digest_rows(rows)
        if self.on_flush is not None:
            self.on_flush(block, first_steps)
        self._rows = bytearray()
        self._pending_steps = 0

    def digest_rows(self, rows: SpanColumns) -> None:
        """Add up rows that come after all that were taken before."""
        first_steps = rows.first_steps(self.steps)
        begins = first_steps - self.steps
        steps = expand(self.costs, rows, first_steps)
        busy = exact_sum(steps.duration_fs)
        if busy != exact_sum(rows.duration_fs):
            raise AssertionError("the step log's times differ from the engine's clock")
        self._count(rows, steps, first_steps)
        costs = evaluate(self.costs.plan, rows.shape)
        self.add(costs)
        if steps.experts is not None:
            self._add_experts(steps.experts)
        energy_pj = active_pj(costs, begins, steps.experts)
        energy_pj[:1] += self.rebalance(self.costs.pools)
        self.batches.add(first_steps, rows.begin_ps, rows.outputs * rows.steps, energy_pj)
        self.longest.take(first_steps, steps.duration_fs, begins)
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

    def add(self, costs: StepCosts[IntArray]) -> None:
        """Add what some steps cost."""
        super().add(costs)
        if costs.chain_fs is not None:
            self.chain_fs += exact_sum(costs.chain_fs)
        for place, coefficient, times in costs.loads:
            self._device_fs[place] += coefficient * exact_sum(times)
        for unit, coefficient, times in costs.behind:
            self._behind_fs[unit] += coefficient * exact_sum(times)

    def _add_experts(self, features: IntArray) -> None:
        """Add routed experts of single steps, whose energies may leave 64 bit if they are summed over spans."""
        costs: StepCosts[IntArray] = StepCosts()
        assert self.costs.plan.experts is not None
        add_experts(self.costs.plan.experts, list(features.T), costs)
        self.add(costs)

    def _add_gaps(self, first_steps: IntArray, gaps_fs: IntArray, counts: IntArray) -> None:
        """Add gaps between tokens, (n,), so many of each, and the first steps of their spans."""
        self.itl.add(gaps_fs, counts)
        self.batches.add_gaps(first_steps, gaps_fs, counts)

    def _count(self, rows: SpanColumns, steps: Steps, first_steps: IntArray) -> None:
        """Latencies, tokens, batch and KV use."""
        low, high = self.window_fs
        begins_fs, ends_fs = _begin_fs(rows, 0), _begin_fs(rows, -1) + int(rows.duration_fs[-1])
        if low <= begins_fs and ends_fs < high:
            self._add_gaps(np.repeat(first_steps, rows.steps), steps.duration_fs, steps.decodes)
            self.window_tokens += int((rows.outputs * rows.steps).sum())
        elif low <= ends_fs and high > begins_fs:
            inside = self._inside(rows, steps, first_steps - self.steps)
            self._add_gaps(np.repeat(first_steps, rows.steps)[inside], steps.duration_fs[inside], steps.decodes[inside])
            self.window_tokens += int(np.repeat(rows.outputs, rows.steps)[inside].sum())
        self.tokens += exact_dot(rows.outputs, rows.steps)
        computed = self.costs.plan.tokens_of(rows.shape)
        tokens = exact_dot(computed, rows.steps)
        self.computed_tokens += tokens
        self.pass_link(self.costs.link_more, tokens)
        self.prompt_tokens += exact_dot(rows.prefill_tokens, rows.steps)
        self.durations.add(steps.duration_fs)
        size = np.searchsorted(STEP_TOKENS, computed)
        self.step_tokens += np.bincount(size, weights=rows.steps, minlength=len(self.step_tokens)).astype(np.int64)
        self.batch_steps += int(((rows.decodes + rows.chunks) * rows.steps).sum())
        self.mixed_steps += int((rows.chunks > 0).sum())
        self.peak_blocks = max(self.peak_blocks, int(rows.blocks_end.max()))
        # Blocks grow evenly enough inside a span for the mean of its ends.
        self.twice_block_fs += exact_dot(rows.duration_fs, rows.blocks_begin + rows.blocks_end)

    def _inside(self, rows: SpanColumns, steps: Steps, begins: IntArray) -> BoolArray:
        """Per step: whether it ends in the window."""
        passed = np.cumsum(steps.duration_fs)  # may wrap; differences inside a row do not
        in_row = passed - np.repeat((passed - steps.duration_fs)[begins], rows.steps)
        in_row += np.repeat(rows.begin_rest_fs, rows.steps)
        end_ps = np.repeat(rows.begin_ps, rows.steps) + in_row // FS_PER_PS
        rest_fs = in_row % FS_PER_PS
        inside = np.ones(len(end_ps), bool)
        for bound, after in ((self.window_fs[0], True), (self.window_fs[1], False)):
            ps, rest = divmod(min(bound, _NO_BOUND), FS_PER_PS)
            reached = (end_ps > ps) | ((end_ps == ps) & (rest_fs >= rest))
            inside &= reached if after else ~reached
        return inside


def passive_pj(logs: Sequence[StepLog], end_fs: int) -> int | None:
    """What devices of alike replicas draw until then whether they work or not; None: not known, or left out."""
    return drawn_pj(logs[0].costs.plan.passive, logs, end_fs)


def drawn_pj(passive: PassivePower | None, logs: Sequence[StepLog], end_fs: int) -> int | None:
    """The same of devices of these replicas that draw so much."""
    if passive is None:
        return None
    # A device rests while the host is at work.
    working = sum(log.busy_fs - log.unit_fs.get(HOST, 0) for log in logs)
    resting = sum(end_fs - log.away_fs for log in logs) - working
    return passive.energy_pj(resting, working, sum(log.chain_fs for log in logs))
