"""What a host keeps for one replica of which it has devices: ledger, traffic and audit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.base.rpc.statuses import DeviceMismatchError, WrongStateError
from pimserve.cluster.distributed.devices.audit import Audit, durations
from pimserve.cluster.distributed.devices.compile import DevicePool
from pimserve.cluster.distributed.devices.flows import Cells
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.routing import ExpertPools
from pimserve.device_models.slowdown import NORMAL
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.ledger import ReplicaLedger, TimesDifferError
from pimserve.scheduler.steplog import SpanColumns

_ROWS_AT_ONCE = 4096  # digesting a block has a fixed cost, so that few rows wait for more
_STEPS_KEPT = 1024  # kinds of single steps whose traffic is kept
_ROW_COLUMNS = len(SpanColumns._fields)


class ReplicaBook:
    """Ledger and traffic of one replica, as its devices have them.

    Args:
        pool: what its devices are.
        replica: its number.
        devices: those of its devices that are on this host.
        audit_share: share of the spans that each device evaluates again step by step.
    """

    def __init__(self, pool: DevicePool, replica: int, devices: Sequence[int], audit_share: float) -> None:
        costs = pool.costs.of_replica(replica)
        self.pool = pool
        self.replica = replica
        self.devices = tuple(sorted(devices))
        self._draws = _Draws(costs, pool) if costs.exact else None
        self.ledger = ReplicaLedger(costs, self._draws)
        self.next_step = 0
        self.traffic: IntArray = np.zeros((len(self.cells.kind), 2), np.int64)  # counts and bytes so far
        self._normal = self._costs = costs
        self._slowdown = NORMAL  # of what is being taken
        self._audit_share = audit_share
        self._audit = Audit(costs, pool.seed, self.devices, audit_share)
        self._step_traffic: dict[tuple[int, int], IntArray] = {}  # by tokens and outputs
        self._waiting: list[tuple[IntArray, IntArray]] = []
        self._rows_waiting = 0

    def fresh(self) -> ReplicaBook:
        """A book of the same devices with nothing in it."""
        return ReplicaBook(self.pool, self.replica, self.devices, self._audit_share)

    @property
    def cells(self) -> Cells:
        """Which devices `traffic` passes between."""
        return self.pool.traffic.cells

    @property
    def audited_rows(self) -> int:
        """Spans that were evaluated again step by step."""
        return self._audit.rows

    def take(self, rows: IntArray, first_steps: IntArray, slowdowns: IntArray) -> None:
        """Take executed spans; arguments as in `span_rows.Spans`.

        Raises:
            WrongStateError: they do not follow those taken before.
            DeviceMismatchError: a time is not what the devices' plan says.
        """
        steps = rows[:, SpanColumns._fields.index("steps")]
        expected = self.next_step + np.cumsum(steps) - steps
        if (expected != first_steps).any():
            at = int(np.argmax(expected != first_steps))
            raise WrongStateError(
                f"replica {self.replica}: step {int(expected[at])} should come next, not {int(first_steps[at])}"
            )
        self.next_step += int(steps.sum())
        for some in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(slowdowns)) + 1):
            if len(some):
                self._slow(int(slowdowns[some[0]]))
                self._waiting.append((rows[some[0] : some[-1] + 1], first_steps[some[0] : some[-1] + 1]))
                self._rows_waiting += len(some)
        if self._rows_waiting >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Digest what was taken.

        Raises:
            DeviceMismatchError: a time is not what the devices' plan says.
        """
        if not self._waiting:
            return
        block = np.concatenate([rows for rows, _ in self._waiting])
        first_steps = np.concatenate([first for _, first in self._waiting])
        self._waiting, self._rows_waiting = [], 0
        rows = SpanColumns(*np.ascontiguousarray(block.T))
        try:
            self.ledger.take(rows, first_steps)
            self._audit.check(rows, first_steps)
        except TimesDifferError as error:
            raise self.mismatch(str(error)) from None
        picks = None if self._draws is None else self._draws.collected()
        self.traffic += self.pool.traffic.of_steps(rows.decodes + rows.prefill_tokens, rows.outputs, rows.steps, picks)

    def _slow(self, slowdown: int) -> None:
        """What is taken from here on takes so many thousandths of its normal times."""
        if slowdown == self._slowdown:
            return
        self.flush()
        self._slowdown, self._costs = slowdown, self._normal.slowed(slowdown)
        self.ledger.use(self._costs)
        self._audit.use(self._costs)
        if self._draws is not None:
            self._draws.slowed = self._costs if slowdown != NORMAL else None

    def mismatch(self, what: str) -> DeviceMismatchError:
        """The error that says what differs, and where."""
        devices = ", ".join(map(str, self.devices))
        plural = "s" if len(self.devices) > 1 else ""
        return DeviceMismatchError(f"replica {self.replica}, device{plural} {devices}, {what}")

    def evaluate(self, rows: IntArray, first_steps: IntArray, slowdowns: IntArray) -> IntArray:
        """(n,): times of spans, by the devices' own plan, step by step; arguments as in `span_rows.Spans`."""
        times = np.zeros(len(rows), np.int64)
        for slowdown in np.unique(slowdowns).tolist():
            mine = slowdowns == slowdown
            costs = self._costs if slowdown == self._slowdown else self._normal.slowed(slowdown)
            times[mine] = durations(costs, SpanColumns(*np.ascontiguousarray(rows[mine].T)), first_steps[mine])
        return times

    def step_traffic(self, row: IntArray, step: int) -> IntArray:
        """(cells, 2): what passes between devices in one step, of which `row` has the fields of SpanColumns."""
        rows = SpanColumns(*row.reshape(_ROW_COLUMNS, 1))
        tokens = rows.decodes + rows.prefill_tokens
        if self._draws is not None:
            picks = self._draws.picks(int(tokens[0]), step)
            return self.pool.traffic.of_steps(tokens, rows.outputs, rows.steps, picks)
        key = int(tokens[0]), int(rows.outputs[0])
        traffic = self._step_traffic.get(key)
        if traffic is None:
            if len(self._step_traffic) >= _STEPS_KEPT:
                self._step_traffic.clear()
            traffic = self._step_traffic[key] = self.pool.traffic.of_steps(tokens, rows.outputs, rows.steps)
        return traffic

    def state(self) -> dict[str, Any]:
        """All that was taken, as JSON can hold it."""
        self.flush()
        return {
            "replica": self.replica,
            "devices": list(self.devices),
            "ledger": self.ledger.state(),
            "next_step": self.next_step,
            "slowdown": self._slowdown,
            "traffic": self.traffic.tolist(),
            "audited_rows": self._audit.rows,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.ledger.restore(state["ledger"])
        self.next_step = int(state["next_step"])
        self._slow(int(state["slowdown"]))
        self.traffic = np.array(state["traffic"], np.int64).reshape(-1, 2)
        if len(self.traffic) != len(self.cells.kind):
            raise ValueError("traffic of other devices")
        self._audit.rows = int(state["audited_rows"])


class _Draws:
    """Exact routing: what each step drew, its costs, and its picks by cell of the dispatch."""

    def __init__(self, costs: ReplicaCosts, pool: DevicePool) -> None:
        assert isinstance(costs.pools, ExpertPools)
        assert pool.traffic.dispatch is not None
        self._pools = costs.pools
        self._replica = costs.replica
        self._dispatch = pool.traffic.dispatch
        self._sum = np.zeros(len(self._dispatch.sender), np.int64)
        self.slowed: ReplicaCosts | None = None  # whose times count, where they are not the normal ones

    def __call__(self, tokens: IntArray, steps: IntArray) -> IntArray:
        """(n, features): of the steps."""
        features = np.empty((len(steps), len(FEATURES)), np.int64)
        if self.slowed is not None:
            features[:] = self.slowed.experts_features(tokens, steps)
        for place, (t, step) in enumerate(zip(tokens.tolist(), steps.tolist(), strict=True)):
            counts = self._counts(t, step)
            self._sum += self._dealt(counts)
            if self.slowed is None:
                features[place] = self._pools.term.layer_features(counts).sum(axis=0)
        return features

    def collected(self) -> IntArray:
        """(cells,): picks of the steps asked for since the last call."""
        total, self._sum = self._sum, np.zeros_like(self._sum)
        return total

    def picks(self, tokens: int, step: int) -> IntArray:
        """(cells,): picks of one step."""
        return self._dealt(self._counts(tokens, step))

    def _dealt(self, counts: IntArray) -> IntArray:
        return self._dispatch.dealt(counts.sum(axis=0).reshape(self._dispatch.groups, -1).sum(axis=1))

    def _counts(self, tokens: int, step: int) -> IntArray:
        """(layers, experts): the draw that `ExpertPools.exact` makes for the step."""
        return self._pools.exact_counts(tokens, self._replica, step)
