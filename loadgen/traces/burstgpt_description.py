"""What BurstGPT's files say beside the requests that are replayed: failures, models, kinds of requests, sessions."""

import csv
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_TOKENS, PS_PER_S
from pimserve.loadgen.traces.figure_documents import arrival_document, length_document, rounded
from pimserve.loadgen.traces.rows import Selection
from pimserve.loadgen.traces.text_blocks import lines_of, text_blocks
from pimserve.loadgen.traces.times import CLOCKS, TIME_LIMIT_PS
from pimserve.loadgen.traces.trace_files import members_named

_SESSION = "Session ID"
_Row = tuple[int, int, int, dict[str, str]]  # time (ps), input and output (tokens), all of it


def describe_burstgpt(path: Path, selection: Selection) -> dict[str, Any]:
    """All rows in the window, those of failed requests among them, up to the last one that is used."""
    times_ps, inputs, outputs = array("q"), array("q"), array("q")
    log_types, models, sessions = Counter[str](), Counter[str](), Counter[str]()
    has_sessions = False
    first_ps = 0
    for time_ps, tokens_in, tokens_out, row in _selected(path, selection):
        first_ps = first_ps if times_ps else time_ps
        if abs(time_ps - first_ps) > TIME_LIMIT_PS:
            continue  # left out as bad, else refused
        times_ps.append(time_ps - first_ps)
        inputs.append(tokens_in)
        outputs.append(tokens_out)
        log_types[row.get("Log Type") or ""] += 1
        models[row.get("Model") or ""] += 1
        has_sessions = has_sessions or _SESSION in row
        sessions[row.get(_SESSION) or ""] += 1
    if not times_ps:
        raise InputError(str(path), "no row lies in the window")
    times, tokens = np.frombuffer(times_ps, np.int64), np.array([inputs, outputs])
    used = (tokens > 0).all(axis=0)
    first = rounded((first_ps + int(times.min())) / PS_PER_S) or 0.0
    del sessions[""]  # requests outside any
    document: dict[str, Any] = {
        "rows": len(times),
        "arrivals_all_rows": arrival_document(np.sort(times), first, monotone=not (np.diff(times) < 0).any()),
        "input_ok": length_document(tokens[0][used]),
        "output_ok": length_document(tokens[1][used]),
        "failed_rows_zero_response": int((tokens[1] == 0).sum()),
        "log_types": dict(log_types),
        "models": dict(models),
    }
    if has_sessions:
        longest = max(sessions.values(), default=0)
        document |= {
            "sessions": len(sessions),
            "rows_with_session": sessions.total(),
            "longest_session": longest,
        }
    return document


def _rows(path: Path) -> Iterator[_Row]:
    """Those with a time and lengths; what is wrong with others the reader of requests says."""
    for member in members_named(path, ".csv"):
        for row in csv.DictReader(lines_of(text_blocks(member, lambda: False)), skipinitialspace=True):
            try:
                lengths = [int(float(row[name])) for name in ("Request tokens", "Response tokens")]
                time_ps = CLOCKS["s"].read(row["Timestamp"].strip())
            except (ValueError, OverflowError, ArithmeticError, TypeError, AttributeError):
                continue
            if min(lengths) >= 0 and max(lengths) <= MAX_TOKENS:
                yield time_ps, lengths[0], lengths[1], row


def _selected(path: Path, selection: Selection) -> Iterator[_Row]:
    begin_ps, end_ps = selection.span_ps
    inside = (row for row in _rows(path) if begin_ps <= row[0] < end_ps)
    left = selection.max_requests
    for row in inside:
        yield row
        if left is not None and row[1] and row[2]:
            left -= 1
            if not left:
                return
