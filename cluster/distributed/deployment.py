"""Where the parts of a run live: which hosts there are, and the shards and devices in them.

Shard hosts hold engines, device hosts simulated devices; both are processes of their own that a supervisor keeps alive.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pimserve.cluster.base.rpc.statuses import HostUnavailableError
from pimserve.cluster.base.supervisor import Patience
from pimserve.cluster.distributed.actor_ledgers import DeviceActorState, passed_by_device
from pimserve.cluster.distributed.device_port import DevicePort, Devices
from pimserve.cluster.distributed.device_results import device_table, wire
from pimserve.cluster.distributed.devices.conservation import Exchanged
from pimserve.cluster.distributed.devices.driver import DeviceDriver, DriverSettings, HostPlace
from pimserve.cluster.distributed.devices.ledger_check import check_hand_overs, check_ledgers
from pimserve.cluster.distributed.hosts.host_supervisor import HostSupervisor
from pimserve.cluster.distributed.hosts.hosting import HostSpec
from pimserve.cluster.distributed.hosts.process_supervisor import ProcessSupervisor
from pimserve.cluster.distributed.recovery import Recovery
from pimserve.cluster.distributed.run_spread import Spread, dealt_out
from pimserve.cluster.distributed.shards.shard_client import ShardClient
from pimserve.cluster.scenario.device_groups import device_groups
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.scheduler.fleet import Fleet, RowSink
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.shard import Shard
from pimserve.scheduler.shard_port import ShardPort
from pimserve.scheduler.simulation import Served

if TYPE_CHECKING:
    from pimserve.cluster.distributed.hosts.ray_cluster import RayCluster

SHARD_HOST = "pimserve.cluster.distributed.shards.shard_host:ShardHost"
DEVICE_HOST = "pimserve.cluster.distributed.devices.device_host:DeviceHost"
_WINDOW_WALL_S = 0.5  # of runs with devices: at a window's end all that they exchanged is checked


class Distributed:
    """The parts of one run on hosts. Makes the run's shards (`Deployment.shards`)."""

    def __init__(self, supervisor: HostSupervisor[Any], spread: Spread, prepared: Prepared, token: str) -> None:
        self.supervisor = supervisor
        self.spread = spread
        self.window_wall_s = _WINDOW_WALL_S if spread.devices is not None else None
        self._prepared = prepared
        self._token = token
        self._recovery = Recovery(supervisor)
        self._driver: DeviceDriver | None = None
        self._devices: Devices | None = None
        self._wire: dict[str, Any] = {}
        self._audited = 0
        self._stack = ExitStack()

    def shards(self, fleet: Fleet, table: RequestTable, on_rows: RowSink | None) -> Sequence[ShardPort]:
        """The shards of the run: replicas dealt out to them in turn."""
        dealt = list(enumerate(dealt_out(fleet.replicas, self.spread)))
        if self.spread.devices is None:
            return [self._engines(index, replicas, fleet, table, on_rows) for index, replicas in dealt]
        per_replica = {pool.name: pool.members[0].devices_per_replica for pool in self._prepared.pools}
        devices = self._devices = Devices(self._connected(fleet), self._recovery, fleet, per_replica, table)

        def engines(index: int, replicas: range, sink: RowSink) -> ShardPort:
            return self._engines(index, replicas, fleet, table, sink)

        # The last one is asked for its state when all others have handed on what they executed.
        return [DevicePort(partial(engines, *shard), devices, on_rows, keeps=shard is dealt[-1]) for shard in dealt]

    def facts(self) -> dict[str, Any]:
        """What the summary's simulator section tells."""
        recoveries = self.supervisor.recoveries
        return {
            "shards": self.spread.shards,
            "devices": self.spread.devices,
            "hosts": len(self.supervisor.endpoints()),
            "recoveries": len(recoveries),
            "recovery_s": [seconds for _, seconds in recoveries],
            "audited_spans": self._audits(),
            **self._wire,
        }

    def compare(self, served: Served) -> NDArray[Any] | None:
        """Compare what devices have done in the whole run with the sums of the engines; returns the table of devices.

        Raises:
            DeviceMismatchError: something differs.
        """
        if self._devices is None or self._driver is None:
            return None
        states, exchanged = self._states(self._devices)
        ledgers = [state.ledger for state in states]
        for log in served.logs:
            of_replica = [ledger for ledger in ledgers if ledger.replica == log.costs.replica]
            pool = next(pool for pool in self._prepared.pools if log.costs.replica in pool.numbers)
            sizes = [group.devices_per_replica for group in pool.members]
            check_ledgers(of_replica, log, self._driver.last_blocks[log.costs.replica], sizes)
        handed_bytes = 0 if served.handovers is None else served.handovers.bytes
        check_hand_overs(ledgers, exchanged, self._driver.handed_blocks, handed_bytes)
        home = {(state.ledger.replica, state.ledger.device): state.host for state in states}
        self._wire = {"wire": wire(exchanged, home), "wire_bytes": exchanged.message_bytes}
        return device_table(states)

    def device_states(self) -> list[DeviceActorState] | None:
        """All devices, by replica and number, of all steps that were handed on to them; None where there are none.

        For the thread of the run, at the end of a window.
        """
        return None if self._devices is None else self._states(self._devices)[0]

    def _states(self, devices: Devices) -> tuple[list[DeviceActorState], Exchanged]:
        ledgers, exchanged = devices.books()
        traffic = passed_by_device(exchanged)
        hosts = device_hosts(self._prepared.pools, self.spread)
        home = {device: name for name, (_, devices) in hosts.items() for device in devices}
        group_of = {
            (replica, device): group
            for pool in self._prepared.pools
            for group in device_groups(pool, self._prepared.model)
            for replica in pool.numbers
            for device in group.numbers
        }
        endpoints = self.supervisor.endpoints()
        states = [
            DeviceActorState(
                ledger=ledger,
                host=home[ledger.replica, ledger.device],
                host_restarts=endpoints[home[ledger.replica, ledger.device]].generation,
                traffic=traffic.get((ledger.replica, ledger.device), {}),
                group=group_of[ledger.replica, ledger.device],
            )
            for ledger in ledgers
        ]
        return states, exchanged

    def _audits(self) -> int:
        """Spans of steps that devices have evaluated again, one by one."""
        if self._driver is not None:
            with suppress(HostUnavailableError):  # one is being replaced: what was known before does
                self._audited = sum(ledger.audited_rows for ledger in self._driver.ledgers())
        return self._audited

    def close(self) -> None:
        """Let go of all connections."""
        self._stack.close()

    def _engines(
        self, index: int, replicas: range, fleet: Fleet, table: RequestTable, sink: RowSink | None
    ) -> ShardPort:
        if not self.spread.shards or self.spread.devices == "lockstep":
            return Shard(fleet, replicas, table, sink, 1 if self.spread.devices == "lockstep" else None)
        client = ShardClient(
            _shard_name(index), self._recovery, self._token, fleet, replicas, table, sink,
            host_timeout_s=self.spread.host_timeout_s,
        )  # fmt: skip
        self._stack.callback(client.close)
        return client

    def _connected(self, fleet: Fleet) -> DeviceDriver:
        """Who drives all devices."""
        settings = DriverSettings(
            lockstep=self.spread.devices == "lockstep",
            token=self._token,
            audit_share=self.spread.audit_share,
            host_timeout_s=self.spread.host_timeout_s,
        )
        scenario = json.dumps(self._prepared.scenario.resolved())
        digests = {pool.name: pool.plan.digest() for pool in fleet.pools}
        hosts = {
            name: HostPlace(self.supervisor.endpoint(name).address, {pool: devices})
            for name, (pool, devices) in device_hosts(self._prepared.pools, self.spread).items()
        }
        self._driver = DeviceDriver(scenario, digests, hosts, settings)
        self._stack.callback(self._driver.close)
        return self._driver


@contextmanager
def distributed(prepared: Prepared, cluster: RayCluster | None, spread: Spread) -> Iterator[Distributed]:
    """The hosts of a run, started, and stopped at the end.

    Args:
        prepared: what is run.
        cluster: Ray on which they live; None: plain processes of this machine.
        spread: how the run is spread.

    Raises:
        InputError: it cannot be spread so, or there is no place for it.
    """
    token = secrets.token_urlsafe(24)
    specs = host_specs(prepared, spread.checked(prepared.replicas, prepared.scenario.scheduler), token)
    patience = Patience(silence_s=spread.host_timeout_s)
    if cluster is None:
        supervisor: HostSupervisor[Any] = ProcessSupervisor(specs, patience)
    else:
        from pimserve.cluster.distributed.hosts.ray_supervisor import RaySupervisor  # noqa: PLC0415

        supervisor = RaySupervisor(cluster, prepared.scenario.name, specs, patience=patience)
    with supervisor:
        parts = Distributed(supervisor, spread, prepared, token)
        try:
            yield parts
        finally:
            parts.close()


def host_specs(prepared: Prepared, spread: Spread, token: str) -> list[HostSpec]:
    """The hosts that a run needs, shards first."""
    specs = []
    if spread.devices != "lockstep":
        names = map(_shard_name, range(spread.shards))
        specs += [HostSpec(name, SHARD_HOST, {"name": name, "token": token}) for name in names]
    if spread.devices is None:
        return specs
    for name, (_, devices) in device_hosts(prepared.pools, spread).items():
        resources = {kind: amount * len(devices) for kind, amount in spread.resources}
        arguments = {"name": name, "token": token}
        specs.append(HostSpec(name, DEVICE_HOST, arguments, resources, bundle=devices[0][0]))
    return specs


def device_hosts(pools: Sequence[PlacedPool], spread: Spread) -> dict[str, tuple[str, list[tuple[int, int]]]]:
    """Of each device host, the pool of its devices, and these (replica, number in the replica), all of one group."""
    hosts: dict[str, tuple[str, list[tuple[int, int]]]] = {}
    for pool in pools:
        begin = 0  # of the group
        for group in pool.members:
            end = begin + group.devices_per_replica
            devices = [(replica, number) for replica in pool.numbers for number in range(begin, end)]
            size = spread.actor_size(group.devices_per_replica)
            for first in range(0, len(devices), size):
                hosts[f"devices-{len(hosts)}"] = pool.name, devices[first : first + size]
            begin = end
    return hosts


def _shard_name(index: int) -> str:
    return f"shard-{index}"
