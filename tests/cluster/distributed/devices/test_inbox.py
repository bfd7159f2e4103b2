"""What waits for what in a host, and what is kept meanwhile."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pimserve.cluster.base.rpc.statuses import HostUnavailableError, WrongStateError
from pimserve.cluster.distributed.devices import peers
from pimserve.cluster.distributed.devices.host_client import all_of
from pimserve.cluster.distributed.devices.peers import Inbox
from pimserve.cluster.distributed.devices.turn import DISPATCHED, Exchange


def sent(host: str, step: int, count: int = 1) -> Exchange:
    flows = np.array([[0, 1, 1, count, 8]])
    return Exchange(host, "here", 0, DISPATCHED, step, np.array([4], np.int32), flows, {})


def turn(step: int, *senders: str) -> Any:
    """As much of a turn of four steps as an inbox looks at."""
    return SimpleNamespace(
        spans=SimpleNamespace(replica=0), first_step=step, end_step=step + 4, senders=lambda _: set(senders)
    )


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def waiting(threads: ThreadPoolExecutor, inbox: Inbox, of: Any, timeout_s: float = 5.0) -> Future[Any]:
    future = threads.submit(inbox.wait, of, DISPATCHED, timeout_s)
    time.sleep(0.1)
    return future


def test_who_gives_up_does_not_deafen_others_that_wait_for_the_same(threads: ThreadPoolExecutor) -> None:
    inbox = Inbox()
    impatient = waiting(threads, inbox, turn(0, "a", "b"), 0.6)
    patient = waiting(threads, inbox, turn(0, "a", "b"))
    inbox.put(sent("a", 0), 1)
    with pytest.raises(HostUnavailableError, match="nothing came for step 0") as error:
        impatient.result()
    assert error.value.hosts == ("b",)
    began = time.monotonic()
    inbox.put(sent("b", 0), 1)
    assert [exchange.host for exchange in patient.result()] == ["a", "b"]
    assert time.monotonic() - began < 2


def test_all_who_wait_for_the_same_get_it(threads: ThreadPoolExecutor) -> None:
    inbox = Inbox()
    both = [waiting(threads, inbox, turn(0, "a")) for _ in range(2)]
    inbox.put(sent("a", 0), 1)
    assert [[exchange.host for exchange in one.result()] for one in both] == [["a"], ["a"]]


def test_nobody_waits_for_what_was_before_a_host_went_on_from_elsewhere(threads: ThreadPoolExecutor) -> None:
    inbox = Inbox()
    old = waiting(threads, inbox, turn(0, "a"))
    inbox.clear()
    with pytest.raises(WrongStateError, match="from elsewhere"):
        old.result(1)


def test_a_host_that_is_named_again_is_waited_for(threads: ThreadPoolExecutor) -> None:
    inbox = Inbox()
    inbox.lost("a")
    with pytest.raises(HostUnavailableError, match="cannot be reached"):
        inbox.wait(turn(0, "a"), DISPATCHED, 5)
    inbox.reachable("a")
    again = waiting(threads, inbox, turn(0, "a"))
    inbox.put(sent("a", 0), 1)
    assert len(again.result()) == 1


def test_what_is_said_twice_counts_once_and_what_differs_is_kept() -> None:
    inbox = Inbox()
    for exchange in (sent("a", 0), sent("a", 0), sent("a", 0, count=2), sent("a", 2)):
        inbox.put(exchange, 1)
    came = inbox.wait(turn(0, "a"), DISPATCHED, 1)
    assert came is not None
    assert [(exchange.first_step, int(exchange.flows[0, 3])) for exchange in came] == [(0, 1), (0, 2), (2, 1)]


def test_a_host_that_is_far_ahead_waits(monkeypatch: pytest.MonkeyPatch, threads: ThreadPoolExecutor) -> None:
    monkeypatch.setattr(peers, "_MOST_BYTES", 3 * sent("a", 0).size_bytes)
    inbox = Inbox()
    for step in (0, 4, 8):
        inbox.put(sent("a", step), 1)
    inbox.put(sent("b", 0), 1)  # others have room of their own
    with pytest.raises(WrongStateError, match=r"host a is [0-9,]+ bytes ahead"):
        inbox.put(sent("a", 12), 0.1)
    room = threading.Event()
    later = threads.submit(lambda: (inbox.put(sent("a", 12), 5), room.set()))
    assert not room.wait(0.1)
    inbox.done(turn(0, "a"))
    later.result(2)
    assert room.is_set()
    inbox.put(sent("a", 2), 1)  # too late, so that it needs no room
    inbox.done(turn(12, "a"))
    assert not inbox._exchanges
    assert not any(inbox._held.values())


def test_hosts_that_do_not_answer_are_replaced_before_those_of_whom_others_say_so() -> None:
    def fails(*hosts: str) -> Any:
        def call() -> None:
            raise HostUnavailableError(hosts, "cannot be reached")

        return call

    with pytest.raises(HostUnavailableError) as error:
        all_of({"a": fails("a"), "b": fails("a"), "c": fails("b")})
    assert error.value.hosts == ("a",)
    with pytest.raises(HostUnavailableError) as error:
        all_of({"b": fails("a"), "c": fails("b")})
    assert error.value.hosts == ("a", "b")
