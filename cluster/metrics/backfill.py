"""Finished runs for Prometheus: written as OpenMetrics with timestamps, and loaded by promtool into blocks."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO

from pimserve.cluster.checkpoint import write_atomically
from pimserve.cluster.history import History
from pimserve.cluster.metrics.openmetrics import END, header, samples
from pimserve.cluster.metrics.replay import replay
from pimserve.cluster.metrics.state import MOST_ENGINES, metrics_of
from pimserve.errors import InputError, shortened

_NICE_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_MOST_MOMENTS = 720
_MOST_SAMPLES = 20_000_000
_DAY_S = 86_400.0
_LOADED_FILE = "pimserve.json"  # in the data directory: which runs it has


@dataclass(frozen=True)
class Part:
    """A run that is written.

    Args:
        history: the run.
        run_id: label of its series.
        times_s: simulated seconds at which it has samples.
        series: how many it has at each.
    """

    history: History
    run_id: str
    times_s: tuple[float, ...]
    series: int

    @property
    def samples(self) -> int:
        """About how many there will be."""
        return len(self.times_s) * self.series


def parts_of(runs: Sequence[Path], interval_s: float | None, most_engines: int = MOST_ENGINES) -> list[Part]:
    """Runs to be written, each under the name of its folder.

    Args:
        runs: results folders.
        interval_s: simulated seconds between samples; None: such that there are some hundred of each series.
        most_engines: with more replicas, histograms hold all of them together.

    Raises:
        InputError: a folder is no run with steps, two have one name, or there would be too many samples.
    """
    found: list[Part] = []
    for run in runs:
        history = History.load(run)
        name = run.resolve().name
        if name in {part.run_id for part in found}:
            raise InputError(str(run), f"two runs are called {name}; their series would be mixed up")
        end_s = history.end_s
        step = interval_s or next((nice for nice in _NICE_S if end_s / nice <= _MOST_MOMENTS), _NICE_S[-1])
        inner = [index * step for index in range(math.ceil(end_s / step))]
        layout = metrics_of(history.scenario, name, most_engines=most_engines).layout
        series = sum(
            len(keys) * (len(layout.bounds[family]) + 3 if family in layout.bounds else 1)
            for family, keys in layout.keys.items()
        )
        found.append(Part(history, name, (*inner, end_s), series))
    if (samples_ := sum(part.samples for part in found)) > _MOST_SAMPLES:
        raise InputError(
            "--interval",
            f"there would be {samples_:,} samples, of which {_MOST_SAMPLES:,} are allowed; take a longer one",
        )
    return found


def epoch_of(text: str | None, parts: Sequence[Part]) -> float:
    """Seconds since 1970 at which the runs begin: as given, or so that the longest one ends now.

    Raises:
        InputError: it is no date.
    """
    if text is None:
        return math.floor(datetime.now(UTC).timestamp() - max(part.times_s[-1] for part in parts))
    try:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InputError(
            "--epoch",
            f"must be a date such as 2026-01-01T00:00:00Z, or seconds since 1970 (got {shortened(repr(text))})",
        ) from None


def write(parts: Iterable[Part], epoch_s: float, target: IO[str], most_engines: int = MOST_ENGINES) -> None:
    """Write runs, one after the other, as OpenMetrics.

    Args:
        parts: the runs.
        epoch_s: when all of them begin, s since 1970.
        target: takes the text.
        most_engines: with more replicas, histograms hold all of them together.
    """
    for text in chain(header(), *(_text(part, epoch_s, most_engines) for part in parts), (END,)):
        target.write(text)


def write_file(parts: Iterable[Part], epoch_s: float, out: Path) -> None:
    """The same into a file that is there whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        beside = out.with_name(f".{out.name}.new")
        try:
            with beside.open("w", encoding="utf-8") as target:
                write(parts, epoch_s, target)
            beside.rename(out)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(str(out), f"cannot be written: {error.strerror}") from None


def load(parts: Sequence[Part], epoch_s: float, into: Path, most_engines: int = MOST_ENGINES) -> None:
    """Make blocks of runs in a data directory of Prometheus; one that runs there sees them within a minute.

    Args:
        parts: the runs.
        epoch_s: when all of them begin, s since 1970.
        into: the data directory; made when it is not there.
        most_engines: with more replicas, histograms hold all of them together.

    Raises:
        InputError: promtool is missing or fails, or the directory has a run of that name.
    """
    promtool = shutil.which("promtool")
    if promtool is None:
        raise InputError("promtool", "is not installed; it comes with Prometheus (Debian package prometheus)")
    loaded = _loaded(into)
    for part in parts:
        if part.run_id in loaded:
            raise InputError(str(into), f"has a run {part.run_id} already; rename the results folder, or take another")
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into.parent, prefix=".backfill-") as scratch:
            text, blocks = Path(scratch) / "runs.om", Path(scratch) / "blocks"
            with text.open("w", encoding="utf-8") as target:
                write(parts, epoch_s, target, most_engines)
            longest = max(part.times_s[-1] for part in parts)
            command = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(text), str(blocks)]
            if longest > _DAY_S:
                command.insert(3, "--max-block-duration=24h")
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise InputError(str(into), f"promtool failed: {shortened(done.stderr.strip())}")
            for block in sorted(blocks.iterdir()):
                if (block / "meta.json").is_file():
                    block.rename(into / block.name)  # whole or not at all
        said = {**loaded, **{part.run_id: {"epoch_s": epoch_s, "end_s": part.times_s[-1]} for part in parts}}
        write_atomically(into / _LOADED_FILE, (json.dumps(said, indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(str(error.filename or into), f"cannot be written: {error.strerror}") from None


def _text(part: Part, epoch_s: float, most_engines: int) -> Iterator[str]:
    moments = replay(part.history, part.run_id, part.times_s, most_engines=most_engines)
    return samples((epoch_s + time_s, metrics) for time_s, metrics in zip(part.times_s, moments, strict=True))


def _loaded(into: Path) -> dict[str, object]:
    """Runs that the directory has."""
    file = into / _LOADED_FILE
    if into.exists() and not into.is_dir():
        raise InputError(str(into), "is no folder")
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_bytes())
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    raise InputError(str(file), "is damaged; remove it if no run of it is to be kept apart")
