"""What chips send each other: vectors pass through the layers from chip to chip.

A layer's attention, residual and norms are on its home chip, that of its first matrix after attention. The vector goes
from there to matrices on other chips and back, a block to every crossbar, and on to the home of the next layer: the
rules of `walk`, which costs the same links. Activations have one byte per element there. Without attention on these
chips, a vector comes to the chip of an FFN's first matrix, and leaves from there; all chips that an expert is cut over
get it, and pass partial sums on to each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from pimserve.device_models.aimc.network import Block, Ffn
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.device import PointToPoint

_Pair = tuple[int, int]


@lru_cache(maxsize=4)
def point_to_point(placed: PlacedNetwork, share: tuple[float, ...], *, lm_head: bool) -> PointToPoint:
    """What passes between the chips that a network is mapped on.

    Args:
        placed: the model, its chips, and where its chunks are.
        share: picks of a token that fall on each routed expert of a layer.
        lm_head: whether the product with the vocabulary is computed.
    """
    route = _Route(placed, share)
    route.pass_layers()
    tokens = route.take_sent()
    if lm_head:
        route.pass_head()
    return PointToPoint(
        tokens=tokens,
        outputs=route.take_sent(),
        dispatch=route.dispatch,
        combine=route.combine,
        picks=route.picks,
        picks_per_token=sum(block.top_k for block in placed.network.blocks if block.experts),
    )


class _Route:
    """Collects what one token, or one sampled output, sends over each pair of chips: vectors and bytes."""

    def __init__(self, placed: PlacedNetwork, share: Sequence[float]) -> None:
        self._placed, self._network = placed, placed.network
        self._homes = [placed.home(block) if block.after else None for block in placed.network.blocks]
        self._share = share
        self._vectors: defaultdict[_Pair, int] = defaultdict(int)
        self._bytes: defaultdict[_Pair, Fraction] = defaultdict(Fraction)
        self.dispatch: defaultdict[_Pair, float] = defaultdict(float)
        self.combine: defaultdict[_Pair, float] = defaultdict(float)
        self.picks: defaultdict[_Pair, float] = defaultdict(float)

    def take_sent(self) -> dict[_Pair, tuple[int, Fraction]]:
        """Vectors and bytes that were sent since the last call."""
        sent = {pair: (vectors, self._bytes[pair]) for pair, vectors in self._vectors.items()}
        self._vectors.clear()
        self._bytes.clear()
        return sent

    def pass_layers(self) -> None:
        """A token passes the embeddings and all layers."""
        network, previous = self._network, self._homes[0]
        for table in (network.token_embedding, network.position_embedding):
            if table is not None and previous is not None:  # a token needs one row of its blocks
                row_blocks, _ = self._placed.grid(table)
                self._visit(table, previous, Fraction(1, row_blocks))
        for block, home in zip(network.blocks, self._homes, strict=True):
            if previous is not None and home is not None and home != previous:
                self._send((previous, home), Fraction(network.hidden))
            self._pass_block(block, home)
            previous = home

    def pass_head(self) -> None:
        """A sampled output passes the product with the vocabulary, where that is here."""
        head, home = self._network.head, self._homes[-1]
        if head is not None and home is not None:
            self._visit(head, home)

    def _pass_block(self, block: Block, home: int | None) -> None:
        if home is not None:
            routers = () if block.router is None else (block.router,)
            for matrix in (*(m for stage in (*block.before, *block.after) for m in stage), *routers):
                self._visit(matrix, home)
        for ffn in (block.dense, block.shared):
            if ffn is not None:
                self._pass_ffn(ffn, home)
        for expert, share in zip(block.experts, self._share, strict=bool(block.experts)):
            # An expert is where its first matrix is; bytes go to where each of its matrices is.
            first = self._placed.entry(expert[0])
            self.picks[first if home is None else home, first] += share
            for ffn in expert:
                start = self._placed.entry(ffn) if home is None else home
                for matrix in ffn.matrices:
                    there, back = self._placed.vector_bytes(matrix)
                    if (chip := self._placed.chip_of(matrix)) != start:
                        self.dispatch[start, chip] += there * share
                        self.combine[chip, start] += back * share
            self._pass_partial_sums(expert, share)

    def _pass_partial_sums(self, expert: Sequence[Ffn], share: float) -> None:
        reduction = self._placed.reduction(expert)
        if reduction is not None:
            chips = [self._placed.chip_of(ffn.down) for ffn in expert]
            for sender, receiver, size in reduction.sent():
                self.combine[chips[sender], chips[receiver]] += size * share

    def _pass_ffn(self, ffn: Ffn, home: int | None) -> None:
        for matrix in ffn.matrices:
            self._visit(matrix, self._placed.entry(ffn) if home is None else home)

    def _visit(self, matrix: int, home: int, part: Fraction = Fraction(1)) -> None:
        """The vector goes to a matrix and its product comes back; of the matrix, `part` is needed."""
        chip = self._placed.chip_of(matrix)
        if chip != home:
            there, back = self._placed.vector_bytes(matrix)
            self._send((home, chip), there * part)
            self._send((chip, home), back * part)

    def _send(self, pair: _Pair, size: Fraction) -> None:
        self._vectors[pair] += 1
        self._bytes[pair] += size
