"""Who decodes, and waits, while a replica of a finished run computes prompts alone: `batching: prefill_first`.

Its steps of prompts say nothing of those that wait for them. So they are counted from one step to the next: in with
their prompts' last tokens, out as the request table says that they have finished.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.run.history import History, ends_ps
from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.requests import FINISHED


class Waited(NamedTuple):
    """Those that had a token together, and the next one in the only step of a span; times in fs."""

    span: int
    requests: int
    gap_fs: int
    step_fs: int
    end_fs: int


class PromptWaits:
    """Of a replica: requests that decode in its spans, and for how long they waited between two tokens.

    Where some are preempted after prompts, it is taken that their last tokens were the last ones, as by policy fcfs.

    Attributes:
        decoding: (spans,) requests that are past their prompts.
        gaps: those that are longer than their steps, in order.
    """

    def __init__(self, history: History, replica: int) -> None:
        spans = history.spans[replica]
        self.decoding: NDArray[np.int64] = spans["decodes"].astype(np.int64)
        self.gaps: list[Waited] = []
        if history.prepared.scenario.scheduler.batching != "prefill_first":
            return
        requests = history.requests
        finish_ps = np.sort(requests["finish_ps"][(requests["replica"] == replica) & (requests["status"] == FINISHED)])
        finished = np.diff(np.searchsorted(finish_ps, ends_ps(spans), side="right"), prepend=0)
        columns = (spans[name] for name in ("begin_ps", "begin_rest_fs", "duration_fs", "decodes", "chunks", "outputs"))
        rows = zip(*(column.tolist() for column in (*columns, finished)), strict=True)
        last: list[tuple[int, int]] = []  # when those that decode had their last tokens, and how many did then
        before_fs = 0
        for span, (begin_ps, rest_fs, length_fs, decodes, chunks, outputs, left) in enumerate(rows):
            begin_fs = begin_ps * FS_PER_PS + rest_fs
            if begin_fs > before_fs:
                last = []  # it rested, or had failed
            before_fs = begin_fs + length_fs
            if chunks:
                self.decoding[span] = sum(count for _, count in last)
                last.append((before_fs, outputs - left))
                continue
            room = decodes
            for token_fs, count in last:
                stay = min(count, room)
                room -= stay
                if stay and token_fs < begin_fs:
                    self.gaps.append(Waited(span, stay, before_fs - token_fs, length_fs, before_fs))
            last = [(before_fs, decodes - left)]
