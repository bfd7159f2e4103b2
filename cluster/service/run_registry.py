"""All runs that a server knows, in a SQLite file: what was asked for, how it stands, and how it ended."""

from __future__ import annotations

import errno
import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from pimserve.cluster.base.files import PRIVATE, warn_unless_private
from pimserve.errors import InputError

State = Literal["queued", "starting", "running", "paused", "finished", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
ACTIVE: tuple[State, ...] = ("starting", "running", "paused")
ENDED: tuple[State, ...] = ("finished", "failed", "cancelled")
_FIRST = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    speed REAL NOT NULL,
    start_paused INTEGER NOT NULL,
    created_s REAL NOT NULL,
    started_s REAL,
    ended_s REAL,
    error TEXT NOT NULL,
    restarts INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    progress TEXT NOT NULL,
    idempotency_key TEXT UNIQUE,
    request_digest TEXT NOT NULL
);
CREATE INDEX runs_by_state ON runs (state);
"""
# What makes a file of each version out of one of the version before; a new file goes through all of them.
_MIGRATIONS = (
    _FIRST,
    """
    ALTER TABLE runs ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
    UPDATE runs SET held = 1 WHERE state = 'paused' OR (state = 'queued' AND start_paused);
    ALTER TABLE runs ADD COLUMN place TEXT NOT NULL DEFAULT '{}';
    """,
    "ALTER TABLE runs ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';",
    "CREATE TABLE spare (number INTEGER PRIMARY KEY, filler BLOB);",
)
_VERSION = len(_MIGRATIONS)
_SPARE_PAGES = 64  # of 4 KB; a run takes less than one


@dataclass(frozen=True, slots=True)
class Record:
    """One run.

    Args:
        number: by which runs are ordered.
        id: by which people name it.
        name: of the scenario.
        state: how it stands.
        speed: simulated seconds per second, 0 for as fast as possible.
        start_paused: whether it is held before its first step.
        created_s: when it was launched; seconds since 1970, like the other times.
        started_s: when it left the queue.
        ended_s: when it ended.
        error: why it failed.
        restarts: how often its process died and was started again.
        cancelled: whether someone asked for its end.
        progress: as JSON; of a run that has ended.
        idempotency_key: with which it was launched.
        request_digest: of the request that launched it.
        held: whether it is held, or is to be as soon as its process runs.
        place: where it computes, as JSON (`launch_options.py`).
        labels: to find it by, as JSON.
    """

    number: int
    id: str
    name: str
    state: State
    speed: float
    start_paused: bool
    created_s: float
    started_s: float | None
    ended_s: float | None
    error: str
    restarts: int
    cancelled: bool
    progress: str
    idempotency_key: str | None
    request_digest: str
    held: bool
    place: str
    labels: str


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What is asked for when a run is launched; see `Record`. Without an idempotency key, that is empty."""

    name: str
    speed: float
    start_paused: bool
    idempotency_key: str
    request_digest: str
    place: str = "{}"
    labels: str = "{}"


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs are wanted.

    Args:
        states: in one of these; none for all.
        name: with this name, in which * stands for any characters; empty for all.
        labels: that they all have.
        since_s: launched then or later, seconds since 1970.
        until_s: launched before then.
    """

    states: Collection[State] = ()
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    since_s: float | None = None
    until_s: float | None = None

    def sql(self) -> tuple[str, list[object]]:
        """The condition, and the values of its marks."""
        parts: list[tuple[str, Sequence[object]]] = [
            ("EXISTS (SELECT 1 FROM json_each(labels) WHERE key = ? AND value = ?)", label)
            for label in self.labels.items()
        ]
        states = list(self.states or STATES)
        parts.append((f"state IN ({', '.join('?' * len(states))})", states))
        if self.name:
            parts.append(("name GLOB ?", [re.sub(r"[?\[\]]", r"[\g<0>]", self.name)]))
        if self.since_s is not None:
            parts.append(("created_s >= ?", [self.since_s]))
        if self.until_s is not None:
            parts.append(("created_s < ?", [self.until_s]))
        return " AND ".join(part for part, _ in parts), [value for _, values in parts for value in values]


_COLUMNS = ", ".join(field.name for field in fields(Record))
_BOOLEANS = ("start_paused", "cancelled", "held")


class Registry:
    """The file, made for its user only; usable from any thread, by one server. Warns if other users may read it.

    Raises:
        InputError: it cannot be opened, or another pimserve wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._path = path
        try:
            path.touch(PRIVATE)  # SQLite gives its files beside it the same permissions
            warn_unless_private(path)
            # Transactions are begun here and end with the block, so that each is a whole.
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if not 0 <= version <= _VERSION:
                self._connection.close()
                raise InputError(str(path), f"is of version {version}; this pimserve reads up to {_VERSION}")
            # In place: what was written once can be written again when the disk is full (`_keep_spare`).
            self._connection.execute("PRAGMA journal_mode = PERSIST")
            self._connection.execute("PRAGMA temp_store = MEMORY")
            for number, migration in enumerate(_MIGRATIONS[version:], start=version + 1):
                self._connection.executescript(f"BEGIN; {migration} PRAGMA user_version = {number}; COMMIT;")
            with suppress(sqlite3.Error):  # a full disk; there may be room in the file
                self._keep_spare()
        except (sqlite3.Error, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise InputError(str(path), f"cannot be used as a registry: {why}") from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def add(self, run_id: str, asked: RunRequest) -> Record:
        """A new run, at the end of the queue.

        Raises:
            OSError: the disk is full.
        """
        values: dict[str, object] = {
            **asdict(asked),
            "id": run_id,
            "state": "queued",
            "created_s": time.time(),
            "error": "",
            "restarts": 0,
            "cancelled": False,
            "progress": "{}",
            "idempotency_key": asked.idempotency_key or None,
            "held": asked.start_paused,
        }
        marks = ", ".join("?" * len(values))
        with self._lock, self._full_disk():
            self._keep_spare()  # how runs end can always be written, at the price of new ones
        with self._transaction() as connection:
            connection.execute(f"INSERT INTO runs ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))
            return _one(connection, "id = ?", run_id)

    def get(self, run_id: str) -> Record | None:
        """The run of that id."""
        with self._transaction() as connection:
            return next(_records(connection, "id = ?", run_id), None)

    def by_key(self, idempotency_key: str) -> Record | None:
        """The run that was launched with that key."""
        with self._transaction() as connection:
            return next(_records(connection, "idempotency_key = ?", idempotency_key), None)

    def page(self, size: int, before: int | None, wanted: RunFilter) -> list[Record]:
        """Up to `size` runs that are wanted, newest first, of lower number than `before`."""
        conditions, values = wanted.sql()
        with self._transaction() as connection:
            return list(
                _records(
                    connection,
                    f"number < ? AND {conditions} ORDER BY number DESC LIMIT ?",
                    2**62 if before is None else before,
                    *values,
                    size,
                )
            )

    def in_states(self, *states: State) -> list[Record]:
        """All runs in those states, oldest first."""
        marks = ", ".join("?" * len(states))
        with self._transaction() as connection:
            return list(_records(connection, f"state IN ({marks}) ORDER BY number", *states))

    def start(self, run_id: str) -> None:
        """It leaves the queue: its process starts."""
        self._change(run_id, ("queued",), state="starting", started_s=time.time())

    def begun(self, run_id: str) -> None:
        """Its process has started, with whatever else it runs on: the run goes on, or is held."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE runs SET state = CASE WHEN held THEN 'paused' ELSE 'running' END "
                "WHERE id = ? AND state = 'starting'",
                (run_id,),
            )

    def hold(self, run_id: str, *, held: bool) -> None:
        """It is held, or goes on."""
        self._change(run_id, ACTIVE, held=held, state="paused" if held else "running")

    def pace(self, run_id: str, speed: float) -> None:
        """It goes on at another speed."""
        self._change(run_id, ("queued", *ACTIVE), speed=speed)

    def restarting(self, run_id: str) -> None:
        """Its process has ended, and another is about to start."""
        self._change(run_id, ACTIVE, state="starting")

    def died(self, run_id: str) -> Record:
        """Its process died, which counts, and another is about to start; returns the run as it is then."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE runs SET restarts = restarts + 1, state = 'starting' WHERE id = ?",
                (run_id,),
            )
            return _one(connection, "id = ?", run_id)

    def cancel(self, run_id: str) -> None:
        """Someone asked for its end."""
        self._change(run_id, ACTIVE, cancelled=True)

    def end(self, run_id: str, state: State, error: str, progress: dict[str, Any]) -> None:
        """It has ended; what has ended stays as it is."""
        self._change(
            run_id,
            ("queued", *ACTIVE),
            state=state,
            error=error,
            progress=json.dumps(progress),
            ended_s=time.time(),
        )

    def requeue(self, run_id: str) -> None:
        """It has failed, and waits for its turn to go on."""
        self._change(run_id, ("failed",), state="queued", error="", ended_s=None, cancelled=False)

    def remove(self, run_id: str) -> None:
        """Forget it."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM runs WHERE id = ?", (run_id,))

    def _change(self, run_id: str, states: Sequence[State], **values: object) -> None:
        settings = ", ".join(f"{name} = ?" for name in values)
        marks = ", ".join("?" * len(states))
        with self._transaction() as connection:
            connection.execute(
                f"UPDATE runs SET {settings} WHERE id = ? AND state IN ({marks})",
                (*values.values(), run_id, *states),
            )

    def _keep_spare(self) -> None:
        """Have free pages in the file, and as many in its journal.

        Both keep their places on the disk, so that changes of runs can be written when it is full. Three transactions:
        pages are written, changed, and freed.
        """
        if self._connection.execute("PRAGMA freelist_count").fetchone()[0] >= _SPARE_PAGES:
            return
        page_bytes = self._connection.execute("PRAGMA page_size").fetchone()[0]
        try:
            size = 2 * _SPARE_PAGES * page_bytes
            self._connection.execute("INSERT OR REPLACE INTO spare VALUES (1, ?)", (b"\1" * size,))
            self._connection.execute("UPDATE spare SET filler = ?", (b"\2" * size,))
        finally:
            self._connection.execute("DELETE FROM spare")

    @contextmanager
    def _full_disk(self) -> Iterator[None]:
        """Have SQLite tell of a full disk as the system does."""
        try:
            yield
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path)) from None
            raise

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._full_disk():
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _records(connection: sqlite3.Connection, condition: str, *values: object) -> Iterator[Record]:
    for row in connection.execute(f"SELECT {_COLUMNS} FROM runs WHERE {condition}", values):
        yield Record(**{**dict(row), **{name: bool(row[name]) for name in _BOOLEANS}})


def _one(connection: sqlite3.Connection, condition: str, *values: object) -> Record:
    return next(_records(connection, condition, *values))
