"""What chips send each other whose weights stay where they are: vectors pass through the layers from chip to chip.

A layer's attention, residual and norms are on its home chip, that of its first matrix after attention. The vector goes
from there to matrices on other chips and back, a block to every crossbar, and on to the home of the next layer: the
rules of `aimc.walk`, which costs the same links. Activations have one byte per element there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from pimserve.cluster.devices.flows import ACTIVATIONS, COMBINE, DISPATCH, Dispatch, Flow, Traffic, fraction_of_bytes
from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.mapping import Mapping
from pimserve.device_models.aimc.network import Block, Ffn, Network

_Pair = tuple[int, int]


def traffic_of_chips(
    network: Network, chip: Chip, mapping: Mapping, share: Sequence[float], *, lm_head: bool
) -> Traffic:
    """Flows between the chips that a network is mapped on.

    Args:
        network: the model.
        chip: the chips.
        mapping: where its chunks are.
        share: picks of a token that fall on each routed expert of a layer.
        lm_head: whether the product with the vocabulary is computed.
    """
    return _Hops(network, chip, mapping, share).traffic(lm_head=lm_head)


class _Hops:
    """Collects what one token, or one sampled output, sends over each pair of chips: vectors and bytes."""

    def __init__(self, network: Network, chip: Chip, mapping: Mapping, share: Sequence[float]) -> None:
        self._network, self._chip = network, chip
        self._chips = [tiles[0] // chip.tiles for tiles in mapping.tiles]
        self._share = share
        self._vectors: dict[_Pair, int] = defaultdict(int)
        self._bytes: dict[_Pair, Fraction] = defaultdict(Fraction)
        self._routed: tuple[dict[_Pair, float], dict[_Pair, float]] = (defaultdict(float), defaultdict(float))
        self._picks: dict[_Pair, float] = defaultdict(float)

    def traffic(self, *, lm_head: bool) -> Traffic:
        network = self._network
        homes = [self._chips[block.after[0][0]] for block in network.blocks]
        tables = [network.token_embedding]
        if network.position_embedding is not None:
            tables.append(network.position_embedding)
        for table in tables:  # of which a token needs one row of blocks
            row_blocks, _ = network.matrices[table].grid(self._chip.tier_rows, self._chip.tier_cols)
            self._visit(table, homes[0], Fraction(1, row_blocks))
        for layer, block in enumerate(network.blocks):
            if layer and homes[layer] != homes[layer - 1]:
                self._send((homes[layer - 1], homes[layer]), Fraction(network.hidden))
            self._block(block, homes[layer])
        flows = self._flows(of_outputs=False)
        if lm_head:
            self._vectors.clear()
            self._bytes.clear()
            self._visit(network.head, homes[-1])
            flows += self._flows(of_outputs=True)
        for kind, sizes in zip((DISPATCH, COMBINE), self._routed, strict=True):
            flows += [Flow(*pair, kind, 0, fraction_of_bytes(size)) for pair, size in sizes.items()]
        return Traffic(flows, self._dispatch())

    def _block(self, block: Block, home: int) -> None:
        for matrix in (m for stage in (*block.before, *block.after) for m in stage):
            self._visit(matrix, home)
        if block.dense is not None:
            self._ffn(block.dense, home)
            return
        assert block.router is not None
        self._visit(block.router, home)
        if block.shared is not None:
            self._ffn(block.shared, home)
        for ffn, share in zip(block.experts, self._share, strict=True):
            # An expert is where its first matrix is; bytes go to where each of its matrices is.
            self._picks[home, self._chips[ffn.up[0]]] += share
            for matrix in (*ffn.up, ffn.down):
                there, back = self._bytes_of(matrix)
                if (chip := self._chips[matrix]) != home:
                    self._routed[0][home, chip] += there * share
                    self._routed[1][chip, home] += back * share

    def _ffn(self, ffn: Ffn, home: int) -> None:
        for matrix in (*ffn.up, ffn.down):
            self._visit(matrix, home)

    def _visit(self, matrix: int, home: int, part: Fraction = Fraction(1)) -> None:
        """The vector goes to a matrix and its product comes back; of the matrix, `part` is needed."""
        chip = self._chips[matrix]
        if chip != home:
            there, back = self._bytes_of(matrix)
            self._send((home, chip), there * part)
            self._send((chip, home), back * part)

    def _send(self, pair: _Pair, size: Fraction) -> None:
        self._vectors[pair] += 1
        self._bytes[pair] += size

    def _bytes_of(self, matrix: int) -> tuple[int, int]:
        """To all crossbars of a matrix, and back."""
        shape = self._network.matrices[matrix]
        row_blocks, column_blocks = shape.grid(self._chip.tier_rows, self._chip.tier_cols)
        return shape.rows * column_blocks, shape.cols * row_blocks

    def _flows(self, *, of_outputs: bool) -> list[Flow]:
        return [
            Flow(*pair, ACTIVATIONS, vectors, self._bytes[pair], of_outputs=of_outputs)
            for pair, vectors in self._vectors.items()
        ]

    def _dispatch(self) -> Dispatch | None:
        if not self._picks:
            return None
        pairs = sorted(self._picks)
        sender, receiver = np.array(pairs, np.int64).T
        blocks = [block for block in self._network.blocks if block.experts]
        return Dispatch(
            picks_per_token=sum(block.top_k for block in blocks),
            groups=self._chip.chips,
            sender=sender,
            receiver=receiver,
            weight=np.array([self._picks[pair] for pair in pairs]),
            experts_of=receiver,
        )
