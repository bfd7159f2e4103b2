"""Settings of the serving engine: what may be set, and what follows from it."""

from typing import Any

import pytest
from pydantic import ValidationError

from pimserve.scheduler.config import SchedulerSpec

MOST = 2**31 - 1
RANGES = {
    "max_num_seqs": (1, MOST),
    "max_num_batched_tokens": (1, MOST),
    "max_model_len": (1, MOST),
    "kv_blocks": (1, MOST),
    "block_size": (1, 1024),
    "report_interval_s": (0, 3600),
}


def spec(**settings: Any) -> SchedulerSpec:
    """In stages, where no budget of tokens has to hold every decode, unless said otherwise."""
    return SchedulerSpec.model_validate({"batching": "stage", **settings})


@pytest.mark.parametrize("name", RANGES)
def test_ends_of_a_range_are_in_it_and_nothing_beyond(name: str) -> None:
    least, most = RANGES[name]
    for value in (least, most):
        assert getattr(spec(**{name: value}), name) == value
    for value in (least - 1, most + 1):
        with pytest.raises(ValidationError, match=name):
            spec(**{name: value})


def test_only_chunks_have_a_budget_of_tokens() -> None:
    chunked = spec(batching="chunked", max_num_batched_tokens=512, max_model_len=4096)
    assert (chunked.chunk_tokens, chunked.max_step_tokens(8192)) == (512, 512)
    assert (spec(max_model_len=4096).chunk_tokens, spec(max_model_len=4096).max_step_tokens(8192)) == (None, 4096)
    assert spec().max_step_tokens(8192) == 8192


def test_a_budget_holds_a_token_of_every_request() -> None:
    assert spec(batching="chunked", max_num_seqs=64, max_num_batched_tokens=64).chunk_tokens == 64
    with pytest.raises(ValidationError, match=r"max_num_batched_tokens \(63\) must be at least max_num_seqs \(64\)"):
        spec(batching="chunked", max_num_seqs=64, max_num_batched_tokens=63)
