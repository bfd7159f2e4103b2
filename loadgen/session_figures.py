"""Figures of sessions: how many turns they have, and how long users, or tools, take between them."""

from dataclasses import dataclass

import numpy as np

from pimserve.loadgen.length_figures import LengthFigures, length_figures
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.traces.trace_sessions import TraceSessions


@dataclass(frozen=True)
class SessionFigures:
    """Of sessions, some of one turn only.

    `turns`: requests of each. `think_s`: percentiles by their number (50, 90, 99), s, of the think times of all turns
    that follow others; None where none does. `durations_known`: requests whose duration was recorded; after the others
    the think time is the whole gap to the next turn.
    """

    turns: LengthFigures
    following: int
    think_mean_s: float | None
    think_s: dict[int, float] | None
    durations_known: int


def session_figures(sessions: TraceSessions) -> SessionFigures:
    """Figures of a trace's sessions, one request at least."""
    _, turns = np.unique(sessions.session, return_counts=True)
    think_s = sessions.think_ps[sessions.parents.lengths > 0] / PS_PER_S
    shown = (50, 90, 99)
    percentiles = dict(zip(shown, np.percentile(think_s, shown).tolist(), strict=True)) if len(think_s) else None
    return SessionFigures(
        turns=length_figures(turns),
        following=len(think_s),
        think_mean_s=float(think_s.mean()) if len(think_s) else None,
        think_s=percentiles,
        durations_known=int((sessions.duration_ps >= 0).sum()),
    )
