"""A replica's ledger: what its executed spans come to, in closed form.

The step log looks at every single step, for latencies and the digest. Whoever only wants times, energies and counts
needs a few operations per span: inside a span everything is affine in the step, and the experts' outcomes are
differences of prefix sums. The sums are those of the log to the last unit, and each span's own time is compared with
the one that it came with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pimserve.device_models.experts import FEATURES
from pimserve.device_models.operators import CATEGORIES, Category
from pimserve.device_models.pipeline import PipelineColumns, PipelineTerm
from pimserve.device_models.plan import HOST, LINK
from pimserve.device_models.routing import POOL_SIZE
from pimserve.errors import PimserveError
from pimserve.scheduler.attention import attention_columns, fastest
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.exact import exact_dot, exact_sum
from pimserve.scheduler.steplog import IntArray, Rows, _row_counts, _row_time, _seen_total, count_decode

ExpertsOf = Callable[[IntArray, IntArray], IntArray]
_SUMS = ("steps", "busy_fs", "tokens", "outputs", "kv_blocks", "peak_kv_blocks", "_pipeline_prefill_fs")
_TABLES_KEPT = 2048  # token counts whose outcomes are kept summed up, 10 kB each


class TimesDifferError(PimserveError):
    """Steps took another time than they are said to have."""

    def __init__(self, first_step: int, steps: int, own_fs: int, given_fs: int) -> None:
        which = f"step {first_step}" if steps == 1 else f"steps {first_step} to {first_step + steps - 1}"
        super().__init__(f"{which}: {given_fs:,} fs by the engine, {own_fs:,} fs by the device's own plan")
        self.first_step = first_step


class ReplicaLedger:
    """Sums over one replica's executed spans.

    Args:
        costs: the replica's costs.
        drawn: (n, features) of the experts in single steps with these tokens (n,) and numbers (n,); None: as `costs`
            has them.
    """

    def __init__(self, costs: ReplicaCosts, drawn: ExpertsOf | None = None) -> None:
        plan = costs.plan
        self.costs = costs
        self._drawn = drawn
        self.steps = 0
        self.busy_fs = 0
        self.tokens = 0  # that passed through the layers
        self.outputs = 0  # that were sampled
        self.kv_blocks = 0  # in use during the last step
        self.peak_kv_blocks = 0
        self.category_fs: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        self.energy_pj: dict[tuple[Category, str], int] = {
            (category, kind): 0 for category in CATEGORIES for kind in ("dram", "compute")
        }
        links = () if plan.pipeline is not None else (LINK,)
        host = (HOST,) if any(term.unit == HOST for term in plan.rows) else ()
        self._unit_fs = dict.fromkeys((*plan.units, *links, *host), 0)
        self._pipeline_prefill_fs = 0
        self._table = np.zeros((0, 2 * POOL_SIZE + 1, len(FEATURES)), np.int64)
        self._place: dict[int, int] = {}

    @property
    def unit_fs(self) -> dict[str, int]:
        """Busy time of each unit of a device."""
        found = dict(self._unit_fs)
        pipeline = self.costs.plan.pipeline
        for load in pipeline.loads if pipeline is not None else ():
            found[load.unit] += load.prefill_fs(self._pipeline_prefill_fs)
        return found

    def take(self, rows: Rows, first_steps: IntArray) -> None:
        """Add up spans.

        Args:
            rows: spans of the replica, in their order; those with prompts are single steps.
            first_steps: (n,), the number of each one's first step.

        Raises:
            TimesDifferError: a span's time is not what the plan says; the ledger is then of no use any more.
        """
        plan = self.costs.plan
        n = rows.steps
        whole = self._row_terms(rows)
        if plan.pipeline is not None:
            own = n * whole + self._pipeline(plan.pipeline, rows)
        else:
            own = n * whole + self._attention(rows)
            if plan.experts is not None:
                own += self._experts(rows, first_steps)
        differ = np.flatnonzero(own != rows.duration_fs)
        if len(differ):
            at = int(differ[0])
            raise TimesDifferError(int(first_steps[at]), int(n[at]), int(own[at]), int(rows.duration_fs[at]))
        prefill = exact_sum(rows.prefill_fs)
        self.category_fs["attention_prefill"] += prefill
        self.category_fs["attention_decode"] -= prefill  # which outlasts it, side by side
        self.energy_pj["attention_prefill", "dram"] += exact_sum(rows.prefill_dram_pj)
        self.energy_pj["attention_prefill", "compute"] += exact_sum(rows.prefill_compute_pj)
        self.steps += int(n.sum())
        self.busy_fs += exact_sum(rows.duration_fs)
        self.tokens += exact_dot(rows.decodes + rows.prefill_tokens, n)
        self.outputs += exact_dot(rows.outputs, n)
        if len(n):
            self.kv_blocks = int(rows.blocks_end[-1])
            self.peak_kv_blocks = max(self.peak_kv_blocks, int(rows.blocks_end.max()))

    def use(self, costs: ReplicaCosts) -> None:
        """What comes from here on costs this, on the same units."""
        self.costs = costs
        self._place, self._table = {}, self._table[:0]

    def state(self) -> dict[str, Any]:
        """All that was added up so far, as JSON can hold it."""
        return {
            **{name: getattr(self, name) for name in _SUMS},
            "category_fs": dict(self.category_fs),
            "energy_pj": [[*key, value] for key, value in self.energy_pj.items()],
            "unit_fs": dict(self._unit_fs),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name in _SUMS:
            setattr(self, name, state[name])
        self.category_fs.update(state["category_fs"])
        self.energy_pj.update({(category, kind): value for category, kind, value in state["energy_pj"]})
        self._unit_fs.update(state["unit_fs"])

    def _row_terms(self, rows: Rows) -> IntArray:
        """Counts time, energy and unit time of row terms; returns a step's time of each span, (n,)."""
        plan = self.costs.plan
        every, busiest = _row_counts(plan, rows)
        whole = np.zeros(len(rows.steps), np.int64)
        for term in plan.rows:
            each = _row_time(term, busiest[term.rows])
            whole += each
            time = exact_dot(each, rows.steps)
            self.category_fs[term.category] += time
            self._unit_fs[term.unit] += time
            energy, wanted = term.energy, every[term.rows]
            processed = exact_dot(wanted, rows.steps)
            groups = int((np.minimum(plan.data_parallel, np.minimum(wanted, every["requests"])) * rows.steps).sum())
            self.energy_pj[term.category, "dram"] += energy.dram_const * groups + energy.dram_per_row * processed
            self.energy_pj[term.category, "compute"] += energy.compute_per_row * processed
        return whole

    def _attention(self, rows: Rows) -> IntArray:
        """Counts attention; returns its time in each span, (n,)."""
        plan = self.costs.plan
        count_decode(plan, rows, self._unit_fs, self.energy_pj)
        if plan.prefill:
            self._unit_fs[plan.prefill[0].unit] += exact_sum(rows.prefill_fs)
        # A span takes one way in all of its steps: the one that is fastest in their sum too.
        whole = fastest(attention_columns(plan, rows.decodes, rows.context, rows.prefill_fs, rows.steps))
        self.category_fs["attention_decode"] += exact_sum(whole)
        return whole

    def _experts(self, rows: Rows, first_steps: IntArray) -> IntArray:
        """Counts routed experts; returns their time in each span, (n,)."""
        term = self.costs.plan.experts
        assert term is not None
        tokens = rows.decodes + rows.prefill_tokens
        features = np.empty((len(tokens), len(FEATURES)), np.int64)
        long = rows.steps > 1
        if not long.all():
            features[~long] = (self._drawn or self.costs.experts_features)(tokens[~long], first_steps[~long])
        if long.any():
            features[long] = self._pooled(tokens[long], first_steps[long], rows.steps[long])
        time, first, second, _, _, dram, compute = (exact_sum(features[:, column]) for column in range(len(FEATURES)))
        self.category_fs["moe"] += time
        for unit, busy in zip(term.units, (first, second), strict=False):
            self._unit_fs[unit.unit] += busy
        self.energy_pj["moe", "dram"] += dram
        self.energy_pj["moe", "compute"] += compute
        return np.asarray(features[:, 0])

    def _pooled(self, tokens: IntArray, first_steps: IntArray, steps: IntArray) -> IntArray:
        """(n, features): of spans of at most POOL_SIZE steps, as differences of prefix sums."""
        distinct, which = np.unique(tokens, return_inverse=True)
        if missing := [t for t in distinct.tolist() if t not in self._place]:
            if len(self._place) + len(missing) > _TABLES_KEPT:
                self._place, self._table = {}, self._table[:0]
                missing = distinct.tolist()
            for t in missing:
                self._place[t] = len(self._place)
            self._table = np.concatenate([self._table, np.stack([self._prefix(t) for t in missing])])
        place = np.array([self._place[t] for t in distinct.tolist()])[which]
        begin = (self.costs.offset + first_steps) % POOL_SIZE
        # Sums over two pools may leave 64 bit, but not their differences.
        return np.asarray(self._table[place, begin + steps] - self._table[place, begin])

    def _prefix(self, tokens: int) -> IntArray:
        """(2 POOL_SIZE + 1, features): of the first i outcomes of the endless repetition of the pool."""
        pools = self.costs.pools
        assert pools is not None
        once = pools.features(np.full(POOL_SIZE, tokens), np.arange(POOL_SIZE))
        return np.concatenate([np.zeros((1, len(FEATURES)), np.int64), np.cumsum(np.tile(once, (2, 1)), axis=0)])

    def _pipeline(self, pipeline: PipelineTerm, rows: Rows) -> IntArray:
        """Counts what passes through a pipeline; returns its time in each span, (n,), without row terms."""
        n = rows.steps
        first = self._columns(pipeline, rows, rows.context)
        last = self._columns(pipeline, rows, rows.context + (n - 1) * rows.decodes)
        # Every span has one station that sets its wait; of times that grow evenly, the mean of both ends counts.
        wait = n * (first.wait_fs + last.wait_fs) // 2
        attention = n * (first.attention_fs + last.attention_fs) // 2
        slots = n * first.slots_fs
        for category, time in pipeline.chain:
            self.category_fs[category] += time * int(n.sum())
        self.category_fs[pipeline.prompt_category] += exact_sum(slots)
        self.category_fs["attention_decode"] += exact_sum(attention)
        even = first.station == last.station
        for index, station in enumerate(pipeline.stations):
            self.category_fs[station.category] += exact_sum(wait[even & (first.station == index)])
        if not even.all():  # at an end, two stations wait for equally long, and the log takes the first of them
            self._uneven(pipeline, Rows(*(column[~even] for column in rows)))
        self._loads(pipeline, rows)
        count_decode(self.costs.plan, rows, self._unit_fs, self.energy_pj)
        return np.asarray(n * pipeline.fixed_fs + slots + attention + wait)

    def _columns(self, pipeline: PipelineTerm, rows: Rows, context: IntArray) -> PipelineColumns:
        return pipeline.columns(
            rows.decodes,
            context,
            rows.outputs,
            queued=rows.busiest_tokens,
            anchor=rows.anchor_tokens,
            prefill_fs=rows.prefill_fs,
        )

    def _uneven(self, pipeline: PipelineTerm, rows: Rows) -> None:
        """Counts waits step by step."""
        n = rows.steps
        step = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)
        each = Rows(*(np.repeat(column, n) for column in rows))
        columns = self._columns(pipeline, each, each.context + step * each.decodes)
        for index, station in enumerate(pipeline.stations):
            self.category_fs[station.category] += exact_sum(columns.wait_fs[columns.station == index])

    def _loads(self, pipeline: PipelineTerm, rows: Rows) -> None:
        """Busy time of units."""
        processed = exact_dot(rows.decodes + rows.prefill_tokens, rows.steps)
        outputs = exact_dot(rows.outputs, rows.steps)
        decoded = exact_dot(rows.decodes, rows.steps)
        seen = [_seen_total(rows, window) for window in pipeline.windows]
        self._pipeline_prefill_fs += exact_sum(rows.prefill_fs)
        for load in pipeline.loads:
            self._unit_fs[load.unit] += load.busy_fs(processed, outputs, decoded, seen)
