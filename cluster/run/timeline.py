"""A finished run as a timeline for Perfetto (ui.perfetto.dev) and chrome://tracing: Chrome's trace event format, JSON.

A process for each replica, with a track of its steps, a counter for each unit of its devices, and counters of its
batch; another process for requests, one track each: waiting, prefill, decode. Where experts have devices of their own,
there are counters of what both groups do or wait for, and lanes with the micro-batches of some steps. Times are
simulated microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.base.files import output_file
from pimserve.cluster.run.group_schema import TIMES
from pimserve.cluster.run.history import History, ends_ps
from pimserve.cluster.run.replica_progress import ReplicaProgress
from pimserve.cluster.run.step_schedule import LANES, sampled_steps
from pimserve.cluster.scenario.placement_spec import GROUPS
from pimserve.device_models.plan import HOST
from pimserve.scheduler.group_times import group_times
from pimserve.scheduler.requests import FINISHED

MOST_SLICES = 20_000  # of steps of a replica; more are put together
MOST_IN_ALL = 200_000  # of steps of all replicas, so that a browser can hold it
MOST_REQUESTS = 1_000
_BINS = 500  # of counters
_PS_PER_US, _FS_PER_US = 10**6, 10**9
_REQUESTS_PID = 0
_MOMENTS = ("arrival", "first_scheduled", "first_token", "finish")

Event = dict[str, Any]


def write_timeline(run: Path, out: Path, *, most_requests: int = MOST_REQUESTS) -> dict[str, int]:
    """Write a run's timeline; returns how many of which events it has.

    Args:
        run: results folder.
        out: the file, there whole or not at all.
        most_requests: that are shown: of the first ones those that finished.

    Raises:
        InputError: the folder is no run with steps, or was changed, or the file cannot be written.
    """
    history = History.load(run)
    progress = [ReplicaProgress(history, replica) for replica in range(len(history.spans))]
    events = list(_events(history, progress, most_requests))
    history.check_digest([replica.digest() for replica in progress])
    document = {
        "displayTimeUnit": "ms",
        "otherData": {"run": run.resolve().name, "clock": "simulated time"},
        "traceEvents": events,
    }
    with output_file(out) as file:
        file.write(json.dumps(document, separators=(",", ":"), allow_nan=False))
    kinds = [event["ph"] for event in events]
    return {
        "slices": kinds.count("X"),
        "counters": kinds.count("C"),
        "requests": int((history.requests["status"][:most_requests] == FINISHED).sum()),
    }


def _events(history: History, progress: Sequence[ReplicaProgress], most_requests: int) -> Iterator[Event]:
    engines = history.prepared.pool_of_replica
    most = max(_BINS, min(MOST_SLICES, MOST_IN_ALL // len(engines)))
    for replica, pool in enumerate(engines):
        pid = replica + 1
        role = f"{pool.name} " if pool.name else ""
        devices = " + ".join(f"{member.devices_per_replica} {member.label}" for member in pool.members)
        yield from _process(pid, f"{role}replica {replica}: {devices}", pid)
        yield _track(pid, 1, "steps")
        yield from _steps(pid, history.spans[replica], most)
        yield from _units(pid, history.spans[replica], progress[replica], history.end_s)
        yield from _groups(pid, history, replica, most)
    yield from _process(_REQUESTS_PID, "requests", len(engines) + 1)
    yield from _requests(history.requests[:most_requests], history.numbers[:most_requests])


def _process(pid: int, name: str, place: int) -> Iterator[Event]:
    yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
    yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": place}}


def _track(pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}


def _steps(pid: int, spans: NDArray[Any], most: int) -> Iterator[Event]:
    """A slice for each span of equal steps, or for several where there are too many; counters at the same times."""
    if not len(spans):
        return
    every = -(-len(spans) // most)
    first = spans[::every]
    begins = np.arange(0, len(spans), every)
    last = np.minimum(begins + every, len(spans)) - 1
    ends = ends_ps(spans)[last]
    rests = np.append(first["begin_ps"][1:] > ends[:-1], True)  # whether the replica has nothing to do afterwards
    rows = zip(
        first["begin_ps"].tolist(),
        ends.tolist(),
        rests.tolist(),
        np.add.reduceat(spans["steps"], begins).tolist(),
        np.add.reduceat(spans["prefill_tokens"], begins).tolist(),
        np.add.reduceat(spans["outputs"] * spans["steps"], begins).tolist(),
        first["decodes"].tolist(),
        first["chunks"].tolist(),
        first["blocks_begin"].tolist(),
        strict=True,
    )
    for begin_ps, end_ps, rest, number, prompt, output, decodes, chunks, blocks in rows:
        name = "mixed" if prompt and decodes else "prefill" if prompt else "decode"
        arguments = {"steps": number, "requests": decodes + chunks, "prompt tokens": prompt, "output tokens": output}
        begin, took = begin_ps / _PS_PER_US, (end_ps - begin_ps) / _PS_PER_US
        yield {
            **{"ph": "X", "pid": pid, "tid": 1, "ts": begin, "dur": took, "name": name},
            **{"cat": "steps", "args": arguments},
        }
        yield _counter(pid, begin, "requests in the batch", decodes + chunks)
        yield _counter(pid, begin, "KV blocks", blocks)
        if rest:
            yield _counter(pid, end_ps / _PS_PER_US, "requests in the batch", 0)
            yield _counter(pid, end_ps / _PS_PER_US, "KV blocks", 0)


def _units(pid: int, spans: NDArray[Any], progress: ReplicaProgress, end_s: float) -> Iterator[Event]:
    """Busy share of each unit, and what groups do, in each of some hundred bins, which begin where spans do."""
    starts_ps = spans["begin_ps"][:: -(-len(spans) // _BINS) or 1].tolist()
    before: dict[str, float] = {}
    for begin_ps, end_ps in pairwise([*starts_ps, round(end_s * 1e12)]):
        ledger = progress.until(end_ps, last=begin_ps == starts_ps[-1])
        now = {f"{unit} busy": seconds for unit, seconds in ledger.busy_s.items()}
        if ledger.stage_s:
            both = group_times(ledger.step_s, ledger.busy_s.get(HOST, 0.0), ledger.stage_s, end_ps / 1e12)
            for group, times in zip(GROUPS, both, strict=True):
                now |= {f"{group}: {TIMES[part]}": seconds for part, seconds in times._asdict().items()}
        for name, seconds in now.items():
            share = (seconds - before.get(name, 0.0)) / ((end_ps - begin_ps) / 1e12)
            yield _counter(pid, begin_ps / _PS_PER_US, f"{name}, %", round(100 * share, 3))
        before = now


def _groups(pid: int, history: History, replica: int, most: int) -> Iterator[Event]:
    """Of some steps, where each micro-batch is when, in a lane for each group of devices and each way of the link."""
    for number, (begin_ps, stays) in enumerate(sampled_steps(history, replica, most)):
        if not number:
            for lane, name in enumerate(LANES):
                yield _track(pid, 2 + lane, f"{name}, some steps")
        for stay in stays:
            if stay.end_fs > stay.begin_fs:
                yield {
                    **{"ph": "X", "pid": pid, "tid": 2 + stay.lane, "name": f"micro-batch {stay.part}"},
                    **{"ts": begin_ps / _PS_PER_US + stay.begin_fs / _FS_PER_US},
                    **{"dur": (stay.end_fs - stay.begin_fs) / _FS_PER_US, "cat": "groups"},
                    "args": {"visit to the experts": stay.visit},
                }


def _requests(requests: NDArray[Any], numbers: NDArray[np.int64]) -> Iterator[Event]:
    """Nested asynchronous slices: a request's life, and its phases."""
    for row, number in zip(requests, numbers.tolist(), strict=True):
        if row["status"] != FINISHED:
            continue
        moments = [int(row[f"{name}_ps"]) / _PS_PER_US for name in _MOMENTS]
        arguments = {
            "replica": int(row["replica"]),
            "input tokens": int(row["input_tokens"]),
            "output tokens": int(row["output_tokens"]),
            "preemptions": int(row["preemptions"]),
        }
        yield from _phase(number, f"request {number}", moments[0], moments[3], arguments)
        for name, begin, end in zip(("waiting", "prefill", "decode"), moments[:-1], moments[1:], strict=True):
            yield from _phase(number, name, begin, end, {})


def _phase(number: int, name: str, begin: float, end: float, arguments: dict[str, int]) -> Iterator[Event]:
    same = {"pid": _REQUESTS_PID, "tid": 1, "cat": "request", "id": number, "name": name}
    yield {"ph": "b", "ts": begin, **same, "args": arguments}
    yield {"ph": "e", "ts": end, **same}


def _counter(pid: int, at_us: float, name: str, value: float) -> Event:
    return {"ph": "C", "pid": pid, "ts": at_us, "name": name, "args": {"value": value}}
