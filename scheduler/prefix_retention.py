"""Which blocks of attention windows a prefix cache keeps: vLLM's `prefix_cache_retention_interval`.

A prompt can go on at the end of a block if the last blocks before it that the window of the next token touches, its
tail, are cached; those of no such end are never needed again. With an interval, tails are kept of these ends alone
(vLLM pull requests 43447, 47782 for the second one, and 52216, which made it an argument):

- the last end that a look-up of the same prompt can find, as its last token is always computed;
- where full groups' blocks on the device ended when the request was admitted, if windows let it find less: it is where
  another prompt with the same beginning went on otherwise, and others may;
- multiples of the interval, unless it is 0.
"""

from __future__ import annotations

from collections.abc import Iterable


def check_retention(interval: int | None, block_size: int, *, cached: bool) -> None:
    """Refuse an interval of nothing, and one that ends within blocks.

    Args:
        interval: tokens; None: tails of all ends of blocks are kept.
        block_size: tokens.
        cached: whether there is a prefix cache.

    Raises:
        ValueError: says what is wrong.
    """
    if interval is None:
        return
    if not cached:
        raise ValueError(
            "prefix_cache_retention_interval needs enable_prefix_caching: true; without it, nothing is kept"
        )
    if interval % block_size:
        raise ValueError(
            f"prefix_cache_retention_interval ({interval}) must be 0 or a multiple of block_size ({block_size})"
        )


class Retention:
    """Which blocks of a request's windows are cached.

    Args:
        interval: tokens, a multiple of `block_size`; 0: no ends but those of the request.
        block_size: tokens.
        tail: blocks before an end that are needed there.
    """

    def __init__(self, interval: int, block_size: int, tail: int) -> None:
        self._period = interval // block_size
        self._tail = tail

    def kept(self, first: int, end: int, ends: Iterable[int]) -> list[int]:
        """Of places from `first` on, before `end`, those that are cached, in order.

        Args:
            first, end: in blocks of the request's context.
            ends: of the request, in blocks.
        """
        tail, period = self._tail, self._period
        stops = [*ends]
        if period:
            stops += range((first // period + 1) * period, end + tail, period)
        return sorted({place for stop in stops for place in range(max(first, stop - tail), min(end, stop))})
