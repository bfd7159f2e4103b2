"""The request table: one row per request, columns in numpy, read and written by the engine through memory views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.loadgen.traces.ragged import Ragged
from pimserve.scheduler.request_numbers import RequestNumbers

WAITING, FINISHED, REJECTED = 0, 1, 2
STATUS_NAMES = ("unfinished", "finished", "rejected")
SERVABLE, MAX_MODEL_LEN, KV_CACHE, QUEUE_FULL, PREDICTED_TTFT = 0, 1, 2, 3, 4
REJECT_REASONS = ("", "max_model_len", "kv_cache", "queue_full", "predicted_ttft")
PREEMPTION_CAUSES = ("recompute", "swap", "swap_space_full")
REMOTE, SHORT_PROMPT, PREFILL_QUEUE = range(3)  # why a prompt was computed where its tokens were generated, if it was
NEVER = -1
FOREVER = 2**200  # fs; later than anything

DTYPE = np.dtype(
    [
        ("arrival_ps", np.int64),
        ("first_scheduled_ps", np.int64),
        ("first_token_ps", np.int64),
        ("finish_ps", np.int64),
        ("input_tokens", np.int32),
        ("output_tokens", np.int32),
        ("emitted_tokens", np.int32),
        ("preemptions", np.int32),
        ("replica", np.int32),
        ("status", np.int8),
        ("truncated", np.int8),
        ("reject_reason", np.int8),
        ("class_id", np.int8),
        ("predicted_tokens", np.int32),
        ("max_tokens", np.int32),
        ("swaps", np.int32),
        ("swapped_blocks", np.int32),
        ("swap_space_full", np.int32),
        ("local_prefill", np.int8),
    ]
)
Columns = Mapping[str, NDArray[Any]] | NDArray[Any]  # of the table, by name; or its rows, a structured array


class RequestTable:
    """Requests of a run. Times are picoseconds of simulated time, -1 for what never happened.

    `output_tokens` is what the request wants, or what is left of the most tokens that it may have after its prompt
    (`truncated`). A prompt that leaves no room for one token will be rejected; `reject_reason` tells why, of every
    such request from the beginning on: it is longer than `max_model_len`, or than what the KV cache holds; of others,
    as they arrive (`load_shedding.py`). `numbers` are what people call requests by. `class_id` is the number of its
    class from 1 up, 0 without one. `predicted_tokens` is what a predictor says of the output, 0 where there is none;
    `max_tokens` is what the client declares as the most that it takes, 0 where it declares nothing. `prefixes` are
    the ids of the full KV blocks of requests by their numbers, as far as is known what they share (`PrefixKvCache`).
    `local_prefill` says why a prompt was computed on a decode replica (`conditional_disagg.py`), 0 where it was not.

    Args:
        arrival_ps: (n,) times.
        input_tokens: (n,) prompts.
        output_tokens: (n,) wanted outputs, at least 1.
        max_model_len: tokens of prompt and output together that a request may have.
        kv_tokens: tokens of one request that the KV cache holds; None: no fewer.
        max_tokens: (n,) most tokens of outputs that clients declare, 0 where they do not; None: none of them does.
    """

    def __init__(
        self,
        arrival_ps: NDArray[np.int64],
        input_tokens: NDArray[Any],
        output_tokens: NDArray[Any],
        max_model_len: int,
        kv_tokens: int | None = None,
        max_tokens: NDArray[Any] | None = None,
    ) -> None:
        n = len(input_tokens)
        most = max_model_len if kv_tokens is None else min(max_model_len, kv_tokens)
        self.numbers = RequestNumbers.of_workload(n)
        self.prefixes: Ragged | None = None
        self.columns: dict[str, NDArray[Any]] = {str(name): np.zeros(n, DTYPE[name]) for name in DTYPE.names or ()}
        self.columns["arrival_ps"][:] = arrival_ps
        self.columns["input_tokens"][:] = input_tokens
        room = most - np.asarray(input_tokens)
        wanted = output_tokens
        if max_tokens is not None:
            wanted = np.where(max_tokens > 0, np.minimum(output_tokens, max_tokens), output_tokens)
            self.columns["max_tokens"][:] = np.clip(room, 0, max_tokens)
        most_emitted = np.where(room > 0, np.minimum(wanted, room), wanted)
        self.columns["truncated"][:] = (output_tokens > most_emitted) & (room > 0)
        self.columns["output_tokens"][:] = most_emitted
        self.least_output = int(most_emitted.min(initial=2**31 - 1))  # tokens of any request
        reasons = np.where(np.asarray(input_tokens) >= max_model_len, MAX_MODEL_LEN, KV_CACHE)
        self.columns["reject_reason"][:] = np.where(room > 0, SERVABLE, reasons)
        for name in ("first_scheduled_ps", "first_token_ps", "finish_ps"):
            self.columns[name][:] = NEVER
        # Reading one element of a numpy array costs several times what a memory view of it does.
        self.views: dict[str, Any] = {name: memoryview(column.data) for name, column in self.columns.items()}

    @classmethod
    def of_rows(cls, rows: NDArray[Any]) -> RequestTable:
        """The table that has these rows, as `structured` gives them."""
        table = cls(rows["arrival_ps"], rows["input_tokens"], rows["output_tokens"], 0)
        table.write(np.arange(len(rows)), rows)
        return table

    def __len__(self) -> int:
        return len(self.columns["arrival_ps"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def reject_unseen(self) -> NDArray[np.int64]:
        """Reject requests that no replica can serve and that arrived, but were still in the queue at the end.

        Returns:
            Their numbers.
        """
        late = (self["status"] == WAITING) & (self["reject_reason"] != SERVABLE) & (self["arrival_ps"] != NEVER)
        self["status"][late] = REJECTED
        return np.flatnonzero(late)

    def insert(
        self, at: int, arrival_ps: NDArray[np.int64], more: RequestTable, first_request: int | None = None
    ) -> None:
        """Put other requests, with those arrival times, before row `at`; whoever holds a view must take it anew.

        They have the numbers from `first_request` on; None: the next ones that are free.
        """
        for name, column in self.columns.items():
            self.columns[name] = np.insert(column, at, more.columns[name])
        self.columns["arrival_ps"][at : at + len(more)] = arrival_ps
        self.least_output = min(self.least_output, more.least_output)
        self.numbers = self.numbers.inserted(at, len(more), first_request)
        self.views = {name: memoryview(column.data) for name, column in self.columns.items()}

    def rows(self, requests: NDArray[np.int64]) -> NDArray[Any]:
        """(n,) structured array of those requests."""
        rows = np.zeros(len(requests), DTYPE)
        for name, column in self.columns.items():
            rows[name] = column[requests]
        return rows

    def write(self, requests: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Take over `rows` of those requests."""
        for name, column in self.columns.items():
            column[requests] = rows[name]

    def structured(self) -> NDArray[Any]:
        """(n,) structured array of all columns, in arrival order."""
        rows = np.zeros(len(self), DTYPE)
        for name, column in self.columns.items():
            rows[name] = column
        return rows


def preemptions_by_cause(columns: Columns) -> dict[str, NDArray[np.int32]]:
    """(n,) preemptions of requests by cause, `PREEMPTION_CAUSES`: for want of KV blocks, and of swap space too.

    With `preemption: swap`, a request is computed again for want of blocks alone where its prompt was not computed yet.
    """
    swaps, full = columns["swaps"], columns["swap_space_full"]
    return dict(zip(PREEMPTION_CAUSES, (columns["preemptions"] - swaps - full, swaps, full), strict=True))
