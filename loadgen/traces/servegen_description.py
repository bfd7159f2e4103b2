"""What ServeGen's clients are: their rates and laws of gaps by window, and the means of what they draw from."""

import ast
import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pimserve.errors import InputError
from pimserve.loadgen.traces.figure_documents import rounded
from pimserve.loadgen.traces.rows import Selection
from pimserve.loadgen.traces.trace_files import members

_FILE = re.compile(r"(chunk-\d+-(?:trace\.csv|dataset\.json))(?:\.gz|\.zst)?")


def describe_servegen(path: Path, selection: Selection) -> dict[str, Any]:
    """All clients, by windows that begin from the start to before the end; without the rows that would be drawn."""
    rates: dict[float, float] = {}
    patterns: Counter[str] = Counter()
    means: dict[str, dict[str, dict[str, float]]] = {}
    clients = 0
    for member in members(path):
        match = _FILE.fullmatch(member.name.rpartition("/")[2])
        if match is None:
            continue
        text = member.content.read().decode()
        if match[1].endswith(".json"):
            means |= {match[1]: found} if (found := _means(text, selection)) else {}
            continue
        clients += 1
        for begin, rate, _, law, *_ in csv.reader(io.StringIO(text)):
            if _begins_in(selection, float(begin)):
                rates[float(begin)] = rates.get(float(begin), 0.0) + float(rate)
                patterns[law or "idle"] += 1
    if not rates:
        raise InputError(str(path), "no window begins from start_s to end_s")
    begins_s, totals = np.array(sorted(rates)), np.array(list(rates.values()))
    return {
        "clients": clients,
        "windows": len(begins_s),
        "window_s": _whole(float(np.diff(begins_s).min())) if len(begins_s) > 1 else None,
        "first_window": _whole(float(begins_s[0])),
        "last_window": _whole(float(begins_s[-1])),
        "patterns": dict(patterns),
        "total_rate_rps": {
            "mean": rounded(float(totals.mean())),
            "min": rounded(float(totals.min())),
            "max": rounded(float(totals.max())),
        },
        "pdf_means": dict(sorted(means.items())),
    }


def _begins_in(selection: Selection, begin_s: float) -> bool:
    return selection.start_s <= begin_s and (selection.end_s is None or begin_s < selection.end_s)


def _whole(value: float) -> float:
    return int(value) if value.is_integer() else value


def _means(text: str, selection: Selection) -> dict[str, dict[str, float]]:
    """Mean of each field by window; none of windows without requests."""
    found: dict[str, dict[str, float]] = {}
    for begin, fields in json.loads(text).items():
        laws = {name: ast.literal_eval(law) for name, law in fields.items()}
        means = {
            name: round(sum(value * share for value, share in law.items()), 6) for name, law in laws.items() if law
        }
        if means and _begins_in(selection, float(begin)):
            found[begin] = means
    return found
