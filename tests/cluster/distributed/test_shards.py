"""Shards behind gRPC: the same bits as in one process, whatever dies meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from pimserve.cluster.base.rpc.channels import process_channel
from pimserve.cluster.base.rpc.security import bearer, for_host
from pimserve.cluster.distributed import recovery
from pimserve.cluster.distributed.hosts.hosting import Endpoint
from pimserve.cluster.distributed.recovery import Recovery
from pimserve.cluster.distributed.shards import shard_wire
from pimserve.cluster.distributed.shards.shard_client import ShardClient
from pimserve.cluster.distributed.shards.shard_host import ShardHost
from pimserve.cluster.distributed.shards.shard_wire import (
    blank_table,
    fleet_digest,
    fleet_json,
    fleet_of,
    from_message,
    in_pieces,
    pieces,
    rows_of,
    to_message,
)
from pimserve.device_models.plan import FS_PER_S
from pimserve.device_models.routing import Routing
from pimserve.errors import InputError
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.departures import Move
from pimserve.scheduler.fleet import Fleet, Pool, RowSink
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.shard import Shard
from pimserve.scheduler.shard_port import NONE, Order
from pimserve.scheduler.simulation import Deployment
from pimserve.scheduler.summary import digest
from pimserve.v1 import shard_pb2 as pb
from pimserve.v1.shard_pb2_grpc import ShardServiceStub
from tests.examples import examples
from tests.scheduler.strategies import Case, cases
from tests.scheduler.test_laws import Run, runs
from tests.scheduler.test_simulation import PLAN, STEP_S
from tests.scheduler.test_windows import LENGTHS, Kept, Windows, spans

# A token budget that holds every decode: over the wire, settings are checked.
RUNS = runs(max_num_batched_tokens=16)
CASES = cases().map(lambda case: replace(case, max_num_batched_tokens=16, max_time_fs=None))
TOKEN = "a token of this test"
# Shrinking would take minutes, for every try starts servers.
SLOW = examples(12, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])


class Hosts:
    """Hosts in threads of this process, which die at the call."""

    def __init__(self) -> None:
        self.hosts: dict[str, ShardHost] = {}
        self.places: dict[str, Endpoint] = {}
        self.caught_up_at: list[tuple[str, int]] = []

    def endpoint(self, name: str) -> Endpoint:
        if name not in self.places:
            self._start(name, 0)
        return self.places[name]

    def replace(self, name: str, generation: int) -> Endpoint:
        if self.places[name].generation == generation:
            self.kill(name)
            self._start(name, generation + 1)
        return self.places[name]

    def caught_up(self, name: str) -> None:
        self.caught_up_at.append((name, self.places[name].generation))

    def kill(self, name: str) -> None:
        self.hosts[name].stop(0)

    def stop(self) -> None:
        for host in self.hosts.values():
            host.stop(0)

    def _start(self, name: str, generation: int) -> None:
        self.hosts[name] = host = ShardHost(name, TOKEN)
        self.places[name] = Endpoint(f"127.0.0.1:{host.start('127.0.0.1:0')}", 0, generation)


class Remote:
    """Makes shards that live behind gRPC, and closes them."""

    def __init__(self, shards: int, *, live: bool = False) -> None:
        self.shards = shards
        self.live = live
        self.hosts = Hosts()
        self.clients: list[ShardClient] = []

    def __call__(self, fleet: Fleet, table: RequestTable, on_rows: RowSink | None) -> Sequence[ShardClient]:
        shared = Recovery(self.hosts)
        self.clients = [
            ShardClient(
                f"shard-{i}", shared, TOKEN, fleet, range(i, fleet.replicas, self.shards), table, on_rows,
                live=self.live,
            )
            for i in range(self.shards)
        ]  # fmt: skip
        return self.clients

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.hosts.stop()


@contextmanager
def remote(shards: int, **how: bool) -> Iterator[Remote]:
    made = Remote(shards, **how)
    try:
        yield made
    finally:
        made.close()


class Killing(Windows):
    """A control that kills hosts after some windows."""

    def __init__(self, lengths: Sequence[int], made: Remote, after: set[int]) -> None:
        super().__init__(lengths)
        self.made = made
        self.after = after

    def barrier(self, view: Any) -> None:
        super().barrier(view)
        if view.window in self.after:
            for name in list(self.made.hosts.hosts):
                self.made.hosts.kill(name)


@SLOW
@given(RUNS, LENGTHS)
def test_a_shard_behind_grpc_is_a_shard(run: Run, lengths: list[int]) -> None:
    with remote(1, live=True) as made:
        deployment = Deployment(shards=made, control=(control := Windows(lengths)))
        there = Run(run.case, len(run.blocks), run.spec.router, deployment=deployment)
        assert digest(there.served) == digest(run.served)
        assert there.summary() == run.summary()
        assert spans(there) == spans(run)
        assert sum(len(view.left) for view in control.views) <= len(run.table)


@SLOW
@given(CASES, st.integers(2, 4), st.integers(1, 300), LENGTHS, st.sets(st.integers(1, 12), max_size=3))
def test_shards_that_die_give_the_same_bits(
    case: Case, replicas: int, interval_ms: int, lengths: list[int], deaths: set[int]
) -> None:
    router = "round_robin" if case.concurrency is not None else "least_outstanding"
    here = Run(case, replicas, router, report_interval_s=interval_ms / 1000)
    with remote(2) as made:
        deployment = Deployment(shards=made, control=Killing(lengths, made, deaths))
        there = Run(case, replicas, router, report_interval_s=interval_ms / 1000, deployment=deployment)
        replaced = {(name, place.generation) for name, place in made.hosts.places.items() if place.generation}
        assert replaced <= set(made.hosts.caught_up_at)
    assert digest(there.served) == digest(here.served)
    assert there.summary() == here.summary()
    assert spans(there) == spans(here)


@given(RUNS, LENGTHS, st.integers(1, 40))
@SLOW
def test_orders_and_reports_may_be_cut_into_any_pieces(run: Run, lengths: list[int], eights: int) -> None:
    with pytest.MonkeyPatch.context() as patch, remote(1) as made:
        for name, most in (("_PIECE_BYTES", 8 * eights), ("ROWS_PER_MESSAGE", eights)):
            patch.setattr(shard_wire, name, most)
        deployment = Deployment(shards=made, control=Windows(lengths))
        there = Run(run.case, len(run.blocks), run.spec.router, deployment=deployment)
    assert digest(there.served) == digest(run.served)


def test_no_message_of_a_long_order_is_long() -> None:
    count = 5_000_000  # a column of 40 MB
    order = Order(3, 2**200, NONE, np.arange(count), moves=tuple(Move(each, 0, 2**70, 0) for each in range(20_000)))
    text, arrays = to_message(order)
    parts = list(in_pieces(text, arrays))
    assert max(len(text) + sum(column.ByteSize() for column in columns) for text, columns in parts) < 2**21
    joined = "".join(text for text, _ in parts)
    again = from_message(Order, joined, [column for _, columns in parts for column in columns])
    assert (again.replicas == order.replicas).all()
    assert (again.moves, again.window, len(again.requests)) == (order.moves, 3, 0)


@SLOW
@given(RUNS, LENGTHS, st.integers(0, 1000))
def test_a_run_goes_on_elsewhere_from_a_checkpoint(run: Run, lengths: list[int], at: int) -> None:
    kept = Kept()
    with remote(1) as made:
        deployment = Deployment(shards=made, control=Windows(lengths), checkpoints=kept)
        Run(run.case, len(run.blocks), run.spec.router, deployment=deployment)
    kept.first = at
    for shards in (None, 1):  # in one process, and behind gRPC again
        with ExitStack() as stack:
            make = None if shards is None else stack.enter_context(remote(shards))
            deployment = Deployment(shards=make, control=Windows([10**15]), checkpoints=kept)
            continued = Run(run.case, len(run.blocks), run.spec.router, deployment=deployment)
        assert digest(continued.served) == digest(run.served)


@SLOW
@given(RUNS, st.integers(1, 3))
def test_snapshots_in_between_do_not_matter(run: Run, often: int) -> None:
    with pytest.MonkeyPatch.context() as patch, remote(1) as made:
        patch.setattr(recovery, "_SAVE_BYTES", 200 * often)
        deployment = Deployment(shards=made, control=Killing([5 * 10**12], made, {3, 4, 9}))
        there = Run(run.case, len(run.blocks), run.spec.router, deployment=deployment)
    assert digest(there.served) == digest(run.served)
    assert spans(there) == spans(run)


@given(RUNS)
@examples(20)
def test_fleets_orders_and_reports_survive_the_wire(run: Run) -> None:
    order = Order(3, 2**200, np.arange(5), np.zeros(5, np.int64), last=True, spec=run.spec)
    again = from_message(Order, *to_message(order))
    assert (again.requests == order.requests).all()
    assert (again.window, again.until_fs, again.last, again.spec) == (3, 2**200, True, run.spec)
    with pytest.raises(InputError, match="Order: is not one of this version"):
        from_message(Order, '{"window": []}', [])
    fleet = Fleet((Pool("", run.case.plan, 90, 2),), run.spec, 9, run.case.routing, 7, (0, 2**200))
    assert fleet_of(fleet_json(fleet)) == fleet
    assert fleet_digest(fleet_of(fleet_json(fleet))) == fleet_digest(fleet)
    with pytest.raises(InputError, match="fleet: is not one"):
        fleet_of("{}")


@pytest.fixture
def stub() -> Iterator[Callable[..., ShardServiceStub]]:
    host = ShardHost("shard-0", TOKEN)
    with process_channel(f"127.0.0.1:{host.start('127.0.0.1:0')}") as channel:
        yield ShardServiceStub(channel)
    host.stop(0)


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code()


def test_strangers_and_nonsense_are_refused(stub: ShardServiceStub) -> None:
    auth = bearer(TOKEN)

    def advance(*parts: pb.AdvanceWindowsRequest) -> list[Any]:
        return list(stub.AdvanceWindows(iter(parts), timeout=10, metadata=auth))

    codes = grpc.StatusCode
    nothing = pb.OpenShardRequest()
    assert code_of(lambda: stub.OpenShard(nothing, timeout=5)) is codes.UNAUTHENTICATED
    assert code_of(lambda: stub.OpenShard(nothing, timeout=5, metadata=bearer("x"))) is codes.UNAUTHENTICATED
    another = for_host("shard-1", TOKEN)  # that had this port before
    assert code_of(lambda: stub.OpenShard(nothing, timeout=5, metadata=another)) is codes.UNAVAILABLE
    unknown = pb.OpenShardRequest(fleet="x")
    assert code_of(lambda: stub.OpenShard(unknown, timeout=5, metadata=auth)) is codes.INVALID_ARGUMENT
    assert code_of(lambda: advance(pb.AdvanceWindowsRequest())) is codes.FAILED_PRECONDITION
    snapshot = pb.SnapshotShardRequest()
    assert code_of(lambda: list(stub.SnapshotShard(snapshot, timeout=5, metadata=auth))) is codes.FAILED_PRECONDITION
    assert advance() == []


def test_an_order_that_is_repeated_is_carried_out_once(stub: ShardServiceStub) -> None:
    auth = bearer(TOKEN)
    spec = SchedulerSpec()
    fleet = Fleet((Pool("", PLAN, 1600),), spec, 1600, Routing(), 0, (0, 2**200))
    stub.OpenShard(pb.OpenShardRequest(fleet=fleet_json(fleet), replicas=[0], requests=1), metadata=auth)
    stub.RestoreShard(iter([pb.RestoreShardRequest()]), metadata=auth)
    table = RequestTable(np.zeros(1, np.int64), np.array([5]), np.array([3]), 1600)
    text, arrays = to_message(Order(0, 2**200, np.zeros(1, np.int64), np.zeros(1, np.int64), last=True))
    (rows,) = pieces(np.zeros(1, np.int64), table.structured())
    order = pb.AdvanceWindowsRequest(sequence=0, requests=1, order=text, arrays=arrays, rows=rows)
    (first,) = stub.AdvanceWindows(iter([order]), metadata=auth)
    (second,) = stub.AdvanceWindows(iter([order]), metadata=auth)
    assert first == second
    assert rows_of(first.rows, 1)[1]["finish_ps"].tolist() == [30 * 10**9]
    later = pb.AdvanceWindowsRequest(sequence=2, requests=1, order=text, arrays=arrays, rows=rows)
    call = partial(lambda one: list(stub.AdvanceWindows(iter([one]), metadata=auth)), later)
    assert code_of(call) is grpc.StatusCode.FAILED_PRECONDITION


def test_a_shard_that_does_not_know_all_requests_tells_when_the_next_one_may_end() -> None:
    """One decodes, and one waits: a third, of which nothing is known yet, is no reason to expect an end now."""
    spec = SchedulerSpec(max_num_seqs=1)
    fleet = Fleet((Pool("", PLAN, 1600),), spec, 1600, Routing(), 0, (0, 2**200))
    here, table = np.arange(2), blank_table(3)
    table.write(here, RequestTable(np.zeros(2, np.int64), np.array([5, 5]), np.array([3, 3]), 1600).structured())
    report = Shard(fleet, [0], table).advance(Order(0, 1, here, np.zeros(2, np.int64)))
    assert report.quiet_fs == 2 * STEP_S * FS_PER_S  # of whoever waits, the outputs might be of one token
