"""KV caches on their way from prefill to decode replicas: who goes where, and how long it takes.

A request whose prompt is computed waits until a decode replica has room for it, as far as the replicas' last reports
and what was sent since tell; none overtakes another. Its KV cache then passes the prefill replica's outgoing link and,
as it comes, the decode replica's incoming one; both carry one cache after the other. All times are whole femtoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.kv_groups import KvGroups
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.scheduler.control import ReplicaState
from pimserve.scheduler.departures import Move
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.router import LeastOutstanding


@dataclass(frozen=True, slots=True)
class Link:
    """What connects a replica to the other pool, one way.

    Args:
        bytes_per_s: bandwidth.
        latency_fs: until the first byte is there.
        bytes_per_token: KV cache of layers that see the whole context.
        window_bytes_per_token: that of layers with a window.
        window_tokens: how far those see.
    """

    bytes_per_s: int
    latency_fs: int
    bytes_per_token: int
    window_bytes_per_token: int = 0
    window_tokens: int = 0

    def size(self, tokens: int) -> int:
        """Bytes of a request's KV cache."""
        return self.bytes_per_token * tokens + self.window_bytes_per_token * min(tokens, self.window_tokens)

    def lasts_fs(self, size: int) -> int:
        """How long so many bytes keep a link busy."""
        return -(-size * FS_PER_S // self.bytes_per_s)


class Lines:
    """When the links of all replicas are free.

    A cache of B bytes that may go at time `ready` begins to leave when the sender's link is free, reaches the receiver
    after the latency, or when the receiver's link is free, and is there B / bandwidth later.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self._leaving: dict[int, int] = {}  # by replica: from when its outgoing link is free
        self._coming: dict[int, int] = {}

    def send(self, size: int, source: int, target: int, ready_fs: int) -> tuple[int, int, int]:
        """(begins to leave, has left, is there) of a cache of that size."""
        lasts = self.link.lasts_fs(size)
        begin = max(ready_fs, self._leaving.get(source, 0))
        self._leaving[source] = left = begin + lasts
        self._coming[target] = done = max(begin + self.link.latency_fs, self._coming.get(target, 0)) + lasts
        return begin, left, done

    def state(self) -> list[list[tuple[int, int]]]:
        """When which link is free, as JSON can hold it."""
        return [list(self._leaving.items()), list(self._coming.items())]

    def restore(self, state: list[list[tuple[int, int]]]) -> None:
        """Go on from `state`."""
        leaving, coming = state
        self._leaving, self._coming = dict(leaving), dict(coming)


@dataclass(slots=True)
class HandoverFigures:
    """What was handed over: times in picoseconds, in order; busy times in fs, of all links of a side together."""

    bytes: int = 0
    held: int = 0  # had to wait for room, or for others that did
    waits_ps: list[int] = field(default_factory=list)  # from the first token until the cache begins to leave
    transfers_ps: list[int] = field(default_factory=list)  # from then until it is there
    busy_fs: int = 0


class Handovers:
    """Requests between the pools.

    Args:
        link: the way.
        targets: numbers of the decode replicas.
        kv_blocks: of each of them.
        block_size: tokens of a block.
        kv_groups: how layers share them.
    """

    def __init__(
        self, link: Link, targets: Sequence[int], kv_blocks: int, block_size: int, kv_groups: KvGroups
    ) -> None:
        self.lines = Lines(link)
        self.targets = targets
        self.figures = HandoverFigures()
        self._kv_blocks = kv_blocks
        self._block_size = block_size
        self._kv_groups = kv_groups
        self._waiting: list[Move] = []
        self._sent: list[tuple[int, int, int]] = []  # (has left, request, replica) of blocks not yet released
        self._router = LeastOutstanding()
        self.reset()

    def reset(self) -> None:
        """All decode replicas are empty."""
        self._room = dict.fromkeys(self.targets, self._kv_blocks)
        self._outstanding = dict.fromkeys(self.targets, 0)

    def reported(self, state: ReplicaState) -> None:
        """How a decode replica is."""
        self._outstanding[state.replica], self._room[state.replica] = state.outstanding, state.spare_kv_blocks

    @property
    def waiting(self) -> int:
        """Requests that have had their first token and are not on their way."""
        return len(self._waiting)

    def add(self, moves: Sequence[Move]) -> None:
        """Requests whose prompts were computed."""
        self._waiting += moves

    def released(self, by_fs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(requests, prefill replicas) of caches that have left by then, each told once."""
        gone = sorted(sent for sent in self._sent if sent[0] <= by_fs)
        self._sent = [sent for sent in self._sent if sent[0] > by_fs]
        requests, replicas = [request for _, request, _ in gone], [replica for _, _, replica in gone]
        return np.array(requests, np.int64), np.array(replicas, np.int64)

    def route(self, before_fs: int, reported_fs: int, max_num_seqs: int, table: RequestTable) -> list[tuple[int, Move]]:
        """(decode replica, move) of those that are ready before `before_fs` and find room, by time and number.

        Args:
            before_fs: all that are ready before that time are known.
            reported_fs: when the decode replicas last told what room they have; who waited for that goes on then.
            max_num_seqs: requests that a decode replica has at most, on the way ones counted.
            table: prompts and tokens of all requests.
        """
        self._waiting.sort(key=lambda move: (move.since_fs, move.request))
        sent: list[tuple[int, Move]] = []
        for move in self._waiting:
            if move.since_fs >= before_fs:
                break
            tokens = int(table["input_tokens"][move.request] + table["emitted_tokens"][move.request]) - 1
            needed = self._kv_groups.blocks(tokens + 1, self._block_size)  # its first step here adds a token
            fitting = [r for r in self.targets if needed <= self._room[r] and self._outstanding[r] < max_num_seqs]
            if not fitting:
                break
            target = fitting[self._router.pick([self._outstanding[replica] for replica in fitting])]
            self._room[target] -= needed
            self._outstanding[target] += 1
            self.figures.held += move.since_fs < reported_fs
            sent.append((target, self._send(move, target, tokens, max(move.since_fs, reported_fs))))
        del self._waiting[: len(sent)]
        return sent

    def _send(self, move: Move, target: int, tokens: int, at_fs: int) -> Move:
        link, figures = self.lines.link, self.figures
        size = link.size(tokens)
        begin, left, done = self.lines.send(size, move.replica, target, at_fs)
        self._sent.append((left, move.request, move.replica))
        figures.bytes += size
        figures.busy_fs += link.lasts_fs(size)
        figures.waits_ps.append((begin - move.since_fs) // FS_PER_PS)
        figures.transfers_ps.append((done - begin) // FS_PER_PS)
        return Move(move.request, move.replica, done, move.token_fs)

    def state(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "lines": self.lines.state(),
            "figures": asdict(self.figures),
            "waiting": [asdict(move) for move in self._waiting],
            "sent": self._sent,
            "router": self._router.state(),
            "room": list(self._room.items()),
            "outstanding": list(self._outstanding.items()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.lines.restore(state["lines"])
        self.figures = HandoverFigures(**state["figures"])
        self._waiting = [Move(**move) for move in state["waiting"]]
        self._sent = [(left, request, replica) for left, request, replica in state["sent"]]
        self._router.restore(state["router"])
        self._room, self._outstanding = dict(state["room"]), dict(state["outstanding"])
