"""Puts the stand-ins in the place of what the program imports: for good, in a process that does nothing else.

The program has its seams where Python has names: a module that says `time.monotonic()` asks for the name `time` of its
own, `rpc/channels.py` for `grpc`. So nothing in the program knows of this, and nothing is slower for it.
"""

from __future__ import annotations

import concurrent.futures._base as futures
import gc
import importlib
import pkgutil
import queue
import random
import secrets
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import grpc

import pimserve.cluster.base
import pimserve.cluster.distributed
import pimserve.cluster.run
import pimserve.cluster.service
from pimserve.cluster.base import processes
from pimserve.cluster.base.rpc import channels
from pimserve.cluster.distributed import deployment
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.cluster.service import server, worker_supervisor
from tests.simulated import disk
from tests.simulated.active import world
from tests.simulated.hosts import SimSupervisor
from tests.simulated.network import make_channel
from tests.simulated.servers import make_server
from tests.simulated.service_parts import SIGNAL, SQLITE, SUBPROCESS, Checkers
from tests.simulated.waiting import QUEUE, THREADING, TIME, Module

_ROOTS = (pimserve.cluster.base, pimserve.cluster.run, pimserve.cluster.distributed, pimserve.cluster.service)
_OURS = ("pimserve.cluster.", "pimserve.scheduler.")


def _hex(count: int | None = None) -> str:
    return random.Random(world().loop.rng.random()).randbytes(count or 16).hex()


_prepared: dict[str, Prepared] = {}


def _prepare(scenario: Scenario) -> Prepared:
    """As `prepare`; what one host has prepared the others need not."""
    key = scenario.model_dump_json()
    if key not in _prepared:
        _prepared[key] = prepare(scenario)
    return _prepared[key]


class _Proc:
    """What the system tells of a process, as a file."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def read_text(self, **_: Any) -> str:
        if self._path.parts[:2] != ("/", "proc") or not self._path.parts[2].isdigit():
            return self._path.read_text()
        process = world().processes.get(int(self._path.parts[2]))
        if process is None or process.dead:
            raise FileNotFoundError
        return f"{process.pid} (python) {'T' if process.stopped else 'S'} {'0 ' * 18}{process.pid}"


_SECRETS = Module(secrets, token_hex=_hex, token_urlsafe=_hex)
_GC = Module(gc, collect=lambda *_: 0, freeze=lambda: None, enable=lambda: None, disable=lambda: None)
_MODULES: dict[ModuleType, Any] = {
    threading: THREADING,
    queue: QUEUE,
    time: TIME,
    secrets: _SECRETS,
    signal: SIGNAL,
    sqlite3: SQLITE,
    gc: _GC,
}


def _replace(where: Any, replaced: dict[int, Any]) -> None:
    """Replace names of a module or a class, and what its functions have as defaults."""
    for name, value in list(vars(where).items()):
        if id(value) in replaced:
            setattr(where, name, replaced[id(value)])
        elif isinstance(value, FunctionType) and value.__defaults__:
            value.__defaults__ = tuple(replaced.get(id(default), default) for default in value.__defaults__)
        elif isinstance(value, type) and value.__module__ == getattr(where, "__name__", None):
            _replace(value, replaced)


def install() -> None:
    """Replace names in all modules of the runtime."""
    for root in _ROOTS:
        for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            if "ray" not in module.name:
                importlib.import_module(module.name)
    replaced = {id(real): stand_in for real, stand_in in _MODULES.items()} | {id(prepare): _prepare}
    for real, stand_in in _MODULES.items():  # `from threading import Event`
        replaced |= {id(getattr(real, name)): value for name, value in vars(stand_in).items() if hasattr(real, name)}
    for name, module in list(sys.modules.items()):
        if name.startswith(_OURS):
            _replace(module, replaced)
    futures.threading = THREADING  # type: ignore[attr-defined]
    channels.grpc = Module(grpc, server=make_server, insecure_channel=make_channel)  # type: ignore[attr-defined]
    worker_supervisor.subprocess = SUBPROCESS  # type: ignore[attr-defined]
    server.CheckerPool = Checkers  # type: ignore[misc, assignment]
    processes.Path = _Proc  # type: ignore[misc, assignment]
    deployment.ProcessSupervisor = SimSupervisor  # type: ignore[misc, assignment]
    disk.install()
    sys.unraisablehook = lambda _: None  # of generators whose process is dead
