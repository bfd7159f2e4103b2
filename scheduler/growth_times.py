"""When requests that decode take blocks of the KV cache, which itself counts no more than the sum of a span."""

from __future__ import annotations

from pimserve.device_models.evaluate import Span
from pimserve.scheduler.decoding import Decoding
from pimserve.scheduler.kv_cache import KvCache


def grow_by_step(kv: KvCache, decoding: Decoding, span: Span, step: int, steps: int, begin_fs: int) -> None:
    """Take the blocks of a span step by step, as what they displace is written down when they do.

    Args:
        kv: a cache with tiers below it; it has grown by what the span's first step takes.
        decoding: who takes them.
        span: what its steps take.
        step: the number of the first one.
        steps: how many.
        begin_fs: when it begins.
    """
    assert kv.tiers is not None
    if not kv.tiers.take_back:
        return
    kv.tiers.now_fs = begin_fs
    kv.grow(step)
    if steps > 1:
        for later, blocks in decoding.growths(step, steps):
            kv.used += blocks
            kv.tiers.now_fs = begin_fs + span.duration_fs(later)
            kv.grow(step + later)
