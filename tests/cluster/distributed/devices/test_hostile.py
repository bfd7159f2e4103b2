"""Whatever comes over the wire, a host answers with a status that says what is wrong, and keeps what it had."""

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from pimserve.cluster.base.wire import to_table
from pimserve.cluster.distributed.devices.device_host import DeviceHost
from pimserve.cluster.distributed.devices.exchange import to_hand_over_table
from pimserve.cluster.distributed.devices.span_rows import Spans, to_rows_table
from pimserve.scheduler.steplog import SpanColumns
from pimserve.v1 import device_pb2 as pb
from pimserve.v1.columns_pb2 import Column, Table
from pimserve.v1.device_pb2_grpc import DeviceServiceStub
from tests.cluster.distributed.devices.served import run
from tests.examples import examples

REFUSALS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.DATA_LOSS}
_INT64 = st.integers(-(2**63), 2**63 - 1)
_NEAR = st.integers(-2, 300) | st.sampled_from([2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63)]) | _INT64


class Victim:
    """A host with devices of a replica, half of them or all, and a way to call it."""

    def __init__(self, *, lockstep: bool = False, token: str = "", alone: bool = False) -> None:
        self.host = DeviceHost("victim", token, peer_timeout_s=0.2)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.host.start()}")
        self.stub = DeviceServiceStub(self.channel)
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        served = run("tp")
        self.replica, self.rows, self.first = served.blocks[0]
        self.request = pb.CompilePlanRequest(
            scenario=served.document,
            pools=[
                pb.PoolDevices(devices=[pb.DeviceId(replica=0, device=device) for device in range(4 if alone else 2)])
            ],
            mode=pb.DEVICE_MODE_LOCKSTEP if lockstep else pb.DEVICE_MODE_PLANNED,
        )
        self.call("CompilePlan", self.request)
        if alone:
            return
        others = [pb.DeviceId(replica=0, device=device) for device in (2, 3)]
        peer = pb.Peer(host="peer", address="127.0.0.1:1", devices=others)
        self.call("SetPeers", pb.SetPeersRequest(peers=[peer]))

    def call(self, method: str, request: Any) -> Any:
        if method in {"RecordSteps", "ExecuteSteps"}:
            return list(getattr(self.stub, method)(iter([request]), timeout=10, metadata=self.metadata))
        if method == "ExchangeTokens":
            return self.stub.ExchangeTokens(iter([request]), timeout=10, metadata=self.metadata)
        return getattr(self.stub, method)(request, timeout=10, metadata=self.metadata)

    def state(self) -> bytes:
        return self.call("Snapshot", pb.SnapshotRequest()).state

    def close(self) -> None:
        self.channel.close()
        self.host.stop(0)


@pytest.fixture(scope="module")
def planned() -> Iterator[Victim]:
    victim = Victim()
    yield victim
    victim.close()


@pytest.fixture(scope="module")
def lockstep() -> Iterator[Victim]:
    victim = Victim(lockstep=True)
    yield victim
    victim.close()


def refused(victim: Victim, method: str, request: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    """Status, message and fields of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        victim.call(method, request)
    status = rpc_status.from_call(caught.value)
    fields = []
    for detail in status.details if status is not None else ():
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            fields += [violation.field for violation in bad.field_violations]
    return caught.value.code(), caught.value.details(), fields


def batch(victim: Victim, changes: dict[str, tuple[int, int]], **fields: int) -> pb.RecordStepsRequest:
    """The first rows of the run with some values changed: column -> (row, value)."""
    rows, first, slowdowns = victim.rows[:6].copy(), victim.first[:6].copy(), np.full(6, 1000)
    replicas = [0] * 6
    for name, (row, value) in changes.items():
        if name in SpanColumns._fields:
            rows[row, SpanColumns._fields.index(name)] = value
        elif name == "replica":
            replicas[row] = value
        else:
            {"first_step": first, "slowdown": slowdowns}[name][row] = value
    each = [Spans(replicas[at], rows[at : at + 1], first[at : at + 1], slowdowns[at : at + 1]) for at in range(6)]
    return pb.RecordStepsRequest(rows=to_rows_table(each), **fields)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"replica": (2, 1)}, "rows.replica", "replica 1 has no device on this host"),
        ({"steps": (0, 0)}, "rows.steps", "must be from 1"),
        ({"steps": (3, 129)}, "rows.steps", "at most 128 steps"),
        ({"decodes": (1, -1)}, "rows.decodes", "must be from 0"),
        ({"decodes": (1, 2**31 - 1)}, "rows.decodes", "more tokens than its replica's KV cache holds"),
        ({"outputs": (1, 1000)}, "rows.outputs", "at most one token in a step"),
        ({"chunks": (0, 2**30)}, "rows.prefill_tokens", "a chunk of a prompt has tokens"),
        ({"duration_fs": (0, -5)}, "rows.duration_fs", "must be from 0"),
        ({"context": (5, 2**50)}, "rows.context", "must be from 0"),
        ({"first_step": (0, -1)}, "rows.first_step", "must be from 0"),
        ({"slowdown": (0, 0)}, "rows.slowdown", "must be from 1"),
    ],
)
def test_fields_of_rows(planned: Victim, change: dict[str, tuple[int, int]], field: str, message: str) -> None:
    before = planned.state()
    code, said, fields = refused(planned, "RecordSteps", batch(planned, change))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields == [field]
    assert message in said
    assert planned.state() == before


@pytest.mark.parametrize(
    ("method", "request_", "code", "message"),
    [
        ("RecordSteps", pb.RecordStepsRequest(window=-1), "INVALID_ARGUMENT", "window: must be 0 or more"),
        ("RecordSteps", pb.RecordStepsRequest(), "INVALID_ARGUMENT", "lacks the column"),
        ("RecordSteps", pb.RecordStepsRequest(rows=Table(columns=[Column(name="x")])), "INVALID_ARGUMENT", "unknown"),
        ("ExecuteSteps", pb.ExecuteStepsRequest(slowdown=1000, decodes=1), "FAILED_PRECONDITION", "lockstep mode"),
        ("ExchangeTokens", pb.ExchangeTokensRequest(host="nobody"), "INVALID_ARGUMENT", "shares no replica"),
        ("ExchangeTokens", pb.ExchangeTokensRequest(host="peer"), "INVALID_ARGUMENT", "must be dispatch or combine"),
        ("ExchangeTokens", pb.ExchangeTokensRequest(host="peer", phase=1, step=-1), "INVALID_ARGUMENT", "step: must"),
        ("ExchangeTokens", pb.ExchangeTokensRequest(host="peer", phase=1, span_steps=b"1"), "INVALID_ARGUMENT", "of 4"),
        ("HandOverKv", pb.HandOverKvRequest(host="nobody"), "INVALID_ARGUMENT", "is no peer"),
        ("CloseWindow", pb.CloseWindowRequest(window=-1), "INVALID_ARGUMENT", "window"),
        ("CloseWindow", pb.CloseWindowRequest(window=0, batches=3), "FAILED_PRECONDITION", "of which 0 came"),
        ("Restore", pb.RestoreRequest(state=b"\xff\x00"), "INVALID_ARGUMENT", "not a snapshot"),
        ("CompilePlan", pb.CompilePlanRequest(), "INVALID_ARGUMENT", "mode"),
        ("CompilePlan", pb.CompilePlanRequest(mode=1, scenario="["), "INVALID_ARGUMENT", "is not JSON"),
        ("CompilePlan", pb.CompilePlanRequest(mode=1, scenario="[" * 10**5), "INVALID_ARGUMENT", "is not JSON"),
        ("CompilePlan", pb.CompilePlanRequest(mode=1, scenario="[]"), "INVALID_ARGUMENT", "mapping"),
        ("CompilePlan", pb.CompilePlanRequest(mode=1, scenario='{"model": 3}'), "INVALID_ARGUMENT", "scenario.model"),
        ("CompilePlan", pb.CompilePlanRequest(mode=1, scenario="{}"), "INVALID_ARGUMENT", "must have a device"),
        ("SetPeers", pb.SetPeersRequest(peers=[pb.Peer(host="victim")]), "INVALID_ARGUMENT", "other hosts"),
        (
            "SetPeers",
            pb.SetPeersRequest(peers=[pb.Peer(host="thief", devices=[pb.DeviceId(replica=0, device=1)])]),
            "INVALID_ARGUMENT",
            "is on two hosts",
        ),
    ],
)  # fmt: skip
def test_requests_that_no_caller_should_send(
    planned: Victim, method: str, request_: Any, code: str, message: str
) -> None:
    before = planned.state()
    found, said, _ = refused(planned, method, request_)
    assert found.name == code
    assert message in said
    assert planned.state() == before


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.ExecuteStepsRequest(replica=7, slowdown=1, decodes=1), "replica 7 has no device on this host"),
        (pb.ExecuteStepsRequest(decodes=-1), "decodes: must be from 0"),
    ],
)
def test_steps_that_no_caller_should_send(lockstep: Victim, request_: Any, message: str) -> None:
    code, said, _ = refused(lockstep, "ExecuteSteps", request_)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in said


def test_hand_overs_of_other_peoples_devices(planned: Victim) -> None:
    before = planned.state()
    for ends in ((0, 2, 0, 3), (0, 2, 0, 2), (0, 9, 0, 0)):
        table = to_hand_over_table(np.array([[1, 10, 1, *ends, 0]]))
        code, _, fields = refused(planned, "HandOverKv", pb.HandOverKvRequest(requests=table))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert fields[0].startswith("requests.")
    assert planned.state() == before


_COLUMNS = st.sampled_from([*SpanColumns._fields, "first_step", "slowdown"])


@examples(80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(_COLUMNS, st.tuples(st.integers(0, 5), _NEAR), min_size=1, max_size=4),
    st.integers(-1, 3),
    st.integers(-1, 3),
)
def test_any_values_in_rows_are_refused_or_taken_whole(
    planned: Victim, changes: dict[str, tuple[int, int]], window: int, sequence: int
) -> None:
    state = planned.state()
    try:
        planned.call("RecordSteps", batch(planned, changes, window=window, sequence=sequence))
        planned.call("CloseWindow", pb.CloseWindowRequest(window=window, batches=1))
    except grpc.RpcError as error:
        # the peer is not there
        assert error.code() in REFUSALS | {grpc.StatusCode.UNAVAILABLE}, error.details()  # noqa: PT017
    planned.call("CompilePlan", planned.request)
    planned.call("Restore", pb.RestoreRequest(state=state))
    others = [pb.DeviceId(replica=0, device=device) for device in (2, 3)]
    peer = pb.Peer(host="peer", address="127.0.0.1:1", devices=others)
    planned.call("SetPeers", pb.SetPeersRequest(peers=[peer]))


_MESSAGES = {
    "ExecuteSteps": st.builds(
        pb.ExecuteStepsRequest,
        **{
            field.name: st.integers(-2, 3) | st.integers(-(2**31), 2**31 - 1)
            for field in pb.ExecuteStepsRequest.DESCRIPTOR.fields
        }
        | {"slowdown": st.sampled_from([1000, 1000, 1000, 1, 0])},
    ),
    "ExchangeTokens": st.builds(
        pb.ExchangeTokensRequest,
        host=st.sampled_from(["peer", "victim", ""]),
        replica=st.integers(-1, 2),
        step=_NEAR,
        phase=st.integers(-1, 3),
        span_steps=st.binary(max_size=9),
        matrices=st.lists(
            st.builds(
                pb.ExpertMatrix,
                from_device=st.integers(-1, 5),
                to_device=st.integers(-1, 5),
                data=st.binary(max_size=17),
            ),
            max_size=3,
        ),
        flows=st.lists(
            st.builds(
                pb.Flow,
                from_device=st.integers(-1, 5),
                to_device=st.integers(-1, 5),
                kind=st.integers(-1, 9),
                count=_NEAR,
                bytes=_NEAR,
            ),
            max_size=3,
        ),
    ),
    "EvaluateSteps": st.builds(
        pb.EvaluateStepsRequest,
        rows=st.lists(_INT64, max_size=4).map(lambda values: to_table({"replica": np.array(values, np.int64)})),
    ),
    "Restore": st.builds(pb.RestoreRequest, state=st.binary(max_size=200)),
    "CompilePlan": st.builds(
        pb.CompilePlanRequest,
        scenario=st.text(max_size=50),
        pools=st.lists(st.builds(pb.PoolDevices, pool=st.text(max_size=3)), max_size=2),
        mode=st.integers(0, 4),
        audit_share=st.floats(),
    ),
}


@pytest.mark.parametrize("method", _MESSAGES)
@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_fuzzed_messages(lockstep: Victim, method: str, data: st.DataObject) -> None:
    request = data.draw(_MESSAGES[method])
    try:
        lockstep.call(method, request)
    except grpc.RpcError as error:
        assert error.code() in REFUSALS | {grpc.StatusCode.UNAVAILABLE}, error.details()  # noqa: PT017
    assert lockstep.call("GetCapabilities", pb.GetCapabilitiesRequest()).host == "victim"


def test_batches_that_come_again_count_once_and_missing_ones_are_noticed() -> None:
    victim = Victim(alone=True)
    try:
        first = batch(victim, {}, window=0, sequence=0)
        answers = victim.call("RecordSteps", first) + victim.call("RecordSteps", first)
        assert [(answer.window, answer.sequence) for answer in answers] == [(0, 0), (0, 0)]
        steps = victim.call("ReadLedgers", pb.ReadLedgersRequest()).ledgers[0].steps
        assert steps == victim.rows[:6, SpanColumns._fields.index("steps")].sum()
        code, said, _ = refused(victim, "RecordSteps", batch(victim, {}, window=0, sequence=2))
        assert (code, "batch 1 is missing, batch 2 came" in said) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        code, said, _ = refused(victim, "RecordSteps", batch(victim, {}, window=1, sequence=0))
        assert (code, "window 0 is not closed" in said) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    finally:
        victim.close()


def test_a_stream_from_before_a_restore_has_no_say_any_more() -> None:
    victim = Victim(alone=True)
    requests: queue.SimpleQueue[pb.RecordStepsRequest | None] = queue.SimpleQueue()
    try:
        state = victim.state()
        answers = victim.stub.RecordSteps(iter(requests.get, None), timeout=10)
        requests.put(batch(victim, {}, window=0, sequence=0))
        next(answers)
        victim.call("Restore", pb.RestoreRequest(state=state))
        requests.put(batch(victim, {}, window=0, sequence=0))
        with pytest.raises(grpc.RpcError, match="since this stream began") as error:
            next(answers)
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert victim.state() == state
    finally:
        requests.put(None)
        victim.close()


def test_a_token_is_asked_for() -> None:
    victim = Victim(token="0123456789abcdef")
    try:
        victim.call("GetCapabilities", pb.GetCapabilitiesRequest())
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            victim.metadata = metadata
            for method, request in (
                ("GetCapabilities", pb.GetCapabilitiesRequest()),
                ("RecordSteps", batch(victim, {})),
                ("ExecuteSteps", pb.ExecuteStepsRequest()),
                ("ExchangeTokens", pb.ExchangeTokensRequest()),
            ):
                assert refused(victim, method, request)[0] is grpc.StatusCode.UNAUTHENTICATED
    finally:
        victim.close()


def test_without_a_plan_nothing_is_taken() -> None:
    host = DeviceHost("fresh")
    with grpc.insecure_channel(f"127.0.0.1:{host.start()}") as channel:
        stub = DeviceServiceStub(channel)
        found = stub.GetCapabilities(pb.GetCapabilitiesRequest(), timeout=5)
        assert (found.window, found.mode, list(found.devices)) == (-1, pb.DEVICE_MODE_UNSPECIFIED, [])
        for method in ("SetPeers", "CloseWindow", "ReadTraffic", "ReadLedgers", "Snapshot", "Restore", "EvaluateSteps"):
            with pytest.raises(grpc.RpcError, match="no plan yet") as error:
                getattr(stub, method)(getattr(pb, f"{method}Request")(), timeout=5)
            assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    host.stop(0)


def test_rows_are_evaluated_without_being_recorded(planned: Victim) -> None:
    before = planned.state()
    half = np.array([1000, 2000, 1000])
    spans = [Spans(0, planned.rows[at : at + 3], planned.first[at : at + 3], half) for at in (0, 3)]
    table = to_rows_table(spans, ("duration_fs",))
    found = planned.call("EvaluateSteps", pb.EvaluateStepsRequest(rows=table))
    times = np.frombuffer(found.rows.columns[0].data, "<i8")
    normal = planned.rows[:6, SpanColumns._fields.index("duration_fs")]
    assert (times == normal).tolist() == [True, False, True] * 2
    assert (times > normal)[[1, 4]].all()
    assert planned.state() == before
