"""Hosts in plain processes of this machine: no Ray, and a replacement in a fraction of a second."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from select import select
from typing import IO

from pimserve.cluster.distributed.hosts.hosting import STOP_MARGIN_S, HostSpec, Started
from pimserve.cluster.distributed.hosts.supervisor import HostDiedError, Supervisor
from pimserve.errors import shortened


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[str]
    log: IO[bytes]  # what it writes to standard error


class ProcessSupervisor(Supervisor[_Child]):
    """A `Supervisor` whose hosts are children of this process; they end when it ends, also if it is killed."""

    def dead(self) -> list[str]:
        """Hosts whose process has ended."""
        return [name for name, child in list(self._handles.items()) if child.process.poll() is not None]

    def _prepare(self) -> None:
        pass

    def _launch(self, spec: HostSpec, generation: int) -> _Child:
        log = tempfile.TemporaryFile()  # noqa: SIM115 closed when the child is killed
        process = subprocess.Popen(
            [sys.executable, "-m", "pimserve.cluster.distributed.hosts.hosting"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for us, who then stop the hosts in order
        )
        _tell(process, spec.to_json())
        return _Child(process, log)

    def _started(self, name: str, handle: _Child, deadline: float) -> Started:
        out = handle.process.stdout
        assert out is not None
        while not select([out], [], [], 1.0)[0]:
            self._check()
            if time.monotonic() > deadline:
                raise self._too_late(name, "its process is still at it")
        line = out.readline()
        if not line:
            handle.process.wait()
            raise HostDiedError(_last_words(handle))
        return Started(**json.loads(line))

    def _kill(self, handle: _Child) -> None:
        process = handle.process
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, handle.log):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()

    def _end(self, grace_s: float) -> None:
        for child in self._handles.values():
            _tell(child.process, str(grace_s))
        deadline = time.monotonic() + grace_s + STOP_MARGIN_S
        for child in self._handles.values():
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            self._kill(child)


def _tell(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to its standard input; if it has ended, that is found out elsewhere."""
    assert process.stdin is not None
    with suppress(OSError, ValueError):
        process.stdin.write(f"{line}\n")
        process.stdin.flush()


def _last_words(child: _Child) -> str:
    """How it ended: the last line that it wrote to standard error, or the signal."""
    child.log.seek(0)
    lines = [line for line in child.log.read().decode(errors="replace").splitlines() if line.strip()]
    code = child.process.returncode
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how} ({shortened(lines[-1].strip())})" if lines else how
