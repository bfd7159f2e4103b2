"""A host's turn in some spans of a replica: what its devices send, what must come, and what the devices make of it.

Devices of one host send each other the same as devices of different hosts, but without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.cluster.base.rpc.statuses import DeviceMismatchError
from pimserve.cluster.distributed.devices.expert_work import Matrix, Pair, Work
from pimserve.cluster.distributed.devices.flows import COMBINE, Traffic, kind_name
from pimserve.cluster.distributed.devices.replica_experts import Experts
from pimserve.cluster.distributed.devices.span_rows import Spans
from pimserve.device_models.plan import CostPlan
from pimserve.scheduler.steplog import SpanColumns
from pimserve.v1 import device_pb2 as pb

DISPATCHED = pb.ExchangePhase.EXCHANGE_PHASE_DISPATCH
Ends = tuple[int, str, str]  # phase, sending and receiving host
_NO_PLACES, _NO_FLOWS = np.zeros(0, np.int64), np.zeros((0, 5), np.int64)
COMBINED = pb.ExchangePhase.EXCHANGE_PHASE_COMBINE
SPAN_STEPS = np.dtype("<i4")
_OVERHEAD_BYTES = 1024  # of an exchange, beside its numbers
# (keys, 2), counts and bytes, in spans of these tokens, outputs and steps (n,) and picks in the cells of the dispatch.
TrafficOf = Callable[[IntArray, IntArray, IntArray, IntArray | None], IntArray]


class Exchange(NamedTuple):
    """What devices of one host send to devices of another, or of the same one, in spans of a replica.

    `flows`: (m, 5), sending and receiving device, kind, count and bytes, in this order, nothing of 0; `matrices`: of
    experts, by sending and receiving device.
    """

    host: str
    to: str
    replica: int
    phase: int
    first_step: int
    span_steps: NDArray[np.int32]
    flows: IntArray
    matrices: Mapping[Pair, Matrix]

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        matrices = sum(matrix.nbytes for matrix in self.matrices.values())
        return _OVERHEAD_BYTES + self.span_steps.nbytes + self.flows.nbytes + matrices

    @property
    def says_something(self) -> bool:
        """Whether there is anything in it."""
        return bool(len(self.flows) or self.matrices)

    def same_as(self, other: Exchange) -> bool:
        """Whether another one, of the same phase and first step, says the same."""
        return (
            self.host == other.host
            and np.array_equal(self.span_steps, other.span_steps)
            and np.array_equal(self.flows, other.flows)
            and self.matrices.keys() == other.matrices.keys()
            and all(np.array_equal(matrix, other.matrices[pair]) for pair, matrix in self.matrices.items())
        )


class Routes:
    """Which devices of a replica send what to which hosts.

    Args:
        traffic: of the replica.
        experts: routed experts of which the load counts; None for none.
        name: of the host.
        home: the host of each device of the replica.
    """

    def __init__(self, traffic: Traffic, experts: Experts | None, name: str, home: Mapping[int, str]) -> None:
        self.experts = experts
        self.name = name
        self.traffic = traffic
        devices: dict[str, list[int]] = {}
        for device, host in sorted(home.items()):
            devices.setdefault(host, []).append(device)
        self.devices = devices
        keys: dict[Ends, list[int]] = {}
        for place, (sender, receiver, kind) in enumerate(traffic.keys.tolist()):
            phase = COMBINED if kind == COMBINE else DISPATCHED
            keys.setdefault((phase, home[sender], home[receiver]), []).append(place)
        self._keys = {ends: np.array(places) for ends, places in keys.items() if name in ends[1:]}
        self._last: tuple[IntArray | None, dict[Ends, tuple[IntArray, IntArray]]] = None, {}

    def flows(self, passes: IntArray) -> Mapping[Ends, tuple[IntArray, IntArray]]:
        """What leads from here and here: (m,) keys of the traffic that are not 0, and (m, 5) flows as in `Exchange`.

        Args:
            passes: (keys, 2), counts and bytes; of steps that are alike the same array, for which this is remembered.
        """
        if self._last[0] is not passes:
            table, some = np.column_stack([self.traffic.keys, passes]), np.asarray(passes.any(axis=1))
            places = {ends: of_ends[some[of_ends]] for ends, of_ends in self._keys.items()}
            self._last = passes, {ends: (of_ends, table[of_ends]) for ends, of_ends in places.items()}
        return self._last[1]

    def pairs(self, phase: int, sender: str, receiver: str) -> list[Pair]:
        """Devices between which matrices pass from host to host: what is dispatched goes from each device that has
        tokens to each expert group, and results from each group to each host with such devices.
        """
        experts, senders, receivers = self.experts, self.devices[sender], self.devices[receiver]
        if experts is None:
            return []
        if phase == DISPATCHED:
            return [(a, b) for a in experts.senders(senders) for b in experts.receivers(receivers)]
        return [(a, b) for a in experts.receivers(senders) for b in experts.senders(receivers)[:1]]


class Turn:
    """Spans of one replica at one speed, from their dispatch to their time.

    Args:
        routes: of the replica.
        spans: which.
        traffic_of: what passes between devices.
        plan: of the replica.
        repeated: they were executed before: others want to hear of them again.
    """

    def __init__(self, routes: Routes, spans: Spans, traffic_of: TrafficOf, plan: CostPlan, *, repeated: bool) -> None:
        self.spans = spans
        self.repeated = repeated
        self._routes = routes
        rows = SpanColumns(*np.ascontiguousarray(spans.rows.T))
        self._steps = rows.steps.astype(SPAN_STEPS)
        tokens, outputs = plan.tokens_of(rows.shape), plan.sampled_of(rows.shape)
        self._draw = None if routes.experts is None else routes.experts.draw(rows.shape, spans.first_steps)
        picks = None if self._draw is None else self._draw.picks
        self._flows = routes.flows(traffic_of(tokens, outputs, rows.steps, picks))
        self._expected_of: dict[Ends, Exchange] = {}
        self.sent: list[Exchange] = []
        self.received: list[Exchange] = []
        self.work: Work | None = None

    @property
    def first_step(self) -> int:
        """Number of the first step."""
        return int(self.spans.first_steps[0])

    @property
    def end_step(self) -> int:
        """Number of the step after the last one."""
        return int(self.spans.first_steps[-1] + self._steps[-1])

    def outgoing(self, phase: int) -> dict[str, Exchange]:
        """What devices here send, by host; in the second phase of what `take` was given in the first."""
        exchanges = {}
        for host in self._routes.devices:
            expected = self._expected(phase, self._routes.name, host)
            if expected.says_something:
                exchanges[host] = expected
        self.sent += exchanges.values()
        return exchanges

    def senders(self, phase: int) -> set[str]:
        """Hosts whose devices send something here, this one among them."""
        name = self._routes.name
        return {host for host in self._routes.devices if self._expected(phase, host, name).says_something}

    def take(self, phase: int, came: Sequence[Exchange] | None) -> None:
        """Take all that has come for these spans; None: it came before, and was what the gate drew.

        Raises:
            DeviceMismatchError: it is not what the gate drew for these spans.
        """
        if came is None:
            self.repeated = True
            came = [self._expected(phase, host, self._routes.name) for host in sorted(self.senders(phase))]
        else:
            for exchange in came:
                self._compare(exchange, phase)
        self.received += came
        if self._draw is None:
            return
        matrices = {pair: matrix for exchange in came for pair, matrix in exchange.matrices.items()}
        if phase == DISPATCHED:
            self._draw.compute(matrices)
        else:
            self.work = self._draw.work({sender: matrix for (sender, _), matrix in matrices.items()})

    def counted(self, exchanges: Sequence[Exchange]) -> IntArray:
        """(keys, 2): count and bytes of exchanges of this turn, which are as they should be."""
        total = np.zeros((len(self._routes.traffic.keys), 2), np.int64)
        for exchange in exchanges:
            places, _ = self._flows.get((exchange.phase, exchange.host, exchange.to), (_NO_PLACES, _NO_FLOWS))
            total[places] += exchange.flows[:, 3:]
        return total

    def layer_picks(self, exchanges: Sequence[Exchange]) -> dict[Pair, IntArray]:
        """Picks that these dispatch over the link between groups of devices, by MoE layer, (layers,)."""
        experts = self._routes.experts
        if experts is None:
            return {}
        dispatched = [exchange.matrices for exchange in exchanges if exchange.phase == DISPATCHED]
        return experts.layer_picks({pair: of[pair] for of in dispatched for pair in of}, self._steps.astype(np.int64))

    def _expected(self, phase: int, sender: str, receiver: str) -> Exchange:
        """What a host sends to this one, or this one to a host."""
        known = self._expected_of.get((phase, sender, receiver))
        if known is not None:
            return known
        draw, matrices = self._draw, {}
        if draw is not None:
            for a, b in self._routes.pairs(phase, sender, receiver):
                matrices[a, b] = draw.sent(a, b) if phase == DISPATCHED else draw.result(a)
        _, flows = self._flows.get((phase, sender, receiver), (_NO_PLACES, _NO_FLOWS))
        exchange = Exchange(sender, receiver, self.spans.replica, phase, self.first_step, self._steps, flows, matrices)
        self._expected_of[phase, sender, receiver] = exchange
        return exchange

    def _compare(self, came: Exchange, phase: int) -> None:
        expected = self._expected(phase, came.host, self._routes.name)
        if came.first_step != self.first_step or not np.array_equal(came.span_steps, self._steps):
            raise self._mismatch(
                f"{_hosts(phase, came)}: {came.span_steps.sum()} steps from step {came.first_step} on came, "
                f"{self._steps.sum()} from step {self.first_step} on should, in the same spans"
            )
        if not np.array_equal(came.flows, expected.flows):
            self._compare_flows(phase, came, expected.flows)
        for pair in sorted(expected.matrices.keys() | came.matrices.keys()):
            self._compare_matrix(phase, pair, expected.matrices.get(pair), came.matrices.get(pair))

    def _compare_flows(self, phase: int, came: Exchange, expected: IntArray) -> NoReturn:
        given, wanted = ({tuple(flow[:3]): flow[3:] for flow in flows.tolist()} for flows in (came.flows, expected))
        for sender, receiver, kind in sorted(given.keys() | wanted.keys()):
            there, here = (flows.get((sender, receiver, kind), (0, 0)) for flows in (given, wanted))
            if there != here:
                raise self._mismatch(
                    f"{kind_name(kind)} in all layers from device {sender} to device {receiver}: {there[0]:,} of "
                    f"{there[1]:,} bytes came, {here[0]:,} of {here[1]:,} bytes should"
                )
        raise self._mismatch(f"{_hosts(phase, came)}: flows come twice, or in another order")

    def _compare_matrix(self, phase: int, pair: Pair, expected: Matrix | None, came: Matrix | None) -> None:
        if expected is not None and came is not None and np.array_equal(expected, came):
            return
        sender, receiver = pair
        ends = f"{_phase(phase)} from device {sender} to device {receiver}"
        if self._draw is None or expected is None or came is None or came.shape != expected.shape:
            raise self._mismatch(f"{ends}, all layers: {_size(came)} came, {_size(expected)} should")
        row, column = np.argwhere(came != expected)[0].tolist()
        name = self._draw.sent_name(receiver, column) if phase == DISPATCHED else self._draw.result_name(sender, column)
        step = self._step_of(row, len(expected))
        raise DeviceMismatchError(
            f"replica {self.spans.replica}, step {step}, {ends}: {int(came[row, column]):,} {name} came, "
            f"{int(expected[row, column]):,} should"
        )

    def _step_of(self, row: int, rows: int) -> int:
        """The step of a matrix's row: the first of a span, or where each step has a row, that one."""
        steps = self._steps if rows != len(self._steps) else np.ones_like(self._steps)
        begins = np.cumsum(steps) - steps
        span = int(np.searchsorted(begins, row, side="right")) - 1
        return int(self.spans.first_steps[span]) + row - int(begins[span])

    def _mismatch(self, what: str) -> DeviceMismatchError:
        first, last = self.first_step, self.end_step - 1
        which = f"step {first}" if first == last else f"steps {first} to {last}"
        return DeviceMismatchError(f"replica {self.spans.replica}, {which}, {what}")


def _phase(phase: int) -> str:
    return "dispatch" if phase == DISPATCHED else "combine"


def _hosts(phase: int, came: Exchange) -> str:
    return f"{_phase(phase)} in all layers from host {came.host} to host {came.to}"


def _size(matrix: Matrix | None) -> str:
    return "nothing" if matrix is None else f"{' x '.join(map(str, matrix.shape))} numbers"
