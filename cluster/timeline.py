"""A finished run as a timeline for Perfetto (ui.perfetto.dev) and chrome://tracing: Chrome's trace event format, JSON.

A process for each replica, with a track of its steps, a counter for each unit of its devices, and counters of its
batch; another process for requests, one track each: waiting, prefill, decode. Times are simulated microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.checkpoint import write_atomically
from pimserve.cluster.history import History
from pimserve.cluster.metrics.replay import ReplicaProgress
from pimserve.errors import InputError
from pimserve.scheduler.requests import FINISHED

MOST_SLICES = 20_000  # of steps of a replica; more are put together
MOST_REQUESTS = 1_000
_BINS = 500  # of counters
_PS_PER_US = 10**6
_FS_PER_US = 10**9
_REQUESTS_PID = 0
_MOMENTS = ("arrival", "first_scheduled", "first_token", "finish")

Event = dict[str, Any]


def write_timeline(run: Path, out: Path, *, most_requests: int = MOST_REQUESTS) -> dict[str, int]:
    """Write a run's timeline; returns how many of which events it has.

    Args:
        run: results folder.
        out: the file, there whole or not at all.
        most_requests: that are shown: the first ones.

    Raises:
        InputError: the folder is no run with steps, or the file cannot be written.
    """
    history = History.load(run)
    events = list(_events(history, most_requests))
    document = {
        "displayTimeUnit": "ms",
        "otherData": {"run": run.resolve().name, "clock": "simulated time"},
        "traceEvents": events,
    }
    try:
        write_atomically(out, json.dumps(document, separators=(",", ":"), allow_nan=False).encode())
    except OSError as error:
        raise InputError(str(out), f"cannot be written: {error.strerror}") from None
    kinds = [event["ph"] for event in events]
    return {
        "slices": kinds.count("X"),
        "counters": kinds.count("C"),
        "requests": min(most_requests, len(history.requests)),
    }


def _events(history: History, most_requests: int) -> Iterator[Event]:
    engines = [pool for pool in history.pools for _ in range(pool.replicas)]
    for replica, pool in enumerate(engines):
        pid = replica + 1
        role = f"{pool.name} " if pool.name else ""
        yield _name(pid, f"{role}replica {replica}: {pool.devices_per_replica} {pool.label}", pid)
        yield _track(pid, 1, "steps")
        yield from _steps(pid, history.spans[replica])
        yield from _units(pid, history, replica)
    yield _name(_REQUESTS_PID, "requests", len(engines) + 1)
    yield from _requests(history.requests[:most_requests])


def _name(pid: int, name: str, order: int) -> Event:
    # The order of processes is metadata of its own, which Perfetto takes from the number as well.
    return {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name, "sort_index": order}}


def _track(pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}


def _steps(pid: int, spans: NDArray[Any]) -> Iterator[Event]:
    """A slice for each span of equal steps, or for several where there are too many; counters at the same times."""
    if not len(spans):
        return
    every = -(-len(spans) // MOST_SLICES)
    first = spans[::every]
    begins = np.arange(0, len(spans), every)
    ends_us = (spans["begin_ps"] / _PS_PER_US) + spans["duration_fs"] / _FS_PER_US
    last = np.minimum(begins + every, len(spans)) - 1
    steps = np.add.reduceat(spans["steps"], begins)
    prompts = np.add.reduceat(spans["prefill_tokens"], begins)
    outputs = np.add.reduceat(spans["outputs"] * spans["steps"], begins)
    rows = zip(
        (first["begin_ps"] / _PS_PER_US).tolist(),
        ends_us[last].tolist(),
        steps.tolist(),
        prompts.tolist(),
        outputs.tolist(),
        first["decodes"].tolist(),
        first["chunks"].tolist(),
        first["blocks_begin"].tolist(),
        strict=True,
    )
    for begin, end, number, prompt, output, decodes, chunks, blocks in rows:
        name = "mixed" if prompt and decodes else "prefill" if prompt else "decode"
        arguments = {"steps": number, "requests": decodes + chunks, "prompt tokens": prompt, "output tokens": output}
        yield {
            **{"ph": "X", "pid": pid, "tid": 1, "ts": round(begin, 6), "dur": round(end - begin, 6), "name": name},
            **{"cat": "steps", "args": arguments},
        }
        yield _counter(pid, begin, "requests in the batch", decodes + chunks)
        yield _counter(pid, begin, "KV blocks", blocks)
    yield _counter(pid, ends_us[-1], "requests in the batch", 0)
    yield _counter(pid, ends_us[-1], "KV blocks", 0)


def _units(pid: int, history: History, replica: int) -> Iterator[Event]:
    """Busy share of each unit in each of some hundred bins, which begin where spans do."""
    progress = ReplicaProgress(history, replica)
    spans = history.spans[replica]
    starts_ps = spans["begin_ps"][:: -(-len(spans) // _BINS) or 1].tolist()
    before: dict[str, float] = {}
    for begin_ps, end_ps in zip(starts_ps, [*starts_ps[1:], round(history.end_s * 1e12)], strict=True):
        busy = progress.until(end_ps, last=begin_ps == starts_ps[-1]).busy_s
        for unit, seconds in busy.items():
            share = (seconds - before.get(unit, 0.0)) / ((end_ps - begin_ps) / 1e12)
            yield _counter(pid, begin_ps / _PS_PER_US, f"{unit} busy, %", round(100 * share, 3))
        before = dict(busy)


def _requests(requests: NDArray[Any]) -> Iterator[Event]:
    """Nested asynchronous slices: a request's life, and its phases."""
    for number, row in enumerate(requests):
        if row["status"] != FINISHED:
            continue
        moments = [
            int(row[f"{name}_ps"]) / _PS_PER_US for name in ("arrival", "first_scheduled", "first_token", "finish")
        ]
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
    return {"ph": "C", "pid": pid, "ts": round(at_us, 6), "name": name, "args": {"value": value}}
