"""Run a scenario in this process and write its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from pimserve.cluster.base.checksums import write_checksums
from pimserve.cluster.base.files import write_json
from pimserve.cluster.base.whole_folders import free_folder, remove_remains, results_folder
from pimserve.cluster.run.checkpoint import CheckpointFolder
from pimserve.cluster.run.checkpoint_files import RESULTS, target_of
from pimserve.cluster.run.command_log import COMMANDS_FILE, CommandLog, Entry
from pimserve.cluster.run.plugins import plugins_of
from pimserve.cluster.run.read_summary import read_summary
from pimserve.cluster.run.results import DEVICES, LONGEST_GAPS, NUMBERS, SESSIONS, SpanFile, UnwrittenError
from pimserve.cluster.run.run_summary import simulator_of, summary_of
from pimserve.cluster.run.summary_schema import ServedSummary, Summary, UnwrittenSummary
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.farthest_energy import farthest_energy
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.device_models.plan import FS_PER_PS
from pimserve.errors import InputError
from pimserve.loadgen.workload import generate
from pimserve.scheduler.clock_range import EnergyRangeError
from pimserve.scheduler.control import Control
from pimserve.scheduler.fleet import Fleet, RowSink
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.sessions import Sessions
from pimserve.scheduler.shard_port import ShardPort
from pimserve.scheduler.simulation import Deployment, Served, simulate

Progress = Callable[[int, int], None]


class Runtime(Protocol):
    """Where the parts of a run live."""

    window_wall_s: float | None  # how long a window should last, where nothing else says

    def shards(self, fleet: Fleet, table: RequestTable, on_rows: RowSink | None) -> Sequence[ShardPort]:
        """The shards of the run."""

    def compare(self, served: Served) -> NDArray[Any] | None:
        """Hold what devices of their own have done against the engines' sums; a row for each, None without any."""

    def facts(self) -> dict[str, Any]:
        """What the summary's simulator section tells of it."""


def serve(
    prepared: Prepared,
    *,
    span_file: SpanFile | None = None,
    progress: Progress | None = None,
    deployment: Deployment = Deployment(),  # noqa: B008 frozen
) -> tuple[ServedSummary, Served]:
    """Run a scenario; returns its summary (without results folder and simulator figures) and the run itself.

    Args:
        prepared: what to run.
        span_file: takes the executed steps.
        progress: called now and then with (requests that have left, all requests).
        deployment: where and in which pieces it goes on.

    Raises:
        InputError: parts of the scenario do not go together.
    """
    scenario, link = prepared.scenario, prepared.link
    workload = generate(scenario.workload, scenario.run.seed)
    total = len(workload.input_tokens)
    try:
        served = simulate(
            prepared.pools,
            workload,
            scenario.scheduler,
            max_model_len=prepared.max_model_len,
            link=link,
            routing=prepared.routing,
            seed=scenario.run.seed,
            longest_gaps=prepared.objectives.of_longest_gaps,
            warmup_s=scenario.run.warmup_s,
            cooldown_s=scenario.run.cooldown_s,
            max_time_s=scenario.run.max_time_s,
            write_rows=None if span_file is None else lambda number, rows, _: span_file.write(number, rows),
            progress=(lambda left: progress(left, total)) if progress is not None else None,
            deployment=deployment,
            faults=prepared.faults,
            slo=scenario.slo,
            autoscaling=scenario.autoscaling,
        )
    except EnergyRangeError as error:
        key, value = farthest_energy(scenario, prepared.pools)
        raise InputError(key, f"{value:g}: {error.message}; is its unit wrong?") from None
    return summary_of(prepared, served), served


def run(
    prepared: Prepared,
    out: Path | None = None,
    *,
    progress: Progress | None = None,
    control: Control | None = None,
    checkpoints: Path | None = None,
    runtime: Runtime | None = None,
    until: ExitStack | None = None,
    commands: Sequence[Entry] = (),
) -> Summary:
    """Run a scenario, write its results folder and return the summary.

    Args:
        prepared: what to run.
        out: the results folder, which must not exist; None for the first free one of results/NAME, NAME-2, ...
        progress: called now and then with (requests that have left, all requests).
        control: watches and changes the run while it goes.
        checkpoints: folder that keeps the run's state, from which it goes on if it was interrupted; empty again when
            the run is done.
        runtime: where its shards and devices live; None: in this process, without devices of their own.
        until: at whose end the folder with the run's state is emptied: a run whose process is killed before that gives
            its summary when it is run again; None: as soon as it is done.
        commands: that it is given when their time comes, as those of an earlier run were.

    Raises:
        InputError: parts of the scenario do not go together, or a folder cannot be written.
        UnwrittenError: the run is over, and the disk full.
        RunCancelledError: the control ended it.
    """
    with ExitStack() as stack:
        kept = None
        if checkpoints is not None:
            kept = (until or stack).enter_context(CheckpointFolder(checkpoints, prepared.digest, commands))
            before = kept.target()
            out = out or before
            if before is not None and (done := _finished(before, out, prepared.digest)) is not None:
                remove_remains(before)
                return done
        folder, target = stack.enter_context(
            results_folder(out, prepared.scenario.name, None if kept is None else kept.folder / RESULTS)
        )
        if kept is not None:
            kept.aim(target)
        deployment = Deployment(control=control, checkpoints=kept)
        if runtime is not None:
            deployment = replace(deployment, shards=runtime.shards, window_wall_s=runtime.window_wall_s)
        log = CommandLog(commands) if kept is None else kept.log
        if kept is not None or control is not None or commands:
            deployment = replace(deployment, journal=log)
        return _run_in(folder, target, prepared, deployment, kept, log, runtime, progress)


def _run_in(
    folder: Path,
    target: Path,
    prepared: Prepared,
    deployment: Deployment,
    kept: CheckpointFolder | None,
    log: CommandLog,
    runtime: Runtime | None,
    progress: Progress | None,
) -> Summary:
    """Run a scenario and write its results to `folder`, which will be `target`; returns the summary."""
    scenario, span_file = prepared.scenario, None
    if scenario.output.steps:
        span_file = SpanFile(folder / "steps.npy") if kept is None else kept.open_spans()
    try:
        served_summary, served = serve(prepared, span_file=span_file, progress=progress, deployment=deployment)
        devices = None if runtime is None else runtime.compare(served)
        more = {
            "plugins": plugins_of(prepared, log.routers()),
            **({} if prepared.trace_sha256 is None else {"trace_sha256": prepared.trace_sha256}),
            **({} if runtime is None else {"spread": runtime.facts()}),
            **({} if kept is None else {"continued": kept.continued}),
        }
        simulator = simulator_of(served_summary, served, **more)
        unwritten = UnwrittenSummary(**served_summary.set_parts(), simulator=simulator)
        summary = Summary(**unwritten.set_parts(), results=str(target))
        try:
            if span_file is not None:
                span_file.finish(folder / "steps.npy")
            _write(folder, scenario, served, summary)
            if devices is not None:
                np.save(folder / f"{DEVICES}.npy", devices)
            if log.entries:
                (folder / COMMANDS_FILE).write_bytes(log.content())
            write_checksums(folder)
        except OSError as error:
            raise UnwrittenError(target, error, unwritten) from error
    finally:
        if span_file is not None:
            span_file.close()
    return summary


def _write(folder: Path, scenario: Scenario, served: Served, summary: Summary) -> None:
    np.save(folder / "requests.npy", served.table.structured())
    if len(served.table.numbers.rows):
        np.save(folder / f"{NUMBERS}.npy", served.table.numbers.by_row())
    if served.longest_gaps_fs is not None:
        np.save(folder / f"{LONGEST_GAPS}.npy", served.longest_gaps_fs // FS_PER_PS)
    if isinstance(served.clients, Sessions):
        sessions = np.full(len(served.table), -1, np.int64)
        sessions[: len(served.clients.turns)] = served.clients.turns.session
        np.save(folder / f"{SESSIONS}.npy", sessions)
    resolved = yaml.dump(scenario.resolved(), Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
    (folder / "scenario.yaml").write_text(resolved, encoding="utf-8")
    write_json(folder / "summary.json", summary.document())


def results_place(prepared: Prepared, out: Path | None, checkpoints: Path | None) -> Path:
    """Where a run that begins now will have its results, but for what others begin at the same time.

    Args:
        prepared: what runs.
        out: the folder that was asked for.
        checkpoints: of the run; it may be one that is continued, and has its folder already.
    """
    if out is None and checkpoints is not None:
        out = target_of(checkpoints, prepared.digest)
    return out or free_folder(prepared.scenario.name)


def _finished(before: Path, out: Path | None, digest: str) -> Summary | None:
    """The summary of a run whose process ended after its results were in place, and before it could say so."""
    if out is None or out.absolute() != before or not (before / "summary.json").is_file():
        return None
    summary = read_summary(before)
    return summary if summary.scenario_digest == digest else None
