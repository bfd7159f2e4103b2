"""The latencies of requests, from the times in their table. Everything that shows latencies has them from here.

Definitions follow the serving tools (vLLM, inference-perf): TTFT = first token - arrival; TPOT = (last token - first
token) / (output tokens - 1), for two output tokens or more; E2E = last token - arrival; queue = first scheduled -
arrival; longest gap = the most between two tokens, for two output tokens or more; prefill = first token - first
scheduled; decode = last token - first token. Where a plan has a time in front of the scheduler (`frontend_ps`), TTFT
and E2E hold it too: the table's arrival is the scheduler's.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import BoolArray, FloatArray, IntArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.requests import NEVER, REJECTED, WAITING, Columns

LATENCIES = ("ttft", "tpot", "e2e", "queue")
LONGEST_GAP = "itl_max"  # where it is known
_LONGEST_PS = (2**63 - 1) // FS_PER_PS
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

    @property
    def known_fs(self) -> IntArray:
        """The same in fs, for histograms; what lasted longer than 64 bit hold, 9,223 s, counts as that."""
        known = self.known
        return np.minimum(self.lasted_ps[known], _LONGEST_PS) * FS_PER_PS // self.gaps[known]


class Latencies:
    """Latencies of some requests, by name: `LATENCIES`, and the "prefill" and "decode" of vLLM.

    `LONGEST_GAP` too, where it is known.

    Args:
        columns: of the request table.
        requests: which of them, which have arrived: numbers (n,), or a mask.
        frontend_ps: time in front of the scheduler, which TTFT and E2E hold.
        end_ps: end of the run; any, where no request was cut off by it.
        longest_gap_ps: (n,) the longest gap between two of their tokens, so far; None: not known.
    """

    def __init__(
        self,
        columns: Columns,
        requests: BoolArray | IntArray,
        *,
        frontend_ps: int,
        end_ps: int = 0,
        longest_gap_ps: IntArray | None = None,
    ) -> None:
        times = ("arrival", "first_scheduled", "first_token", "finish")
        self._at_ps: dict[str, IntArray] = {name: columns[f"{name}_ps"][requests] for name in times}
        self._gaps = columns["output_tokens"][requests].astype(np.int64) - 1
        self._frontend_ps = frontend_ps
        self._end_ps = end_ps
        self.longest_gap_ps = longest_gap_ps
        self.class_ids: NDArray[np.int8] = columns["class_id"][requests]
        status = columns["status"][requests]
        self.waiting: BoolArray = status == WAITING
        self.rejected: BoolArray = status == REJECTED

    @property
    def names(self) -> tuple[str, ...]:
        """What summaries have: the longest gap where it is known."""
        return LATENCIES if self.longest_gap_ps is None else (*LATENCIES, LONGEST_GAP)

    def of(self, mine: BoolArray) -> Latencies:
        """Those of the requests in a mask, (n,)."""
        part = copy(self)
        part._at_ps = {name: times[mine] for name, times in self._at_ps.items()}
        part._gaps, part.class_ids = self._gaps[mine], self.class_ids[mine]
        part.waiting, part.rejected = self.waiting[mine], self.rejected[mine]
        part.longest_gap_ps = None if self.longest_gap_ps is None else self.longest_gap_ps[mine]
        return part

    def __getitem__(self, name: str) -> Latency:
        if name == LONGEST_GAP:
            return self._longest_gap()
        begin, end = (self._at_ps[time] for time in _FROM_TO[name])
        ended = end != NEVER
        applies = self._gaps > 0 if name == "tpot" else np.ones(len(ended), np.bool_)
        lasted_ps = np.where(applies & (begin != NEVER), np.where(ended, end, self._end_ps) - begin, 0)
        if name in ("ttft", "e2e"):
            lasted_ps += self._frontend_ps
        gaps = np.maximum(self._gaps, 1) if name == "tpot" else np.ones_like(self._gaps)
        return Latency(lasted_ps, gaps, applies, ended, self.waiting & applies & ~ended)

    def _longest_gap(self) -> Latency:
        assert self.longest_gap_ps is not None
        ended, applies = self._at_ps["finish"] != NEVER, self._gaps > 0
        gaps = np.ones_like(self._gaps)
        return Latency(self.longest_gap_ps, gaps, applies, ended, self.waiting & applies & ~ended)
