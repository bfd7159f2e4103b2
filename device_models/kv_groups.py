"""How the layers of a model share the blocks of a KV cache.

Layers that see the whole context keep every token; layers with a sliding window drop the blocks that leave it. As in
vLLM's hybrid KV cache manager (docs.vllm.ai, design/hybrid_kv_cache_manager), layers are put into groups of equally
many layers of one kind: a block of any group then has as many bytes, and all groups take theirs from one pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pimserve.device_models.model import ModelSpec
from pimserve.errors import InputError

_MUCH_MORE = 1.5  # layers of the one kind than of the other, from which on groups are as large as the smaller kind


@dataclass(frozen=True, slots=True)
class KvGroups:
    """Groups of layers.

    Args:
        full: groups whose layers see the whole context.
        windowed: groups whose layers see the last `window_tokens`.
        window_tokens: those, the token itself counted; 0 without windows.
    """

    full: int = 1
    windowed: int = 0
    window_tokens: int = 0

    @classmethod
    def of(cls, model: ModelSpec) -> Self:
        """As vLLM groups the layers of a model: in groups of as many as there are of the rarer kind.

        Kinds that differ by less than half have a group each, of which the smaller is filled up.

        Raises:
            InputError: all layers have a window.
        """
        windowed = model.windowed_layers
        full = model.layers - windowed
        if not windowed:
            return cls()
        if not full:
            raise InputError(
                "model.attention.window_every", "must be 2 or more: some layers must see the whole context"
            )
        fewer, more = sorted((full, windowed))
        layers = more if more < _MUCH_MORE * fewer else fewer
        window = getattr(model.attention, "window_tokens", None) or 0
        return cls(-(-full // layers), -(-windowed // layers), window)

    def bytes_per_token(self, full: float, windowed: float) -> float:
        """Bytes that a token takes from the pool in all full groups, given those in all layers of either kind."""
        group = full / self.full
        return self.full * (max(group, windowed / self.windowed) if self.windowed else group)

    def pool_blocks(self, tokens: int, block_size: int) -> int:
        """Blocks of a pool in which full groups can keep so many tokens, if windows take none."""
        return tokens * self.full // block_size

    def window_blocks(self, block_size: int, new_tokens: int = 1) -> int:
        """Blocks of one windowed group that a request needs at most in a step which adds `new_tokens`.

        The window of W tokens that ends with a new one may begin inside a block: ceil((W - 2 + new) / block) + 1.
        """
        return -(-(self.window_tokens - 2 + new_tokens) // block_size) + 1

    def blocks(self, tokens: int, block_size: int, new_tokens: int = 1) -> int:
        """Blocks of a request with so many tokens, of which a step adds at most `new_tokens`."""
        blocks = -(-tokens // block_size)
        if not self.windowed:
            return self.full * blocks
        return self.full * blocks + self.windowed * min(blocks, self.window_blocks(block_size, new_tokens))

    def request_tokens(self, pool: int, groups: int, block_size: int, chunk_tokens: int | None) -> int:
        """Most tokens that a request may have.

        Args:
            pool: blocks of the pool.
            groups: data-parallel groups that share the pool evenly.
            block_size: tokens of a block.
            chunk_tokens: of its prompt that a step computes at most; None: all.
        """
        blocks = pool // groups
        most = blocks // (self.full + self.windowed)
        if chunk_tokens is not None:
            windows = self.windowed * self.window_blocks(block_size, chunk_tokens)
            most = max(most, (blocks - windows) // self.full)
        return block_size * most


NO_WINDOWS = KvGroups()
