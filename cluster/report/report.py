"""A report of whatever a user names: one run, several, or a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pimserve.cluster.report.comparison_page import several_page
from pimserve.cluster.report.inputs import load_run
from pimserve.cluster.report.page import html, refuse_existing, write
from pimserve.cluster.report.run_page import single_page
from pimserve.cluster.report.sweep_page import load_sweep, sweep_page
from pimserve.cluster.sweep.sweep import SWEEP_FILE
from pimserve.errors import InputError

NAME = "report.html"
_MOST_RUNS = 32  # curves that colours and dashes tell apart


def write_report(places: Sequence[Path], out: Path | None, *, title: str | None = None, force: bool = False) -> Path:
    """Write a report; returns where it is.

    Args:
        places: results folders (or their summary.json), or the folder of one sweep.
        out: the file; None for report.html in the only folder, or else in the working directory.
        title: of the page; None for the run's name.
        force: whether a file that exists is replaced.

    Raises:
        InputError: a run cannot be read, runs and sweeps are mixed, or the file cannot be written.
    """
    target = out if out is not None else _default(places)
    sweeps = [place for place in places if (place / SWEEP_FILE).is_file()]
    if sweeps and len(places) > 1:
        raise InputError(str(sweeps[0]), "is a sweep: a report shows one sweep, or runs; name folders of its points")
    if len(places) > _MOST_RUNS:
        raise InputError("report", f"shows at most {_MOST_RUNS} runs (got {len(places)})")
    document = load_sweep(places[0]) if sweeps else None
    runs = [load_run(place) for place in places] if document is None else []
    refuse_existing(target, force=force)  # before pictures are drawn
    if document is not None:
        page = sweep_page(document, places[0], title)
    elif len(runs) == 1:
        page = single_page(runs[0], title)
    else:
        page = several_page(runs, places, title)
    write(html(page), target, force=force)
    return target


def _default(places: Sequence[Path]) -> Path:
    if len(places) != 1:
        return Path(NAME)
    return (places[0] if places[0].is_dir() else places[0].parent) / NAME
