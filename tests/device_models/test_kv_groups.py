"""Groups of layers that share the KV cache."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.catalogue import load_model
from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.device_models.model import ModelSpec
from pimserve.errors import InputError


def model(layers: int, window_every: int) -> ModelSpec:
    document: dict[str, Any] = load_model("gpt-oss-120b").model_dump()
    document["attention"]["window_every"] = window_every
    return ModelSpec.model_validate({**document, "layers": layers, "published": None})


@pytest.mark.parametrize(
    ("layers", "window_every", "full", "windowed"),
    [
        (36, 2, 1, 1),  # gpt-oss: 18 of either kind
        (25, 2, 1, 1),  # 13 and 12: both are groups of 13
        (36, 3, 2, 1),  # 24 and 12
        (36, 4, 3, 1),  # 27 and 9
        (37, 3, 3, 1),  # 25 and 12: the last group is filled up
    ],
)
def test_layers_are_grouped_as_vllm_does(layers: int, window_every: int, full: int, windowed: int) -> None:
    groups = KvGroups.of(model(layers, window_every))
    assert groups == KvGroups(full, windowed, 128)
    with_window = layers // window_every
    kept = layers - with_window
    assert groups.bytes_per_token(kept, with_window) == pytest.approx(full * max(kept / full, with_window))


def test_a_model_that_sees_the_whole_context_nowhere_is_refused() -> None:
    with pytest.raises(InputError, match="some layers must see the whole context"):
        KvGroups.of(model(4, 1))


def test_without_windows_a_token_is_a_token() -> None:
    assert KvGroups.of(load_model("llama-3.1-8b")) == NO_WINDOWS
    assert NO_WINDOWS.bytes_per_token(131_072, 0.0) == 131_072
    assert NO_WINDOWS.request_tokens(62, 2, 16, 2048) == 496
    assert NO_WINDOWS.blocks(17, 16) == 2


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 300))
def test_a_window_touches_at_most_so_many_blocks(window: int, block_size: int, new: int) -> None:
    seen = window - 1 + new  # the window of the first new token, and all new ones
    most = max((begin + seen - 1) // block_size + 1 for begin in range(block_size))
    assert KvGroups(1, 1, window).window_blocks(block_size, new) == most


@given(
    st.builds(KvGroups, st.integers(1, 3), st.integers(1, 3), st.integers(1, 200)),
    st.integers(1, 4),
    st.integers(2, 32),
    st.none() | st.integers(1, 200),
    st.integers(0, 5000),
)
def test_the_longest_request_fits_and_a_longer_one_does_not(
    groups: KvGroups, parallel: int, block_size: int, chunk: int | None, tokens: int
) -> None:
    pool = groups.pool_blocks(tokens, block_size)
    most = groups.request_tokens(pool, parallel, block_size, chunk)
    new = chunk or 2**62
    if most > 0:
        assert groups.blocks(most, block_size, new) <= pool
    if parallel == 1:
        assert groups.blocks(max(most, 0) + 1, block_size, new) > pool
