"""What prompts begin with, and what becomes of cached blocks, for other processes: ids, as runs of ascending ones.

Ids of what prompts have in common follow each other (`PrefixBlocks.ids`), so there are about as many runs as parts of
prompts, however small blocks are. What replicas say of blocks is what has come of it since the last report, by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.distributed.shards.shard_wire import from_message, in_pieces, to_message
from pimserve.errors import InputError
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.scheduler.request_numbers import RequestNumbers
from pimserve.scheduler.requests import RequestTable
from pimserve.v1 import shard_pb2 as pb

_RUNS_PER_MESSAGE = 2**15  # of two numbers of ten bytes at most


@dataclass(frozen=True, eq=False)
class _Prefixes:
    """Ids of blocks of n requests: `runs` (n,) of each; (m,) the `firsts` of all runs and their `lengths`.

    `numbers`: which row of the table has which of the n requests.
    """

    numbers: dict[str, Any]
    runs: IntArray
    firsts: IntArray
    lengths: IntArray


def in_runs(ids: Ragged) -> tuple[IntArray, IntArray, IntArray]:
    """(n,) runs of ascending ids in each row, and of all of these (m,) the first id and how many there are."""
    begins = np.ones(len(ids.values), np.bool_)
    begins[1:] = np.diff(ids.values) != 1
    begins[ids.offsets[:-1][ids.lengths > 0]] = True
    places = np.flatnonzero(begins)
    lengths = np.diff(np.append(places, len(begins)))
    return np.diff(np.searchsorted(places, ids.offsets)), ids.values[places], lengths


def of_runs(runs: IntArray, firsts: IntArray, lengths: IntArray) -> Ragged:
    """The ids that `in_runs` was given."""
    ends = np.concatenate([[0], np.cumsum(lengths)])
    values = np.repeat(firsts - ends[:-1], lengths) + np.arange(ends[-1])
    return Ragged(ends[np.concatenate([[0], np.cumsum(runs)])], values)


def in_the_end(events: Sequence[int]) -> IntArray:
    """What comes of events (`PrefixIndex.heard`) in the end: blocks that are stored, by id, and then those removed.

    What was stored and removed meanwhile is not there, so nor is it in what others know afterwards.
    """
    told = np.array(events, np.int64)
    blocks, which = np.unique(np.where(told >= 0, told, -1 - told), return_inverse=True)
    change = np.zeros(len(blocks), np.int64)
    np.add.at(change, which, np.where(told >= 0, 1, -1))
    return np.concatenate([blocks[change > 0], -1 - blocks[change < 0][::-1]])


def event_messages(events: Iterable[tuple[int, int, Sequence[int]]]) -> Iterator[list[pb.KvEvents]]:
    """What comes of what replicas say (`Report.kv_events`), in pieces of less than a megabyte; at least one."""
    piece: list[pb.KvEvents] = []
    room = _RUNS_PER_MESSAGE
    for replica, tier, told in events:
        changed = in_the_end(told)
        _, firsts, lengths = in_runs(Ragged(np.array([0, len(changed)]), changed))
        while len(firsts):
            last = np.concatenate([[0], (firsts + lengths - 1)[:room]])
            now = firsts[:room] - last[: len(firsts[:room])]
            piece.append(pb.KvEvents(replica=replica, tier=tier, firsts=now.tolist(), lengths=lengths[:room].tolist()))
            firsts, lengths, room = firsts[room:], lengths[room:], room - len(now)
            if not room:
                yield piece
                piece, room = [], _RUNS_PER_MESSAGE
    yield piece


def events_of(messages: Iterable[pb.KvEvents]) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """What comes of what `event_messages` was given; of replicas and tiers where something has changed.

    Raises:
        InputError: a message has not as many firsts as lengths.
    """
    told: dict[tuple[int, int], list[int]] = {}
    for message in messages:
        deltas, lengths = np.array(message.firsts, np.int64), np.array(message.lengths, np.int64)
        if len(deltas) != len(lengths):
            raise InputError("kv_events", f"replica {message.replica}: needs as many firsts as lengths")
        firsts = np.cumsum(deltas) + np.concatenate([[0], np.cumsum(lengths - 1)])[:-1]
        runs = of_runs(np.array([len(firsts)]), firsts, lengths)
        told.setdefault((message.replica, message.tier), []).extend(runs.values.tolist())
    return tuple((replica, tier, tuple(events)) for (replica, tier), events in told.items())


def prefix_messages(table: RequestTable, sequence: int) -> Iterator[pb.RestoreShardRequest]:
    """All that a table knows of what prompts begin with, in pieces of about a megabyte."""
    if table.prefixes is None:
        return
    known = _Prefixes(table.numbers.state(), *in_runs(table.prefixes))
    for text, arrays in in_pieces(*to_message(known)):
        yield pb.RestoreShardRequest(prefixes=text, arrays=arrays, sequence=sequence)


def take_prefixes(messages: Sequence[pb.RestoreShardRequest], table: RequestTable) -> None:
    """Put what the messages know of what prompts begin with into the table, whose rows are those of their sender.

    Raises:
        InputError: they hold something else.
    """
    text = "".join(message.prefixes for message in messages)
    if text:
        known = from_message(_Prefixes, text, [column for message in messages for column in message.arrays])
        table.numbers = RequestNumbers.of_state(len(table), known.numbers)
        table.prefixes = of_runs(known.runs, known.firsts, known.lengths)
