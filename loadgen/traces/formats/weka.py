"""Agentic coding sessions (callanjfox/kv-cache-tester, Apache-2.0): a JSON file for each, turns in nested lists.

A turn follows the one before it in its list. A sub-agent is a list of its own, which begins after the turn before it;
the first later turn that began when the sub-agent had ended (in recorded times) waits for it too. `t` is in seconds
from the session's beginning, a sub-agent's from its own; when sessions began is not recorded, so that all do at 0. Ids
of blocks are a session's own, unless `hash_id_scope` is global, and only full blocks of `block_size` tokens have one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np

from pimserve.errors import InputError
from pimserve.loadgen.traces.jsonl_rows import DECODER
from pimserve.loadgen.traces.ordered_rows import durations, in_order, rows_as_read
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.loadgen.traces.rows import Columns, Reading, TraceRows
from pimserve.loadgen.traces.rows_read import Record, RowsRead, refuse_if_empty
from pimserve.loadgen.traces.times import CLOCKS, TIME_LIMIT_PS
from pimserve.loadgen.traces.trace_files import Head, Member, is_named, members_named
from pimserve.loadgen.traces.trace_format import TraceFormat
from pimserve.loadgen.traces.trace_sessions import UNKNOWN, of_parents
from pimserve.loadgen.traces.weka_description import describe_weka

_COLUMNS = Columns("t", "in", "out", duration="api_time", blocks="hash_ids")
_MAX_BYTES = 1 << 28
_SESSION_IDS = 1 << 32  # a session's own ids of blocks lie below that


@dataclass
class _Turns:
    """What was read so far; of each row its parents, its think time as recorded (ps, else -1), and its session."""

    read: RowsRead
    parents: list[list[int]] = field(default_factory=list)
    think_ps: list[int] = field(default_factory=list)
    session: list[int] = field(default_factory=list)
    requests: int = 0  # of the file under way

    def add_list(
        self, member: Member, requests: object, begin_s: Decimal, before: list[int], first_id: int
    ) -> list[int]:
        """Add turns that follow `before`; returns the rows that all are waited for by what waits for the list."""
        agents: list[list[int]] = []  # those that nobody waited for so far
        last, last_s = before, begin_s
        for entry in requests if isinstance(requests, list) else [requests]:
            agent = isinstance(entry, dict) and entry.get("type") == "subagent"
            self.requests += not agent
            since_s = _seconds(entry.get("t")) if isinstance(entry, dict) else None
            if not isinstance(entry, dict) or since_s is None or begin_s + since_s < last_s:
                message = "a request is an object with `t`, seconds >= 0, not before the one that it follows"
                self.read.drop_or_refuse(f"{member.place}:{self.requests}", message)
                continue
            time_s = begin_s + since_s
            if agent:
                ends = self.add_list(member, entry.get("requests"), time_s, last, first_id)
                agents += [ends] if ends else []
            elif (row := self._add(member, entry, time_s, first_id)) is not None:
                joined = [ends for ends in agents if max(map(self._end_ps, ends)) <= self.read.times.after_ps[row]]
                agents = [ends for ends in agents if ends not in joined]
                self.parents.append(sorted({*last, *(end for ends in joined for end in ends)}))
                self.think_ps.append(UNKNOWN if joined or last is before else self._think_ps(entry, row, last[0]))
                last, last_s = [row], time_s
        return [] if last is before else [*last, *(end for ends in agents for end in ends)]

    def _add(self, member: Member, entry: dict[str, Any], time_s: Decimal, first_id: int) -> int | None:
        """Its row, if it is good."""
        row, blocks = len(self.read.times.after_ps), entry.get("hash_ids")
        if isinstance(blocks, list):
            blocks = [first_id + each if _is_own(each) else each for each in blocks]
        record = Record(
            line=self.requests,
            arrival=f"{time_s:f}",
            inputs=entry.get("in"),
            outputs=entry.get("out"),
            duration=entry.get("api_time"),
            blocks=blocks,
        )
        self.read.add_record(member.place, record)
        return row if len(self.read.times.after_ps) > row else None

    def _think_ps(self, entry: dict[str, Any], row: int, before: int) -> int:
        """As recorded; -1 where it is not.

        Where nobody recorded how long the request before took, the record counts from the last end that is known, which
        may be that of an earlier one: then it is no more than the whole gap.
        """
        time_s = _seconds(entry.get("think_time"))
        if time_s is None:
            return UNKNOWN
        starts_ps, known = self.read.times.after_ps, self.read.durations_ps[before] >= 0
        longest_ps = TIME_LIMIT_PS if known else starts_ps[row] - starts_ps[before]
        return min(CLOCKS["s"].read(f"{time_s:f}"), longest_ps)

    def _end_ps(self, row: int) -> int:
        return self.read.times.after_ps[row] + max(self.read.durations_ps[row], 0)


def _is_own(number: object) -> bool:
    return type(number) is int and 0 <= number < _SESSION_IDS


def _seconds(value: object) -> Decimal | None:
    try:
        time_s = Decimal(value) if isinstance(value, str) or type(value) is int else None
    except InvalidOperation:
        return None
    return time_s if time_s is not None and time_s.is_finite() and time_s >= 0 else None


def _session(member: Member) -> dict[str, Any]:
    """The document of a file. Raises InputError if it is no session."""
    data = member.content.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise InputError(member.place, f"is larger than {_MAX_BYTES >> 20} MiB")
    try:
        document = DECODER.decode(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(member.place, "is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise InputError(member.place, f"not JSON that can be read: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("requests"), list):
        raise InputError(member.place, "must be an object with a list `requests`")
    size = document.get("block_size")
    if type(size) is not int or size < 1:
        raise InputError(member.place, "block_size must be a whole number >= 1")
    return document


def read_weka(path: Path, columns: Columns, reading: Reading) -> TraceRows:
    """Turns of sessions, a file for each. Raises InputError with "path:request" for a bad one, counted from 1."""
    turns: _Turns | None = None
    sessions = 0
    for member in members_named(path, ".json"):
        document = _session(member)
        if turns is None:
            its = replace(columns, block_tokens=document["block_size"])
            turns = _Turns(RowsRead(its, replace(reading, sort=True)))
        if document["block_size"] != turns.read.columns.block_tokens:
            message = f"block_size is {document['block_size']}, not {turns.read.columns.block_tokens} as before"
            raise InputError(member.place, message)
        turns.requests = 0
        first_id = 0 if document.get("hash_id_scope") == "global" else _SESSION_IDS * (1 + sessions)
        turns.add_list(member, document["requests"], Decimal(0), [], first_id)
        new_rows = len(turns.read.times.after_ps) - len(turns.session)
        turns.session += [sessions] * new_rows
        sessions += new_rows > 0
    assert turns is not None  # members_named gives one at least
    if not len(turns.read):
        raise InputError(str(path), "no session has a request")
    refuse_if_empty(path, turns.read)
    return _rows(turns)


def _rows(turns: _Turns) -> TraceRows:
    rows = rows_as_read(turns.read)
    links = np.array(turns.session, np.int64), Ragged.of(turns.parents)
    found = of_parents(rows.after_ps, durations(turns.read), *links)
    recorded_ps = np.array(turns.think_ps, np.int64)
    sessions = replace(found, think_ps=np.where(recorded_ps >= 0, recorded_ps, found.think_ps))
    return in_order(replace(rows, sessions=sessions), np.argsort(rows.after_ps, kind="stable"))


def _recognises(heads: Sequence[Head], _columns: Columns) -> bool:
    files = [head for head in heads if head.alone or is_named(head.name, ".json")]
    marks = (b'"requests"', b'"block_size"')
    return bool(files) and all(
        head.data.lstrip().startswith(b"{") and all(mark in head.data for mark in marks) for head in files
    )


FORMAT = TraceFormat(
    "weka",
    "agentic sessions, a JSON file for each with requests, block_size, hash_ids and nested sub-agents",
    _recognises,
    read_weka,
    _COLUMNS,
    long_name="weka_trace_json",
    describe=describe_weka,
)
