"""What devices have sent must be what devices have received, and experts get every token that a step routes to them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pimserve.cluster.base.rpc.statuses import DeviceMismatchError
from pimserve.cluster.distributed.devices.flows import COMBINE, DISPATCH, kind_name
from pimserve.cluster.distributed.devices.layer_picks import Entry as PicksEntry

Entry = tuple[int, ...]  # sending replica and device, receiving replica and device, kind, count, bytes


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What hosts have sent and received since the beginning of a run; entries of the same devices and kind add up.

    `messages`: from host to host, by the kinds that they carried; of hosts that are there now. `picks_sent`,
    `picks_received`: over the links between groups of devices, by MoE layer.
    """

    sent: list[Entry] = field(default_factory=list)
    received: list[Entry] = field(default_factory=list)
    messages: Counter[int] = field(default_factory=Counter)
    message_bytes: int = 0
    picks_sent: list[PicksEntry] = field(default_factory=list)
    picks_received: list[PicksEntry] = field(default_factory=list)

    def __add__(self, other: Exchanged) -> Exchanged:
        return Exchanged(
            self.sent + other.sent,
            self.received + other.received,
            self.messages + other.messages,
            self.message_bytes + other.message_bytes,
            self.picks_sent + other.picks_sent,
            self.picks_received + other.picks_received,
        )

    def totals(self) -> dict[Entry, tuple[int, int]]:
        """(count, bytes) that were sent, by sending and receiving replica and device, and kind."""
        return _summed(self.sent)


def check_conservation(traffic: Exchanged, picks: Mapping[int, int]) -> None:
    """Compare what was sent with what was received.

    Args:
        traffic: of all hosts that have devices of these replicas.
        picks: of each replica, picks of experts in its executed steps: tokens x top_k x MoE layers.

    Raises:
        DeviceMismatchError: something was lost, or came twice.
    """
    sent, received = _summed(traffic.sent), _summed(traffic.received)
    for key in sorted(sent.keys() | received.keys()):
        there, here = sent.get(key, (0, 0)), received.get(key, (0, 0))
        if there != here:
            raise DeviceMismatchError(
                f"{kind_name(key[4])} from device {key[1]} of replica {key[0]} to device {key[3]} of replica {key[2]}: "
                f"{there[0]:,} of {there[1]:,} bytes were sent, {here[0]:,} of {here[1]:,} bytes received"
            )
    for kind in (DISPATCH, COMBINE):
        passed: defaultdict[int, int] = defaultdict(int)
        for key, (count, _) in sent.items():
            if key[4] == kind:
                passed[key[0]] += count
        for replica, wanted in picks.items():
            if passed[replica] != wanted:
                raise DeviceMismatchError(
                    f"{kind_name(kind)} of replica {replica}: {passed[replica]:,} picks of experts passed between "
                    f"devices, its steps have {wanted:,}"
                )


def _summed(entries: Iterable[Entry]) -> dict[Entry, tuple[int, int]]:
    sums: dict[Entry, tuple[int, int]] = {}
    for *key, count, size in entries:
        before = sums.get(tuple(key), (0, 0))
        sums[tuple(key)] = (before[0] + count, before[1] + size)
    return sums
