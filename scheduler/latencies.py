"""The latencies of requests, from the times in their table. Everything that shows latencies has them from here.

Definitions follow the serving tools (vLLM, inference-perf): TTFT = first token - arrival; TPOT = (last token - first
token) / (output tokens - 1), for two output tokens or more; E2E = last token - arrival; queue = first scheduled -
arrival; prefill = first token - first scheduled; decode = last token - first token. Where a plan has a time in front
of the scheduler (`frontend_ps`), TTFT and E2E hold it too: the table's arrival is the scheduler's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pimserve.arrays import BoolArray, FloatArray, IntArray
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.requests import NEVER, REJECTED, WAITING, Columns

LATENCIES = ("ttft", "tpot", "e2e", "queue")
_FROM_TO = {
    "ttft": ("arrival", "first_token"),
    "tpot": ("first_token", "finish"),
    "e2e": ("arrival", "finish"),
    "queue": ("arrival", "first_scheduled"),
    "prefill": ("first_scheduled", "first_token"),
    "decode": ("first_token", "finish"),
}


@dataclass(frozen=True, slots=True)
class Latency:
    """One latency of n requests; all arrays are (n,).

    Args:
        lasted_ps: what lasted so long; where it has not ended, until the run did; 0 where it has not begun.
        gaps: what that is divided by: the gaps between output tokens for TPOT, else 1.
        applies: who has this latency; a request of one output token has no TPOT.
        ended: who is through with it, whether it applies or not.
        censored: whose latency would be known but for the end of the run.
    """

    lasted_ps: IntArray
    gaps: IntArray
    applies: BoolArray
    ended: BoolArray
    censored: BoolArray

    @property
    def known(self) -> BoolArray:
        """Whose latency is known."""
        return self.applies & self.ended

    @property
    def seconds(self) -> FloatArray:
        """The latency, or as much of it as the run shows."""
        return np.asarray(self.lasted_ps / PS_PER_S / self.gaps)

    @property
    def known_s(self) -> FloatArray:
        """The latencies that are known, in the order of their requests."""
        return self.seconds[self.known]


class Latencies:
    """Latencies of some requests, by name: `LATENCIES`, and the "prefill" and "decode" of vLLM.

    Args:
        columns: of the request table.
        requests: which of them, which have arrived: numbers (n,), or a mask.
        frontend_ps: time in front of the scheduler, which TTFT and E2E hold.
        end_ps: end of the run; any, where no request was cut off by it.
    """

    def __init__(self, columns: Columns, requests: BoolArray | IntArray, *, frontend_ps: int, end_ps: int = 0) -> None:
        times = ("arrival", "first_scheduled", "first_token", "finish")
        self._at_ps: dict[str, IntArray] = {name: columns[f"{name}_ps"][requests] for name in times}
        self._gaps = columns["output_tokens"][requests].astype(np.int64) - 1
        self._frontend_ps = frontend_ps
        self._end_ps = end_ps
        status = columns["status"][requests]
        self.waiting: BoolArray = status == WAITING
        self.rejected: BoolArray = status == REJECTED

    def __getitem__(self, name: str) -> Latency:
        begin, end = (self._at_ps[time] for time in _FROM_TO[name])
        ended = end != NEVER
        applies = self._gaps > 0 if name == "tpot" else np.ones(len(ended), np.bool_)
        lasted_ps = np.where(applies & (begin != NEVER), np.where(ended, end, self._end_ps) - begin, 0)
        if name in ("ttft", "e2e"):
            lasted_ps += self._frontend_ps
        gaps = np.maximum(self._gaps, 1) if name == "tpot" else np.ones_like(self._gaps)
        return Latency(lasted_ps, gaps, applies, ended, self.waiting & applies & ~ended)
