"""Data-parallel attention as served: a long prompt occupies the token budget of its own group alone."""

from pathlib import Path

import pytest

from pimserve.cluster.validation.gpu_anchors import serve_anchor
from tests.validation.gpu_example import QUEUED, anchors

# Published throughput of TensorRT-LLM, tokens/s of all four GPUs; with a budget that groups share it was 255 here.
QWEN = QUEUED | {
    "system": "4x H200",
    "model": "Qwen3-235B-A22B",
    "scenario": "max throughput, ISL 32768 OSL 1024, DEP4",
    "tokens_per_s": 536.0,
    "isl": 32768,
    "osl": 1024,
    "gpus": 4,
}


@pytest.mark.medium
def test_long_prompts_with_attention_of_each_gpu_for_itself(tmp_path: Path) -> None:
    (anchor,) = anchors(tmp_path, QWEN)
    assert serve_anchor(anchor).tokens_per_s == pytest.approx(QWEN["tokens_per_s"], rel=0.1)
