"""Runs that have finished, as queries ask for them: from their results, and what their process left beside these."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message

from pimserve.arrays import FloatArray
from pimserve.cluster.base.rpc.statuses import RefusedError, unknown_request
from pimserve.cluster.run.live_control import Snapshot
from pimserve.cluster.run.read_summary import read_summary
from pimserve.cluster.run.results import load_numbers, load_table
from pimserve.cluster.run.running_latencies import (
    NAMES,
    RunningLatencies,
    exact_quantiles,
    quantiles_of_histogram,
)
from pimserve.cluster.run.summary_message import message_of
from pimserve.cluster.service.data_folder import RunFolder
from pimserve.cluster.service.device_queries import no_actors, of_replicas
from pimserve.cluster.service.messages import (
    Site,
    latencies_of,
    latency_of,
    ledgers_of,
    life,
    limit_of,
    placement_of,
    replicas_of,
)
from pimserve.cluster.service.run_registry import Record
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.errors import InputError
from pimserve.scheduler.control import Ledger
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.latencies import LATENCIES, Latencies
from pimserve.scheduler.window import MeasuredWindow
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import summary_pb2, worker_pb2


def ended_run(
    site: Site, snapshot: Snapshot, latencies: RunningLatencies, ledgers: Sequence[Ledger]
) -> worker_pb2.EndedRun:
    """What a run leaves for queries.

    Args:
        site: of the run.
        snapshot: as it was in the end.
        latencies: likewise.
        ledgers: likewise.
    """
    facts = {
        "now_fs": snapshot.now_fs,
        "frontend_ps": site.prepared.frontend_ps,
        "measured": asdict(snapshot.measured),
        "gaps": latencies.gaps.state(),
    }
    return worker_pb2.EndedRun(
        replicas=replicas_of(snapshot),
        ledgers=ledgers_of(snapshot.now_fs, ledgers),
        placement=placement_of(site),
        latencies=latencies_of(snapshot, latencies),
        facts=json.dumps(facts),
        devices=site.devices.devices(snapshot.now_fs),
    )


def finished(record: Record, folder: RunFolder) -> RunFolder:
    """The folder of a run that has results.

    Raises:
        RefusedError: it has none.
    """
    if record.state != "finished":
        raise RefusedError(
            grpc.StatusCode.FAILED_PRECONDITION, f"run {record.id} is {record.state}: only finished runs have results"
        )
    return folder


def answer(folder: RunFolder, method: str, request: Any) -> Message:  # noqa: ANN401 any request of the service
    """The answer of a run that has finished to a query (`ANSWERS`).

    Raises:
        RefusedError: it has none to that, or its files are damaged.
    """
    if not folder.ended.exists():
        raise RefusedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"run {folder.id} has finished under an earlier version of pimserve, which left nothing for queries; its "
            "results are there",
        )
    with _reading(folder):
        run = worker_pb2.EndedRun.FromString(folder.ended.read_bytes())
        return ANSWERS[method](run, folder.results, request)


def summary_of(folder: RunFolder) -> summary_pb2.Summary:
    """The summary of a run that has finished.

    Raises:
        RefusedError: its files are damaged.
    """
    with _reading(folder):
        return message_of(read_summary(folder.results))


@contextmanager
def _reading(folder: RunFolder) -> Iterator[None]:
    """Files of a run; what is wrong with them is no mistake of who asks."""
    try:
        yield
    except (DecodeError, InputError, ValueError, KeyError, FileNotFoundError) as error:
        raise RefusedError(grpc.StatusCode.DATA_LOSS, f"the files of run {folder.id} are damaged: {error}") from None


def _life(run: worker_pb2.EndedRun, results: Path, request: Any) -> Message:  # noqa: ANN401
    table = load_table(results, "requests")
    if request.request >= len(table):
        raise unknown_request(request.request, len(table))
    [at] = np.flatnonzero(load_numbers(results, len(table)) == request.request)
    row = {name: int(table[name][at]) for name in table.dtype.names or ()}
    return life(row, request.request, json.loads(run.facts)["now_fs"])


def _devices(run: worker_pb2.EndedRun, _: Path, request: Any) -> Message:  # noqa: ANN401
    if not run.HasField("devices"):
        raise no_actors()
    return of_replicas(run.devices, frozenset(request.replicas))


def _latencies(run: worker_pb2.EndedRun, results: Path, request: Any) -> Message:  # noqa: ANN401
    facts, asked = json.loads(run.facts), run.latencies.latencies[0].percentiles
    percentiles = request.percentiles or [percentile.percent for percentile in asked]
    quantiles = {
        **{name: exact_quantiles(known, percentiles) for name, known in _of_requests(results, run.facts).items()},
        "itl": quantiles_of_histogram(DurationHistogram.of_state(facts["gaps"]), percentiles),
    }
    message = sched.GetLatenciesResponse()
    message.CopyFrom(run.latencies)
    del message.latencies[:]
    of_summary = read_summary(results).slo.at_percentiles or {}
    del message.slo.at_percentiles[:]
    message.slo.at_percentiles.extend(limit_of(name, limit) for name, limit in of_summary.items())
    since_s, now_s = run.latencies.measured_from_s, facts["now_fs"] / FS_PER_S
    message.latencies.extend(latency_of(name, quantiles[name], counted_from_s=since_s, as_of_s=now_s) for name in NAMES)
    return message


@lru_cache(maxsize=2)  # who looks at a run looks again; a million requests are 32 MB
def _of_requests(results: Path, facts_json: str) -> Mapping[str, FloatArray]:
    """The latencies that requests have, ascending, as in the summary."""
    facts = json.loads(facts_json)
    table = load_table(results, "requests")
    columns = {str(name): np.ascontiguousarray(table[name]) for name in table.dtype.names or ()}
    measured = MeasuredWindow(**facts["measured"])
    requests = np.flatnonzero(columns["arrival_ps"] >= 0)
    requests = requests[measured.holds(columns, requests)]
    end_ps = facts["now_fs"] // FS_PER_PS
    latencies = Latencies(columns, requests, frontend_ps=facts["frontend_ps"], end_ps=end_ps)
    return {name: np.sort(latencies[name].known_s) for name in LATENCIES}


ANSWERS: Mapping[str, Callable[[worker_pb2.EndedRun, Path, Any], Message]] = {
    "GetReplicas": lambda run, *_: run.replicas,
    "GetLedgers": lambda run, *_: run.ledgers,
    "GetDevices": _devices,
    "GetPlacement": lambda run, *_: run.placement,
    "GetLatencies": _latencies,
    "DescribeRequest": _life,
}
