"""Who drives device hosts: hands them executed steps, or single steps in lockstep, and checks what they say.

Steps are kept until every host has a snapshot that holds them (`recovery.py`), so that a host which died can be
replaced without going back in simulated time: the new one is restored and gets what it missed, and all others recognise
what they know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.base.rpc.statuses import DeviceMismatchError, HostUnavailableError, WrongStateError
from pimserve.cluster.base.supervisor import SILENCE_S
from pimserve.cluster.distributed.devices.batches import LockstepFeed, Message, PlannedFeed, WindowEnd
from pimserve.cluster.distributed.devices.compile import numbers_per_step, parse_scenario, picks_per_token
from pimserve.cluster.distributed.devices.conservation import Exchanged, check_conservation
from pimserve.cluster.distributed.devices.exchange import device_ids, from_traffic_table, to_hand_over_table
from pimserve.cluster.distributed.devices.host_client import HostConnection, all_of, call_all
from pimserve.cluster.distributed.devices.layer_picks import check_layers, from_picks_table
from pimserve.cluster.distributed.devices.ledgers import DeviceLedger, from_ledger_message
from pimserve.cluster.distributed.devices.span_rows import Spans
from pimserve.cluster.distributed.recovery import ReplayLog
from pimserve.device_models.slowdown import NORMAL
from pimserve.scheduler.steplog import SpanColumns
from pimserve.v1 import device_pb2 as pb

_RETAINED_BYTES = 2**26  # of steps that are kept; beyond, hosts are asked for snapshots


@dataclass(frozen=True, slots=True)
class HostPlace:
    """A host: its address, HOST:PORT, and its devices (replica, number in the replica) by the name of their pool."""

    address: str
    devices: Mapping[str, Sequence[tuple[int, int]]]

    @property
    def all_devices(self) -> list[tuple[int, int]]:
        """Of all pools."""
        return [key for keys in self.devices.values() for key in keys]


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """How devices are driven.

    Args:
        lockstep: every step waits for its devices.
        token: of the run, for all hosts; "" for none.
        audit_share: share of the spans that each device evaluates again step by step (planned mode).
        in_flight: batches per host that may be unanswered.
        host_timeout_s: a host that is silent for so long cannot be reached.
    """

    lockstep: bool = False
    token: str = ""
    audit_share: float = 1 / 64
    in_flight: int = 8
    host_timeout_s: float = SILENCE_S


class DeviceDriver:
    """Drives the devices of some replicas, all those of each. Errors of planned mode come at the end of a window at
    the latest. Not for several threads at a time.

    Args:
        scenario: resolved, JSON.
        digests: of the engine's cost plan, by the name of the pool.
        hosts: by name; a host is driven by one driver only.
        settings: how they are driven.
    """

    def __init__(
        self,
        scenario: str,
        digests: Mapping[str, str],
        hosts: Mapping[str, HostPlace],
        settings: DriverSettings = DriverSettings(),
    ) -> None:
        self.settings = settings
        self.hosts = tuple(hosts)
        self.closed = -1  # the last window that was closed
        self._scenario = scenario
        self._digests = dict(digests)
        self._places = dict(hosts)
        document = parse_scenario(scenario)
        model = document.load_model()
        self._verify_tokens = document.scheduler.verify_tokens
        self._moe_layers, self._picks_per_token = model.moe_layers, picks_per_token(model)
        placed = {name for name in document.pools if document.of_pool(name).cluster.two_groups is not None}
        self._linked = {key[0] for place in hosts.values() for pool in placed for key in place.devices.get(pool, ())}
        self._connections = {name: self._connect_to(name) for name in hosts}
        replicas = {name: frozenset(replica for replica, _ in place.all_devices) for name, place in hosts.items()}
        self.log: ReplayLog[bytes, Message | WindowEnd] = ReplayLog()
        self._feed: LockstepFeed | PlannedFeed
        if settings.lockstep:
            self._feed = LockstepFeed(self._connections, replicas, self.log)
        else:
            self._feed = PlannedFeed(self._connections, replicas, self.log, numbers_per_step(document, model))
        self._tokens = dict.fromkeys(sorted(frozenset[int]().union(*replicas.values())), 0)
        self.last_blocks = dict.fromkeys(self._tokens, 0)  # KV blocks of each replica in its last step
        self.handed_blocks = 0  # KV blocks of which parts were handed over
        self._slowdowns: dict[int, list[tuple[int, int]]] = {replica: [] for replica in self._tokens}
        self._home = {key: name for name, place in hosts.items() for key in place.all_devices}
        self._pending: list[IntArray] = []  # hand-overs of the open window
        self._ending: WindowEnd | None = None  # of a window that is being closed
        self._behind = set(hosts)  # hosts that are not where they should be
        self._unplanned = set(hosts)  # and have no plan yet

    def connect(self) -> None:
        """Bring hosts that are new to where the others are: with their plans, their snapshots and what came after.

        Raises:
            DeviceMismatchError: a host's own plan is another.
            HostUnavailableError: hosts cannot be reached; repeat the call when they are replaced.
            InputError: a host does not take the scenario or its devices.
        """
        # Hosts that lost a peer have given up their stream, and miss what came after that.
        behind = self._behind | {
            name for name, connection in self._connections.items() if connection.failure is not None
        }
        if not behind:
            return
        for name in behind:
            self._connections[name].forget_streams()
        all_of({name: partial(self._compile, name) for name in sorted(self._behind & self._unplanned)})
        self._unplanned -= self._behind
        states = {name: state for name, state in self.log.snapshots.items() if name in self._behind}
        call_all(self._connections, "Restore", {name: pb.RestoreRequest(state=state) for name, state in states.items()})
        self._introduce()
        for message in self.log.messages:
            if not isinstance(message, WindowEnd):
                self._feed.repeat(message, behind)
            elif message is not self._ending:
                all_of({name: connection.settled for name, connection in self._connections.items()})
                self._end_window(self._behind, message)
        self._behind = set()

    def take(self, replica: int, rows: IntArray, first_steps: IntArray) -> None:
        """Hand executed spans on to all devices of a replica; in lockstep, these execute their steps one by one.

        Args:
            replica: their replica.
            rows: (n, fields of SpanColumns), in their order.
            first_steps: (n,), numbers of their first steps.

        Raises:
            DeviceMismatchError: a device has found a time that is not what its plan says, or, in lockstep, not the
                engine's, or not the same for all.
            HostUnavailableError: in lockstep, hosts cannot be reached; repeat the call when they are replaced.
        """
        if self.settings.lockstep:
            self.connect()
        self._feed.take(Spans(replica, rows, first_steps, self._slowdowns_at(replica, first_steps)))
        self._count(replica, rows)
        failures = [failure for connection in self._connections.values() if (failure := connection.failure) is not None]
        for failure in failures:
            if not isinstance(failure, HostUnavailableError):
                raise failure
        if self.log.size_bytes > _RETAINED_BYTES and not failures and not self._behind:
            with suppress(HostUnavailableError):  # the end of the window will tell
                self.save()

    def slow(self, replica: int, first_step: int, thousandths: int) -> None:
        """A replica's steps take `thousandths` / 1000 of their normal time from this one on."""
        self._slowdowns[replica].append((first_step, thousandths))

    def hand_over(self, entries: IntArray) -> None:
        """KV caches go from device to device in the open window.

        Args:
            entries: (n, 7): request, bytes, KV blocks, sending replica and device, receiving replica and device.
        """
        self._pending.append(np.pad(entries, ((0, 0), (0, 1))))
        self.handed_blocks += int(entries[:, 2].sum())

    def lose(self, entries: IntArray) -> None:
        """KV caches that were handed over do not come to be there: (n, 7) as before."""
        self._pending.append(np.pad(entries, ((0, 0), (0, 1)), constant_values=1))
        self.handed_blocks -= int(entries[:, 2].sum())

    def close_window(self, window: int) -> Exchanged:
        """End a window: all devices have digested what they got, and what they exchanged adds up.

        Args:
            window: its number; they count from 0 up by one.

        Returns:
            What was sent and received since the beginning of the run.

        Raises:
            DeviceMismatchError: a time is not what a device's plan says, or something was lost between devices.
            HostUnavailableError: hosts cannot be reached; repeat the call when they are replaced.
        """
        if window not in {self.closed, self.closed + 1}:
            raise WrongStateError(f"window {self.closed + 1} comes next, not window {window}")
        if window > self.closed and self._ending is None:
            self._ending = WindowEnd(window, self._feed.end_window(window), self._hand_overs(window))
            self.log.append(self._ending, 0)
        self.connect()
        all_of({name: connection.settled for name, connection in self._connections.items()})
        if self._ending is not None:
            self._end_window(set(self._connections), self._ending)
            self.closed, self._ending = window, None
        traffic = self.traffic()
        check_conservation(traffic, self.picks())
        of_layer = {replica: self.picks()[replica] // self._moe_layers for replica in sorted(self._linked)}
        check_layers(traffic.picks_sent, traffic.picks_received, self._moe_layers, of_layer)
        return traffic

    def traffic(self) -> Exchanged:
        """What was sent and received by the end of the last window."""
        exchanged = Exchanged()
        for host, response in self._ask("ReadTraffic", pb.ReadTrafficRequest()).items():
            sent = from_traffic_table(response.sent, f"device host {host}.sent")
            received = from_traffic_table(response.received, f"device host {host}.received")
            messages = Counter({int(count.kind): count.messages for count in response.messages})
            picks = (
                from_picks_table(getattr(response, name), f"device host {host}.{name}")
                for name in ("picks_sent", "picks_received")
            )
            exchanged += Exchanged(sent, received, messages, response.message_bytes, *picks)
        return exchanged

    def picks(self) -> dict[int, int]:
        """Of each replica, picks of experts in the steps so far: tokens x top_k x MoE layers."""
        return {replica: tokens * self._picks_per_token for replica, tokens in self._tokens.items()}

    @property
    def sent(self) -> tuple[int, int]:
        """Batches and steps that were sent to hosts that are there now, and their bytes."""
        connections = self._connections.values()
        return sum(one.messages for one in connections), sum(one.bytes for one in connections)

    def ledgers(self) -> list[DeviceLedger]:
        """Ledgers of all devices, by replica and device, of all steps that hosts have digested."""
        responses = self._ask("ReadLedgers", pb.ReadLedgersRequest()).values()
        ledgers = [from_ledger_message(ledger) for response in responses for ledger in response.ledgers]
        return sorted(ledgers, key=lambda ledger: (ledger.replica, ledger.device))

    def snapshot(self) -> dict[str, Any]:
        """All that devices and driver have in hand, as JSON can hold it.

        Raises:
            HostUnavailableError: hosts cannot be reached; repeat the call when they are replaced.
        """
        if self._ending is not None:
            raise WrongStateError(f"window {self._ending.window} is being closed: close it first")
        self._feed.flush()
        self.save()
        return {
            "closed": self.closed,
            "feed": self._feed.state(),
            "tokens": sorted(self._tokens.items()),
            "last_blocks": sorted(self.last_blocks.items()),
            "handed_blocks": self.handed_blocks,
            "slowdowns": sorted(self._slowdowns.items()),
            "pending": [entries.tolist() for entries in self._pending],
            "hosts": {name: state.decode() for name, state in self.log.snapshots.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot; what came after it is forgotten.

        Raises:
            InputError: a host does not take its part.
            HostUnavailableError: hosts cannot be reached; replace them.
        """
        self.log.save({name: text.encode() for name, text in state["hosts"].items()})
        self._pending = [np.array(entries, np.int64) for entries in state["pending"]]
        self._ending = None
        self.closed = state["closed"]
        self._feed.restore(state["feed"])
        self._tokens = dict(state["tokens"])
        self.last_blocks, self.handed_blocks = dict(state["last_blocks"]), state["handed_blocks"]
        self._slowdowns = {replica: [(a, b) for a, b in changes] for replica, changes in state["slowdowns"]}
        self._behind = set(self._connections)
        self.connect()

    def replace(self, host: str, address: str) -> None:
        """A host has another process now; bring it to where the others are.

        Raises:
            HostUnavailableError: it, or another one, cannot be reached; replace that.
        """
        self._places[host] = HostPlace(address, self._places[host].devices)
        self._connections[host].close()
        self._connections[host] = self._connect_to(host)
        self._behind.add(host)
        self._unplanned.add(host)
        self.connect()

    def drain(self) -> None:
        """Hosts finish what came, and refuse more."""
        self._feed.flush()
        all_of({name: connection.settled for name, connection in self._connections.items()})
        self._ask("Drain", pb.DrainRequest())

    def close(self) -> None:
        """Close the connections; the hosts stay."""
        for connection in self._connections.values():
            connection.close()

    def _connect_to(self, host: str) -> HostConnection:
        settings = self.settings
        address = self._places[host].address
        return HostConnection(host, address, settings.token, settings.in_flight, settings.host_timeout_s)

    def _ask(self, method: str, request: object) -> dict[str, Any]:
        """The same call to all hosts, side by side."""
        return call_all(self._connections, method, dict.fromkeys(self._connections, request))

    def _slowdowns_at(self, replica: int, first_steps: IntArray) -> IntArray:
        """(n,): how slow the replica is in spans that begin with these steps."""
        slowdowns = np.full(len(first_steps), NORMAL)
        for first_step, thousandths in self._slowdowns[replica]:
            slowdowns[first_steps >= first_step] = thousandths
        return slowdowns

    def _count(self, replica: int, rows: IntArray) -> None:
        steps, decodes, prefill = (
            rows[:, SpanColumns._fields.index(n)] for n in ("steps", "decodes", "prefill_tokens")
        )
        self._tokens[replica] += int((steps * (self._verify_tokens * decodes + prefill)).sum())
        if len(rows):
            self.last_blocks[replica] = int(rows[-1, SpanColumns._fields.index("blocks_end")])

    def _compile(self, host: str) -> None:
        """Hand a host its devices, and compare its plans with the engine's."""
        settings, place = self.settings, self._places[host]
        response: pb.CompilePlanResponse = self._connections[host].call(
            "CompilePlan",
            pb.CompilePlanRequest(
                scenario=self._scenario,
                pools=[pb.PoolDevices(pool=pool, devices=device_ids(keys)) for pool, keys in place.devices.items()],
                mode=pb.DEVICE_MODE_LOCKSTEP if settings.lockstep else pb.DEVICE_MODE_PLANNED,
                audit_share=settings.audit_share,
            ),
        )
        for plan in response.plans:
            if plan.digest != self._digests[plan.pool]:
                raise DeviceMismatchError(
                    f"device host {host} has plan {plan.digest[:12]}, the engine {self._digests[plan.pool][:12]}: "
                    "do both run the same version of pimserve?"
                )

    def _introduce(self) -> None:
        """Tell all hosts of all others."""
        peers = {
            name: pb.Peer(host=name, address=place.address, devices=device_ids(place.all_devices))
            for name, place in self._places.items()
        }
        others = {name: [peer for other, peer in peers.items() if other != name] for name in peers}
        call_all(self._connections, "SetPeers", {name: pb.SetPeersRequest(peers=others[name]) for name in others})

    def _hand_overs(self, window: int) -> dict[str, pb.HandOverKvRequest]:
        """What was handed over in a window, for each sending host."""
        if not self._pending:
            return {}
        entries = np.concatenate(self._pending)
        self._pending = []
        senders = np.array([self._home[replica, device] for replica, device in entries[:, 3:5].tolist()])
        return {
            host: pb.HandOverKvRequest(window=window, requests=to_hand_over_table(entries[senders == host]))
            for host in sorted(set(senders.tolist()))
        }

    def _end_window(self, hosts: set[str], end: WindowEnd) -> None:
        """End a window on these hosts. Hand-overs are repeated by all, as they may be lost at either end."""
        call_all(self._connections, "HandOverKv", end.hand_overs)
        self._close(hosts, end.window, end.batches)

    def _close(self, hosts: set[str], window: int, batches: Mapping[str, int]) -> None:
        requests = {host: pb.CloseWindowRequest(window=window, batches=batches.get(host, 0)) for host in sorted(hosts)}
        call_all(self._connections, "CloseWindow", requests)

    def save(self) -> None:
        """Let all hosts write down what they have; what they were fed so far is not needed any more.

        Raises:
            HostUnavailableError: hosts cannot be reached; repeat the call when they are replaced.
        """
        self.connect()
        all_of({name: connection.settled for name, connection in self._connections.items()})
        self.log.save({name: r.state for name, r in self._ask("Snapshot", pb.SnapshotRequest()).items()})
