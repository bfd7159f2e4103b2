"""The process that is connected to Ray (see `ray_process.py`).

It starts a Ray of our own, or connects to one that runs, makes actors and tasks there as lines of standard input say,
and ends with its standard input, that Ray with it. Should it be killed, or a process of that Ray die, then a guard,
its copy from before it knew of Ray, ends what is left within a second, and removes the files.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from pimserve.cluster.base.processes import StopWatch, of_session
from pimserve.cluster.distributed.hosts.hosting import STOP_MARGIN_S, HostActor
from pimserve.cluster.distributed.hosts.ray_folders import clear_away
from pimserve.errors import shortened

_OBJECT_STORE_BYTES = 128 << 20  # nothing of ours travels through it; Ray wants 75 MiB at least
_STOP_LIMIT_S = 30
_LOOK_S = 0.5
_STOPPED_EVERY = 4  # looks


class _Actor(NamedTuple):
    """An actor, and what will be there when its host has started, and when it has ended."""

    handle: Any
    started: Any
    lifetime: Any


class Actors:
    """Hosts in actors, and tasks. Each call takes milliseconds; what it returns JSON can hold."""

    def __init__(self, ray: Any) -> None:  # noqa: ANN401 a module, which is imported late
        self._ray = ray
        self._actors: dict[int, _Actor] = {}  # that have not been killed
        self._groups: list[Any] = []
        self._tasks: dict[int, Any] = {}
        self._numbers = count()

    def total(self) -> dict[str, float]:
        """Resources of all nodes together."""
        return dict(self._ray.cluster_resources())

    def free(self) -> dict[str, float]:
        """Resources that nobody holds."""
        return dict(self._ray.available_resources())

    def reserve(self, bundles: list[dict[str, float]], strategy: str) -> int:
        """Ask for a placement group; returns its number."""
        from ray.util import placement_group  # noqa: PLC0415

        self._groups.append(placement_group(bundles, strategy))
        return len(self._groups) - 1

    def reserved(self, group: int) -> bool:
        """Whether it is there."""
        return bool(self._groups[group].wait(0.05))

    def give_back(self, group: int) -> None:
        """Remove a placement group."""
        from ray.util import remove_placement_group  # noqa: PLC0415

        remove_placement_group(self._groups[group])

    def launch(self, spec: str, resources: dict[str, float], options: dict[str, Any], place: list[int]) -> int:
        """Launch a host in an actor; returns its number.

        Args:
            spec: of the host, as `HostActor.start` takes it.
            resources: that it holds.
            options: of the actor.
            place: a placement group and the number of a bundle of it; empty for anywhere.
        """
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: PLC0415

        if place:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._groups[place[0]], place[1])
        make: Any = self._ray.remote(HostActor).options(
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            max_restarts=0,
            max_concurrency=3,  # start or stop, beside lifetime
            **options,
        )
        handle, number = make.remote(), next(self._numbers)
        self._actors[number] = _Actor(handle, handle.start.remote(spec), handle.lifetime.remote())
        return number

    def ended(self, actor: int) -> bool:
        """Whether it has ended; Ray says so about 10 ms after its death."""
        return actor not in self._actors or bool(self._ray.wait([self._actors[actor].lifetime], timeout=0)[0])

    def started(self, actor: int) -> list[Any] | None:
        """The fields of `Started`, or in a list of one how it died; None if it has not started."""
        started = self._actors[actor].started
        if not self._ray.wait([started], timeout=0)[0]:
            return None
        try:
            return list(self._ray.get(started))
        except self._ray.exceptions.RayError as error:
            return [_reason(error)]

    def stop(self, actor: int, grace_s: float) -> None:
        """Tell it to stop in order."""
        if actor in self._actors:
            self._actors[actor].handle.stop.remote(grace_s)

    def kill(self, actor: int) -> None:
        """End it at once, and let go of it: else one that has no place yet would get it."""
        if actor in self._actors:
            with suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.kill(self._actors.pop(actor).handle)

    def end(self, actors: list[int]) -> None:
        """Let actors end by themselves (ray.kill runs no atexit), and kill what is left."""
        ends = [self._actors[actor].handle.__ray_terminate__.remote() for actor in actors if actor in self._actors]
        if ends:
            self._ray.wait(ends, num_returns=len(ends), timeout=STOP_MARGIN_S)
        for actor in actors:
            self.kill(actor)

    def submit(self, function: str, argument: str) -> int:
        """Have a function, "package.module:name", called in a task of one CPU; returns the task's number."""
        module, _, name = function.partition(":")
        task: Any = self._ray.remote(num_cpus=1, max_retries=0)(getattr(importlib.import_module(module), name))
        number = next(self._numbers)
        self._tasks[number] = task.remote(argument)
        return number

    def finished(self) -> list[tuple[int, Any, str]]:
        """Tasks that have ended since the last call: what their functions returned, or how they were lost."""
        ready, _ = self._ray.wait([*self._tasks.values()], num_returns=len(self._tasks), timeout=0)
        results = []
        for number, reference in [*self._tasks.items()]:
            if reference in ready:
                del self._tasks[number]
                try:
                    results.append((number, self._ray.get(reference), ""))
                except self._ray.exceptions.RayError as error:
                    results.append((number, None, shortened(" ".join(str(error).split()))))
        return results

    def cancel(self) -> None:
        """Give up all tasks."""
        for reference in self._tasks.values():
            with suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.cancel(reference, force=True)


def main() -> None:
    """Connect as the first argument says (JSON), and say so; then answer each line of standard input.

    The argument has `limit_s` for that, and the `address` of a Ray that runs, or of one of our own the `cpus`,
    `resources`, the `folder`, and `silence_s`, after which a process of it that is stopped counts as dead.
    """
    wanted = json.loads(sys.argv[1])
    if "folder" in wanted:
        _leave_a_guard(Path(wanted["folder"]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what Ray prints is no answer

    def answer(document: dict[str, Any]) -> None:
        print(json.dumps(document), file=answers, flush=True)

    signal.alarm(wanted["limit_s"])  # ends this process, should ray.init hang and the coordinator be gone
    try:
        ray = _connect(wanted)
    except Exception as error:  # noqa: BLE001 the user is told
        answer({"error": _refusal(error)})
        return
    signal.alarm(0)
    answer({"address": wanted.get("address") or ray.get_runtime_context().gcs_address})
    if "folder" in wanted:
        threading.Thread(target=_watch, args=(ray, wanted["silence_s"]), daemon=True).start()
    actors = Actors(ray)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        try:
            answer({"value": getattr(actors, method)(*arguments)})
        except Exception as error:  # noqa: BLE001 whatever it is, who asked is told
            answer({"error": f"Ray: {_reason(error)}"})
    signal.alarm(_STOP_LIMIT_S)
    ray.shutdown()


def _connect(wanted: dict[str, Any]) -> Any:  # noqa: ANN401 the module
    import ray  # noqa: PLC0415

    # Ray tells of dead workers on standard output, log_to_driver or not; this is the switch of its own debugger.
    ray._private.worker._worker_logs_enabled = False
    quiet: Any = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if "address" in wanted:
        ray.init(address=wanted["address"], **quiet)
    else:
        ray.init(
            address="local",
            num_cpus=wanted["cpus"],
            resources=wanted["resources"],
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=wanted["folder"],
            **quiet,
        )
    return ray


def _refusal(error: BaseException) -> str:
    """Why Ray did not take us in, in a line: what lies below its "failed to connect"."""
    text = " ".join(str(error.__cause__ or error).split())
    if isinstance(error, ImportError):
        return f"needs Ray, with its client for ray://, pip install 'ray[client]': {text}"
    if "ersion mismatch" in text or "versions differ" in text:
        return f"its versions are not ours: {text}"
    return f"cannot connect: {shortened(text)}"


def _reason(error: Exception) -> str:
    """What Ray says of a death, in a line: the error itself, not the traceback that Ray puts before it."""
    cause = getattr(error, "cause", None)
    text = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(error)
    return shortened(" ".join(text.split()))


def _watch(ray: Any, silence_s: float) -> None:  # noqa: ANN401 the module
    """End this process, by its guard what is left of Ray, when a process of Ray has died; stopped ones are killed."""
    watch = StopWatch()
    for look in count():
        time.sleep(_LOOK_S)
        dead = {kind for kind, _ in ray._private.worker._global_node.dead_processes()}
        if dead & {"gcs_server", "raylet"}:
            os._exit(1)
        if look % _STOPPED_EVERY == 0:  # it takes milliseconds
            for pid in of_session(os.getpid()):
                if watch.stopped_s(pid) > silence_s:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def _leave_a_guard(folder: Path) -> None:
    """Fork a process that waits for the end of this one, and then ends what is left of its session."""
    session = os.getpid()
    alive, ours = os.pipe()
    if os.fork():
        os.close(alive)
        return
    os.setsid()
    os.close(ours)
    null = os.open(os.devnull, os.O_RDWR)
    for handle in range(3):
        os.dup2(null, handle)
    os.read(alive, 1)
    clear_away(session, folder)
    os._exit(0)


if __name__ == "__main__":
    main()
