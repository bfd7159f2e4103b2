"""Tokens through the experts of one layer, event by event: every hop, product and sum of every copy."""

from collections.abc import Sequence

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.event.graph import PHYSICAL, Resources, TaskGraph
from pimserve.device_models.aimc.event.linear import ChipOperations, Linears
from pimserve.device_models.aimc.event.operations import OperationTable
from pimserve.device_models.aimc.event.schedule import schedule
from pimserve.device_models.aimc.mapping import Mapping
from pimserve.device_models.aimc.network import Ffn, Network


class ExpertGraph:
    """The task graph of tokens that all start at time zero, each on the chip of the first matrix of its FFN."""

    def __init__(self, network: Network, chip: Chip, mapping: Mapping) -> None:
        self.chip = chip
        self.graph = TaskGraph(OperationTable(), Resources(chip.all_tiles, chip.chips))
        self._operations = ChipOperations(network, chip, self.graph.table)
        self._linears = Linears(network, chip, mapping, PHYSICAL, self._operations, communication=True)

    def pass_ffn(self, ffn: Ffn, token: int) -> None:
        """One token passes an FFN."""
        home, there = self._linears.chip_of(ffn.up[0]), self._linears.chip_of(ffn.down)
        first, *others = [
            self.graph.stamp(self._linears.stamp(matrix, home, there), matrix, token, []) for matrix in ffn.up
        ]
        digital = self.graph.resources.digital + there
        inner = self.graph.add(self._operations.activation(ffn.width), digital, token, first)
        for other in others:
            inner = self.graph.add(self._operations.add(ffn.width), digital, token, [inner, *other])
        self.graph.stamp(self._linears.stamp(ffn.down, there, home), ffn.down, token, [inner])

    def makespan_fs(self) -> int:
        """When the last one is through."""
        return int(schedule(self.graph, self.chip, dram_contention=True).finish.max()) * 1000

    def active_pj(self) -> float:
        """Energy of all operations."""
        return sum(self.graph.table.operations[number].nj for number in self.graph.operation) * 1000


def tokens_through(
    network: Network, chip: Chip, mapping: Mapping, ffns: Sequence[Ffn], chosen: Sequence[Sequence[int]]
) -> ExpertGraph:
    """Tokens of which each goes to those `chosen` of some FFNs."""
    graph = ExpertGraph(network, chip, mapping)
    for token, numbers in enumerate(chosen):
        for number in numbers:
            graph.pass_ffn(ffns[number], token)
    return graph
