"""The state from which hosts are restored is of the end of one window, for shards and devices alike."""

from __future__ import annotations

import pytest

from pimserve.cluster.base.rpc.statuses import HostUnavailableError
from pimserve.cluster.distributed import recovery as recovery_module
from pimserve.cluster.distributed.hosts.hosting import Endpoint
from pimserve.cluster.distributed.recovery import Recovery, ReplayLog


class Places:
    """Where hosts are; counts their replacements."""

    def __init__(self) -> None:
        self.generations: dict[str, int] = {}
        self.caught_up_again: list[str] = []

    def endpoint(self, name: str) -> Endpoint:
        generation = self.generations.setdefault(name, 0)
        return Endpoint(f"{name}.{generation}:1", 1, generation)

    def replace(self, name: str, generation: int) -> Endpoint:
        self.generations[name] = generation + 1
        return self.endpoint(name)

    def caught_up(self, name: str) -> None:
        self.caught_up_again.append(name)


class Told:
    """What is told messages, and saves."""

    def __init__(self, recovery: Recovery, *hosts: str) -> None:
        self.hosts = hosts
        self.log: ReplayLog[int, int] = ReplayLog()
        self.saves: list[int] = []
        self.replaced: list[tuple[str, str]] = []
        self.lost: tuple[str, ...] = ()
        recovery.join(self, hosts)

    def tell(self, message: int) -> None:
        self.log.append(message, 100)

    def save(self) -> None:
        if self.lost:
            lost, self.lost = self.lost, ()
            raise HostUnavailableError(lost, "is dead")
        self.saves.append(self.log.next)
        self.log.save(dict.fromkeys(self.hosts, self.log.next))

    def replace(self, host: str, address: str) -> None:
        self.replaced.append((host, address))


@pytest.fixture
def recovery(monkeypatch: pytest.MonkeyPatch) -> Recovery:
    monkeypatch.setattr(recovery_module, "_SAVE_BYTES", 250)
    return Recovery(Places())


def test_all_are_saved_at_the_end_of_one_window(recovery: Recovery) -> None:
    shards, devices = Told(recovery, "shard-0"), Told(recovery, "devices-0", "devices-1")
    for window in range(1, 7):
        recovery.begin()
        recovery.begin()
        shards.tell(window)
        devices.tell(window)
        recovery.end()
        assert shards.log.next == devices.log.next == window
        assert shards.saves == devices.saves == list(range(2, window, 2)), "an order is still under way"
        recovery.end()
        assert shards.saves == devices.saves == list(range(2, window + 1, 2))
    assert set(devices.log.snapshots) == {"devices-0", "devices-1"}
    assert shards.log.messages == devices.log.messages == []


def test_time_makes_a_state_due_as_well(recovery: Recovery, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Told(recovery, "shard-0")
    for late, saves in ((False, []), (True, [1])):
        monkeypatch.setattr(recovery_module, "_SAVE_S", 0.0 if late else 3600.0)
        recovery.begin()
        if not late:
            shards.tell(0)
        recovery.end()
        assert shards.saves == saves


def test_a_host_that_dies_while_the_state_is_taken_is_replaced_and_asked_again(recovery: Recovery) -> None:
    shards, devices = Told(recovery, "shard-0"), Told(recovery, "devices-0", "devices-1")
    devices.lost = ("devices-1",)
    recovery.begin()
    for message in range(3):
        shards.tell(message)
    recovery.end()
    assert devices.replaced == [("devices-1", "devices-1.1:1")]
    assert (shards.saves, devices.saves) == ([3], [0])
    assert shards.replaced == []
    assert recovery.hosts.caught_up_again == ["devices-1"]
