"""Served configurations, run through the engine as they were measured: a closed loop at the stated concurrency.

What a row does not say is assumed. Rows with a date of measurement are from InferenceMAX (SemiAnalysisAI/InferenceX),
whose scripts are public (benchmarks/*.sh), and say:

- lengths are uniform between 0.8 and 1 of the stated ones (`RANDOM_RANGE_RATIO`), 10 requests per client, all clients
  starting at once; elsewhere lengths are as stated, and the loop starts staggered: simulated requests of one length
  stay in step for ever, real ones do not;
- vLLM computes at most 8,192 tokens in a step; TensorRT-LLM 16,384 (Llama), 20,000 (gpt-oss), or one prompt of the
  stated length beside all decodes (DeepSeek); elsewhere 8,192, the default of both;
- the KV cache is FP8, but with vLLM on H100, and for gpt-oss on Hopper, which take the default.

Elsewhere the KV cache is 16 bit with vLLM, its default, and FP8 beside FP8 or FP4 weights with TensorRT-LLM, as in
NVIDIA's checkpoints. Weights have the format of the published checkpoint (`_BLOCK_SCALED`, `_OWN_FORMAT`).

GPUs: rows whose moe_tp and moe_ep are the same name the same GPUs twice (two of them repeat rows of 8 GPUs to the last
digit as "64 GPUs"); where moe_tp x moe_ep is more than the GPUs stated, attention runs on each `tp` of them for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from pimserve.cluster.run.run import serve
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.validation.gpu_rows import NotCovered, ServedRow, catalogue_gpu
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.kernels import Backend
from pimserve.errors import InputError, validation_error

# Names in rows, without the publisher and in lower case, and what they are called in the catalogue.
MODELS = {
    "llama-2-70b": "llama-2-70b",
    "llama2-70b": "llama-2-70b",
    "llama-3.1-8b": "llama-3.1-8b",
    "llama3.1-8b": "llama-3.1-8b",
    "llama-3.1-70b": "llama-3.1-70b",
    "llama-3.3-70b": "llama-3.1-70b",  # the same shapes
    "llama-3.1-405b": "llama-3.1-405b",
    "llama3.1-405b": "llama-3.1-405b",
    "mixtral-8x7b": "mixtral-8x7b",
    "qwen3-30b-a3b": "qwen3-30b-a3b",
    "qwen3-32b": "qwen3-32b",
    "qwen3-235b-a22b": "qwen3-235b-a22b",
    "deepseek-v3": "deepseek-v3",
    "deepseek-r1": "deepseek-r1",
    "deepseek-r1-0528": "deepseek-r1",
    "gpt-oss-120b": "gpt-oss-120b",
}
# What their FP8 checkpoints store: one scale for 128 x 128 weights.
_BLOCK_SCALED = {"deepseek-v3", "deepseek-r1", "qwen3-30b-a3b", "qwen3-32b", "qwen3-235b-a22b"}
_OWN_FORMAT = {"gpt-oss-120b"}  # published in 4 bit; nobody converts it
_PRECISIONS = {"fp8": "fp8", "fp4": "nvfp4", "nvfp4": "nvfp4", "bf16": "bf16", "fp16": "bf16", "": "bf16"}
_SUFFIXES = ("-fp8", "-fp4", "-nvfp4", "-instruct")

BACKENDS: tuple[str, ...] = get_args(Backend)
REQUESTS_PER_CLIENT = 10
LENGTH_RATIO = 0.8  # of InferenceMAX
_TOKENS_PER_STEP = 8192
_NODE_GPUS = {"gb200": 72}
_USUAL_NODE_GPUS = 8


@dataclass(frozen=True, slots=True)
class ServedResult:
    """A served configuration: means over all requests, and output tokens per second of the whole system."""

    ttft_ms: float
    tpot_ms: float
    tokens_per_s: float
    preemptions: int
    assumed: str


def serve_row(row: ServedRow, *, length_ratio: float | None = None, **overrides: Mapping[str, Any]) -> ServedResult:
    """Run one row.

    Args:
        row: what was measured.
        length_ratio: shortest over longest length; input and output lengths are uniform between, 1 for all alike. None:
            as the row's origin does.
        overrides: sections of the scenario, whose keys replace those that the row gives, such as
            `scheduler={"max_num_seqs": 256}`.

    Raises:
        NotCovered: the catalogue lacks its model, GPU or backend, or the model does not fit the GPUs.
    """
    document, assumed = scenario_of(row, length_ratio=length_ratio)
    for section, changes in overrides.items():
        document[section] = {**document.get(section, {}), **changes}
    return run_scenario(document, assumed)


def run_scenario(document: dict[str, Any], assumed: str) -> ServedResult:
    """Run a scenario document in this process.

    Raises:
        NotCovered: parts of it do not go together, such as a model that does not fit.
    """
    try:
        summary, _ = serve(prepare(Scenario.model_validate(document)))
    except ValidationError as error:
        raise NotCovered(str(validation_error("", error, Scenario)).splitlines()[0]) from None
    except InputError as error:
        raise NotCovered(error.message) from None
    requests, latency = summary.requests, summary.latency_s
    if too_long := requests.total - requests.finished + requests.truncated:
        raise NotCovered(f"{too_long} of {requests.total} requests are too long for the model or the KV cache")
    ttft, tpot, rate = latency.ttft.mean, latency.tpot.mean, summary.throughput.output_tokens_per_s
    if ttft is None or tpot is None or rate is None:
        raise NotCovered("too short to measure")
    return ServedResult(
        ttft_ms=1000 * ttft,
        tpot_ms=1000 * tpot,
        tokens_per_s=rate,
        preemptions=requests.preemptions,
        assumed=assumed,
    )


def scenario_of(row: ServedRow, *, length_ratio: float | None = None) -> tuple[dict[str, Any], str]:
    """The scenario document of a row, and what it assumes beyond the rules of this module.

    Raises:
        NotCovered: as `serve_row`.
    """
    gpu = catalogue_gpu(row.gpu)
    name = model_name(row.model)
    backend = measured_backend(row.backend)
    cluster, assumed = _cluster(row, gpu, moe=load_model(name).moe is not None)
    inferencemax = bool(row.measured)
    if length_ratio is None:
        length_ratio = LENGTH_RATIO if inferencemax else 1.0
    document = {
        "name": "served",
        "model": {"preset": name, **dtypes(name, row.precision, gpu, backend, inferencemax=inferencemax)},
        "cluster": {"device": gpu, **cluster},
        "costs": {"setting": "measured", "backend": backend},
        "scheduler": {
            "max_num_seqs": row.concurrency,  # as InferenceMAX sets it; a closed loop never has more
            "max_num_batched_tokens": max(_tokens_per_step(row, name, backend), row.concurrency),
        },
        "workload": _workload(row, length_ratio),
    }
    return document, assumed


def model_name(text: str) -> str:
    """The model of the catalogue that a row names.

    Raises:
        NotCovered: there is none.
    """
    name = text.rpartition("/")[2].lower()
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    if name not in MODELS:
        raise NotCovered(f"model {text!r} is unknown (known: {', '.join(MODELS)})")
    return MODELS[name]


def measured_backend(text: str) -> str:
    """The backend of a row.

    Raises:
        NotCovered: there are no kernels measured with it.
    """
    if text.lower() not in BACKENDS:
        raise NotCovered(f"backend {text!r} was not measured (there are {', '.join(BACKENDS)})")
    return text.lower()


def dtypes(name: str, precision: str, gpu: str, backend: str, *, inferencemax: bool = False) -> dict[str, str]:
    """Data types of weights and KV cache, by the rules of this module; weights are 16 bit where no precision is given.

    Raises:
        NotCovered: the precision is unknown.
    """
    if precision.lower() not in _PRECISIONS:
        raise NotCovered(f"precision {precision!r} is unknown (known: {', '.join(filter(None, _PRECISIONS))})")
    if name in _OWN_FORMAT:
        return {"kv_dtype": "fp8" if inferencemax and gpu == "b200" else load_model(name).kv_dtype}
    weights = _PRECISIONS[precision.lower()]
    if weights == "bf16":
        return {"dense_dtype": weights, "kv_dtype": weights}
    if weights == "fp8" and name in _BLOCK_SCALED:
        weights = "fp8_block"
    default = backend == "vllm" and (gpu == "h100" or not inferencemax)
    chosen = {"dense_dtype": weights, "kv_dtype": "bf16" if default else "fp8"}
    return chosen if load_model(name).moe is None else {**chosen, "expert_dtype": weights}


def _cluster(row: ServedRow, gpu: str, *, moe: bool) -> tuple[dict[str, Any], str]:
    """One node; attention and dense layers sliced over `tensor_parallel` GPUs, experts sliced or spread over all."""
    gpus, tensor, assumed = row.gpus, row.tp, []
    width = row.moe_tp * row.moe_ep
    if moe and row.moe_tp == row.moe_ep > 1 and gpus == width:
        gpus = tensor = row.moe_tp
        assumed.append(f"{gpus} GPUs, named twice")
    elif moe and width > gpus:
        gpus = width
        assumed.append(f"{gpus} GPUs, attention on each {tensor} of them")
    if gpus % tensor:
        raise NotCovered(f"tp {tensor} does not divide the {gpus} GPUs")
    if gpus > _NODE_GPUS.get(gpu, _USUAL_NODE_GPUS):
        raise NotCovered(f"{gpus} GPUs are more than a node; what links them is not said")
    spread = row.moe_ep > 1 and row.moe_ep >= row.moe_tp
    if moe and row.moe_ep > 1 and row.moe_ep != gpus:
        assumed.append(f"experts {'spread' if spread else 'sliced'} over all GPUs, not {row.moe_ep} x {row.moe_tp}")
    experts = "ep" if spread else "tp"
    return {"devices_per_node": gpus, "tensor_parallel": tensor, "experts": experts}, "; ".join(assumed)


def _tokens_per_step(row: ServedRow, name: str, backend: str) -> int:
    if not row.measured or backend != "trtllm":
        return _TOKENS_PER_STEP
    if name.startswith("deepseek"):
        return -(-(row.concurrency + row.isl + 64) // 64) * 64
    return 20000 if name in _OWN_FORMAT else 16384


def _workload(row: ServedRow, length_ratio: float) -> dict[str, Any]:
    def law(longest: int) -> dict[str, Any]:
        if length_ratio == 1:
            return {"kind": "fixed", "tokens": longest}
        return {"kind": "uniform", "low": max(1, int(length_ratio * longest)), "high": longest}

    return {
        "mode": "closed",
        "concurrency": row.concurrency,
        "num_requests": REQUESTS_PER_CLIENT * row.concurrency,
        "lengths": {"input": law(row.isl), "output": law(row.osl)},
        "stagger": length_ratio == 1,
    }
