"""Ray for one run: one of our own on loopback, or somebody's cluster that we connect to and leave as it was."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from pimserve.cluster.base.supervisor import SILENCE_S
from pimserve.cluster.distributed.hosts.ray_process import ON, RayProcess
from pimserve.errors import InputError, shortened

_START_LIMIT_S = 60  # 4 s are usual, 30 s were seen on a busy core
_CONNECT_LIMIT_S = 60
_REACH_LIMIT_S = 5.0
_AGAIN_S = 1.0
_MADE_UP = re.compile(r"^node:|memory|_group_(\d+_)?[0-9a-f]{16,}$")
_ADDRESS = re.compile(r"(?:ray://)?(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):(\d{1,5})")


class RayCluster:
    """A Ray, and the process that is connected to it; another one takes its place when it has ended.

    Args:
        start: starts, or connects to it.
        again_s: for how long that is tried, once it has been there.

    Attributes:
        process: that is connected now.
    """

    def __init__(self, start: Callable[[], RayProcess], again_s: float = 0.0) -> None:
        self.process = start()
        self._start = start
        self._again_s = again_s
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """Where it is, HOST:PORT."""
        return self.process.address

    def total(self) -> dict[str, float]:
        """Resources of all nodes together: CPU, GPU, and custom ones such as duplex."""
        return _countable(self.process.call("total"))

    def free(self) -> dict[str, float]:
        """Resources that nobody holds."""
        return _countable(self.process.call("free"))

    def restart(self, ended: RayProcess) -> RayProcess:
        """The process that is connected, another one in the place of one that has ended.

        Raises:
            InputError: Ray cannot be started, or reached, any more.
        """
        with self._lock:
            if self.process is ended:
                ended.kill()
                self.process = self._tried()
            return self.process

    def close(self) -> None:
        """Disconnect; a Ray of our own ends."""
        self.process.stop()

    def _tried(self) -> RayProcess:
        deadline = time.monotonic() + self._again_s
        while True:
            try:
                return self._start()
            except InputError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_AGAIN_S)


def _countable(resources: Mapping[str, float]) -> dict[str, float]:
    """Without memory, and without what Ray makes up for single nodes and placement groups."""
    return {key: n for key, n in sorted(resources.items()) if not _MADE_UP.search(key)}


def ray_on(
    on: str, *, cpus: int = 2, resources: Mapping[str, float] | None = None, silence_s: float = SILENCE_S
) -> AbstractContextManager[RayCluster]:
    """The Ray that `--on` names: `ray` (our own, on this machine), `auto`, `HOST:PORT` or `ray://HOST:PORT`.

    Args:
        on: the value of the option.
        cpus: of a Ray of our own.
        resources: custom ones of a Ray of our own, such as {"duplex": 4}.
        silence_s: after which a process of a Ray of our own that is stopped is killed.

    Raises:
        InputError: it is none of these, or there is no such Ray.
    """
    return local_ray(cpus, resources, silence_s=silence_s) if on == "ray" else connect_ray(on)


@contextmanager
def local_ray(
    cpus: int = 2,
    resources: Mapping[str, float] | None = None,
    *,
    start_limit_s: int = _START_LIMIT_S,
    silence_s: float = SILENCE_S,
) -> Iterator[RayCluster]:
    """Start a Ray on loopback, and stop it at the end, also if this process is killed.

    Args:
        cpus: how many CPUs Ray is to believe in.
        resources: custom resources, such as {"duplex": 4}.
        start_limit_s: wall time for one attempt to start; there are two.
        silence_s: after which a process of it that is stopped is killed.

    Raises:
        InputError: Ray cannot be started.
    """
    cluster = RayCluster(lambda: RayProcess.own(cpus, resources or {}, start_limit_s, silence_s))
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def connect_ray(address: str) -> Iterator[RayCluster]:
    """Connect to a Ray that runs already, and disconnect at the end.

    Args:
        address: HOST:PORT of its head (from one of its nodes), ray://HOST:PORT (from anywhere, through Ray Client), or
            `auto` (RAY_ADDRESS, or the Ray of this machine).

    Raises:
        InputError: there is none, it does not answer in time, or its versions of Ray and Python are not ours.
    """

    def connected() -> RayProcess:
        if address != "auto":
            _reach(address)
        return RayProcess.connect(address, _CONNECT_LIMIT_S)

    cluster = RayCluster(connected, again_s=_CONNECT_LIMIT_S)
    try:
        yield cluster
    finally:
        cluster.close()


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
