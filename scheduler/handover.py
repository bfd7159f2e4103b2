"""KV caches on their way from prefill to decode replicas: who goes where, and how long it takes.

A request whose prompt is computed waits until a decode replica has room for it, as far as the replicas' last reports
and what was sent since tell; none overtakes another. Its KV cache then passes the prefill replica's outgoing link and,
as it comes, the decode replica's incoming one; both carry one cache after the other. All times are whole femtoseconds.

Caches leave whole, or layer by layer while the prompt is computed: each layer's part as soon as the step that computes
the last of the prompt is through with that layer, where layers take equally long. So what is left to send at the first
token is the last layer, or what the link is behind. Parts of the prompt that earlier steps computed wait for that step.

A replica that fails ends hand-overs. A prefill replica loses the caches that have not left it, also those that wait for
room; a decode replica those that are not there yet. The link at the other end stays taken for as long as it would have
been, and a prefill replica has the blocks back when it would have had them: it learns of nothing before.

Requests whose prompts a decode replica is to compute (`conditional_disagg.py`) have nothing to send, and are among the
others otherwise: they come when they are routed, or when there is room for their prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.kv_groups import KvGroups
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.scheduler.control import ReplicaState
from pimserve.scheduler.count_routers import LeastOutstanding
from pimserve.scheduler.departures import Move
from pimserve.scheduler.requests import FOREVER, RequestTable


@dataclass(frozen=True, slots=True)
class Link:
    """What connects a replica to the other pool, one way.

    Args:
        bytes_per_s: bandwidth.
        latency_fs: until the first byte is there.
        bytes_per_token: KV cache of layers that see the whole context, those of a model that drafts with them.
        window_bytes_per_token: that of layers with a window.
        window_tokens: how far those see.
        layers: that leave one after the other, each when it is computed; 0: a cache leaves whole.
    """

    bytes_per_s: int
    latency_fs: int
    bytes_per_token: int
    window_bytes_per_token: int = 0
    window_tokens: int = 0
    layers: int = 0

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

    Layer by layer, of L layers that are computed from `computing` to `ready`: the first may go after an L-th of that
    time, the last at `ready`, after which an L-th of B / bandwidth is to come at least. As times and bytes grow evenly,
    the first or the last layer decides when all have left. Caches that one step computes share the sender's link: the
    later ones go where the earlier ones leave gaps.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self._leaving: dict[int, int] = {}  # by replica: from when its outgoing link is free
        self._step: dict[int, tuple[int, int]] = {}  # of its last step: (its beginning, end of its caches without gaps)
        self._coming: dict[int, int] = {}

    def send(
        self, size: int, source: int, target: int, ready_fs: int, computing_fs: int | None = None
    ) -> tuple[int, int, int]:
        """(begins to leave, has left, is there) of a cache of that size; layer by layer with `computing_fs`."""
        lasts = last_lasts = self.link.lasts_fs(size)
        free_fs, layers = self._leaving.get(source, 0), self.link.layers
        begin = max(ready_fs, free_fs)
        if computing_fs is not None:
            first_fs, last_lasts = computing_fs - (computing_fs - ready_fs) // layers, -(-lasts // layers)
            step_fs, carried_fs = self._step.get(source, (None, 0))
            begin = max(first_fs, carried_fs if step_fs == computing_fs else free_fs)
            self._step[source] = computing_fs, begin + lasts
        self._leaving[source] = left = max(begin + lasts, max(ready_fs, free_fs) + last_lasts)
        self._coming[target] = done = max(left + self.link.latency_fs, self._coming.get(target, 0) + lasts)
        return begin, left, done

    def failed(self, replica: int) -> None:
        """The links of a replica carry nothing any more."""
        self._leaving.pop(replica, None)
        self._step.pop(replica, None)
        self._coming.pop(replica, None)

    def state(self) -> list[list[tuple[int, Any]]]:
        """When which link is free, as JSON can hold it."""
        return [list(self._leaving.items()), list(self._coming.items()), list(self._step.items())]

    def restore(self, state: list[list[tuple[int, Any]]]) -> None:
        """Go on from `state`."""
        leaving, coming, steps = state
        self._leaving, self._coming = dict(leaving), dict(coming)
        self._step = {replica: (step_fs, carried_fs) for replica, (step_fs, carried_fs) in steps}


@dataclass(slots=True)
class HandoverFigures:
    """What was handed over: times in picoseconds; busy times in fs, of all links of a side together.

    Hand-overs that failures ended are counted as `lost`, and in nothing else.
    """

    bytes: int = 0
    held: int = 0  # had to wait for room, or for others that did
    waits_ps: list[int] = field(default_factory=list)  # from the first token until the cache begins to leave
    transfers_ps: list[int] = field(default_factory=list)  # from then until it is there
    busy_fs: int = 0
    lost: int = 0
    overlaps_ps: list[int] | None = None  # layer by layer: from when a cache begins to leave until the first token

    def take(self, transfer: Transfer) -> None:
        """Count a hand-over."""
        self.bytes += transfer.bytes
        self.held += transfer.held
        self.waits_ps.append(transfer.wait_ps)
        self.transfers_ps.append(transfer.lasts_ps)
        self.busy_fs += transfer.busy_fs
        if self.overlaps_ps is not None:
            self.overlaps_ps.append(transfer.overlap_ps)

    def lose(self, transfer: Transfer) -> None:
        """A failure has ended one that was counted."""
        self.bytes -= transfer.bytes
        self.held -= transfer.held
        self.waits_ps.remove(transfer.wait_ps)
        self.transfers_ps.remove(transfer.lasts_ps)
        self.busy_fs -= transfer.busy_fs
        if self.overlaps_ps is not None:
            self.overlaps_ps.remove(transfer.overlap_ps)
        self.lost += 1


@dataclass(frozen=True, slots=True)
class Transfer:
    """A KV cache on its way.

    Args:
        request: whose it is.
        source, target: the prefill replica and the decode replica.
        token_fs: when the request had its last token.
        left_fs: when the cache has left the one.
        done_fs: when it is at the other.
        bytes: of it.
        held: it had to wait for room, or for others that did.
        wait_ps: from the last token until it began to leave, if it did not before.
        lasts_ps: from then, or from the last token, until it is there.
        busy_fs: how long it keeps a link busy.
        overlap_ps: from when it began to leave until the last token, if it began before.
    """

    request: int
    source: int
    target: int
    token_fs: int
    left_fs: int
    done_fs: int
    bytes: int
    held: bool
    wait_ps: int
    lasts_ps: int
    busy_fs: int
    overlap_ps: int


class Handovers:
    """Requests between the pools.

    Args:
        link: the way.
        targets: numbers of the decode replicas.
        kv_blocks: of each of them.
        block_size: tokens of a block.
        kv_groups: how layers share them.
        lookahead_tokens: slots of a request beyond its tokens, for drafts.
    """

    def __init__(
        self,
        link: Link,
        targets: Sequence[int],
        kv_blocks: int,
        block_size: int,
        kv_groups: KvGroups,
        lookahead_tokens: int,
    ) -> None:
        self.lines = Lines(link)
        self.targets = targets
        self.figures = HandoverFigures(overlaps_ps=[] if link.layers else None)
        self._kv_blocks = kv_blocks
        self._block_size = block_size
        self._kv_groups = kv_groups
        self._first_step = 1 + lookahead_tokens  # slots beside what is held, as the first step there adds a token
        self._waiting: list[Move] = []
        self._sent: list[tuple[int, int, int]] = []  # (has left, request, replica) of blocks not yet released
        self._transfers: dict[int, Transfer] = {}  # by request; those that may not be there yet
        self._opened_fs = 0  # since when some decode replica takes hand-overs again
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

    def next_fs(self, now_fs: int) -> int:
        """When the first of those that wait, but not for a report, can go on; FOREVER if all wait for one."""
        if self._waiting and self._opened_fs == now_fs:
            return now_fs
        return min((move.since_fs for move in self._waiting if move.since_fs >= now_fs), default=FOREVER)

    @property
    def releases(self) -> bool:
        """Whether a prefill replica is still to have blocks back."""
        return bool(self._sent)

    def add(self, moves: Sequence[Move]) -> None:
        """Requests whose prompts were computed, and such as come from no replica, to have theirs computed."""
        self._waiting += moves

    def released(self, by_fs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(requests, prefill replicas) of caches that have left by then, each told once."""
        gone = sorted(sent for sent in self._sent if sent[0] <= by_fs)
        self._sent = [sent for sent in self._sent if sent[0] > by_fs]
        self._transfers = {request: way for request, way in self._transfers.items() if way.done_fs > by_fs}
        requests, replicas = [request for _, request, _ in gone], [replica for _, _, replica in gone]
        return np.array(requests, np.int64), np.array(replicas, np.int64)

    def opened(self, at_fs: int) -> None:
        """A decode replica takes hand-overs again from that time on; who waited for that goes on then."""
        self._opened_fs = at_fs

    def sender_failed(self, replica: int, at_fs: int) -> tuple[list[Move], list[Transfer]]:
        """A prefill replica fails: all requests whose caches it still had, and the hand-overs among them."""
        ways = [way for way in self._transfers.values() if way.source == replica and way.left_fs > at_fs]
        moves = [move for move in self._waiting if move.replica == replica]
        moves += [Move(way.request, replica, at_fs, way.token_fs) for way in ways]
        self._waiting = [move for move in self._waiting if move.replica != replica]
        self._sent = [sent for sent in self._sent if sent[2] != replica]
        self._lose(replica, ways)
        return [replace(move, since_fs=at_fs) for move in moves], ways

    def receiver_failed(self, replica: int, at_fs: int) -> None:
        """A decode replica fails: what was on its way there is lost."""
        ways = [way for way in self._transfers.values() if way.target == replica and way.done_fs > at_fs]
        self._lose(replica, ways)

    def route(
        self, before_fs: int, reported_fs: int, takers: Sequence[int], max_num_seqs: int, table: RequestTable
    ) -> list[tuple[int, Move]]:
        """(decode replica, move) of those that are ready before `before_fs` and find room, by time and number.

        Moves of those that bring nothing are from no replica.

        Args:
            before_fs: all that are ready before that time are known.
            reported_fs: when the decode replicas last told what room they have; who waited for that goes on then.
            takers: decode replicas that take hand-overs.
            max_num_seqs: requests that a decode replica has at most, on the way ones counted.
            table: prompts and tokens of all requests.
        """
        self._waiting.sort(key=lambda move: (move.since_fs, move.request))
        sent: list[tuple[int, Move]] = []
        told_fs = max(reported_fs, self._opened_fs)
        for move in self._waiting:
            if move.since_fs >= before_fs:
                break
            tokens = held_tokens(table, move.request)  # without any, there is still its prompt's last one to come
            needed = self._kv_groups.blocks(tokens + self._first_step, self._block_size, self._first_step)
            fitting = [r for r in takers if needed <= self._room[r] and self._outstanding[r] < max_num_seqs]
            if not fitting:
                break
            target = fitting[self._router.pick([self._outstanding[replica] for replica in fitting])]
            self._room[target] -= needed
            self._outstanding[target] += 1
            if move.replica < 0:
                sent.append((target, replace(move, since_fs=max(move.since_fs, told_fs))))
            else:
                sent.append((target, self._send(move, target, tokens, told_fs)))
        del self._waiting[: len(sent)]
        return sent

    def _send(self, move: Move, target: int, tokens: int, told_fs: int) -> Move:
        link, request, source, since = self.lines.link, move.request, move.replica, move.since_fs
        size, held = link.size(tokens), since < told_fs
        # Whoever waits for room has all layers by then. A replica that was away takes none before it is back.
        computing = max(move.computing_fs, self._opened_fs) if link.layers and not held else None
        begin, left, done = self.lines.send(size, source, target, max(since, told_fs), computing)
        self._sent.append((left, request, source))
        self._transfers[request] = way = Transfer(
            *(request, source, target, move.token_fs, left, done, size),
            held=held,
            wait_ps=max(0, begin - since) // FS_PER_PS,
            lasts_ps=(done - max(begin, since)) // FS_PER_PS,
            busy_fs=link.lasts_fs(size),
            overlap_ps=max(0, since - begin) // FS_PER_PS,
        )
        self.figures.take(way)
        return Move(request, source, done, move.token_fs)

    def _lose(self, replica: int, ways: Sequence[Transfer]) -> None:
        """These hand-overs end, as a replica fails."""
        self.lines.failed(replica)
        for way in ways:
            del self._transfers[way.request]
            self.figures.lose(way)

    def state(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "lines": self.lines.state(),
            "figures": asdict(self.figures),
            "waiting": [asdict(move) for move in self._waiting],
            "sent": self._sent,
            "transfers": [asdict(way) for way in self._transfers.values()],
            "opened_fs": self._opened_fs,
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
        self._transfers = {way["request"]: Transfer(**way) for way in state["transfers"]}
        self._opened_fs = state["opened_fs"]
        self._router.restore(state["router"])
        self._room, self._outstanding = dict(state["room"]), dict(state["outstanding"])


def held_tokens(table: RequestTable, request: int) -> int:
    """Tokens in the KV cache of a request that has its first token: all but the last one."""
    return int(table["input_tokens"][request] + table["emitted_tokens"][request]) - 1
