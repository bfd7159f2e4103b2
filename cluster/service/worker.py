"""One run in a process of its own: `python -m pimserve.cluster.service.worker RUN_FOLDER [OPTIONS]`.

It takes the run's lock, listens on a port of the loopback interface for the server that started it (or for one that
was started later), runs the scenario from its last checkpoint, and writes how it ended. It ends by itself, to be
continued later, when it gets SIGTERM or when there has been no server for long.
"""

from __future__ import annotations

import argparse
import errno
import gc
import logging
import os
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from pimserve.cluster.base.files import PRIVATE, disk_is_full, read_json, write_bytes, write_json
from pimserve.cluster.base.locks import take_lock
from pimserve.cluster.base.processes import LOCKED, NO_SPACE, TO_BE_CONTINUED, Process
from pimserve.cluster.base.rpc.channels import make_server
from pimserve.cluster.distributed.deployment import Distributed
from pimserve.cluster.distributed.place import Place
from pimserve.cluster.distributed.run_on import run_on
from pimserve.cluster.metrics.feed import MetricsFeed
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.run.live_control import LiveControl, Snapshot, StoppedError
from pimserve.cluster.run.read_summary import read_summary
from pimserve.cluster.run.running_latencies import RunningLatencies
from pimserve.cluster.run.summary_schema import Summary
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.cluster.service.data_folder import SERVER_FILE, RunFolder
from pimserve.cluster.service.ended_runs import ended_run
from pimserve.cluster.service.live import Follower, LiveScheduler, LiveSimulation
from pimserve.cluster.service.messages import Site, progress_of
from pimserve.errors import PimserveError
from pimserve.scheduler.control import Ledger, RunCancelledError
from pimserve.v1 import scheduler_pb2_grpc, simulation_pb2_grpc, worker_pb2_grpc

Runner = Callable[..., Summary]

LOG = logging.getLogger("worker")
_SWITCH_S = 0.0002  # so that calls are answered while the run goes on
_THREADS = 16
_WITHOUT_SERVER_S = 600.0
_LOOK_S = 5.0
_LAST_WORDS_S = 0.5  # for calls that are being answered
_WINDOW_AT_MOST_S = 30.0  # in which a run that is stopped has to reach a window's end


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--paused", action="store_true")
    parser.add_argument("--metrics-per-engine", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    sys.setswitchinterval(_SWITCH_S)
    gc.freeze()  # what is loaded stays: the collector need not look at it again
    folder = RunFolder(arguments.folder.resolve())
    code = work(folder, held=arguments.paused, per_engine=arguments.metrics_per_engine)
    with suppress(OSError):  # a full disk
        sys.stderr.flush()
    os._exit(code)  # the run is over; a thread in the middle of a call is not waited for


def work(folder: RunFolder, *, held: bool = False, per_engine: bool = False, runner: Runner = run_on) -> int:
    """Run what lies in the folder to its end; returns the exit code.

    Args:
        folder: of the run.
        held: begin held.
        per_engine: with histograms of each engine, also where there are so many that they are merged.
        runner: runs a scenario somewhere, as `run_on` does.
    """
    try:
        lock = take_lock(folder.lock)
        if lock is None:
            LOG.error("another process has this run")
            return LOCKED
        with lock:
            return _work(folder, held=held, per_engine=per_engine, runner=runner)
    except OSError as error:  # what is there can be continued
        LOG.error("%s: %s", error.filename or folder.path, error.strerror or error)  # noqa: TRY400 one line tells
        return NO_SPACE if disk_is_full(error) else os.EX_IOERR


def _work(folder: RunFolder, *, held: bool, per_engine: bool, runner: Runner) -> int:
    """The same, with the run's lock.

    Raises:
        OSError: a file cannot be written.
    """
    control: LiveControl | None = None
    site: Site | None = None
    try:
        if folder.finished:  # killed after the last step
            outcome = _finished(read_summary(folder.results))
        else:
            options = read_json(folder.options) or {}
            prepared = prepare(load_scenario(folder.scenario))
            control, site = _site(folder, prepared, speed=float(options["speed"]), held=held, per_engine=per_engine)
            place = Place(**options.get("place", {}))
            outcome = _finished(_run(folder, control, site, place, runner))
    except StoppedError:
        LOG.info("stopped, to be continued")
        return TO_BE_CONTINUED
    except OSError:
        raise
    except Exception as error:
        if disk_is_full(error):
            raise OSError(errno.ENOSPC, str(error)) from error
        outcome = {**_verdict(error), "progress": _so_far(control)}
    if site is not None:
        with suppress(OSError):  # a full disk; the run is over all the same
            write_bytes(folder.metrics, site.metrics.latest().to_bytes())
    if outcome["state"] != "failed":  # else what it had reached tells more than the message
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    write_json(folder.outcome, outcome, PRIVATE)
    return 0


def _run(folder: RunFolder, control: LiveControl, site: Site, place: Place, runner: Runner) -> Summary:
    """Run the scenario where it is to be run, and answer calls meanwhile; returns the summary."""
    endpoint = _listen(folder, site, control)
    over = threading.Event()

    def started(runtime: Distributed) -> None:
        site.metrics.watch(runtime.facts)
        site.devices.attach(runtime)

    threading.Thread(target=_stop_without_server, args=(folder, control, over), daemon=True).start()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: _stop(control))
    try:
        return runner(
            place.on,
            site.prepared,
            folder.results,
            spread=place.spread(),
            started=started,
            control=control,
            checkpoints=folder.checkpoints,
        )
    finally:
        over.set()
        control.end()
        endpoint.stop(_LAST_WORDS_S).wait()
        folder.worker.unlink(missing_ok=True)


def _site(
    folder: RunFolder, prepared: Prepared, *, speed: float, held: bool, per_engine: bool
) -> tuple[LiveControl, Site]:
    objectives, frontend_ps = prepared.objectives, prepared.frontend_ps
    latencies = RunningLatencies(objectives, frontend_ps=frontend_ps, percentiles=prepared.scenario.output.percentiles)
    beginning = metrics_of(prepared, folder.id, speed=speed, per_engine=per_engine)
    metrics = MetricsFeed(beginning, objectives, frontend_ps=frontend_ps)
    site = Site(folder.id, prepared, metrics)

    def at_end(snapshot: Snapshot, ledgers: Sequence[Ledger]) -> None:
        write_bytes(folder.ended, ended_run(site, snapshot, latencies, ledgers).SerializeToString())

    return LiveControl(latencies, speed=speed, held=held, observer=metrics, at_end=at_end), site


def _listen(folder: RunFolder, site: Site, control: LiveControl) -> grpc.Server:
    """Start the endpoint, and say where it is."""
    token = secrets.token_urlsafe(32)
    server = make_server(_THREADS, token)
    live = LiveSimulation(site, control)  # type: ignore[abstract]  # the other methods are the server's
    simulation_pb2_grpc.add_SimulationServiceServicer_to_server(live, server)
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(LiveScheduler(site, control), server)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(Follower(site, control), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    address = {"address": f"127.0.0.1:{port}", "token": token}
    write_json(folder.worker, {**Process.of(os.getpid()).document(), **address}, PRIVATE)
    return server


def _finished(summary: Summary) -> dict[str, Any]:
    requests = summary.requests
    return {
        "state": "finished",
        "error": "",
        "progress": {
            "simulated_s": summary.end_s,
            "requests": requests.total,
            "arrived": requests.total,
            "finished": requests.finished,
            "rejected": requests.rejected,
            "waiting": requests.unfinished,
            "steps": summary.batch.steps,
            "stability": summary.stability,
        },
    }


def _verdict(error: Exception) -> dict[str, Any]:
    """How a run ended that did not finish."""
    if isinstance(error, RunCancelledError):
        return {"state": "cancelled", "error": ""}
    if isinstance(error, PimserveError):
        return {"state": "failed", "error": str(error)}
    if isinstance(error, MemoryError):
        return {"state": "failed", "error": "out of memory: a smaller workload needs less"}
    LOG.error("internal error", exc_info=error)
    message = f"internal error: {type(error).__name__}: {error}; the run's worker.log has more"
    return {"state": "failed", "error": message}


def _so_far(control: LiveControl | None) -> dict[str, Any]:
    """How far it came."""
    if control is None or control.snapshot is None:
        return {}
    return {field.name: value for field, value in progress_of(control.snapshot).ListFields()}


def _stop_without_server(folder: RunFolder, control: LiveControl, over: threading.Event) -> None:
    """Stop the run when there has been no server for long."""
    file = folder.path.parents[1] / SERVER_FILE
    last = time.monotonic()
    while not over.wait(_LOOK_S):
        server = read_json(file)
        if server is not None and Process.from_document(server).alive():
            last = time.monotonic()
        elif time.monotonic() - last > _WITHOUT_SERVER_S:
            LOG.info("no server for %g s", _WITHOUT_SERVER_S)
            _stop(control)
            return


def _stop(control: LiveControl) -> None:
    """Stop the run at the end of its window, or at once if that does not come; it goes on from its checkpoint."""
    # In a thread: a signal may come while this one has the control's lock.
    threading.Thread(target=control.stop, daemon=True).start()
    timer = threading.Timer(_WINDOW_AT_MOST_S, os._exit, (TO_BE_CONTINUED,))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
