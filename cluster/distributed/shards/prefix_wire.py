"""What prompts begin with, and what becomes of cached blocks, for other processes: ids, as runs of ascending ones.

Ids of what prompts have in common follow each other (`PrefixBlocks.ids`), so there are about as many runs as parts of
prompts, however small blocks are. So there are in what is said of blocks: they are stored from a prompt's beginning on,
and forgotten from its end, where -1 - id ascends as well.
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


def event_messages(events: Iterable[tuple[int, Sequence[int]]]) -> Iterator[list[pb.KvEvents]]:
    """What replicas say of their caches (`Report.kv_events`), in pieces of less than a megabyte; at least one."""
    piece: list[pb.KvEvents] = []
    room = _RUNS_PER_MESSAGE
    for replica, told in events:
        if not told:
            continue
        _, firsts, lengths = in_runs(Ragged.of([told]))
        while len(firsts):
            last = np.concatenate([[0], (firsts + lengths - 1)[:room]])
            now = firsts[:room] - last[: len(firsts[:room])]
            piece.append(pb.KvEvents(replica=replica, firsts=now.tolist(), lengths=lengths[:room].tolist()))
            firsts, lengths, room = firsts[room:], lengths[room:], room - len(now)
            if not room:
                yield piece
                piece, room = [], _RUNS_PER_MESSAGE
    yield piece


def events_of(messages: Iterable[pb.KvEvents]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """What `event_messages` was given; of replicas that said something.

    Raises:
        InputError: a message has not as many firsts as lengths.
    """
    told: dict[int, list[int]] = {}
    for message in messages:
        deltas, lengths = np.array(message.firsts, np.int64), np.array(message.lengths, np.int64)
        if len(deltas) != len(lengths):
            raise InputError("kv_events", f"replica {message.replica}: needs as many firsts as lengths")
        firsts = np.cumsum(deltas) + np.concatenate([[0], np.cumsum(lengths - 1)])[:-1]
        runs = of_runs(np.array([len(firsts)]), firsts, lengths)
        told.setdefault(message.replica, []).extend(runs.values.tolist())
    return tuple((replica, tuple(events)) for replica, events in told.items())


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
