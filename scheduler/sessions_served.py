"""Figures of sessions: how many there were, of how many turns, and how long they took."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.turns import Turns
from pimserve.scheduler.distributions import distribution
from pimserve.scheduler.requests import FINISHED, NEVER, WAITING, RequestTable
from pimserve.scheduler.summary_sections import SessionFigures


def session_figures(
    turns: Turns, table: RequestTable, frontend_ps: int, percentiles: Sequence[float]
) -> SessionFigures:
    """Of all sessions of a run, its warm-up and cool-down too; times in s.

    Args:
        turns: who follows whom among the first requests of the table.
        table: all requests.
        frontend_ps: between a request's being sent and its arrival.
        percentiles: that are asked for, in per cent.
    """
    n = len(turns)
    arrival, status = table["arrival_ps"][:n], table["status"][:n]
    arrived, ended = arrival != NEVER, status != WAITING
    numbers, session = np.unique(turns.session, return_inverse=True)
    first, last = np.full(len(numbers), np.iinfo(np.int64).max), np.zeros(len(numbers), np.int64)
    np.minimum.at(first, session[arrived], arrival[arrived])
    end = np.where(status == FINISHED, table["finish_ps"][:n] + frontend_ps, arrival)
    np.maximum.at(last, session[ended & arrived], end[ended & arrived])
    sent = np.bincount(session[arrived], minlength=len(numbers))
    finished = np.bincount(session[ended & arrived], minlength=len(numbers)) == np.bincount(session)
    begun = sent > 0
    return SessionFigures(
        total=int(begun.sum()),
        finished=int((begun & finished).sum()),
        mean_turns=float(sent[begun].mean()) if begun.any() else None,
        most_turns=int(sent.max(initial=0)),
        duration_s=distribution((last - first)[begun & finished] / PS_PER_S, percentiles),
    )
