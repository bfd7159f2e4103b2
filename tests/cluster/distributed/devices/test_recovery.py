"""Hosts die and are replaced, runs go on from snapshots: what devices have done is the same to the last unit."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from pimserve.arrays import IntArray
from pimserve.cluster.base.rpc.statuses import HostUnavailableError
from pimserve.cluster.distributed.devices.device_host import DeviceHost
from pimserve.cluster.distributed.devices.driver import DeviceDriver
from pimserve.errors import InputError
from tests.cluster.distributed.devices.served import hosts, link_to, linked, run, steps_of
from tests.cluster.distributed.devices.test_hosts import check_against_logs, without_audit

Block = tuple[int, IntArray, IntArray]


class Crew:
    """Hosts in this process that die and are replaced."""

    def __init__(self, count: int) -> None:
        self.hosts: dict[str, DeviceHost] = {}
        self.addresses: dict[str, str] = {}
        for number in range(count):
            self.start(f"host-{number}")

    def start(self, name: str, listen: str = "127.0.0.1:0") -> str:
        self.hosts[name] = DeviceHost(name, peer_timeout_s=1)
        self.addresses[name] = f"127.0.0.1:{self.hosts[name].start(listen)}"
        return self.addresses[name]

    def kill(self, name: str) -> None:
        self.hosts.pop(name).stop(0)

    def insist(self, link: DeviceDriver, call: Any, *args: Any) -> Any:
        """Make a call, and replace who dies meanwhile."""
        for _ in range(5):
            try:
                return call(*args)
            except HostUnavailableError as error:
                for name in error.hosts:
                    if name not in self.hosts:
                        self.start(name)
                        with contextlib.suppress(HostUnavailableError):  # another one is dead too
                            link.replace(name, self.addresses[name])
        raise AssertionError("hosts die again and again")


@contextmanager
def crew(count: int) -> Iterator[Crew]:
    found = Crew(count)
    try:
        yield found
    finally:
        for name in list(found.hosts):
            found.kill(name)


def drive(link: DeviceDriver, blocks: list[Block], every: int, disturb: Any = None, there: Crew | None = None) -> Any:
    """Feed blocks in windows of `every`; `disturb(number)` comes before each."""
    feed = link.take
    insist = (lambda call, *args: call(*args)) if there is None else (lambda *args: there.insist(link, *args))
    window = 0
    for number, block in enumerate(blocks):
        if disturb is not None:
            disturb(number)
        insist(feed, *block)
        if number % 4 == 0:
            link.hand_over(np.array([[number, 100, 3, 0, 0, 0, number % 2]]))
        if number % every == every - 1:
            insist(link.close_window, window)
            window += 1
    traffic = insist(link.close_window, window)
    return without_audit(insist(link.ledgers)), traffic.totals()


@pytest.mark.parametrize(
    ("name", "victims", "snapshot_at"),
    [
        ("tp", ("host-0", "host-2"), None),
        ("tp", ("host-1",), 5),
        ("tp", ("host-0", "host-2"), 6),
        ("tp", ("host-1",), 10),
        ("aimc", ("host-0", "host-2"), 6),
        ("hot", ("host-0", "host-2"), 6),
        ("hot-exact", ("host-1",), 6),
    ],
)
def test_replaced_hosts_know_what_the_old_ones_knew(
    name: str, victims: tuple[str, ...], snapshot_at: int | None
) -> None:
    served = run(name)
    blocks = served.pieces(15)
    with linked(served, 3) as link:
        expected = drive(link, blocks, 5)
    with crew(3) as there:
        link = link_to(served, there.addresses)

        def disturb(number: int) -> None:
            if number == snapshot_at:  # all are there at these times
                link.save()
            if number in {2, 7, 11}:
                for victim in victims:
                    there.kill(victim)

        found = drive(link, blocks, 5, disturb, there)
        check_against_logs(served, found[0])
        link.close()
    assert found == expected


def test_a_host_may_get_the_port_of_another_that_died() -> None:
    served = run("tp")
    blocks = served.pieces(15)
    with linked(served, 3) as link:
        expected = drive(link, blocks, 5)
    with crew(3) as there:
        link = link_to(served, there.addresses)

        def swap(number: int) -> None:
            if number == 3:
                there.kill("host-0")
                there.kill("host-2")
                address = there.start("host-0", there.addresses["host-2"])
                with pytest.raises(HostUnavailableError, match="this is host host-0 now") as caught:
                    link.replace("host-0", address)
                assert caught.value.hosts == ("host-2",)

        found = drive(link, blocks, 5, swap, there)
        link.close()
    assert found == expected


@pytest.mark.parametrize(
    ("name", "kill_at"), [("tp", 1), ("tp", 6), ("dense", 6), ("aimc", 1), ("mixed", 6), ("hot", 1), ("hot-exact", 6)]
)
def test_lockstep_goes_on_with_a_replaced_host(name: str, kill_at: int) -> None:
    served = run(name)
    replica, block, first = served.blocks[0]
    rows, first = steps_of(block, first, 60)
    blocks = [(replica, rows[at : at + 1], first[at : at + 1]) for at in range(len(rows))]
    with linked(served, 2, lockstep=True) as link:
        expected = drive(link, blocks, 4)
    with crew(2) as there:
        link = link_to(served, there.addresses, lockstep=True)
        found = drive(link, blocks, 4, lambda number: there.kill("host-1") if number == kill_at else None, there)
        link.close()
    assert found == expected


@pytest.mark.parametrize("lockstep", [False, True])
def test_a_run_goes_on_from_a_snapshot_with_the_same_hosts_or_others(lockstep: bool) -> None:
    served = run("tp")
    replica, block, first = served.blocks[0]
    rows, first = steps_of(block, first, 150)
    blocks = [(replica, rows[at : at + 3], first[at : at + 3]) for at in range(0, len(rows), 3)]

    def feed(link: DeviceDriver, some: list[Block]) -> None:
        for each in some:
            link.take(*each)

    with linked(served, 2, lockstep=lockstep) as link:
        feed(link, blocks[:2])
        link.close_window(0)
        feed(link, blocks[2:3])
        state = json.loads(json.dumps(link.snapshot()))  # in the middle of a window
        feed(link, blocks[3:])
        expected = link.close_window(1).totals(), without_audit(link.ledgers())
        link.restore(state)
        feed(link, blocks[3:])
        assert (link.close_window(1).totals(), without_audit(link.ledgers())) == expected
    with linked(served, 2, lockstep=lockstep) as link:
        link.restore(state)
        feed(link, blocks[3:])
        assert (link.close_window(1).totals(), without_audit(link.ledgers())) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], "not a snapshot"),
        (lambda _: "[]", "not a snapshot"),
        (lambda _: '{"version": 3, "sha256": 3, "state": 4}', "not a snapshot"),
        (lambda text: text.replace('"version": 3', '"version": 1'), "version 1; this is version 3"),
        (lambda text: text.replace("next_step", "next_stop"), "damaged"),
        (None, "other devices"),
    ],
)
def test_damaged_and_foreign_snapshots_are_refused_whole(change: Any, message: str) -> None:
    served = run("tp")
    with linked(served, 2) as link:
        link.take(*served.blocks[0])
        link.close_window(0)
        before = link.ledgers()
        state = link.snapshot()
        if change is None:
            state["hosts"] = dict(zip(state["hosts"], reversed(state["hosts"].values()), strict=True))
        else:
            state["hosts"]["host-0"] = change(state["hosts"]["host-0"])
        with pytest.raises(InputError, match=message):
            link.restore(state)
        assert link.ledgers() == before


@pytest.mark.e2e
def test_killed_processes_are_replaced() -> None:
    served = run("ep")
    blocks = served.pieces(15)
    with hosts(1) as one:
        link = link_to(served, {name: address for name, (_, address) in one.items()})
        expected = drive(link, blocks, 6)
        link.close()
    children: dict[str, subprocess.Popen[str]] = {}

    def start(name: str) -> str:
        command = [sys.executable, "-m", "pimserve.cluster.distributed.hosts.hosting"]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        spec = {
            "factory": "pimserve.cluster.distributed.devices.device_host:DeviceHost",
            "arguments": {"name": name, "token": "secret"},
        }
        child.stdin.write(json.dumps(spec) + "\n")
        child.stdin.flush()
        children[name] = child
        return json.loads(child.stdout.readline())["address"]

    def end(name: str) -> None:
        child = children.pop(name)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()

    def insist(call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except HostUnavailableError as error:
            for name in error.hosts:
                link.replace(name, start(name))
            return call(*args)

    try:
        link = link_to(served, {f"host-{number}": start(f"host-{number}") for number in range(2)}, token="secret")
        for number, block in enumerate(blocks):
            link.take(*block)
            if number % 4 == 0:
                link.hand_over(np.array([[number, 100, 3, 0, 0, 0, number % 2]]))
            if number in {3, 8}:
                end(f"host-{number % 2}")
            if number % 6 == 5:
                insist(link.close_window, number // 6)
        traffic = insist(link.close_window, len(blocks) // 6)
        found = without_audit(link.ledgers()), traffic.totals()
        link.close()
    finally:
        for name in list(children):
            end(name)
    assert found == expected
