"""What commands change: settings of the scheduler, the rate of requests to come, and more requests."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from pydantic import ValidationError

from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.errors import InputError, validation_error
from pimserve.loadgen.spec import MAX_TIME_S, PS_PER_S
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import ChangeScheduler, Inject, ScaleRate, command_of
from pimserve.scheduler.requests import RequestTable


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
    changes = {name: value for name in ChangeScheduler.__slots__ if (value := getattr(command, name)) is not None}
    try:
        return SchedulerSpec.model_validate({**spec.model_dump(), **changes})
    except ValidationError as error:
        raise validation_error("scheduler", error, SchedulerSpec) from None


def scale_rate(command: ScaleRate, now_fs: int, table: RequestTable, first: int) -> None:
    """Let requests from `first` on arrive so many times as fast.

    Raises:
        InputError: that puts them beyond the clock's end.
    """
    arrival, now = table["arrival_ps"], now_fs // FS_PER_PS
    gaps = np.rint((arrival[first:] - now) / command.factor)
    if len(gaps) and now + gaps[-1] > MAX_TIME_S * PS_PER_S:
        raise InputError("factor", f"{command.factor:g} puts arrivals beyond {MAX_TIME_S:g} s")
    arrival[first:] = now + gaps.astype(np.int64)


def inject(command: Inject, now_fs: int, table: RequestTable, first: int, max_model_len: int, kv_tokens: int) -> None:
    """Put more requests into the table, not before row `first`; limits as in `RequestTable`.

    Raises:
        InputError: they arrive beyond the clock's end.
    """
    if now_fs / FS_PER_S + command.delay_s > MAX_TIME_S:
        raise InputError("delay_s", f"{command.delay_s:g} s puts arrivals beyond {MAX_TIME_S:g} s")
    arrival_ps = now_fs // FS_PER_PS + round(command.delay_s * FS_PER_S) // FS_PER_PS
    arrivals = np.full(len(command.input_tokens), arrival_ps, np.int64)
    tokens = np.array(command.input_tokens), np.array(command.output_tokens)
    at = max(first, int(np.searchsorted(table["arrival_ps"], arrival_ps, side="right")))
    table.insert(at, arrivals, RequestTable(arrivals, *tokens, max_model_len, kv_tokens), command.first_request)
