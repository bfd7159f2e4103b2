"""Run all points of a grid, each in a results folder of its own, and go on where an earlier attempt ended.

OUT/sweep.json, sweep.csv              key figures of all points
OUT/POINT/seed-SEED/                   the results folder of one run, as `pimserve run` writes it
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from pimserve.cluster.base.checksums import write_checksums
from pimserve.cluster.base.files import atomic_file, is_draft, remove_drafts, unwritable, write_json
from pimserve.cluster.base.locks import lock_folder
from pimserve.cluster.run.read_summary import read_summary
from pimserve.cluster.run.summary_schema import Summary
from pimserve.cluster.sweep.grid import Grid, Run
from pimserve.cluster.sweep.key_figures import Outcome, key_figures, outcome_of, sweep_document
from pimserve.cluster.sweep.workers import Task, Workers
from pimserve.errors import InputError

SWEEP_FILE, TABLE_FILE = "sweep.json", "sweep.csv"
SCHEMA_VERSION = 2
Progress = Callable[[int, int], None]


def folder_of(grid: Grid, out: Path | None) -> Path:
    """Where a sweep's results go."""
    return out if out is not None else Path("results") / f"{grid.name}-sweep"


def sweep(grid: Grid, folder: Path, workers: Workers, progress: Progress | None = None) -> dict[str, Any]:
    """Run what of a grid is not there yet, and write and return the sweep's document.

    Args:
        grid: all points.
        folder: where they go; that of the same sweep is continued.
        workers: where to run them.
        progress: called with (runs that are done, all runs).

    Raises:
        InputError: the folder belongs to something else, or cannot be written.
    """
    with _claimed(folder, grid):
        runs = {(p, r): run for p, point in enumerate(grid.points) for r, run in enumerate(point.runs)}
        places = {(p, r): folder / grid.points[p].name / f"seed-{run.seed}" for (p, r), run in runs.items()}
        outcome_by_run: dict[tuple[int, int], Outcome] = {}
        errors: dict[tuple[int, int], str] = {}
        for key, run in runs.items():
            summary = _finished(places[key], run)
            if summary is not None:
                outcome_by_run[key] = outcome_of(summary)
        missing = [key for key in runs if key not in outcome_by_run]
        if progress is not None:
            progress(len(outcome_by_run), len(runs))
        try:
            with closing(workers.run(_tasks(missing, runs, places))) as outcomes:
                for task, error in outcomes:
                    if error is None:
                        outcome_by_run[task.key] = outcome_of(read_summary(task.folder))
                    else:
                        errors[task.key] = error
                    if progress is not None:
                        progress(len(outcome_by_run) + len(errors), len(runs))
        finally:  # interrupted, too: what is finished counts, what is not leaves nothing
            for key in missing:
                if key not in outcome_by_run:
                    _clear(places[key])
            document = {
                "schema_version": SCHEMA_VERSION,
                "identity": grid.identity,
                **sweep_document(grid, outcome_by_run, errors, {key: str(place) for key, place in places.items()}),
            }
            _write(folder, grid, document)
    return document


def _tasks(
    missing: Iterable[tuple[int, int]], runs: Mapping[tuple[int, int], Run], places: Mapping[tuple[int, int], Path]
) -> Iterator[Task]:
    """Runs to be made."""
    for key in missing:
        _clear(places[key])
        scenario = runs[key].scenario
        document = scenario.model_dump(mode="json", exclude_none=True)
        if scenario.workload.trace is not None:  # workers may have another working directory
            document["workload"]["trace"] = scenario.resolved()["workload"]["trace"]
        yield Task(key, json.dumps(document), places[key])


def _clear(place: Path) -> None:
    """Remove what a run left that was cut short."""
    shutil.rmtree(place, ignore_errors=True)
    for held in place.parent.glob(f".{place.name}.*.partial"):
        shutil.rmtree(held, ignore_errors=True)
    with suppress(OSError):  # there may be other runs of the point
        place.parent.rmdir()


def _finished(place: Path, run: Run) -> Summary | None:
    """The summary of a run that was finished, if it is that of this scenario."""
    with suppress(InputError):
        summary = read_summary(place)
        if summary.scenario_digest == run.digest:
            return summary
    return None


@contextmanager
def _claimed(folder: Path, grid: Grid) -> Iterator[None]:
    """Make the folder this sweep's, or see that it is; nobody else works in it meanwhile."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
    except OSError as error:
        raise unwritable(folder, error) from None
    if lock is None:
        raise InputError(str(folder), "another sweep is at work in this folder")
    with lock:
        _belongs(folder, grid)
        remove_drafts(folder)
        if not (folder / SWEEP_FILE).exists():
            write_json(folder / SWEEP_FILE, {"schema_version": SCHEMA_VERSION, "identity": grid.identity})
        yield


def _belongs(folder: Path, grid: Grid) -> None:
    file = folder / SWEEP_FILE
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(not is_draft(entry.name) for entry in folder.iterdir()):
            raise InputError(
                str(folder), "exists already, and is not of a sweep; give another folder with --out"
            ) from None
        return
    except (OSError, ValueError) as error:
        raise InputError(str(file), f"cannot be read: {error}") from None
    if not isinstance(before, dict) or before.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            str(file), f"is not a sweep of schema_version {SCHEMA_VERSION}; give another folder with --out"
        )
    if before.get("identity") != grid.identity:
        raise InputError(str(folder), "belongs to a sweep of another scenario or grid; give another folder with --out")


def _write(folder: Path, grid: Grid, document: Mapping[str, Any]) -> None:
    rows = [
        {
            "point": point["name"],
            **{path: _cell(value) for path, value in point["settings"].items()},
            **{key: run.get(key) for key in ("seed", "status", "error", "folder", "not_on_front")},
            "warnings": "; ".join(run.get("warnings", ())),
            **(run.get("figures") or {}),
        }
        for point in document["points"]
        for run in point["runs"]
    ]
    columns = [
        "point",
        *(axis.path for axis in grid.axes),
        "seed",
        "status",
        *(f.key for f in key_figures(key for row in rows for key in row)),
        "not_on_front",
        "warnings",
        "error",
        "folder",
    ]
    with atomic_file(folder / TABLE_FILE, encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_json(folder / SWEEP_FILE, dict(document))
    write_checksums(folder, (TABLE_FILE, SWEEP_FILE))


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, list | dict) else value
