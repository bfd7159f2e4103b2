"""Whatever devices send each other that is not what the gate drew fails the run where it comes, and says so."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pimserve.arrays import IntArray
from pimserve.cluster.base.rpc.statuses import DeviceMismatchError, HostUnavailableError
from pimserve.cluster.distributed.devices import batches, device_host, flows
from pimserve.cluster.distributed.devices.driver import DeviceDriver
from pimserve.cluster.distributed.devices.exchange import to_message
from pimserve.cluster.distributed.devices.expert_work import RESULT, SENT
from pimserve.cluster.distributed.devices.peers import Peers
from pimserve.cluster.distributed.devices.turn import COMBINED, DISPATCHED, Exchange, Turn
from pimserve.v1 import device_pb2 as pb
from tests.cluster.distributed.devices.served import linked, run, steps_of

SENDER, RECEIVER = "host-0", "host-1"  # with devices 0, 2, ... and 1, 3, ...
Forge = Callable[[pb.ExchangeTokensRequest], None]


def one_more(dtype: np.dtype[Any], at: int, matrix: int = 0) -> Forge:
    def forge(message: pb.ExchangeTokensRequest) -> None:
        numbers = np.frombuffer(message.matrices[matrix].data, dtype).copy()
        numbers[at] += 1
        message.matrices[matrix].data = numbers.tobytes()

    return forge


def flow(kind: int, **more: int) -> Forge:
    def forge(message: pb.ExchangeTokensRequest) -> None:
        place = next(place for place, given in enumerate(message.flows) if given.kind == kind)
        if not more:
            del message.flows[place]
        for name, amount in more.items():
            setattr(message.flows[place], name, getattr(message.flows[place], name) + amount)

    return forge


def drop_matrix(message: pb.ExchangeTokensRequest) -> None:
    del message.matrices[0]


def cut_matrix(message: pb.ExchangeTokensRequest) -> None:
    message.matrices[0].data = message.matrices[0].data[:-4]


def other_device(message: pb.ExchangeTokensRequest) -> None:
    message.matrices[0].from_device += 2


def more_steps(message: pb.ExchangeTokensRequest) -> None:
    steps = np.frombuffer(message.span_steps, "<i4").copy()
    steps[-1] += 1
    message.span_steps = steps.tobytes()


def repeat_matrix(message: pb.ExchangeTokensRequest) -> None:
    message.matrices.insert(0, pb.ExpertMatrix(from_device=0, to_device=1))


def repeat_flow(message: pb.ExchangeTokensRequest) -> None:
    message.flows.append(message.flows[0])


def later(message: pb.ExchangeTokensRequest) -> None:
    message.step += 1


def swap_matrices(message: pb.ExchangeTokensRequest) -> None:
    first, second = message.matrices[0].data, message.matrices[1].data
    message.matrices[0].data, message.matrices[1].data = second, first


def drive(link: DeviceDriver, replica: int, block: IntArray, first: IntArray) -> None:
    link.take(replica, block, first)
    link.close_window(0)


_DISPATCH, _COMBINE = "dispatch from device 0 to device 1", "combine from device 0 to device 1"
# Of two hosts with two devices of attention, 0 and 1, and those of the experts behind them.
_TO_EXPERTS, _BACK = "dispatch from device 0 to device 3", "combine from device 2 to device 1"
_TO_COLD, _COLD_BACK = "dispatch from device 0 to device 5", "combine from device 4 to device 1"  # where 2, 3 are hot
CASES: list[tuple[str, int, Forge, str]] = [
    ("exact", DISPATCHED, one_more(SENT, 0), rf"{_DISPATCH}: \d+ copies for expert 2 in MoE layer 0"),
    ("exact", DISPATCHED, one_more(SENT, 31), rf"{_DISPATCH}: \d+ copies for expert 3 in MoE layer 15"),
    ("exact", DISPATCHED, drop_matrix, rf"{_DISPATCH}, all layers: nothing came, \d+ x 64 numbers"),
    ("exact", DISPATCHED, cut_matrix, rf"{_DISPATCH}, all layers: \d+ numbers came"),
    ("exact", DISPATCHED, swap_matrices, r"dispatch from device 0 to device . ?: \d+ copies for expert"),
    ("exact", DISPATCHED, repeat_matrix, rf"{_DISPATCH}, all layers: \d+ numbers came"),
    ("exact", COMBINED, one_more(RESULT, 5), rf"{_COMBINE}: [\d,]+ time_fs of expert group 0 in MoE layer 1"),
    ("exact", COMBINED, one_more(RESULT, 4), rf"{_COMBINE}: .* compute_pj of expert group 0 in MoE layer 0"),
    ("exact", COMBINED, other_device, rf"{_COMBINE}, all layers: nothing came"),
    ("ep", DISPATCHED, one_more(SENT, 0), rf"{_DISPATCH}: \d+ tokens in all layers"),
    ("ep", DISPATCHED, one_more(SENT, 1), rf"{_DISPATCH}: .* number of the outcome"),
    ("ep", DISPATCHED, flow(flows.DISPATCH, count=1), r"dispatch in all layers from device 0 to device 1: "),
    ("ep", DISPATCHED, more_steps, r"dispatch in all layers from host host-0 to host host-1: \d+ steps from step"),
    ("ep", COMBINED, one_more(RESULT, 0), rf"{_COMBINE}: [\d,]+ fs of the experts in all layers"),
    ("ep", COMBINED, flow(flows.COMBINE, bytes=-1), r"combine in all layers from device 0 to device 1: "),
    ("dense", DISPATCHED, flow(flows.ALL_REDUCE, bytes=1), r"all_reduce in all layers from device 0 to device 1: "),
    ("dense", DISPATCHED, flow(flows.ALL_GATHER), r"all_gather in all layers from device 0 to device 1: 0 of 0 bytes"),
    ("aimc", DISPATCHED, flow(flows.ACTIVATIONS, count=2), r"activations in all layers from device 0 to device 1: "),
    ("mixed", DISPATCHED, one_more(SENT, 2), rf"{_TO_EXPERTS}: \d+ tokens of micro-batch 1 in all layers"),
    ("mixed", DISPATCHED, one_more(SENT, 1), rf"{_TO_EXPERTS}: \d+ number of the outcome of micro-batch 0"),
    ("mixed", COMBINED, one_more(RESULT, 33), rf"{_BACK}: [\d,]+ fs of the experts in MoE layer 1, micro-batch 1"),
    ("mixed", COMBINED, one_more(RESULT, 68), rf"{_BACK}: [\d,]+ dram_pj of the experts in all layers"),
    ("mixed", DISPATCHED, drop_matrix, rf"{_TO_EXPERTS}, all layers: nothing came, \d+ x 4 numbers"),
    ("mixed", COMBINED, cut_matrix, rf"{_BACK}, all layers: \d+ numbers came, \d+ x 70 numbers"),
    ("mixed", DISPATCHED, flow(flows.DISPATCH, bytes=1), r"dispatch in all layers from device 0 to device 3: "),
    ("mixed", COMBINED, flow(flows.COMBINE, count=1), r"combine in all layers from device 2 to device 1: "),
    ("mixed-exact", DISPATCHED, one_more(SENT, 9), rf"{_TO_EXPERTS}: .* for expert 1 in MoE layer 2, micro-batch 0"),
    ("mixed-exact", DISPATCHED, one_more(SENT, 300), rf"{_TO_EXPERTS}: .* expert 0 in MoE layer 11, micro-batch 2"),
    (
        "mixed-exact",
        COMBINED,
        one_more(RESULT, 160),
        rf"{_BACK}: [\d,]+ time_fs of expert group 0 in MoE layer 0, micro-batch 1",
    ),
    ("hot", DISPATCHED, one_more(SENT, 0), rf"{_TO_EXPERTS}: \d+ tokens of micro-batch 0 in all layers"),
    ("hot", DISPATCHED, one_more(SENT, 3, 1), rf"{_TO_COLD}: \d+ number of the outcome of micro-batch 1"),
    ("hot", COMBINED, one_more(RESULT, 33), rf"{_BACK}: [\d,]+ fs of the experts in MoE layer 1, micro-batch 1"),
    ("hot", COMBINED, one_more(RESULT, 74, 1), rf"{_COLD_BACK}: [\d,]+ hot_dram_pj of the experts in all layers"),
    ("hot", DISPATCHED, flow(flows.DISPATCH, bytes=1), r"dispatch in all layers from device 0 to device 3: "),
    ("hot-exact", DISPATCHED, one_more(SENT, 2), rf"{_TO_EXPERTS}: \d+ copies for expert 5 in MoE layer 2"),
    ("hot-exact", DISPATCHED, one_more(SENT, 7, 1), rf"{_TO_COLD}: \d+ copies for expert 1 in MoE layer 1"),
    ("hot-exact", DISPATCHED, drop_matrix, rf"{_TO_EXPERTS}, all layers: nothing came, \d+ x 32 numbers"),
    ("hot-exact", DISPATCHED, swap_matrices, rf"{_TO_EXPERTS}, all layers: \d+ numbers came, \d+ x 32 numbers"),
    ("hot-exact", COMBINED, one_more(RESULT, 5), rf"{_BACK}: [\d,]+ time_fs of expert group 0 in MoE layer 1"),
    ("hot-exact", COMBINED, one_more(RESULT, 9, 1), rf"{_COLD_BACK}: .* compute_pj of expert group 2 in MoE layer 1"),
    ("aimc", COMBINED, flow(flows.COMBINE, to_device=2), r"combine in all layers from device \d to device 1: 0 of 0"),
]


MORE: list[tuple[str, int, Forge, str]] = [
    ("dense", DISPATCHED, repeat_matrix, rf"{_DISPATCH}, all layers: [0-9x ]+ numbers came, nothing should"),
    ("ep", DISPATCHED, repeat_flow, r"dispatch in all layers from host host-0 to host host-1: flows come twice"),
]


@pytest.mark.parametrize(
    ("name", "phase", "forge", "message", "lockstep"),
    [*((*case, True) for case in (*CASES, *MORE)), *((*case, False) for case in CASES[::3])],
)
def test_a_forged_message_fails_the_run_where_it_comes(
    name: str, phase: int, forge: Forge, message: str, lockstep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = run(name)
    replica, block, first = served.blocks[0]
    block, first = steps_of(block, first, 12)
    at = int(first[0]) if not lockstep else int(first[len(first) // 2])

    def forged(exchange: Exchange) -> pb.ExchangeTokensRequest:
        request = to_message(exchange)
        if (exchange.host, exchange.to, exchange.phase) == (SENDER, RECEIVER, phase) and exchange.first_step == at:
            forge(request)
        return request

    monkeypatch.setattr(device_host, "to_message", forged)
    with linked(served, 2, lockstep=lockstep) as link:
        with pytest.raises(DeviceMismatchError, match=message) as error:
            drive(link, replica, block, first)
        which = rf"replica {replica}, step {at}," if lockstep else rf"replica {replica}, steps? "
        assert error.match(which)


@pytest.mark.parametrize("forged_first", [True, False])
@pytest.mark.parametrize(
    ("name", "forge", "message"),
    [
        ("exact", one_more(SENT, 0), rf"{_DISPATCH}: \d+ copies for expert 2 in MoE layer 0"),
        ("dense", flow(flows.ALL_REDUCE, bytes=1), "all_reduce in all layers from device 0 to device 1"),
        ("ep", later, r"dispatch in all layers from host host-0 to host host-1: \d+ steps from step"),
    ],
)
def test_of_two_messages_that_differ_none_is_believed(
    name: str, forge: Forge, message: str, forged_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = run(name)
    replica, block, first = served.blocks[0]
    longest = int(np.argmax(block[:, 2]))
    at, send, both = int(first[longest]), Peers.send, threading.Event()

    def forged(peers: Peers, host: str, request: pb.ExchangeTokensRequest) -> None:
        if (request.host, request.step) == (RECEIVER, at):  # waits itself for nothing yet
            both.wait(5)
            time.sleep(0.2)
        messages = [request]
        if (request.host, host, request.phase, request.step) == (SENDER, RECEIVER, DISPATCHED, at):
            other = pb.ExchangeTokensRequest.FromString(request.SerializeToString())
            forge(other)
            messages.insert(0 if forged_first else 1, other)
        for one in messages:
            send(peers, host, one)
        if len(messages) > 1:
            both.set()

    monkeypatch.setattr(Peers, "send", forged)
    monkeypatch.setattr(batches, "ROWS_PER_BATCH", 1)  # a turn for each span
    with linked(served, 2, lockstep=False) as link, pytest.raises(DeviceMismatchError, match=message):
        drive(link, replica, block[: longest + 1], first[: longest + 1])


def test_nobody_waits_for_a_host_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    served = run("dense")
    replica, block, first = served.blocks[0]

    def forged(exchange: Exchange) -> pb.ExchangeTokensRequest:
        request = to_message(exchange)
        if exchange.host == SENDER and exchange.first_step == int(first[1]):
            request.flows[0].count += 1
        return request

    monkeypatch.setattr(device_host, "to_message", forged)
    monkeypatch.setattr("tests.cluster.distributed.devices.served.PEER_TIMEOUT_S", 60.0)
    with linked(served, 2, lockstep=True) as link:
        began = time.monotonic()
        with pytest.raises(DeviceMismatchError, match="all_reduce in all layers"):
            link.take(replica, block[:2], first[:2])
        assert time.monotonic() - began < 20  # the sender would wait for what the receiver does not send any more


def test_a_message_that_never_comes_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    served = run("ep")
    replica, block, first = served.blocks[0]
    monkeypatch.setattr(Peers, "send", lambda *_: None)
    monkeypatch.setattr("tests.cluster.distributed.devices.served.PEER_TIMEOUT_S", 0.3)
    with (
        linked(served, 2, lockstep=True) as link,
        pytest.raises(HostUnavailableError, match="nothing came for step 0 of"),
    ):
        link.take(replica, block[:1], first[:1])


@pytest.mark.parametrize("name", ["exact", "ep", "mixed", "mixed-exact", "hot", "hot-exact"])
def test_the_time_of_devices_follows_from_what_came(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    served = run(name)
    replica, block, first = served.blocks[0]
    monkeypatch.setattr(Turn, "_compare", lambda *_: None)  # devices that believe whatever comes

    def forged(exchange: Exchange) -> pb.ExchangeTokensRequest:
        matrices = {
            pair: matrix + (50 if exchange.phase == DISPATCHED else 0) for pair, matrix in exchange.matrices.items()
        }
        return to_message(exchange._replace(matrices=matrices))

    for changed, expected in ((to_message, None), (forged, r"fs by the engine")):
        monkeypatch.setattr(device_host, "to_message", changed)
        for lockstep in (True, False):
            with linked(served, 2, lockstep=lockstep) as link:
                if expected is None:
                    drive(link, replica, block[:3], first[:3])
                    continue
                with pytest.raises(DeviceMismatchError, match=rf"{expected}|fs by device"):
                    drive(link, replica, block[:3], first[:3])
