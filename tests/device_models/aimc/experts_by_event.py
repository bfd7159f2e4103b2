"""Tokens through the experts of one layer, event by event: every hop, product and sum of every copy."""

from collections.abc import Sequence
from functools import lru_cache

from pimserve.device_models.aimc.event.graph import PHYSICAL, Resources, TaskGraph
from pimserve.device_models.aimc.event.linear import ChipOperations, Linears
from pimserve.device_models.aimc.event.operations import OperationTable
from pimserve.device_models.aimc.event.schedule import schedule
from pimserve.device_models.aimc.event.sums_over_links import add_up
from pimserve.device_models.aimc.network import Ffn
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.aimc.reduction import Reduction


@lru_cache(maxsize=1)
def _patterns(where: PlacedNetwork) -> Linears:
    """Of its matrices, which are the same for any tokens."""
    operations = ChipOperations(where.network, where.chip, OperationTable())
    return Linears(where.network, where.chip, where.mapping, PHYSICAL, operations, communication=True)


class ExpertGraph:
    """The task graph of tokens that all start at time zero, each on the chip of the first matrix of its FFN."""

    def __init__(self, where: PlacedNetwork) -> None:
        self.chip = where.chip
        self._linears = _patterns(where)
        self._operations = self._linears.operations
        self.graph = TaskGraph(self._operations.table, Resources(self.chip.all_tiles, self.chip.chips))

    def pass_expert(self, expert: Sequence[Ffn], token: int) -> None:
        """One token passes the FFNs that an expert is cut into, whose results are summed up."""
        ends = [(self._linears.chip_of(ffn.up[0]), self.pass_ffn(ffn, token)) for ffn in expert]
        if len(ends) > 1:
            hidden = self._operations.network.hidden
            add_up(self.graph, self._operations, Reduction(self.chip, hidden, len(ends)), ends, token)

    def pass_ffn(self, ffn: Ffn, token: int) -> list[int]:
        """One token passes an FFN; the tasks that end it."""
        home, there = self._linears.chip_of(ffn.up[0]), self._linears.chip_of(ffn.down)
        first, *others = [
            self.graph.stamp(self._linears.stamp(matrix, home, there), matrix, token, []) for matrix in ffn.up
        ]
        digital = self.graph.resources.digital + there
        inner = self.graph.add(self._operations.activation(ffn.width), digital, token, first)
        for other in others:
            inner = self.graph.add(self._operations.add(ffn.width), digital, token, [inner, *other])
        return self.graph.stamp(self._linears.stamp(ffn.down, there, home), ffn.down, token, [inner])

    def makespan_fs(self) -> int:
        """When the last one is through."""
        return int(schedule(self.graph, self.chip, dram_contention=True).finish.max()) * 1000

    def active_pj(self) -> float:
        """Energy of all operations."""
        return sum(self.graph.table.operations[number].nj for number in self.graph.operation) * 1000


def tokens_through(
    where: PlacedNetwork, experts: Sequence[Sequence[Ffn]], chosen: Sequence[Sequence[int]]
) -> ExpertGraph:
    """Tokens of which each goes to those `chosen` of some experts."""
    graph = ExpertGraph(where)
    for token, numbers in enumerate(chosen):
        for number in numbers:
            graph.pass_expert(experts[number], token)
    return graph
