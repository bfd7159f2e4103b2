"""Stand-ins for what the server has beside gRPC and files: workers that it starts, its registry, its checkers."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pimserve.cluster.service import worker
from pimserve.cluster.service.data_folder import RunFolder
from pimserve.cluster.service.launch_options import AllowedPlaces
from pimserve.cluster.service.received_scenario import as_yaml, read_scenario
from pimserve.v1 import simulation_pb2 as pb
from tests.simulated.active import world
from tests.simulated.waiting import Module

_START_S = 0.3  # of a process, on average
_PAGES_BYTES = 8192
_SQLITE_FULL = sqlite3.SQLITE_FULL


class Popen:
    """A worker, in a process of its own that outlives the server."""

    def __init__(self, command: Sequence[str], **_: Any) -> None:
        folder = RunFolder(Path(next(part for part in command if part.startswith("/") and "/runs/" in part)))
        held = "--paused" in command
        loop = world().loop

        def main() -> int:
            loop.park(loop.rng.expovariate(1 / _START_S))
            return worker.work(folder, held=held)

        loop.give_way(0.3)
        self._process = world().launch("worker", main)
        self.pid = self._process.pid

    def poll(self) -> int | None:
        world().loop.give_way()
        return self._process.code


class Connection:
    """A connection to SQLite that ends with its process, and finds the disk full."""

    def __init__(self, *how: Any, **more: Any) -> None:
        self._real = sqlite3.connect(*how, **more)
        world().loop.check().process.at_end.append(self._real.close)

    def execute(self, text: str, *values: Any) -> sqlite3.Cursor:
        if (
            text.startswith("INSERT") and world().disk.room(_PAGES_BYTES) < _PAGES_BYTES
        ):  # what is there is changed in place
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = _SQLITE_FULL
            raise error
        return self._real.execute(text, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._real, name, value)


class Checkers:
    """A `CheckerPool` without processes: what it checks here is known to be good."""

    _checked: dict[bytes, Mapping[str, Any]] = {}  # noqa: RUF012 for all seeds

    def __init__(self, traces: Path | None, places: AllowedPlaces, limits: object) -> None:
        self._places = places

    def check(self, scenario: pb.ScenarioDocument, options: pb.LaunchOptions, context: Any) -> Mapping[str, Any]:
        key = scenario.SerializeToString() + options.SerializeToString()
        if key not in self._checked:
            prepared = read_scenario(scenario.yaml, scenario.overrides, "", None)
            place = self._places.place_of(options)
            text = as_yaml(prepared.scenario)
            self._checked[key] = {"name": prepared.scenario.name, "scenario": text, "place": place.document()}
        return self._checked[key]

    def close(self) -> None: ...


def _on_signal(number: int, handler: Any) -> None:
    world().loop.check().process.signals[number] = handler


SUBPROCESS = Module(subprocess, Popen=Popen)
SQLITE = Module(sqlite3, connect=Connection)
SIGNAL = Module(signal, signal=_on_signal)
