"""How much the runs of a server take up on its disk."""

from __future__ import annotations

from pimserve.cluster.service.data_folder import DataFolder
from pimserve.cluster.service.run_registry import ENDED, Registry


class DiskUsage:
    """Looks at files of runs that go on anew each time, at those of runs that have ended once.

    Args:
        data: the server's folder.
        registry: says which runs have ended.
    """

    def __init__(self, data: DataFolder, registry: Registry) -> None:
        self._data = data
        self._registry = registry
        self._ended: dict[str, int] = {}

    def bytes(self) -> int:
        """Of all runs together."""
        total = 0
        for folder in self._data.runs.iterdir():
            run_id = folder.name
            if run_id in self._ended:
                total += self._ended[run_id]
                continue
            size = self._data.run(run_id).size()
            record = self._registry.get(run_id)
            if record is not None and record.state in ENDED:
                self._ended[run_id] = size
            total += size
        return total

    def forget(self, run_id: str) -> None:
        """Its files are gone, or will change."""
        self._ended.pop(run_id, None)
