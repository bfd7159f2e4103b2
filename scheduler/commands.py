"""What commands change: settings of the scheduler, the rate of requests to come, and more requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from pydantic import ValidationError

from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.errors import InputError, validation_error
from pimserve.loadgen.spec import MAX_TIME_S, PS_PER_S
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import (
    ChangeScheduler,
    Command,
    Inject,
    ScaleRate,
    command_document,
    command_of,
)
from pimserve.scheduler.fleet import Fleet
from pimserve.scheduler.length_predictor import LengthPredictor
from pimserve.scheduler.open_loop import Arrivals
from pimserve.scheduler.requests import NEVER, RequestTable
from pimserve.scheduler.router import make_router
from pimserve.scheduler.router_protocol import BlindRouter
from pimserve.scheduler.shard_port import ShardPort


class Journal(Protocol):
    """Keeps the commands that were taken, and when."""

    def taken(self, now_fs: int, command: dict[str, Any]) -> None:
        """Write down a command that took effect."""

    def pending(self, now_fs: int) -> tuple[int, list[dict[str, Any]]] | None:
        """Time and commands of the first entry at or after `now_fs`, from before the run was interrupted; or None."""


def numbers_told(journal: Journal, now_fs: int) -> int:
    """The end of the numbers that requests were told which are to be injected again, at `now_fs` or later."""
    end = 0
    while (pending := journal.pending(now_fs)) is not None:
        now_fs = pending[0] + 1
        for command in map(command_of, pending[1]):
            if isinstance(command, Inject) and command.first_request is not None:
                end = max(end, command.first_request + len(command.input_tokens))
    return end


def rescheduled(spec: SchedulerSpec, command: ChangeScheduler, chunk_tokens: int | None) -> SchedulerSpec:
    """The settings, changed.

    Args:
        spec: the settings.
        command: what changes.
        chunk_tokens: of a prompt that attention windows have KV blocks for in a step; None: of any.

    Raises:
        InputError: they do not go together.
    """
    budget = command.max_num_batched_tokens
    if budget is not None and chunk_tokens is not None and budget > chunk_tokens:
        raise InputError(
            "scheduler.max_num_batched_tokens",
            f"must be at most {chunk_tokens}, with which the run began: the model's attention windows have KV blocks "
            f"for steps of so many tokens (got {budget})",
        )
    seqs, width, kept = command.max_num_seqs, spec.verify_tokens, spec.max_num_batched_tokens
    if seqs is not None and budget is None and spec.batching == "chunked" and kept < seqs * width:
        raise InputError(
            "scheduler.max_num_seqs",
            f"must be at most {kept // width}, or max_num_batched_tokens, which is {kept}, be changed to at least "
            f"{seqs * width} with it: every running request has {width} in each step (got {seqs})",
        )
    changes = {name: value for name in ChangeScheduler.__slots__ if (value := getattr(command, name)) is not None}
    try:
        return SchedulerSpec.model_validate({**spec.model_dump(), **changes})
    except ValidationError as error:
        raise validation_error("scheduler", error, SchedulerSpec) from None


class Commands:
    """What a run was told while it goes, and what that makes of it.

    Args:
        fleet: the replicas, with the settings of the scheduler at the beginning.
        table: all requests.
        arrivals: those that have yet to arrive.
        shards: of the run.
        journal: keeps the commands.
        closed: the run is a closed loop.
    """

    def __init__(
        self,
        fleet: Fleet,
        table: RequestTable,
        arrivals: Arrivals,
        shards: Sequence[ShardPort],
        *,
        journal: Journal | None,
        closed: bool,
    ) -> None:
        self.spec = fleet.spec
        self.changed = False  # with the next window
        self._table = table
        self._arrivals = arrivals
        self._shards = shards
        self._fleet = fleet
        self._journal = journal
        self._closed = closed

    def next_fs(self, now_fs: int) -> int | None:
        """When commands of before an interruption take effect again, after `now_fs`; None: none do."""
        pending = None if self._journal is None else self._journal.pending(now_fs + 1)
        return None if pending is None else pending[0]

    def begin(self, now_fs: int) -> None:
        """The run begins, or goes on."""
        if self._journal is not None:
            self._table.numbers = self._table.numbers.taken_to(numbers_told(self._journal, now_fs))

    def replay(self, now_fs: int) -> None:
        """Give the commands again that took effect now before the run was interrupted."""
        pending = self._journal.pending(now_fs) if self._journal is not None else None
        if pending is not None and pending[0] == now_fs:
            for document in pending[1]:
                self._apply(command_of(document), now_fs)

    def take(self, command: Command, now_fs: int) -> None:
        """Let a command take effect.

        Raises:
            InputError: it cannot.
        """
        if isinstance(command, Inject):
            command = replace(command, first_request=self._table.numbers.end)
        self._apply(command, now_fs)
        if self._journal is not None:
            self._journal.taken(now_fs, command_document(command))

    def _apply(self, command: Command, now_fs: int) -> None:
        if isinstance(command, ChangeScheduler):
            spec = rescheduled(self.spec, command, self._fleet.window_chunk_tokens)
            if spec.router != self.spec.router:
                self._check_router(spec)
                self._arrivals.use(spec)
            self.spec, self.changed = spec, True
        elif self._closed:
            raise InputError("command", "a closed loop has neither a rate nor room for more requests")
        elif isinstance(command, ScaleRate):
            scale_rate(command, now_fs, self._table, self._arrivals.to_come())
        else:
            limits = self._fleet.max_model_len, self._fleet.kv_tokens
            inject(command, now_fs, self._table, self._arrivals, limits, self._fleet.predictor)
            for shard in self._shards:
                shard.rebind()

    def _check_router(self, spec: SchedulerSpec) -> None:
        """Refuse a router that these shards could not have begun with.

        Raises:
            InputError: it sees what is not here at the moment of an arrival.
        """
        router = make_router(spec.router, self._fleet.seed)
        exact = not isinstance(router, BlindRouter) and not spec.report_interval_s and self._fleet.concurrency is None
        if exact and len(self._shards) > 1:
            raise InputError(
                "scheduler.router",
                f"{spec.router_name!r} looks at all replicas at each arrival, as report_interval_s is 0; the replicas "
                "of this run are in several shards: a router that does not look at them is needed",
            )


def scale_rate(command: ScaleRate, now_fs: int, table: RequestTable, rows: range) -> None:
    """Let the requests in these rows arrive so many times as fast.

    Raises:
        InputError: that puts them beyond the clock's end.
    """
    arrival, now = table["arrival_ps"][rows.start : rows.stop], now_fs // FS_PER_PS
    gaps = np.rint((arrival - now) / command.factor)
    if len(gaps) and now + gaps[-1] > MAX_TIME_S * PS_PER_S:
        raise InputError("factor", f"{command.factor:g} puts arrivals beyond {MAX_TIME_S:g} s")
    arrival[:] = now + gaps.astype(np.int64)


def inject(
    command: Inject,
    now_fs: int,
    table: RequestTable,
    arrivals: Arrivals,
    limits: tuple[int, int],
    predictor: LengthPredictor,
) -> None:
    """Put more requests into the table, among those that have yet to arrive or behind all; limits as it has them.

    Raises:
        InputError: they arrive beyond the clock's end.
    """
    if now_fs / FS_PER_S + command.delay_s > MAX_TIME_S:
        raise InputError("delay_s", f"{command.delay_s:g} s puts arrivals beyond {MAX_TIME_S:g} s")
    arrival_ps = now_fs // FS_PER_PS + round(command.delay_s * FS_PER_S) // FS_PER_PS
    arrivals_ps = np.full(len(command.input_tokens), arrival_ps, np.int64)
    tokens = np.array(command.input_tokens), np.array(command.output_tokens)
    more = RequestTable(arrivals_ps, *tokens, *limits)
    first = table.numbers.end if command.first_request is None else command.first_request
    more["predicted_tokens"][:] = predictor.predict_injected(tokens[1], first)
    rows, end = arrivals.to_come(), len(table)
    if not arrivals.rows_stay:
        to_come = table["arrival_ps"][rows.start :]
        at = rows.start + int(np.searchsorted(to_come, arrival_ps, side="right"))
        table.insert(at, arrivals_ps, more, command.first_request)
    else:
        table.insert(end, np.full(len(more), NEVER, np.int64), more, command.first_request)
        arrivals.add(range(end, end + len(more)), arrival_ps)
