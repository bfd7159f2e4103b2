"""What prompts begin with, for prefix caches in other processes: ids of blocks, as runs of ascending ones.

Ids of what prompts have in common follow each other (`PrefixBlocks.ids`), so there are about as many runs as parts of
prompts, however small blocks are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.distributed.shards.shard_wire import from_message, in_pieces, to_message
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.scheduler.request_numbers import RequestNumbers
from pimserve.scheduler.requests import RequestTable
from pimserve.v1 import shard_pb2 as pb


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
