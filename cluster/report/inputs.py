"""What a report is made from: results folders, as far as they are there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import FloatArray
from pimserve.cluster.base.documents import number
from pimserve.cluster.run.compare import SCENARIO_FILE
from pimserve.cluster.run.history import History
from pimserve.cluster.run.read_summary import load_summary
from pimserve.cluster.run.results import DEVICES, load_table
from pimserve.cluster.run.summary_schema import Summary
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.latencies import LATENCIES, Latencies
from pimserve.scheduler.requests import DTYPE, FINISHED
from pimserve.scheduler.summary_sections import Requests


@dataclass(frozen=True)
class ReportRun:
    """A run that is reported.

    Args:
        place: as the user named it.
        summary: its figures.
        scenario_text: what ran, as YAML; None where there is none.
        requests: (n,) structured array, a row per request; None where there is none.
        history: what it did over time, and what its steps cost; None where that cannot be worked out.
        devices: (n,) structured array, a row per device of those that were actors; None without any.
        absent: why "requests" or "history", if None, is absent: half a sentence of each.
    """

    place: str
    summary: Summary
    scenario_text: str | None = None
    requests: NDArray[Any] | None = None
    history: History | None = None
    devices: NDArray[Any] | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def measured(self) -> tuple[float, float]:
        """Begin and end of the measured window, s."""
        window = self.summary.window
        return window.start_s or 0.0, self.end_s if window.end_s is None else window.end_s

    @property
    def trimmed(self) -> bool:
        """Whether only a part of the run is measured."""
        return self.summary.window.whole_run is False

    @property
    def end_s(self) -> float:
        """When the run ended."""
        return self.summary.end_s or 0.0

    def latencies(self) -> dict[str, FloatArray]:
        """Exact samples in s, ascending, by latency; of requests that arrived in the measured window.

        Definitions are those of the summary. In a closed loop with a warm-up, replicas end
        their windows one by one, and the summary's is the part that all of them measure: samples are of that part.
        """
        table = self.requests
        if table is None:
            return {}
        arrival = table["arrival_ps"]
        measured = arrival >= 0
        if self.trimmed:
            start, end = self.measured
            measured &= (arrival >= round(start * PS_PER_S)) & (arrival < round(end * PS_PER_S))
        frontend_ps = round((number(self.summary.costs, "frontend_s") or 0.0) * PS_PER_S)
        latencies = Latencies(table, measured, frontend_ps=frontend_ps)
        return {name: np.sort(latencies[name].known_s) for name in LATENCIES}


def load_run(place: Path) -> ReportRun:
    """Read a run: a results folder, or its summary.json.

    Raises:
        InputError: there is no summary. All else may be absent.
    """
    summary = load_summary(place)
    folder = place if place.is_dir() else place.parent
    absent: dict[str, str] = {}
    text: str | None = None
    requests: NDArray[Any] | None = None
    history: History | None = None
    with suppress(OSError):
        text = (folder / SCENARIO_FILE).read_text(encoding="utf-8", errors="replace")
    try:
        requests = _requests(folder, summary.requests)
    except InputError as error:
        absent["requests"] = _said(error)
    try:
        history = _history(folder)
    except InputError as error:
        absent["history"] = _said(error)
        if requests is not None and error.where == str(folder / "requests.npy"):  # its counts alone are right
            requests, absent["requests"] = None, _said(error)
    devices = load_table(folder, DEVICES) if (folder / f"{DEVICES}.npy").is_file() else None
    return ReportRun(str(place), summary, text, requests, history, devices, absent)


def _requests(folder: Path, counts: Requests) -> NDArray[Any]:
    """The table of requests.

    Raises:
        InputError: there is none, or it is damaged, of another version, or of another run.
    """
    table, file = load_table(folder, "requests", DTYPE), str(folder / "requests.npy")
    has = {"total": table["arrival_ps"] >= 0, "finished": table["status"] == FINISHED}
    for kind, mine in has.items():
        expected, counted = getattr(counts, kind), int(mine.sum())
        if expected is not None and expected != counted:
            raise InputError(file, f"is of another run: {kind} {counted:,}, where summary.json has {expected:,}")
    return table


def _history(folder: Path) -> History:
    """What the run did over time.

    Raises:
        InputError: it cannot be worked out.
    """
    if (folder / SCENARIO_FILE).is_file() and not (folder / "steps.npy").exists():
        raise InputError("", "the run has no steps.npy (output.steps: false)")
    return History.load(folder)


def _said(error: InputError) -> str:
    """An error as part of a sentence, with the name of its file or folder alone."""
    name = Path(error.where).name
    return (f"{name}: {error.message}" if name else error.message).rstrip(".")
