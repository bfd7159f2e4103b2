"""One seed's world: its time, its network, its disk, and its processes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from tests.simulated.disk import Disk
from tests.simulated.loop import Loop, Process
from tests.simulated.network import Network

_FIRST_PID = 1000
_ORPHANED_S = 0.5  # until a process has seen that the one is gone which started it, on average


class World:
    """What there is in a seed.

    Args:
        loop: its time.
        network: between its processes.
        root: the folder that is its disk.
    """

    def __init__(self, loop: Loop, network: Network, root: Path) -> None:
        self.loop = loop
        self.network = network
        self.root = root
        self.disk = Disk(str(root))
        self.processes: dict[int, Process] = {}

    def launch(self, name: str, main: Callable[[], int], *, parent: Process | None = None) -> Process:
        """Start a process that does this, and ends with its exit code; it ends with its parent."""
        process = Process(name, _FIRST_PID + len(self.processes), parent)
        self.processes[process.pid] = process
        self.loop.note("launch", name, process.pid)
        self.loop.spawn(process, lambda: self.exit(process, main()), "main")
        return process

    def exit(self, process: Process, code: int) -> None:
        """The process whose task calls this ends itself."""
        self.kill(process, code)
        self.loop.vanish()

    def kill(self, process: Process, code: int = -9) -> None:
        """A process is gone; those that it started find out."""
        if process.dead:
            return
        self.loop.end(process, code)
        for child in self.alive():
            if child.parent is process:
                delay_s = self.loop.rng.expovariate(1 / _ORPHANED_S)
                self.loop.after(delay_s, lambda child=child: self.orphaned(child))

    def orphaned(self, child: Process) -> None:
        """It sees that its parent is gone, once it runs."""
        if child.stopped:
            self.loop.after(1.0, lambda: self.orphaned(child))
        else:
            self.kill(child, 0)

    def signal(self, pid: int, number: int) -> None:
        """A process gets a signal."""
        process = self.processes.get(pid)
        if process is None or process.dead:
            raise ProcessLookupError
        handler = process.signals.get(number)
        if number == signal.SIGKILL or (number and handler is None):
            self.kill(process, -number)
        elif handler is not None:
            self.loop.spawn(process, lambda: handler(number, None), "signal")

    def stop(self, process: Process) -> None:
        """SIGSTOP."""
        self.loop.stop(process)
        self.network.stopped(process)

    def go_on(self, process: Process) -> None:
        """SIGCONT."""
        self.loop.go_on(process)
        self.network.goes_on(process)

    def alive(self) -> list[Process]:
        """Processes that have not ended."""
        return [process for process in self.processes.values() if not process.dead]

    def clear(self) -> None:
        """The seed is over."""
        self.loop.clear(self.alive())
