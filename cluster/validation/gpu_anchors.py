"""Published throughput figures of whole systems, run through the engine.

Three kinds: all requests queued at once (TensorRT-LLM's performance pages), a closed loop (NIM), and MLPerf Inference
v4.1, offline and server. What they leave open is assumed:

- TensorRT-LLM: `trtllm-bench throughput` with its defaults, 2,048 sequences and 8,192 tokens in a step, 95 % of the
  memory, and as many requests as its page says (`_REQUESTS`). "TPn": n GPUs slice everything, the routed experts being
  spread whole; "DEPn" and Mixture-of-Experts models on the page of v1.0, whose options say so: each GPU computes
  attention for requests of its own.
- MLPerf: the layouts and batch sizes of NVIDIA's submission (mlcommons/inference_results_v4.1, closed/NVIDIA/configs,
  for Mixtral those of its partners); replicas are alike, so that one is simulated. Lengths are log-normal. Prompts: 280
  tokens in the mean for Llama 2 (at most 1,024), 430 for Mixtral (at most 2,048), as in samples of the data sets'
  published lengths (openshift-psap/performance-dashboard, mlperf-data/summaries). Answers: 292 and 146 in the mean, as
  the logs say, at most 1,024. Offline is a closed loop whose queue never runs dry, past its first minute; server is
  Poisson arrivals at the stated rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pimserve.cluster.validation.gpu_rows import MOST_DEVICES, Anchor, NotCovered, ServedRow, catalogue_gpu
from pimserve.cluster.validation.gpu_served import dtypes, model_name, run_scenario, serve_row
from pimserve.device_models.catalogue import load_model
from pimserve.errors import shortened

COUNTED = "seen"  # confidence of a figure that was read in its source

_REQUESTS = {
    (128, 128): 30000,
    (128, 2048): 3000,
    (500, 2000): 3000,
    (1000, 1000): 3000,
    (2048, 128): 3000,
    (2048, 2048): 1500,
    (5000, 500): 1500,
    (20000, 2000): 1000,
}
_BENCH: dict[str, Any] = {"max_num_seqs": 2048, "max_num_batched_tokens": 8192, "memory_utilization": 0.95}


@dataclass(frozen=True, slots=True)
class _Layout:
    """GPUs of one replica in MLPerf, and its batch size offline and as a server."""

    tensor_parallel: int
    offline: int
    server: int


_MLPERF = {
    ("llama-2-70b", "h100"): _Layout(2, 896, 1024),
    ("llama-2-70b", "h200"): _Layout(1, 806, 896),
    ("llama-2-70b", "b200"): _Layout(1, 2048, 2048),  # its configuration was not found
    ("mixtral-8x7b", "h100"): _Layout(1, 896, 896),
    ("mixtral-8x7b", "h200"): _Layout(1, 3072, 3072),
}
# Medians that make the mean of the law, cut at its maximum, the mean that is wanted.
_PROMPTS = {
    "llama-2-70b": {"kind": "lognormal", "median": 230.0, "sigma": 0.8, "max": 1024},
    "mixtral-8x7b": {"kind": "lognormal", "median": 347.5, "sigma": 0.7, "max": 2048},
}
_ANSWERS = {
    "llama-2-70b": {"kind": "lognormal", "median": 243.3, "sigma": 0.8, "max": 1024},
    "mixtral-8x7b": {"kind": "lognormal", "median": 108.1, "sigma": 0.8, "max": 1024},
}
_WARMUP_S = 60.0
_SERVER_S = 400.0
_MOST_REQUESTS = 100_000


@dataclass(frozen=True, slots=True)
class AnchorResult:
    """Output tokens per second of the whole system; TTFT and TPOT where the anchor has them to compare with."""

    tokens_per_s: float
    ttft_ms: float | None
    tpot_ms: float | None
    assumed: str


def serve_anchor(anchor: Anchor) -> AnchorResult:
    """Run one anchor.

    Raises:
        NotCovered: what it needs is not said, not known or not in the catalogue, or the model does not fit.
    """
    if "MLPerf" in anchor.scenario:
        return _mlperf(anchor)
    if anchor.isl is None or anchor.osl is None or anchor.gpus is None:
        raise NotCovered("lacks isl, osl or gpus")
    return _closed(anchor) if anchor.concurrency is not None else _queued(anchor)


def _system(anchor: Anchor) -> tuple[int, str]:
    count, _, rest = anchor.system.partition("x ")
    name = rest.partition(" ")[0].partition("-")[0]
    if not count.isdecimal() or not name.isalnum():
        raise NotCovered(f"system {anchor.system!r} is not of the form '8x H100 ...'")
    if "TensorRT-LLM" not in anchor.software and "NIM" not in anchor.software:
        raise NotCovered(f"software {anchor.software!r} is not TensorRT-LLM")
    if len(count) > len(str(MOST_DEVICES)) or not 0 < int(count) <= MOST_DEVICES:
        raise NotCovered(f"system {shortened(anchor.system)!r} has no number of GPUs from 1 to {MOST_DEVICES}")
    return int(count), catalogue_gpu(name)


def _closed(anchor: Anchor) -> AnchorResult:
    gpus, gpu = _system(anchor)
    if anchor.ttft_ms is None or anchor.tpot_ms is None:
        raise NotCovered("lacks ttft_ms or tpot_ms")
    row = ServedRow.model_validate({**dict(anchor), "gpu": gpu, "backend": "trtllm", "gpus": gpus, "tp": gpus})
    ran = serve_row(row)
    return AnchorResult(ran.tokens_per_s, ran.ttft_ms, ran.tpot_ms, f"{gpus} GPUs slice everything")


def _queued(anchor: Anchor) -> AnchorResult:
    gpus, gpu = _system(anchor)
    name = model_name(anchor.model)
    moe = load_model(name).moe is not None
    data_parallel = "DEP" in anchor.scenario or moe
    assert anchor.isl is not None
    assert anchor.osl is not None
    requests = _REQUESTS.get((anchor.isl, anchor.osl), 1500)
    document = _document(name, anchor, gpu) | {
        "cluster": {
            "device": gpu,
            "devices_per_node": gpus,
            "tensor_parallel": 1 if data_parallel else gpus,
            "experts": "ep",
        },
        "scheduler": _BENCH,
        "workload": {
            "mode": "closed",
            "concurrency": requests,
            "num_requests": requests,
            "lengths": {
                "input": {"kind": "fixed", "tokens": anchor.isl},
                "output": {"kind": "fixed", "tokens": anchor.osl},
            },
        },
    }
    ran = run_scenario(document, "")
    assumed = f"{requests} requests" + (", attention of each GPU for itself" if data_parallel else "")
    return AnchorResult(ran.tokens_per_s, None, None, assumed)


def _mlperf(anchor: Anchor) -> AnchorResult:
    gpus, gpu = _system(anchor)
    name = model_name(anchor.model)
    if (name, gpu) not in _MLPERF:
        raise NotCovered(f"the layout of {anchor.model} on {gpu} in MLPerf is not known")
    layout = _MLPERF[name, gpu]
    replicas, over = divmod(gpus, layout.tensor_parallel)
    if over:
        raise NotCovered(f"{gpus} GPUs are no whole number of replicas of {layout.tensor_parallel}, as submitted")
    lengths = {"input": _PROMPTS[name], "output": _ANSWERS[name]}
    document = _document(name, anchor, gpu)
    document["cluster"] = {"device": gpu, "devices_per_node": layout.tensor_parallel, "experts": "tp"}
    document["run"] = {"warmup_s": _WARMUP_S}
    workload: dict[str, Any]
    if "Offline" in anchor.scenario:
        batch = layout.offline
        workload = {"mode": "closed", "concurrency": 2 * batch, "num_requests": 14 * batch}
    elif "Server" in anchor.scenario:
        batch = layout.server
        if anchor.samples_per_s is None:
            raise NotCovered("lacks samples_per_s, the rate at which requests came")
        rate = anchor.samples_per_s / replicas
        arrival = {"process": "poisson", "rate_per_s": rate}
        workload = {"arrival": arrival, "num_requests": min(max(1, round(_SERVER_S * rate)), _MOST_REQUESTS)}
    else:
        raise NotCovered(f"scenario {anchor.scenario!r} is neither Offline nor Server")
    document["workload"] = {**workload, "lengths": lengths}
    document["scheduler"] = {"max_num_seqs": batch, "max_num_batched_tokens": 8192}
    ran = run_scenario(document, "")
    assumed = f"{replicas} x TP{layout.tensor_parallel}, batch {batch}"
    return AnchorResult(replicas * ran.tokens_per_s, ran.ttft_ms, ran.tpot_ms, assumed)


def _document(name: str, anchor: Anchor, gpu: str) -> dict[str, Any]:
    return {
        "name": "anchor",
        "model": {"preset": name, **dtypes(name, anchor.precision, gpu, "trtllm")},
        "costs": {"setting": "measured", "backend": "trtllm"},
    }
