"""Runs a task graph on its resources: event driven, non-preemptive, work conserving list scheduling.

At each instant all tasks that end then are completed first, then every idle resource with ready work starts the task
of the lowest rank, the oldest (first to become ready) among equals. Tasks that end together complete in the order that
the reference simulator looks at them, which decides who is older among tasks that become ready together.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.event.graph import TaskGraph

_AGE_BITS = 40
_AGE = (1 << _AGE_BITS) - 1


@dataclass(frozen=True, slots=True)
class Schedule:
    """When each task runs, ps."""

    start: NDArray[np.int64]
    finish: NDArray[np.int64]


def successors(graph: TaskGraph) -> tuple[list[int], list[int], list[int]]:
    """(first, flat, waits): those after task t are flat[first[t]:first[t + 1]]; t waits for waits[t] tasks."""
    tasks = len(graph.operation)
    src, dst = np.frombuffer(graph.src, np.int32), np.frombuffer(graph.dst, np.int32)
    flat = dst[np.argsort(src, kind="stable")]
    first = np.concatenate([[0], np.cumsum(np.bincount(src, minlength=tasks))])
    return first.tolist(), flat.tolist(), np.bincount(dst, minlength=tasks).tolist()


def schedule(graph: TaskGraph, chip: Chip, *, dram_contention: bool) -> Schedule:
    """Start and finish of every task.

    With `dram_contention` the cache reads and writes of a chip queue for its memory in order of arrival, and a read
    runs beside the computation; without, every attention unit reads at full bandwidth, then computes.
    """
    return _Run(graph, chip, dram_contention=dram_contention).to_the_end()


class _Run:
    """State of the resources; one call of `to_the_end`."""

    def __init__(self, graph: TaskGraph, chip: Chip, *, dram_contention: bool) -> None:
        tasks, resources = len(graph.operation), graph.resources
        self.operation, self.rank, self.place = graph.operation.tolist(), graph.rank.tolist(), graph.resource.tolist()
        self.layer = graph.layer
        self.ps = [operation.ps for operation in graph.table.operations]
        self.dram_ps = [operation.dram_ps for operation in graph.table.operations]
        self.first, self.flat, self.waits = successors(graph)
        self.tiles, self.attention, self.dram = resources.tiles, resources.attention, resources.dram
        self.contention, self.one_at_a_time = dram_contention, chip.one_tier_at_a_time
        self.lock = chip.lock_attention_to_layer
        self.units = 1 if chip.attention_split == "heads" else chip.attention_units
        self.idle = [1] * resources.tiles + [chip.digital_units] * chip.chips + [self.units] * chip.chips
        self.queue: list[list[int]] = [[] for _ in self.idle]
        self.present: list[deque[int]] = [deque() for _ in range(resources.tiles)]  # waiting or running, oldest first
        self.occupied: list[dict[int, int]] = [{} for _ in range(chip.chips)]  # locked unit: tasks running on it
        self.memory_free = [0] * chip.chips
        self.age = [0] * tasks
        self.by_age: list[int] = []
        self.start, self.finish = [0] * tasks, [-1] * tasks
        self.started_at = [0] * tasks  # event at which a digital task started
        self.ending: dict[int, tuple[list[int], list[int], list[int], list[int]]] = {}
        self.instants: list[int] = []  # heap of the keys of `ending`
        self.touched: set[int] = set()
        self.now = self.event = 0

    def to_the_end(self) -> Schedule:
        """Event by event."""
        first, flat, waits = self.first, self.flat, self.waits
        for task in [task for task, left in enumerate(waits) if not left]:
            self._ready(task)
        self._start_idle()
        while self.instants:
            self.now = heappop(self.instants)
            self.event += 1
            for task in self._completed(*self.ending.pop(self.now)):
                for after in flat[first[task] : first[task + 1]]:
                    waits[after] -= 1
                    if not waits[after]:
                        self._ready(after)
            self._start_idle()
        return Schedule(np.array(self.start, np.int64), np.array(self.finish, np.int64))

    def _completed(self, free: list[int], mvms: list[int], digital: list[int], attention: list[int]) -> list[int]:
        """The tasks that end now, in the order in which they count; their resources are free again."""
        age, place = self.age, self.place
        free.sort(key=age.__getitem__)
        if len(mvms) > 1:
            mvms.sort(key=lambda task: (self._oldest(place[task]), age[task]))
        if len(digital) > 1:
            last = self.event - 1
            digital.sort(key=lambda task: (self.started_at[task] == last, age[task]))
        attention.sort(key=age.__getitem__)
        for task in (*mvms, *digital, *attention):
            self.idle[place[task]] += 1
            self.touched.add(place[task])
        if self.lock:
            for task in attention:
                occupied, unit = self.occupied[place[task] - self.attention], self.layer[task] % self.units
                occupied[unit] -= 1
                if not occupied[unit]:
                    del occupied[unit]
        return free + mvms + digital + attention

    def _oldest(self, tile: int) -> int:
        """Age of the oldest task that waits or runs on a tile, those that end now included."""
        here, finish = self.present[tile], self.finish
        while 0 <= finish[here[0]] < self.now:
            here.popleft()
        return self.age[here[0]]

    def _ready(self, task: int) -> None:
        place, age = self.place[task], len(self.by_age)
        self.age[task] = age
        self.by_age.append(task)
        if place < 0:
            self._run(task, self.now + self.ps[self.operation[task]], 0)
        elif place >= self.dram:
            self._run(task, self._through_memory(place - self.dram, task), 0)
        else:
            heappush(self.queue[place], self.rank[task] << _AGE_BITS | age)
            self.touched.add(place)
            if place < self.tiles:
                self.present[place].append(task)

    def _start_idle(self) -> None:
        tiles, attention, idle, by_age = self.tiles, self.attention, self.idle, self.by_age
        operation, ps = self.operation, self.ps
        for place in self.touched:
            queue = self.queue[place]
            if place < tiles:
                while queue and idle[place] == 1:
                    together = 1 if self.one_at_a_time else len(queue)
                    for _ in range(together):
                        task = by_age[heappop(queue) & _AGE]
                        self._run(task, self.now + ps[operation[task]], 1)
                    idle[place] -= together
            elif place < attention:
                while queue and idle[place]:
                    task = by_age[heappop(queue) & _AGE]
                    self._run(task, self.now + ps[operation[task]], 2)
                    self.started_at[task] = self.event
                    idle[place] -= 1
            elif self.lock:
                self._start_locked(place, queue)
            else:
                while queue and idle[place]:
                    self._attend(by_age[heappop(queue) & _AGE], place)
        self.touched.clear()

    def _start_locked(self, place: int, queue: list[int]) -> None:
        """Attention of a layer runs on one unit only. Looks at as many of the first in line as there are idle units;
        who finds its unit busy waits and holds up those behind; two for the same unit may start together.
        """
        occupied = self.occupied[place - self.attention]
        busy = set(occupied)
        looked_at = [heappop(queue) for _ in range(min(len(queue), self.units - len(busy)))]
        for entry in looked_at:
            task = self.by_age[entry & _AGE]
            unit = self.layer[task] % self.units
            if unit in busy:
                heappush(queue, entry)
            else:
                occupied[unit] = occupied.get(unit, 0) + 1
                self._attend(task, place)

    def _attend(self, task: int, place: int) -> None:
        compute, read = self.ps[self.operation[task]], self.dram_ps[self.operation[task]]
        if not self.contention:
            done = self.now + read + compute
        elif read:
            done = max(self.now + compute, self._through_memory(place - self.attention, task))
        else:
            done = self.now + compute
        self._run(task, done, 3)
        self.idle[place] -= 1

    def _through_memory(self, chip: int, task: int) -> int:
        """When a read or write that arrives now is through."""
        self.memory_free[chip] = max(self.now, self.memory_free[chip]) + self.dram_ps[self.operation[task]]
        return self.memory_free[chip]

    def _run(self, task: int, until: int, group: int) -> None:
        self.start[task] = self.now
        self.finish[task] = until
        ending = self.ending.get(until)
        if ending is None:
            ending = self.ending[until] = ([], [], [], [])
            heappush(self.instants, until)
        ending[group].append(task)
