"""What a host keeps for one replica of which it has devices: ledger and audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.base.rpc.statuses import DeviceMismatchError, WrongStateError
from pimserve.cluster.distributed.devices.audit import Audit, durations
from pimserve.cluster.distributed.devices.compile import DevicePool
from pimserve.cluster.distributed.devices.expert_work import Work
from pimserve.cluster.distributed.devices.layer_picks import LayerPicks
from pimserve.cluster.distributed.devices.span_rows import Spans
from pimserve.device_models.evaluate import evaluate, experts_rows
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.plan import FS_PER_PS
from pimserve.device_models.slowdown import NORMAL
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.exact import exact_sum
from pimserve.scheduler.ledger import ReplicaLedger, TimesDifferError
from pimserve.scheduler.steplog import SpanColumns
from pimserve.scheduler.totals import EnergyPart

_ROWS_AT_ONCE = 4096  # digesting a block has a fixed cost, so that few rows wait for more
_STEPS_KEPT = 1024  # kinds of single steps whose traffic is kept


class ReplicaBook:
    """Ledger of one replica, as its devices have it.

    Args:
        pool: what its devices are.
        replica: its number.
        devices: those of its devices that are on this host.
        audit_share: share of the spans that each device evaluates again step by step.

    Attributes:
        experts_fs: of each device here, time that it had for its own routed experts.
        experts_pj: and its parts of their DRAM and compute energy, where it is known which device did what.
        routed_pj: DRAM and compute energy of all routed experts of which that is known.
        group_pj: energy on the experts' devices, where these are others than attention's, by category and kind.
        sent: (keys of the traffic, 2), counts and bytes that left devices here.
        received: likewise, that came to them.
        picks_sent, picks_received: the same of picks over the link between groups of devices, by MoE layer.
    """

    def __init__(self, pool: DevicePool, replica: int, devices: Sequence[int], audit_share: float) -> None:
        costs = pool.costs.of_replica(replica)
        self.pool = pool
        self.replica = replica
        self.devices = tuple(sorted(devices))
        self.ledger = ReplicaLedger(costs)
        self.next_step = 0
        self.experts_fs = dict.fromkeys(self.devices, 0)
        self.experts_pj = dict.fromkeys(self.devices, (0, 0))
        self.routed_pj = (0, 0)
        self.group_pj: Counter[EnergyPart] = Counter()
        self.sent, self.received = (np.zeros((len(pool.traffic.keys), 2), np.int64) for _ in range(2))
        self.picks_sent, self.picks_received = LayerPicks(), LayerPicks()
        self._normal = self._costs = costs
        self._slowdown = NORMAL  # of what is being taken
        self._audit_share = audit_share
        self._audit = Audit(costs, pool.seed, self.devices, audit_share)
        self._step_traffic: dict[tuple[int, int, int], IntArray] = {}  # by epoch, tokens and outputs
        self._waiting: list[tuple[IntArray, IntArray, IntArray | None]] = []
        self._rows_waiting = 0

    def fresh(self) -> ReplicaBook:
        """A book of the same devices with nothing in it."""
        return ReplicaBook(self.pool, self.replica, self.devices, self._audit_share)

    @property
    def audited_rows(self) -> int:
        """Spans that were evaluated again step by step."""
        return self._audit.rows

    def costs_at(self, slowdown: int, begin_ps: int) -> ReplicaCosts:
        """The costs of steps that take so many thousandths of their normal times and begin then."""
        costs = self._costs if slowdown == self._slowdown else self._normal.slowed(slowdown)
        return costs.at(begin_ps * FS_PER_PS)

    def alike(self, spans: Spans) -> Iterator[Spans]:
        """The same in runs of one speed and one law of routing."""
        return spans.alike(self.pool.epochs(spans.begin_ps))

    def check(self, spans: Spans) -> None:
        """Whether spans follow each other and, at the most, those that were taken.

        Raises:
            WrongStateError: others are missing between or before them.
        """
        steps = spans.rows[:, SpanColumns._fields.index("steps")]
        expected = min(int(spans.first_steps[0]), self.next_step) + np.cumsum(steps) - steps
        if (expected != spans.first_steps).any():
            at = int(np.argmax(expected != spans.first_steps))
            raise self._missing(int(expected[at]), int(spans.first_steps[at]))

    def comes_next(self, spans: Spans) -> bool:
        """Whether spans that are alike come next; False: they were taken before.

        Raises:
            WrongStateError: others are missing before them, or only some of them were taken.
        """
        self.check(spans)
        first = int(spans.first_steps[0])
        if first < self.next_step < spans.first_steps[-1] + spans.rows[-1, SpanColumns._fields.index("steps")]:
            raise self._missing(self.next_step, first)
        return first == self.next_step

    def duration_fs(self, spans: Spans, work: Work | None) -> int:
        """Time of a span by the devices' own plan, given what its routed experts took."""
        plan = self.costs_at(int(spans.slowdowns[0]), int(spans.begin_ps[0])).plan
        costs = evaluate(plan, SpanColumns(*spans.rows.T).shape, None if work is None else list(work.features.T))
        return int(costs.duration_fs[0])

    def take(self, spans: Spans, work: Work | None) -> None:
        """Take executed spans that are alike, which come next.

        Args:
            spans: executed.
            work: what their routed experts took; None where the plan has none.

        Raises:
            DeviceMismatchError: a time is not what the devices' plan says.
        """
        self.next_step = int(spans.first_steps[-1] + spans.rows[-1, SpanColumns._fields.index("steps")])
        self._use(int(spans.slowdowns[0]), int(spans.begin_ps[0]))
        self._waiting.append((spans.rows, spans.first_steps, None if work is None else work.features))
        self._rows_waiting += len(spans.rows)
        if work is not None:
            self._count_experts(work)
        if self._rows_waiting >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Digest what was taken.

        Raises:
            DeviceMismatchError: a time is not what the devices' plan says.
        """
        if not self._waiting:
            return
        blocks, first, features = zip(*self._waiting, strict=True)
        self._waiting, self._rows_waiting = [], 0
        rows, first_steps = SpanColumns(*np.ascontiguousarray(np.concatenate(blocks).T)), np.concatenate(first)
        work = None if features[0] is None else np.concatenate(features)
        if self.pool.placed.groups and work is not None:
            self._count_group(rows, work)
        try:
            self.ledger.take(rows, first_steps, work)
            self._audit.check(rows, first_steps)
        except TimesDifferError as error:
            raise self.mismatch(str(error)) from None

    def _missing(self, expected: int, came: int) -> WrongStateError:
        return WrongStateError(f"replica {self.replica}: step {expected} should come next, not {came}")

    def _count_experts(self, work: Work) -> None:
        for device in self.devices:
            self.experts_fs[device] += work.own_fs[device]
        if work.own_pj:
            for device, (dram, compute) in work.own_pj.items():
                before = self.experts_pj[device]
                self.experts_pj[device] = before[0] + dram, before[1] + compute
            dram, compute = (exact_sum(work.features[:, FEATURES.index(name)]) for name in ("dram_pj", "compute_pj"))
            self.routed_pj = self.routed_pj[0] + dram, self.routed_pj[1] + compute

    def _count_group(self, rows: SpanColumns, work: IntArray) -> None:
        costs = experts_rows(self.pool.placed.plan, rows.shape)
        for key, coefficient, times in costs.energy:
            self.group_pj[key] += coefficient * exact_sum(times)
        self.group_pj["moe", "dram"] += exact_sum(work[:, FEATURES.index("dram_pj")])
        self.group_pj["moe", "compute"] += exact_sum(work[:, FEATURES.index("compute_pj")])

    def _use(self, slowdown: int, begin_ps: int) -> None:
        """What is taken from here on takes so many thousandths of its normal times, and begins then or later."""
        costs = self.costs_at(slowdown, begin_ps)
        if costs is self._costs:
            return
        self.flush()
        self._slowdown, self._costs = slowdown, costs
        self.ledger.use(costs)
        self._audit.use(costs)

    def mismatch(self, what: str) -> DeviceMismatchError:
        """The error that says what differs, and where."""
        devices = ", ".join(map(str, self.devices))
        plural = "s" if len(self.devices) > 1 else ""
        return DeviceMismatchError(f"replica {self.replica}, device{plural} {devices}, {what}")

    def evaluate(self, spans: Spans) -> IntArray:
        """(n,): times of spans, by the devices' own plan, step by step."""
        times = np.zeros(len(spans.rows), np.int64)
        settings, which = np.unique(
            np.column_stack([spans.slowdowns, self.pool.epochs(spans.begin_ps)]), axis=0, return_inverse=True
        )
        for number in range(len(settings)):
            mine = which.reshape(-1) == number
            costs = self.costs_at(int(spans.slowdowns[mine][0]), int(spans.begin_ps[mine][0]))
            rows = SpanColumns(*np.ascontiguousarray(spans.rows[mine].T))
            times[mine] = durations(costs, rows, spans.first_steps[mine])
        return times

    def traffic_of(
        self, epoch: int, tokens: IntArray, outputs: IntArray, steps: IntArray, picks: IntArray | None
    ) -> IntArray:
        """(keys, 2): what passes between devices, as `Traffic.of_steps` says; of a single step it is remembered.

        `epoch`: of the law of routing.
        """
        of_all = self.pool.traffic_by_epoch[epoch]
        if picks is not None or len(steps) > 1 or steps[0] > 1:
            return of_all.by_key(of_all.of_steps(tokens, outputs, steps, picks))
        key = epoch, int(tokens[0]), int(outputs[0])
        traffic = self._step_traffic.get(key)
        if traffic is None:
            if len(self._step_traffic) >= _STEPS_KEPT:
                self._step_traffic.clear()
            traffic = self._step_traffic[key] = of_all.by_key(of_all.of_steps(tokens, outputs, steps))
        return traffic

    def entries(self, sums: IntArray) -> list[tuple[int, ...]]:
        """(replica, sender, replica, receiver, kind, count, bytes) of `sent` or `received`, without those of 0."""
        cells = zip(self.pool.traffic.keys.tolist(), sums.tolist(), strict=True)
        return [
            (self.replica, sender, self.replica, receiver, kind, count, size)
            for (sender, receiver, kind), (count, size) in cells
            if count or size
        ]

    def state(self) -> dict[str, Any]:
        """All that was taken, as JSON can hold it."""
        self.flush()
        return {
            "replica": self.replica,
            "devices": list(self.devices),
            "ledger": self.ledger.state(),
            "next_step": self.next_step,
            "slowdown": self._slowdown,
            "experts_fs": [self.experts_fs[device] for device in self.devices],
            "experts_pj": [self.experts_pj[device] for device in self.devices],
            "routed_pj": self.routed_pj,
            "group_pj": [[*key, value] for key, value in self.group_pj.items()],
            "sent": self.sent.tolist(),
            "received": self.received.tolist(),
            "picks_sent": self.picks_sent.entries(),
            "picks_received": self.picks_received.entries(),
            "audited_rows": self._audit.rows,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.ledger.restore(state["ledger"])
        self.next_step = int(state["next_step"])
        self._use(int(state["slowdown"]), 0)
        self.experts_fs = dict(zip(self.devices, map(int, state["experts_fs"]), strict=True))
        self.experts_pj = dict(zip(self.devices, map(_pair, state["experts_pj"]), strict=True))
        self.routed_pj = _pair(state["routed_pj"])
        self.group_pj = Counter({(category, kind): int(value) for category, kind, value in state["group_pj"]})
        for name in ("sent", "received"):
            sums = np.array(state[name], np.int64).reshape(-1, 2)
            if sums.shape != self.sent.shape:
                raise ValueError("traffic of other devices")
            setattr(self, name, sums)
        self.picks_sent, self.picks_received = LayerPicks(state["picks_sent"]), LayerPicks(state["picks_received"])
        self._audit.rows = int(state["audited_rows"])


def _pair(values: Sequence[int]) -> tuple[int, int]:
    dram, compute = map(int, values)
    return dram, compute
