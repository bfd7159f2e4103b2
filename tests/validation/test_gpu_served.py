"""Served configurations and anchors: how a row becomes a scenario, and runs of small ones."""

import re

import numpy as np
import pytest

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.validation.gpu_anchors import _ANSWERS, _PROMPTS, serve_anchor
from pimserve.cluster.validation.gpu_rows import NotCovered
from pimserve.cluster.validation.gpu_served import MODELS, dtypes, model_name, scenario_of, serve_row
from pimserve.device_models.catalogue import model_names
from pimserve.loadgen.lengths import LognormalLength
from tests.validation.gpu_example import LLAMA, MLPERF, QUEUED, anchors, served

INFERENCEMAX = {"measured": "2025-10-29"}
QWEN = LLAMA | {"model": "Qwen/Qwen3-235B-A22B-FP8", "gpu": "H200-SXM-141GB"}


@pytest.fixture
def scenario(tmp_path):
    def make(base, **changes):
        return scenario_of(served(tmp_path, {**base, **changes})[0])

    return make


def test_names_lead_to_the_catalogue():
    assert set(MODELS.values()) <= set(model_names())
    assert model_name("nvidia/Llama-3.3-70B-Instruct-FP8") == "llama-3.1-70b"
    with pytest.raises(NotCovered, match="model 'mistralai/Mistral-7B' is unknown"):
        model_name("mistralai/Mistral-7B")


@pytest.mark.parametrize(
    ("name", "precision", "gpu", "backend", "inferencemax", "expected"),
    [
        ("llama-3.1-70b", "", "h100", "vllm", False, ("bf16", None, "bf16")),
        ("llama-3.1-70b", "FP8", "h100", "vllm", True, ("fp8", None, "bf16")),
        ("llama-3.1-70b", "fp8", "h200", "vllm", True, ("fp8", None, "fp8")),
        ("llama-3.1-70b", "fp8", "h200", "vllm", False, ("fp8", None, "bf16")),
        ("llama-3.1-70b", "fp4", "b200", "trtllm", False, ("nvfp4", None, "fp8")),
        ("mixtral-8x7b", "fp8", "h100", "trtllm", False, ("fp8", "fp8", "fp8")),
        ("deepseek-r1", "fp8", "h200", "trtllm", True, ("fp8_block", "fp8_block", "fp8")),
        ("gpt-oss-120b", "fp4", "h100", "vllm", True, (None, None, "bf16")),
        ("gpt-oss-120b", "fp4", "b200", "trtllm", True, (None, None, "fp8")),
    ],
)
def test_data_types(name, precision, gpu, backend, inferencemax, expected):
    found = dtypes(name, precision, gpu, backend, inferencemax=inferencemax)
    assert tuple(found.get(key) for key in ("dense_dtype", "expert_dtype", "kv_dtype")) == expected


def test_an_unknown_precision_is_not_covered():
    with pytest.raises(NotCovered, match="precision 'int4' is unknown"):
        dtypes("llama-3.1-70b", "int4", "h100", "vllm")


def test_lengths_are_stated_or_those_of_inferencemax(scenario):
    stated, _ = scenario(LLAMA)
    assert stated["workload"]["lengths"]["input"] == {"kind": "fixed", "tokens": 256}
    assert stated["workload"]["stagger"]
    drawn, _ = scenario(LLAMA, **INFERENCEMAX)
    assert drawn["workload"]["lengths"]["output"] == {"kind": "uniform", "low": 25, "high": 32}
    assert not drawn["workload"]["stagger"]
    assert drawn["workload"]["num_requests"] == 10 * drawn["workload"]["concurrency"]


@pytest.mark.parametrize(
    ("changes", "gpus", "tensor", "experts", "assumed"),
    [
        ({"gpus": 4, "tp": 4, "moe_tp": 4, "moe_ep": 1}, 4, 4, "tp", ""),
        ({"gpus": 4, "tp": 4, "moe_tp": 1, "moe_ep": 4}, 4, 4, "ep", ""),
        ({"gpus": 16, "tp": 16, "moe_tp": 4, "moe_ep": 4}, 4, 4, "ep", "4 GPUs, named twice"),
        ({"gpus": 2, "tp": 2, "moe_tp": 4, "moe_ep": 1}, 4, 2, "tp", "4 GPUs, attention on each 2 of them"),
        ({"gpus": 8, "tp": 8, "moe_tp": 4, "moe_ep": 2}, 8, 8, "tp", "experts sliced over all GPUs, not 2 x 4"),
    ],
)
def test_splits(scenario, changes, gpus, tensor, experts, assumed):
    document, said = scenario(QWEN, **changes)
    cluster = document["cluster"]
    assert (cluster["devices_per_node"], cluster["tensor_parallel"], cluster["experts"]) == (gpus, tensor, experts)
    assert said == assumed
    assert document["scheduler"]["max_num_batched_tokens"] == 8192
    Scenario.model_validate(document)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"backend": "sglang"}, "backend 'sglang' was not measured"),
        ({"gpus": 4, "tp": 3}, "tp 3 does not divide the 4 GPUs"),
        ({"gpus": 16, "tp": 16}, "16 GPUs are more than a node"),
        ({"gpu": "MI300X"}, "GPU 'MI300X' is not in the catalogue"),
        ({"gpus": 1, "tp": 1, "precision": ""}, "does not fit"),
        ({"isl": 9_000_000}, "too long"),
    ],
)
def test_what_cannot_be_served_says_why(tmp_path, changes, says):
    (row,) = served(tmp_path, {**LLAMA, "moe_tp": 1, **changes})
    with pytest.raises(NotCovered, match=re.escape(says)):
        serve_row(row)


def test_a_run_gives_means_of_latencies_and_the_rate(tmp_path):
    (row,) = served(tmp_path, LLAMA)
    found = serve_row(row)
    assert 0 < found.tpot_ms < found.ttft_ms
    # A closed loop of equal requests is always full.
    request_s = (found.ttft_ms + 31 * found.tpot_ms) / 1000
    assert found.tokens_per_s == pytest.approx(4 * 32 / request_s, rel=0.05)
    assert serve_row(row) == found
    # What a caller overrides counts: one request at a time waits for the three others.
    assert serve_row(row, scheduler={"max_num_seqs": 1}).ttft_ms > 3 * found.ttft_ms


def test_more_gpus_are_faster(tmp_path):
    rows = served(tmp_path, *({**LLAMA, "gpus": gpus, "tp": gpus, "moe_tp": gpus} for gpus in (2, 4, 8)))
    times = [serve_row(row).tpot_ms for row in rows]
    assert times == sorted(times, reverse=True)


def test_a_queue_of_requests(tmp_path):
    (row,) = anchors(tmp_path, QUEUED)
    found = serve_anchor(row)
    assert found.tpot_ms is None
    assert found.assumed == "30000 requests"
    assert found.tokens_per_s > 1000


def test_a_closed_loop_anchor_is_a_served_row(tmp_path):
    loop = QUEUED | {"concurrency": 4, "ttft_ms": 20.0, "tpot_ms": 9.0}
    (anchor,), (row,) = (
        anchors(tmp_path, loop),
        served(tmp_path, LLAMA | {**loop, "tp": 2, "backend": "trtllm"} | {"gpu": "H100"}),
    )
    assert serve_anchor(anchor).tpot_ms == serve_row(row).tpot_ms


def test_mlperf_server_keeps_up_with_its_rate(tmp_path):
    (row,) = anchors(tmp_path, MLPERF | {"samples_per_s": 50.0})
    found = serve_anchor(row)
    assert found.assumed == "8 x TP1, batch 896"
    assert found.tokens_per_s == pytest.approx(50.0 * 292, rel=0.05)
    assert found.ttft_ms is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"system": "a rack"}, "system 'a rack' is not of the form"),
        ({"system": "72x GB300 NVL72"}, "GPU 'GB300' is not in the catalogue"),
        ({"software": "vLLM"}, "software 'vLLM' is not TensorRT-LLM"),
        ({"scenario": "MLPerf v5.0 Interactive"}, "is neither Offline nor Server"),
        ({"samples_per_s": None}, "lacks samples_per_s"),
        ({"model": "Llama3.1-405B"}, "the layout of Llama3.1-405B on h200 in MLPerf is not known"),
    ],
)
def test_anchors_that_cannot_be_run_say_why(tmp_path, changes, says):
    (row,) = anchors(tmp_path, MLPERF | changes)
    with pytest.raises(NotCovered, match=re.escape(says)):
        serve_anchor(row)
    (bare,) = anchors(tmp_path, QUEUED | {"gpus": None})
    with pytest.raises(NotCovered, match="lacks isl, osl or gpus"):
        serve_anchor(bare)


@pytest.mark.parametrize(
    ("law", "mean"),
    [
        (_PROMPTS["llama-2-70b"], 280),
        (_PROMPTS["mixtral-8x7b"], 430),
        (_ANSWERS["llama-2-70b"], 292),
        (_ANSWERS["mixtral-8x7b"], 146),
    ],
)
def test_mlperf_lengths_have_the_means_that_are_stated(law, mean):
    sample = LognormalLength.model_validate(law).sample(np.random.default_rng(1), 400_000)
    assert sample.mean() == pytest.approx(mean, rel=0.005)
