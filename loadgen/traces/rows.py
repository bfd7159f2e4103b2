"""Rows of a trace: which columns they have, which of them are wanted, and what has been read."""

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from pimserve.arrays import IntArray
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.streams import Streams
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.loadgen.traces.times import CLOCKS, OUTSIDE_PS, TIME_LIMIT_PS, Clock
from pimserve.loadgen.traces.trace_labels import TraceLabels
from pimserve.loadgen.traces.trace_sessions import TraceSessions

OPTIONAL = ("request", "session", "parent", "duration", "blocks", "label")
"""Columns that are read where a file has them."""
SEED_0 = Streams(0)


@dataclass(frozen=True)
class Columns:
    """What a file calls the columns that are read, and what its times are (a key of `CLOCKS`).

    Those after the unit are read where the file has them. `request`: what is there twice is a duplicate. `session`: its
    turns follow each other. `parent`: the request that a turn follows. `duration`: how long it took, in the unit of the
    arrivals (seconds where these are dates). `blocks`: ids of the prompt's blocks of `block_tokens` tokens.
    `label`: what kind of request it is, where classes ask for it. `fails_without_output`: a row without output is a
    request that failed. `asked`: those (`request`, ...) that the scenario names itself, and files must have.
    """

    arrival: str
    input_tokens: str
    output_tokens: str
    unit: str = "s"
    request: str | None = None
    session: str | None = None
    parent: str | None = None
    duration: str | None = None
    blocks: str | None = None
    block_tokens: int = 0
    label: str | None = None
    fails_without_output: bool = False
    asked: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, str, str]:
        """Time, input and output, which every file has."""
        return self.arrival, self.input_tokens, self.output_tokens

    @property
    def clock(self) -> Clock:
        """How its times are written."""
        return CLOCKS[self.unit]

    @property
    def duration_clock(self) -> Clock:
        """How its durations are written."""
        return CLOCKS["s" if self.unit == "date" else self.unit]

    def refuse_missing(self, there: Collection[str]) -> None:
        """Raises InputError unless all that were asked for are there."""
        for kind in self.asked:
            if (name := getattr(self, kind)) not in there:
                found = ", ".join(sorted(there))[:200]
                raise InputError(f"workload.trace.columns.{kind}", f"is {name!r}; the trace has: {found!r}")

    def of_file(self, there: Iterable[str]) -> "Columns":
        """The same without the columns that a file with these does not have."""
        known = set(there)
        absent = [name for name in OPTIONAL if getattr(self, name) not in known]
        return replace(self, **dict.fromkeys(absent, None))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Selection:
    """Which rows are used: from `start_s` to before `end_s` of the trace's clock, the first `max_requests` of them."""

    start_s: float = 0.0
    end_s: float | None = None
    max_requests: int | None = None

    @property
    def span_ps(self) -> tuple[int, float]:
        """From and to, ps of the trace's clock; infinite where it has no end."""
        return _exact_ps(self.start_s), math.inf if self.end_s is None else _exact_ps(self.end_s)

    def bounds(self, after_ps: Sequence[int] | IntArray, clock_ps: int) -> tuple[int, int]:
        """Of rows at these times, ascending, after the clock shows `clock_ps`: how many lie before the start and end.

        Rows at `OUTSIDE_PS` on either side are not selected.
        """
        begin_ps, end_ps = (time_ps - clock_ps for time_ps in self.span_ps)
        begin = bisect_left(after_ps, max(-TIME_LIMIT_PS, min(begin_ps, OUTSIDE_PS + 1)))
        return begin, len(after_ps) if self.end_s is None else bisect_left(
            after_ps, max(-TIME_LIMIT_PS, min(end_ps, OUTSIDE_PS))
        )


def _exact_ps(time_s: float) -> int:
    return round(Decimal(repr(time_s)) * PS_PER_S)


@dataclass(frozen=True)
class Reading:
    """How a trace is read.

    `selection`: what for; no further than that is read, unless the rest may matter (`whole`). `drop_bad`: bad rows are
    dropped and counted, where they would be errors. `sort`: rows may be in any order. `streams`: of formats that draw
    requests. `passed_over`: takes the names of files of a folder or archive that are no tables as the format has them.
    """

    selection: Selection = Selection()
    drop_bad: bool = False
    sort: bool = False
    whole: bool = False
    streams: Streams = SEED_0
    passed_over: list[str] = field(default_factory=list, compare=False)


@dataclass(frozen=True)
class TraceRows:
    """Rows of a trace by ascending time, those of one time in the order of the file.

    `after_ps`: time after some moment (`TraceTimes`); `OUTSIDE_PS` on either side of rows that are not selected and lie
    further from it. `clock_ps`: what the trace's clock shows at that moment, which may exceed 64 bit; where dates are
    written it shows 0 at the first row, and `epoch_ps` is the moment's time since 1970. `out_of_order`: rows that were
    before earlier ones in the file. `dropped`: rows that were not taken, by reason. `others`: columns that were not
    read. `blocks`: ids of the blocks of `block_tokens` tokens in which prompts are shared. `notes`: what must be said
    of it.
    """

    after_ps: IntArray
    clock_ps: int
    input_tokens: IntArray
    output_tokens: IntArray
    dropped: Mapping[str, int] = field(default_factory=dict)
    others: frozenset[str] = frozenset()
    blocks: Ragged | None = None
    block_tokens: int = 0
    sessions: TraceSessions | None = None
    labels: TraceLabels | None = None
    notes: tuple[str, ...] = ()
    epoch_ps: int | None = None
    out_of_order: int = 0

    def __len__(self) -> int:
        return len(self.after_ps)

    def take(self, rows: IntArray) -> "TraceRows":
        """Those rows, in that order."""
        return replace(
            self,
            after_ps=self.after_ps[rows],
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            blocks=None if self.blocks is None else self.blocks.take(rows),
            sessions=None if self.sessions is None else self.sessions.take(rows),
            labels=None if self.labels is None else self.labels.take(rows),
        )
