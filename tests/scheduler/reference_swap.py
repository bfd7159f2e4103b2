"""Host memory for KV blocks of preempted requests: the reference for it."""

from dataclasses import dataclass, field


@dataclass
class ReferenceSwap:
    """`blocks` that it holds, each copied in `fs_per_block`; requests are known by their numbers."""

    blocks: int
    fs_per_block: int
    held: dict[int, int] = field(default_factory=dict)
    swaps: dict[int, int] = field(default_factory=dict)  # of each request, how often
    copied: dict[int, int] = field(default_factory=dict)  # and how many blocks, out and in
    waiting: list[int] = field(default_factory=list)  # blocks to copy before the next step

    def takes(self, request: int, blocks: int) -> bool:
        """Whether there is room for the blocks of a request, which are copied out then."""
        if sum(self.held.values()) + blocks > self.blocks:
            return False
        self.held[request] = blocks
        self.swaps[request] = self.swaps.get(request, 0) + 1
        self._copy(request, blocks)
        return True

    def gives_back(self, request: int) -> None:
        """A request decodes on."""
        self._copy(request, self.held.pop(request))

    def wait(self) -> int:
        """How long the step that comes next waits."""
        waits = sum(blocks * self.fs_per_block for blocks in self.waiting)
        self.waiting.clear()
        return waits

    def of_all(self, requests: int) -> list[tuple[int, int]]:
        """Of each request, how often it was copied out, and how many blocks were copied."""
        return [(self.swaps.get(number, 0), self.copied.get(number, 0)) for number in range(requests)]

    def _copy(self, request: int, blocks: int) -> None:
        self.waiting.append(blocks)
        self.copied[request] = self.copied.get(request, 0) + blocks
