"""A Ray head of our own, started and stopped through a process that stands between it and the driver.

That process (`python -m pimserve.cluster.distributed.hosts.ray_head`) is there so that Ray never outlives the driver,
however the driver ends: its standard input is a pipe from the driver, and the end of that is the order to stop. Should
it be killed itself, the kernel kills Ray's own processes (Ray asks for that with PR_SET_PDEATHSIG), workers follow
their raylet at once, and Ray's agents within a minute.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import IO

from pimserve.cluster.base.locks import Lock, take_lock
from pimserve.errors import InputError, shortened

ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_client_num_connect_attempts": "60",  # 10 are too few on a busy machine, and ray.init then hangs
}
LOOPBACK = {
    **ALWAYS,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the one switch that makes all of Ray listen on 127.0.0.1 only
    # Whoever reaches a Ray may run code in it. One token per process, because Ray keeps the first that it reads; ours,
    # because Ray would otherwise leave one in the user's home.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
_ATTEMPTS = 2  # one start in seventy was seen to hang
_STOP_LIMIT_S = 30
_OBJECT_STORE_BYTES = 128 << 20  # nothing of ours travels through it; Ray wants 75 MiB at least
_PREFIX, _LOCK = "pimserve-ray-", ".lock"
_LONGEST_FOLDER = 30  # characters: Ray makes Unix sockets deep below it, whose paths may have 107


@dataclass(frozen=True, slots=True)
class Head:
    """A running head, as the driver sees it; to connect, the driver needs `LOOPBACK` in its environment."""

    address: str
    _process: subprocess.Popen[bytes]
    _folder: Path
    _lock: Lock  # held by us and by that process

    @classmethod
    def start(cls, cpus: int, resources: Mapping[str, float], limit_s: int) -> Head:
        """Start a head with that many CPUs and these custom resources; `limit_s` of wall time for each of two attempts.

        Raises:
            InputError: it does not come up.
        """
        _sweep()
        why = ""
        for _ in range(_ATTEMPTS):
            folder, lock = _new_folder()
            wanted = {"cpus": cpus, "resources": dict(resources), "folder": str(folder), "start_limit_s": limit_s}
            with tempfile.TemporaryFile() as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", __name__, json.dumps(wanted)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env={**os.environ, **LOOPBACK},
                    pass_fds=[lock.handle],
                    start_new_session=True,  # Ctrl-C is for the driver, which then stops Ray in order
                )
                head = cls("", process, folder, lock)
                try:
                    address = head._answer(limit_s)
                except BaseException:
                    head.kill()
                    raise
                if address:
                    return cls(address, process, folder, lock)
                why = f"did not start within {limit_s} s" if head.alive() else _last_line(log)
                head.kill()
        raise InputError("--on ray", f"Ray cannot be started on this machine: {why}")

    def _answer(self, limit_s: float) -> str | None:
        """The address; None if there is none in time, or the process ended."""
        assert self._process.stdout is not None
        if not select([self._process.stdout], [], [], limit_s)[0]:
            return None
        line = self._process.stdout.readline()
        return str(json.loads(line)["address"]) if line else None

    def alive(self) -> bool:
        """Whether it still runs."""
        try:  # without reaping it, which would free its number, by which `kill` finds the rest
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def stop(self) -> None:
        """End Ray in order, and see to it that nothing is left."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        deadline = time.monotonic() + _STOP_LIMIT_S
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        """End Ray at once, with the agents that would take a minute to find out."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        _remove(self._folder)
        self._lock.close()


def _new_folder() -> tuple[Path, Lock]:
    """A folder for Ray and, beside it, its lock, which is free when nobody needs the folder any more."""
    while True:
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_LOCK, dir=_short_folder())
        os.close(handle)
        lock = take_lock(Path(name))
        if lock is not None:
            folder = Path(name.removesuffix(_LOCK))
            folder.mkdir(mode=0o700)
            return folder, lock


def _sweep() -> None:
    """Remove folders of ours whose processes were killed; Ray's last ones may write there after ours have tidied up."""
    for file in Path(_short_folder()).glob(f"{_PREFIX}*{_LOCK}"):
        with suppress(OSError):
            if file.lstat().st_uid == os.getuid() and (lock := take_lock(file)) is not None:
                _remove(file.with_suffix(""))
                lock.close()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(folder.name + _LOCK).unlink(missing_ok=True)


def _short_folder() -> str:
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _LONGEST_FOLDER else "/tmp"


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return shortened(next((line.strip() for line in reversed(lines) if line.strip()), "it ended without a word"))


def main() -> None:
    """Start what the first argument says (JSON, see `Head.start`), print its address, stop at the end of stdin."""
    wanted = json.loads(sys.argv[1])
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what Ray prints is no answer
    try:
        signal.alarm(wanted["start_limit_s"])  # ends this process, should ray.init hang and the driver be gone
        import ray  # noqa: PLC0415 under the alarm

        ray.init(
            address="local",
            num_cpus=wanted["cpus"],
            resources=wanted["resources"],
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=wanted["folder"],
        )
        signal.alarm(0)
        print(json.dumps({"address": ray.get_runtime_context().gcs_address}), file=answer, flush=True)
        sys.stdin.buffer.read()
        signal.alarm(_STOP_LIMIT_S)
        ray.shutdown()
    finally:
        shutil.rmtree(wanted["folder"], ignore_errors=True)


if __name__ == "__main__":
    main()
