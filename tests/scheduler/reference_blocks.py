"""How many KV blocks requests have, for the reference engine: as many as windows may touch, wherever they begin."""

from dataclasses import dataclass, field

from tests.scheduler.reference_request import ServedRequest

UNLIMITED = 10**12  # tokens; more than any step can hold


@dataclass
class ReferenceBlocks:
    """Of requests with `slots` beyond their tokens, in so many groups of layers, full ones and those with a window.

    `declared`: requests reserve for the most tokens that they may have; else for those that they will.
    """

    block_size: int
    full_groups: int
    windowed_groups: int
    window_tokens: int
    longest_chunk: int
    slots: int
    declared: bool
    touched: dict[int, int] = field(default_factory=dict)

    def of(self, tokens: int, new: int = 1) -> int:
        """Of a request with so many tokens, of which a step computes at most `new`."""
        blocks = -(-(tokens + self.slots) // self.block_size)
        if not self.windowed_groups:
            return self.full_groups * blocks
        return self.full_groups * blocks + self.windowed_groups * min(blocks, self.in_window(new))

    def in_window(self, new: int) -> int:
        """Of a windowed group, that a step may touch which computes so many tokens, and slots behind them."""
        return self._touches(self.window_tokens - 1 + new + self.slots)

    def most_of(self, request: ServedRequest, computed: bool) -> int:
        """That a request will have, whose prompt is computed or not."""
        most = request.most if self.declared else request.input + request.output
        later = self.of(most)
        if computed:
            return later
        of_full_groups = self.full_groups * -(-(most + self.slots) // self.block_size)
        of_prompt = self.of(request.input, self.longest_chunk)
        of_prompt -= self.full_groups * -(-(request.input + self.slots) // self.block_size)
        return max(later, of_full_groups + of_prompt)

    def _touches(self, tokens: int) -> int:
        if tokens >= UNLIMITED:
            return UNLIMITED
        if tokens not in self.touched:
            size = self.block_size
            ways = [{(begin + token) // size for token in range(tokens)} for begin in range(size)]
            self.touched[tokens] = max(map(len, ways))
        return self.touched[tokens]
