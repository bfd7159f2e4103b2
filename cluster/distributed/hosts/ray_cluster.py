"""Ray for one run: a head of our own on loopback, or somebody's cluster that we connect to and leave as it was."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

from pimserve.cluster.distributed.hosts.ray_head import ALWAYS, LOOPBACK, Head
from pimserve.errors import InputError, PimserveError, shortened

ON = "--on"
_START_LIMIT_S = 60  # 4 s are usual, 30 s were seen on a busy core
_CONNECT_LIMIT_S = 60.0
_DISCONNECT_LIMIT_S = 30.0
_REACH_LIMIT_S = 5.0
_MADE_UP = re.compile(r"^node:|memory|_group_(\d+_)?[0-9a-f]{16,}$")
_ADDRESS = re.compile(r"(?:ray://)?(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):(\d{1,5})")


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A Ray that this process is connected to; with its `head` if that was started by us."""

    address: str
    head: Head | None = None

    def total(self) -> dict[str, float]:
        """Resources of all nodes together: CPU, GPU, and custom ones such as duplex."""
        import ray  # noqa: PLC0415

        return _countable(ray.cluster_resources())  # type: ignore[no-untyped-call]

    def free(self) -> dict[str, float]:
        """Resources that nobody holds."""
        import ray  # noqa: PLC0415

        return _countable(ray.available_resources())  # type: ignore[no-untyped-call]

    def check(self) -> None:
        """See to it that a Ray of our own is still there.

        Raises:
            PimserveError: it has ended. Ray itself says nothing for a minute then, and aborts this process.
        """
        if self.head is not None and not self.head.alive():
            raise PimserveError("Ray has ended under the run: its head was killed")


def _countable(resources: Mapping[str, float]) -> dict[str, float]:
    """Without memory, and without what Ray makes up for single nodes and placement groups."""
    return {key: n for key, n in sorted(resources.items()) if not _MADE_UP.search(key)}


def ray_on(
    on: str, *, cpus: int = 2, resources: Mapping[str, float] | None = None
) -> AbstractContextManager[RayCluster]:
    """The Ray that `--on` names: `ray` (our own, on this machine), `auto`, `HOST:PORT` or `ray://HOST:PORT`.

    Args:
        on: the value of the option.
        cpus: of a Ray of our own.
        resources: custom ones of a Ray of our own, such as {"duplex": 4}.

    Raises:
        InputError: it is none of these, or there is no such Ray.
    """
    return local_ray(cpus, resources) if on == "ray" else connect_ray(on)


@contextmanager
def local_ray(
    cpus: int = 2, resources: Mapping[str, float] | None = None, *, start_limit_s: int = _START_LIMIT_S
) -> Iterator[RayCluster]:
    """Start a Ray head on loopback, connect to it, and stop it at the end, also if this process is killed.

    Args:
        cpus: how many CPUs Ray is to believe in.
        resources: custom resources, such as {"duplex": 4}.
        start_limit_s: wall time for one attempt to start; there are two.

    Raises:
        InputError: Ray cannot be started, or this process uses another one.
    """
    with _environment(LOOPBACK):
        _import_ray(loopback=True)
        head = Head.start(cpus, resources or {}, start_limit_s)
        try:
            with _connected(head.address):
                yield RayCluster(head.address, head)
        finally:
            head.stop()


@contextmanager
def connect_ray(address: str) -> Iterator[RayCluster]:
    """Connect to a Ray that runs already, and disconnect at the end.

    Args:
        address: HOST:PORT of its head (from one of its nodes), ray://HOST:PORT (from anywhere, through Ray Client), or
            `auto` (RAY_ADDRESS, or the Ray of this machine).

    Raises:
        InputError: there is none, it does not answer in time, or its versions of Ray and Python are not ours.
    """
    if address != "auto":
        _reach(address)
    with _environment(ALWAYS):
        _import_ray(loopback=False)
        with _connected(address):
            yield RayCluster(address)


def host_and_port(address: str) -> tuple[str, int]:
    """Of HOST:PORT or ray://HOST:PORT.

    Raises:
        InputError: it is no such address.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536:
        where = f"{ON} {shortened(address)}"
        raise InputError(where, "must be ray (one of our own on this machine), auto, HOST:PORT or ray://HOST:PORT")
    return match[1].strip("[]"), int(match[2])


def _reach(address: str) -> None:
    """Refuse what is no address, and one at which nobody listens: Ray itself takes 40 s to find out."""
    host_port = host_and_port(address)
    try:
        socket.create_connection(host_port, _REACH_LIMIT_S).close()
    except OSError as error:
        raise InputError(f"{ON} {address}", f"no Ray there: {error.strerror or error}") from None


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


_imported_for_loopback = False


def _import_ray(*, loopback: bool) -> None:
    """Import Ray, which settles at its import whether it stays on loopback, and has one connection at a time."""
    global _imported_for_loopback  # noqa: PLW0603 Ray is one per process too
    if "ray" in sys.modules and _imported_for_loopback != loopback:
        raise InputError(ON, "this process has used Ray in another way before; start another process for this")
    try:
        import ray  # noqa: PLC0415
    except ImportError as error:
        raise InputError(ON, f"needs Ray, which cannot be imported: {error}") from None
    _imported_for_loopback = loopback
    if ray.is_initialized():
        raise InputError(ON, "this process is connected to a Ray already")


@contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray  # noqa: PLC0415

    where = f"{ON} {address}"
    # Ray tells of dead workers on standard output, log_to_driver or not; this is the switch of its own debugger.
    ray._private.worker._worker_logs_enabled = False
    try:
        _within(
            _CONNECT_LIMIT_S, lambda: ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        )
    except TimeoutError:
        raise InputError(where, f"Ray did not take us in within {_CONNECT_LIMIT_S:g} s") from None
    except ImportError as error:
        raise InputError(where, f"needs Ray's client, pip install 'ray[client]': {error}") from None
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(where, _reason(error)) from None
    try:
        yield
    finally:
        with suppress(TimeoutError):
            _within(_DISCONNECT_LIMIT_S, ray.shutdown)


def _reason(error: BaseException) -> str:
    """Why Ray did not take us in, in a line: what lies below its "failed to connect"."""
    text = " ".join(str(error.__cause__ or error).split())
    if "ersion mismatch" in text or "versions differ" in text:
        return f"its versions are not ours: {text}"
    return f"cannot connect: {shortened(text)}"


def _within(limit_s: float, call: Callable[[], object]) -> None:
    """Call in a thread, where Ray leaves our signal handlers alone, and wait for it.

    Raises:
        TimeoutError: it takes longer than `limit_s`; the thread is left behind.
    """
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 the caller gets it
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not raised:
        raise TimeoutError
    if raised[0] is not None:
        raise raised[0]
