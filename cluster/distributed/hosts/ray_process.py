"""The process that is connected to Ray, as the coordinator has it: started, asked, and ended.

Ray ends the process that is connected to it, with an abort or without a word, when its own processes die, and writes
to its terminal. So it is not the coordinator that is connected, but a process of its own (`ray_driver.py`), which it
can replace. What it is asked it answers within milliseconds, in lines of JSON.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from pimserve.cluster.base.locks import Lock
from pimserve.cluster.base.processes import StopWatch, readable
from pimserve.cluster.base.supervisor import SILENCE_S
from pimserve.cluster.distributed.hosts.ray_folders import clear_away, new_folder, sweep
from pimserve.errors import InputError, PimserveError, shortened

ON = "--on"
DRIVER = "pimserve.cluster.distributed.hosts.ray_driver"
_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_client_num_connect_attempts": "60",  # 10 are too few on a busy machine, and ray.init then hangs
}
_ATTEMPTS = 2  # one start in seventy was seen to hang
_STOP_LIMIT_S = 30
_ANSWER_LIMIT_S = 60.0
_LOOK_S = 0.5  # between two looks at whether it is stopped


class RayEndedError(PimserveError):
    """The process that is connected to Ray has ended, most likely since Ray has."""


class RayProcess:
    """One such process.

    Args:
        wanted: what it is told to connect to, or to start, see `ray_driver.main`.
        folder: of a Ray of our own, with its lock.
    """

    def __init__(self, wanted: Mapping[str, Any], folder: tuple[Path, Lock] | None = None) -> None:
        self.folder = folder[0] if folder is not None else None
        self.address = ""
        self.environment = dict(_ALWAYS)  # of whoever connects to the same Ray
        if folder is not None:
            # Whoever reaches a Ray may run code in it: it listens on 127.0.0.1 only, for which this is the one switch,
            # and has a token of ours, because Ray would otherwise leave one in the user's home.
            self.environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._lock = folder[1] if folder is not None else None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 closed when it is killed
        self._one_at_a_time = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", DRIVER, json.dumps(wanted)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **self.environment},
            pass_fds=[self._lock.handle] if self._lock is not None else [],
            start_new_session=True,  # Ctrl-C is for the coordinator, which then stops Ray in order
        )
        self.pid = self._process.pid
        self._last_words = ""

    @classmethod
    def own(cls, cpus: int, resources: Mapping[str, float], limit_s: int, silence_s: float = SILENCE_S) -> RayProcess:
        """A Ray of our own.

        Args:
            cpus: that it believes in.
            resources: custom ones.
            limit_s: for each of two attempts to start it.
            silence_s: after which a process of it that is stopped is killed.

        Raises:
            InputError: it does not come up.
        """
        sweep()
        why: str | None = None
        for _ in range(_ATTEMPTS):
            folder = new_folder()
            wanted = {"cpus": cpus, "resources": dict(resources), "folder": str(folder[0]), "silence_s": silence_s}
            process = cls({**wanted, "limit_s": limit_s + _STOP_LIMIT_S}, folder)
            why = process.connected(limit_s, "did not start")
            if why is None:
                return process
        raise InputError(f"{ON} ray", f"Ray cannot be started on this machine: {why}")

    @classmethod
    def connect(cls, address: str, limit_s: int) -> RayProcess:
        """A connection to a Ray that runs already.

        Raises:
            InputError: it does not take us in.
        """
        process = cls({"address": address, "limit_s": limit_s + _STOP_LIMIT_S})
        if (why := process.connected(limit_s, "Ray did not take us in")) is not None:
            raise InputError(f"{ON} {address}", why)
        return process

    def connected(self, limit_s: int, late: str) -> str | None:
        """Wait until it is; returns why it is not, and has ended: `late` if that takes longer than the limit."""
        try:
            answer = self._answer(limit_s, f"{late} within {limit_s} s")
            self.address = answer["address"]
        except RayEndedError as error:
            return str(error)
        except PimserveError as error:
            self.kill()
            return str(error)
        except BaseException:
            self.kill()
            raise
        return None

    def call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 what JSON can hold
        """Have it call a method of `ray_driver.Actors`.

        Raises:
            RayEndedError: it has ended.
            PimserveError: the call failed.
        """
        assert self._process.stdin is not None
        with self._one_at_a_time:
            try:
                self._process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
                self._process.stdin.flush()
            except (OSError, ValueError):
                self._end()
            return self._answer(_ANSWER_LIMIT_S, "Ray has not answered")["value"]

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the connection in order, with it a Ray of our own, and see to it that nothing is left of that."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_LIMIT_S)
        self.kill()

    def kill(self) -> None:
        """End it at once; may be called again."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        if self.folder is not None and self._lock is not None:
            clear_away(self.pid, self.folder)
            with suppress(OSError):
                self._lock.close()
            self._lock = None

    def _answer(self, limit_s: float, late: str) -> dict[str, Any]:
        """The next line that it writes."""
        out: IO[bytes] | None = self._process.stdout
        assert out is not None
        watch, deadline = StopWatch(), time.monotonic() + limit_s
        try:
            while not readable(out, _LOOK_S):
                if watch.stopped_s(self.pid) > SILENCE_S:
                    self._end()
                if time.monotonic() > deadline:
                    raise PimserveError(late)
            line = out.readline()
        except ValueError:  # closed by another thread
            line = b""
        if not line:
            self._end()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PimserveError(answer["error"])
        return answer

    def _end(self) -> NoReturn:
        """Take away what is left of it, and tell why.

        Raises:
            RayEndedError: the last line that it wrote.
        """
        with suppress(ValueError):  # another thread was here before
            self._last_words = _last_line(self._log)
        self.kill()
        raise RayEndedError(self._last_words)


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return shortened(next((line.strip() for line in reversed(lines) if line.strip()), "it ended without a word"))
