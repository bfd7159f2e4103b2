"""Finished runs for Prometheus: written as OpenMetrics with timestamps, and loaded by promtool into blocks."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from prometheus_client.openmetrics.exposition import ALLOWUTF8, generate_latest
from prometheus_client.utils import floatToGoString

from pimserve.cluster.base.files import output_file, unwritable, write_json
from pimserve.cluster.metrics.collector import registry
from pimserve.cluster.metrics.families import FAMILIES
from pimserve.cluster.metrics.family import Family
from pimserve.cluster.metrics.layout import Layout
from pimserve.cluster.metrics.replay import replay
from pimserve.cluster.metrics.run_metrics import Array, RunMetrics, metrics_of, run_id_of
from pimserve.cluster.run.history import History
from pimserve.errors import InputError, shortened

_NICE_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_MOST_MOMENTS = 720
_USUAL_SAMPLES = 4_000_000  # of a run, where no interval is given; promtool takes half a minute for as many
_MOST_SAMPLES = 20_000_000
_LEAST_S = 0.001  # between two moments: timestamps are to the millisecond, and of equal ones the later is lost
_DAY_S = 86_400.0
_EPOCHS = (datetime(1970, 1, 1, tzinfo=UTC), datetime(2070, 1, 1, tzinfo=UTC))  # all of it is kept for 100 years
_CLOCKS_S = 60.0  # by which the clocks of machines may differ
_LOADED_FILE = "pimserve.json"  # in the data directory: which runs it has
END = "# EOF\n"
Moment = tuple[float, RunMetrics]  # when, s since 1970, and what the metrics were then


@dataclass(frozen=True)
class Part:
    """A run that is written.

    Args:
        history: the run.
        run_id: label of its series.
        times_s: simulated seconds at which it has samples.
        interval_s: between these, but for the last one.
        per_engine: with histograms of each engine, also where there are so many that they are merged.
    """

    history: History
    run_id: str
    times_s: tuple[float, ...]
    interval_s: float
    per_engine: bool = False

    def moments(self, epoch_s: float) -> list[Moment]:
        """The run at its times, of which the first is `epoch_s` since 1970.

        Raises:
            InputError: its tables are not those that it wrote.
        """
        moments = replay(self.history, self.run_id, self.times_s, per_engine=self.per_engine)
        return [
            (round(epoch_s + time_s, 3), metrics.copy()) for time_s, metrics in zip(self.times_s, moments, strict=True)
        ]


def parts_of(runs: Sequence[Path], interval_s: float | None, *, per_engine: bool = False) -> list[Part]:
    """Runs to be written, each under the name of its folder.

    Args:
        runs: results folders.
        interval_s: simulated seconds between samples; None: such that there are some hundred of each series, of long
            runs of many replicas fewer, two at the least.
        per_engine: histograms of each engine, also where there are so many that they are merged.

    Raises:
        InputError: a folder is no run with steps, two have one name, or there would be too many samples.
    """
    if interval_s is not None and not math.isfinite(interval_s):
        raise InputError("--interval", f"must be a number of seconds (got {interval_s})")
    parts: list[Part] = []
    samples = 0
    usual = min(_USUAL_SAMPLES, _MOST_SAMPLES // max(1, len(runs)))
    for run in runs:
        history = History.load(run)
        run_id = run_id_of(run)
        if run_id in {part.run_id for part in parts}:
            raise InputError(str(run), f"two runs are called {run_id}; their series would be mixed up")
        layout = metrics_of(history.prepared, run_id, per_engine=per_engine).layout
        series = sum(
            len(keys) * (len(layout.bounds[family]) + 3 if family in layout.bounds else 1)
            for family, keys in layout.keys.items()
        )
        step = interval_s or _usual_interval_s(history.end_s, usual // series - 1)
        moments = max(0, math.ceil((history.end_s - _LEAST_S) / step))
        samples += (moments + 1) * series
        if samples > _MOST_SAMPLES:
            too_many = f"there would be {samples:,} samples, of which {_MOST_SAMPLES:,} are allowed"
            if interval_s is not None:
                raise InputError("--interval", f"{too_many}; take a longer one, or leave it out")
            less = "give fewer runs" + (", or leave out --metrics-per-engine" if per_engine else "")
            raise InputError(str(run), f"{too_many}, even with two of each of its {series:,} series; {less}")
        times_s = (*(index * step for index in range(moments)), history.end_s)
        parts.append(Part(history, run_id, times_s, step, per_engine))
    return parts


def _usual_interval_s(end_s: float, most: int) -> float:
    """Round seconds, or whole hours, of which a run of `end_s` lasts at most `most`, and some hundred."""
    most = max(1, min(_MOST_MOMENTS, most))
    nice = next((nice for nice in _NICE_S if end_s / nice <= most), None)
    return nice or _NICE_S[-1] * math.ceil(end_s / most / _NICE_S[-1])


def epoch_of(text: str | None, parts: Sequence[Part]) -> float:
    """Seconds since 1970 at which the runs begin: as given, or so that the longest one ends now.

    Raises:
        InputError: it is no date, or one that no data directory can have beside others.
    """
    if text is None:
        return math.floor(datetime.now(UTC).timestamp() - max(part.times_s[-1] for part in parts))
    try:
        if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
            epoch_s = float(text)
        else:
            moment = datetime.fromisoformat(text)
            epoch_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InputError(
            "--epoch",
            f"must be a date such as 2026-01-01T00:00:00Z, or seconds since 1970 (got {shortened(repr(text))})",
        ) from None
    if not _EPOCHS[0].timestamp() <= epoch_s < _EPOCHS[1].timestamp():
        raise InputError("--epoch", f"must be from 1970 to 2069 (got {shortened(repr(text))})")
    return epoch_s


def write(parts: Sequence[Part], epoch_s: float, target: IO[str]) -> dict[str, int]:
    """Write runs as OpenMetrics; returns how many samples each has.

    Args:
        parts: the runs.
        epoch_s: when all of them begin, s since 1970.
        target: takes the text.

    Raises:
        InputError: a run's tables are not those that it wrote.
    """
    return write_moments([part.moments(epoch_s) for part in parts], target)


def write_moments(runs: Sequence[Sequence[Moment]], target: IO[str]) -> dict[str, int]:
    """The same of runs' moments, each run's in order of time: of one series, what comes late is lost without a word."""
    written: Counter[str] = Counter()
    for family in FAMILIES:
        head, names = _head_and_names(family, [moments[0][1].layout for moments in runs])
        for moments in runs:
            layout = moments[0][1].layout
            for series in range(len(layout.keys[family.name])):
                values = _values(family.name, series, [metrics for _, metrics in moments])
                if samples := int(np.count_nonzero(~np.isnan(values))):
                    target.write(head)
                    head = ""
                    written[layout.run_id] += samples
                columns = list(islice(names, values.shape[1]))
                target.writelines(
                    f"{name} {value} {timestamp}\n"
                    for (timestamp, _), row in zip(moments, values, strict=True)
                    for name, value in zip(columns, map(floatToGoString, row.tolist()), strict=True)
                    if value != "NaN"
                )
    target.write(END)
    return dict(written)


def _head_and_names(family: Family, layouts: Sequence[Layout]) -> tuple[str, Iterator[str]]:
    """What a family is, and names and labels of its samples at a moment, as the library writes them."""
    runs = [RunMetrics.zero(layout) for layout in layouts]
    for run in runs:
        run.values[family.name] = np.zeros(len(run.layout.keys[family.name]))  # what is no number would have no name
    text = generate_latest(registry([family], lambda: runs), escaping=ALLOWUTF8)  # type: ignore[no-untyped-call]
    *lines, _ = text.decode().splitlines(keepends=True)  # without the end
    return "".join(lines[:2]), (line.rpartition(" ")[0] for line in lines[2:])


def _values(name: str, series: int, moments: Sequence[RunMetrics]) -> Array:
    """Values (moments, samples) of a series of a family, in the order in which the library writes them."""
    if name not in moments[0].counts:
        return np.array([[metrics.values[name][series]] for metrics in moments])
    buckets = np.array([metrics.counts[name][series] for metrics in moments]).cumsum(axis=1)
    return np.column_stack([buckets, buckets[:, -1], [metrics.sums[name][series] for metrics in moments]])


def write_file(parts: Sequence[Part], epoch_s: float, out: Path) -> dict[str, int]:
    """The same as `write`, into a file that is there whole or as it was before.

    Raises:
        InputError: it cannot be written, or a run's tables are not those that it wrote.
    """
    with output_file(out) as target:
        return write(parts, epoch_s, target)


def load(parts: Sequence[Part], epoch_s: float, into: Path) -> dict[str, int]:
    """Make blocks of runs in a data directory of Prometheus; returns how many samples each has.

    A Prometheus that runs there sees them within a minute.

    Args:
        parts: the runs.
        epoch_s: when all of them begin, s since 1970.
        into: the data directory; made when it is not there.

    Raises:
        InputError: promtool is missing or fails, the runs end in the future, the directory has a run of that name, or
            a run's tables are not those that it wrote.
    """
    promtool = shutil.which("promtool")
    if promtool is None:
        raise InputError("promtool", "is not installed; it comes with Prometheus (Debian package prometheus)")
    longest = max(part.times_s[-1] for part in parts)
    if epoch_s + longest > datetime.now(UTC).timestamp() + _CLOCKS_S:
        raise InputError("--epoch", "runs would end in the future: Prometheus would take no samples until then")
    _refuse_loaded(parts, into)
    try:
        into.mkdir(parents=True, exist_ok=True)
        # Inside, as it may be a volume of its own; Prometheus passes over what has no name of a block.
        with tempfile.TemporaryDirectory(dir=into, prefix=".backfill-") as scratch:
            text, blocks = Path(scratch) / "runs.om", Path(scratch) / "blocks"
            blocks.mkdir()
            with text.open("w", encoding="utf-8") as target:
                written = write(parts, epoch_s, target)
            command = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(text), str(blocks)]
            if longest > _DAY_S:
                command.insert(3, "--max-block-duration=24h")
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                raise InputError(str(into), f"promtool failed: {shortened(done.stderr.strip()) or done.returncode}")
            loaded = _refuse_loaded(parts, into)  # somebody else may have loaded runs meanwhile
            added = {part.run_id: {"epoch_s": epoch_s, "end_s": part.times_s[-1]} for part in parts}
            _move(blocks, into, {**loaded, **added})
            return written
    except OSError as error:
        raise unwritable(into, error) from None


def _move(blocks: Path, into: Path, loaded: dict[str, object]) -> None:
    """Move blocks into the data directory and note which runs it has then: all of it or nothing."""
    made = [block for block in sorted(blocks.iterdir()) if (block / "meta.json").is_file()]
    try:
        for block in made:
            block.rename(into / block.name)
        write_json(into / _LOADED_FILE, loaded)
    except BaseException:
        for block in made:
            shutil.rmtree(into / block.name, ignore_errors=True)
        raise


def _refuse_loaded(parts: Sequence[Part], into: Path) -> dict[str, object]:
    """Runs that the directory has; none of these may be one of them."""
    file = into / _LOADED_FILE
    try:
        loaded = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        raise InputError(str(into), "is no folder") from None
    except OSError as error:
        raise InputError(str(file), f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        loaded = None
    if not isinstance(loaded, dict):
        raise InputError(str(file), "is damaged; remove it if no run of it is to be kept apart")
    for part in parts:
        if part.run_id in loaded:
            raise InputError(str(into), f"has a run {part.run_id} already; rename the results folder, or take another")
    return loaded
