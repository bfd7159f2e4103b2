"""The scheduler on graphs made by hand: who goes first, and on what."""

from pimserve.device_models.aimc.event.graph import NO_RESOURCE, Resources, TaskGraph
from pimserve.device_models.aimc.event.operations import Operation, OperationTable
from pimserve.device_models.aimc.event.schedule import schedule
from tests.device_models.aimc.strategies import chip_of


class Graph:
    """Tasks by name, in the order in which they are added."""

    def __init__(self, **chip: object) -> None:
        self.chip = chip_of(**{"tiles": 2, "digital_units": 2, "attention_units": 2, **chip})
        self.graph = TaskGraph(OperationTable(), Resources(2, 1))
        self.names: list[str] = []

    def _add(self, name, line, resource, rank, after, layer=None):
        self.graph.add(self.graph.table.number(line), resource, rank, [self.names.index(n) for n in after], layer)
        self.names.append(name)

    def hop(self, name, ps, *after):
        self._add(name, Operation("hop", 1, 1, ps, 0.0, 0.0), NO_RESOURCE, 0, after)

    def mvm(self, name, *after, tile=0, rank=0, ps=100):
        self._add(name, Operation("mvm", 1, 1, ps, 0.0, 0.0), tile, rank, after)

    def digital(self, name, *after, rank=0, ps=10):
        self._add(name, Operation("add", 1, 1, ps, 0.0, 0.0), self.graph.resources.digital, rank, after)

    def attention(self, name, *after, rank=0, ps=50, dram_ps=0, layer=0):
        line = Operation("attention", 1, 1, ps, 0.0, 0.0, dram_ps, 0.0)
        self._add(name, line, self.graph.resources.attention, rank, after, layer)

    def write(self, name, *after, ps=20):
        self._add(name, Operation("kv_write", 1, 1, 0, 0.0, 0.0, ps, 0.0), self.graph.resources.dram, 0, after)

    def starts(self, contention=False):
        timing = schedule(self.graph, self.chip, dram_contention=contention)
        return dict(zip(self.names, timing.start.tolist(), strict=True))

    def finishes(self, contention=False):
        timing = schedule(self.graph, self.chip, dram_contention=contention)
        return dict(zip(self.names, timing.finish.tolist(), strict=True))


def test_a_tile_serves_the_lowest_rank_then_the_oldest():
    graph = Graph()
    graph.mvm("running", rank=5)
    graph.hop("soon", 10)
    graph.hop("later", 20)
    graph.mvm("old", "soon", rank=3)
    graph.mvm("young", "later", rank=3)
    graph.mvm("urgent", "later", rank=1)
    assert graph.starts() == {"running": 0, "soon": 0, "later": 0, "urgent": 100, "old": 200, "young": 300}


def test_tiles_work_side_by_side():
    graph = Graph()
    graph.mvm("a", tile=0)
    graph.mvm("b", tile=1)
    graph.mvm("c", tile=1)
    assert graph.starts() == {"a": 0, "b": 0, "c": 100}


def test_all_tiers_at_once_close_the_tile_until_all_are_done():
    graph = Graph(one_tier_at_a_time=False)
    graph.mvm("first", ps=100)
    graph.mvm("beside", ps=150)
    graph.hop("wait", 10)
    graph.mvm("late", "wait")
    graph.mvm("later", "first")
    assert graph.starts() == {"first": 0, "beside": 0, "wait": 0, "late": 150, "later": 150}


def test_a_pool_has_as_many_servers_as_units():
    graph = Graph()
    for rank, name in enumerate(["a", "b", "c"]):
        graph.digital(name, rank=rank)
    graph.digital("d", "a", rank=9)
    assert graph.starts() == {"a": 0, "b": 0, "c": 10, "d": 10}


def test_tasks_made_ready_together_are_as_old_as_what_made_them_ready():
    # A transfer counts before an MVM, an MVM before a digital task, that before attention, when all end at 100.
    graph = Graph(digital_units=1)
    graph.attention("attention", ps=100)
    graph.digital("digital", ps=100)
    graph.mvm("mvm", ps=100)
    graph.hop("hop", 100)
    for name in ("attention", "digital", "mvm", "hop"):
        graph.digital(f"after {name}", name)
    starts = graph.starts()
    order = sorted((start, name) for name, start in starts.items() if name.startswith("after"))
    assert [name for _, name in order] == ["after hop", "after mvm", "after digital", "after attention"]


def test_without_contention_units_read_and_compute_in_series():
    graph = Graph()
    graph.attention("a", ps=50, dram_ps=30)
    graph.attention("b", ps=50, dram_ps=30)
    assert graph.finishes() == {"a": 80, "b": 80}


def test_with_contention_reads_queue_and_overlap_computation():
    graph = Graph()
    graph.write("write", ps=20)
    graph.attention("a", ps=50, dram_ps=10)  # read until 30, computed until 50
    graph.attention("b", ps=50, dram_ps=40)  # read until 70
    assert graph.finishes(contention=True) == {"write": 20, "a": 50, "b": 70}


def test_a_locked_unit_holds_up_those_behind_in_line():
    graph = Graph(lock_attention_to_layer=True)
    graph.attention("running", rank=0, layer=0)
    graph.hop("soon", 10)
    # One unit is idle, so one is looked at: the first in line, whose unit is busy.
    graph.attention("blocked", "soon", rank=1, layer=2)
    graph.attention("behind", "soon", rank=2, layer=1)
    assert graph.starts() == {"running": 0, "soon": 0, "blocked": 50, "behind": 50}


def test_a_locked_unit_may_take_two_at_once():
    graph = Graph(lock_attention_to_layer=True)
    graph.attention("a", rank=0, layer=0)
    graph.attention("b", rank=1, layer=0)
    graph.attention("c", rank=2, layer=1)  # neither of the two that are looked at
    assert graph.starts() == {"a": 0, "b": 0, "c": 50}


def test_tasks_without_duration_take_no_time():
    graph = Graph()
    graph.hop("a", 0)
    graph.digital("b", "a", ps=0)
    graph.mvm("c", "b")
    assert graph.finishes() == {"a": 0, "b": 0, "c": 100}
