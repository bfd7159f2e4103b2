"""Small grids that tests run, and what came of their runs."""

from pimserve.cluster.sweep.grid import load_grid
from pimserve.cluster.sweep.workers import make

SMALL = ["workload.num_requests=30"]
REPLICAS = ["cluster.replicas=1,2,3"]


def small(grid, repeat=1, more=()):
    return load_grid(None, [*SMALL, *more], grid, repeat)


class Here:
    """Makes runs in this process, one after the other: for what does not hang on where they are made."""

    def run(self, tasks):
        for task in tasks:
            yield task, make(task.scenario, task.folder)


CLOSED = ["workload={mode: closed, concurrency: 4, num_requests: 30}"]
LATE = "run.warmup_s=3600,0.1,0.2"  # how long a closed loop lasts is known when it has ended


def entries(document):
    return [run for point in document["points"] for run in point["runs"]]


def statuses(document):
    return [entry["status"] for entry in entries(document)]
