"""Hosts in plain processes of this machine: no Ray, and a replacement in a fraction of a second."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress

from pimserve.cluster.base.processes import StopWatch, readable
from pimserve.cluster.base.supervisor import Patience
from pimserve.cluster.distributed.hosts.host_supervisor import HostDiedError, HostSupervisor
from pimserve.cluster.distributed.hosts.hosting import HostSpec, Started
from pimserve.errors import shortened


class HostProcess:
    """A host that is a child of this process; it ends when this one ends, also if that is killed."""

    def __init__(self, spec: HostSpec) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 closed when it is killed
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pimserve.cluster.distributed.hosts.hosting"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # Ctrl-C is for us, who then stop the hosts in order. They stay in our session, so that the system ends also
            # those that are stopped when we are gone: their group has nobody then who could let it go on.
            process_group=0,
        )
        self.pid = self._process.pid
        self._tell(spec.to_json())

    def poll(self) -> int | None:
        """Its exit code if it has ended."""
        return self._process.poll()

    def started(self, timeout_s: float) -> Started | None:
        """How its start ended; None if it has not within that time."""
        out = self._process.stdout
        assert out is not None
        if not readable(out, timeout_s):
            return None
        line = out.readline()
        if not line:
            raise HostDiedError(self._last_words(self._process.wait()))
        return Started(**json.loads(line))

    def stop(self, grace_s: float) -> None:
        """Tell it to stop in order."""
        self._tell(str(grace_s))

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()

    def _tell(self, line: str) -> None:
        """Write a line to its standard input; if it has ended, that is found out elsewhere."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def _last_words(self, code: int) -> str:
        """How it ended: the last line that it wrote to standard error, or the signal."""
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{how} ({shortened(lines[-1].strip())})" if lines else how


class ProcessSupervisor(HostSupervisor[HostProcess]):
    """A `HostSupervisor` of plain processes."""

    def __init__(self, specs: Sequence[HostSpec], patience: Patience | None = None) -> None:
        super().__init__(specs, patience)
        self._watch = StopWatch()

    def _launch(self, name: str, generation: int) -> HostProcess:
        return HostProcess(self._specs[name])

    def _check_going_on(self, name: str) -> None:
        stopped_s = {other: self._watch.stopped_s(child.pid) for other, child in list(self.children.items())}
        if stopped_s[name] > self._patience.silence_s:
            raise HostDiedError(f"its process was stopped for {self._patience.silence_s:g} s")
