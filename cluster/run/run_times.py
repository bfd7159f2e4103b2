"""When runs ended, and which of those of one name is the newest: folders are numbered, and older ones stay."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pimserve.cluster.run.summary_schema import Summary

_SUMMARY = "summary.json"


def now() -> str:
    """The wall clock's time as summaries have it: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def ended_at(summary: Summary, place: Path) -> str:
    """When a run ended, such as 2026-11-28 04:02 UTC: as its summary says, else when that was written; "" if unknown.

    Args:
        summary: the run's.
        place: its results folder, or its summary.json.
    """
    with suppress(ValueError, OverflowError):  # it may have been edited
        return _text(datetime.fromisoformat(str(summary.simulator.ended_at)))
    return _written(place)


def earlier_run(name: str, results: Path) -> str | None:
    """What to say of results/NAME where a run of that name has another folder, `results`; None if it has that one."""
    first = Path("results") / name
    if results.absolute() == first.absolute() or not (first / _SUMMARY).is_file():
        return None
    return f"{first} is of an earlier run ({_written(first)})"


def newer_runs(place: Path) -> list[tuple[Path, str]]:
    """Folders beside a run's that have its name and another number and were written later, and when, newest first."""
    folder = place if place.is_dir() else place.parent
    base = re.sub(r"-\d+$", "", folder.name)
    beside = [
        other
        for other in folder.parent.glob(f"{base}*")
        if re.fullmatch(r"(-\d+)?", other.name.removeprefix(base)) and other.name != folder.name
    ]
    newer = []
    with suppress(OSError):  # of what others remove meanwhile nothing is said
        since = (folder / _SUMMARY).stat().st_mtime
        newer = [(time, other) for other in beside if (time := _modified(other)) > since]
    return [(other, _written(other)) for _, other in sorted(newer, reverse=True)]


def _modified(folder: Path) -> float:
    file = folder / _SUMMARY
    return file.stat().st_mtime if file.is_file() else 0.0


def _written(place: Path) -> str:
    """When a run's summary was written."""
    file = place / _SUMMARY if place.is_dir() else place
    with suppress(OSError):
        return _text(datetime.fromtimestamp(file.stat().st_mtime, UTC))
    return ""


def _text(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
