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
    first = spec(batching="prefill_first", max_num_batched_tokens=512)
    assert (first.chunk_tokens, first.max_step_tokens(8192)) == (512, 512)
    few = spec(batching="prefill_first", max_num_batched_tokens=64, max_num_seqs=256)
    assert (few.chunk_tokens, few.max_step_tokens(8192)) == (64, 256)  # a step of those that decode has more
    last = spec(batching="decode_first", max_num_batched_tokens=512)
    assert (last.chunk_tokens, last.max_step_tokens(8192)) == (None, 8192)


def test_a_budget_holds_a_token_of_every_request() -> None:
    assert spec(batching="chunked", max_num_seqs=64, max_num_batched_tokens=64).chunk_tokens == 64
    with pytest.raises(ValidationError, match=r"max_num_batched_tokens \(63\) must be at least max_num_seqs \(64\)"):
        spec(batching="chunked", max_num_seqs=64, max_num_batched_tokens=63)


@pytest.mark.parametrize("batching", ["prefill_first", "decode_first"])
def test_a_budget_of_prompts_alone_is_below_the_number_of_requests_if_need_be(batching: str) -> None:
    assert spec(batching=batching, max_num_seqs=64, max_num_batched_tokens=1).max_num_seqs == 64


def test_only_prompts_that_are_cut_have_a_threshold() -> None:
    assert spec(batching="prefill_first", long_prefill_token_threshold=40).long_prefill_token_threshold == 40
    for batching in ("stage", "decode_first"):
        told = rf"needs batching: chunked or prefill_first; {batching} computes whole prompts"
        with pytest.raises(ValidationError, match=told):
            spec(batching=batching, long_prefill_token_threshold=40)
