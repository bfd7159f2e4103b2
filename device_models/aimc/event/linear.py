"""One matrix applied to one token, as a pattern of tasks: hops in, MVMs, hops out, sums over row blocks."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.event.graph import NO_RESOURCE, Resources, Rules, Stamp
from pimserve.device_models.aimc.event.operations import Kind, Operation, OperationTable
from pimserve.device_models.aimc.mapping import Mapping
from pimserve.device_models.aimc.network import Network
from pimserve.device_models.aimc.operation_costs import OpCost
from pimserve.errors import InputError


@dataclass(eq=False)
class ChipOperations:
    """Numbers of operations in the table, with what they cost on a chip."""

    network: Network
    chip: Chip
    table: OperationTable

    def hop(self, size: int, *, crossing: bool = False) -> int:
        """A transfer of `size` bytes, to another chip if `crossing`."""
        cost = self.chip.costs.hop(size)
        if not crossing:
            return self._number("hop", size, cost)
        if self.chip.link is None:
            raise InputError("link", "must be given where a replica has several chips")
        over = self.chip.link.hop(size)
        return self._number("link", size, OpCost(cost.ps + over.ps, cost.nj + over.nj))

    def add(self, size: int) -> int:
        """An elementwise sum or product."""
        return self._number("add", size, self.chip.costs.add(size), size)

    def norm(self, size: int) -> int:
        """A layer norm."""
        return self._number("norm", size, self.chip.costs.norm(size), 10 * size)

    def activation(self, size: int) -> int:
        """The network's activation function; FLOPs per element as the reference simulator counts them."""
        kind = self.network.activation
        return self._number(
            "activation", size, self.chip.costs.activation(kind, size), (1 if kind == "relu" else 6) * size
        )

    @cached_property
    def sampler(self) -> int:
        """Picking a token; 512 FLOPs as the reference simulator counts them."""
        vocab = self.network.vocab
        return self._number("sampler", vocab, self.chip.costs.sampler(vocab), 512)

    def mvm(self, rows: int, cols: int, reads: int) -> int:
        """`reads` MVMs in a row of a chunk that fills `rows` x `cols` of its tier."""
        cost = self.chip.mvm
        # A full tier does R C products and R C - R sums; a chunk its share of them.
        flops = rows * cols * (2 * self.chip.tier_cols - 1) / self.chip.tier_cols
        return self.table.number(Operation("mvm", cols, reads, reads * cost.ps, reads * cost.nj, reads * flops))

    def _number(self, kind: Kind, size: int, cost: OpCost, flops: float = 0.0) -> int:
        return self.table.number(Operation(kind, size, 1, cost.ps, cost.nj, flops))


@dataclass(eq=False)
class Linears:
    """Patterns of the network's matrices, each made when first asked for."""

    network: Network
    chip: Chip
    mapping: Mapping
    rules: Rules
    operations: ChipOperations
    communication: bool
    _known: dict[tuple[int, int, int, int | None, bool, bool], Stamp] = field(default_factory=dict)

    def chip_of(self, matrix: int) -> int:
        """Chip of a matrix's first chunk, where its sums run."""
        return self.mapping.tiles[matrix][0] // self.chip.tiles

    def stamp(
        self, matrix: int, source: int, to: int, *, row: int | None = None, fed: bool = True, hops_out: bool = True
    ) -> Stamp:
        """The pattern for a vector on chip `source` and results on chip `to`.

        `row`: only that row block, as an embedding reads. Without `fed` the MVMs wait for nobody; without `hops_out`
        their results stay where they are, which is for the reference simulator's logits.
        """
        key = (matrix, source, to, row, fed, hops_out)
        if key not in self._known:
            self._known[key] = self._make(*key)
        return self._known[key]

    def _make(self, matrix: int, source: int, to: int, row: int | None, fed: bool, hops_out: bool) -> Stamp:
        chip, operations, shape = self.chip, self.operations, self.network.matrices[matrix]
        rows, cols = chip.tier_rows, chip.tier_cols
        tiles = self.mapping.tiles[matrix]
        all_rows, columns = shape.grid(rows, cols)
        blocks = range(all_rows) if row is None else (row,)
        chunks = [(block, column, block * columns + column) for block in blocks for column in range(columns)]
        used_rows = [min(rows, shape.rows - block * rows) for block, _, _ in chunks]
        used_cols = [min(cols, shape.cols - column * cols) for _, column, _ in chunks]
        by_payload = self.rules.sizes_by_payload
        sums_on = self.chip_of(matrix) if len(blocks) > 1 else to
        operation: list[int] = []
        resource: list[int] = []
        number: list[int] = []
        edges: list[tuple[int, int]] = []

        def task(operation_number: int, on: int, *after: int, chunk: int = -1) -> int:
            edges.extend((before, len(operation)) for before in after)
            operation.append(operation_number)
            resource.append(on)
            number.append(chunk)
            return len(operation) - 1

        def hop(size: int, start: int, end: int, *after: int) -> int:
            return task(operations.hop(size if by_payload else cols, crossing=start != end), NO_RESOURCE, *after)

        heads: list[int] = []
        outputs: list[int] = []
        for (_, _, chunk), height, width in zip(chunks, used_rows, used_cols, strict=True):
            tile = tiles[chunk]
            feed = [hop(height, source, tile // chip.tiles)] if fed and self.communication else []
            mvm = task(operations.mvm(height, width, shape.reads(cols)), tile, *feed, chunk=chunk)
            heads.extend(feed if feed else [mvm])
            leaves = hops_out and self.communication
            outputs.append(hop(width, tile // chip.tiles, sums_on, mvm) if leaves else mvm)
        results = outputs[:columns]
        pool = Resources(chip.all_tiles, chip.chips).digital + sums_on if chip.partial_sums == "pool" else NO_RESOURCE
        for block in range(1, len(blocks)):
            for column in range(columns):
                size = used_cols[column] if by_payload else cols
                results[column] = task(operations.add(size), pool, results[column], outputs[block * columns + column])
        if sums_on != to and self.communication:
            results = [hop(width, sums_on, to, result) for result, width in zip(results, used_cols, strict=False)]
        src, dst = np.array(edges, np.int32).reshape(-1, 2).T
        return Stamp(
            array("i", operation),
            array("i", resource),
            array("i", number),
            src,
            dst,
            np.array(heads, np.int32),
            tuple(results),
        )
