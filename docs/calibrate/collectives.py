"""Algorithms of collectives: what whole tables show of a library, told apart by what algorithms have in common.

A table's fit is one line through small and large sizes, which different algorithms run:

- one-shot: every GPU reads all of the others' data, more than it must, at `one_shot_link` of a link's rate, after the
  latency of the fit; between two GPUs there is no other way, and the fit is the algorithm;
- two-shot (4 GPUs and more) scatters and gathers: `two_shot_us` later, at `two_shot_gain` of the fit's bandwidth;
- two-shot large: `large_us` after one-shot, at the bandwidth of the largest sizes;
- NCCL: at `nccl_small` of the fit's bandwidth (its protocol for small sizes sends flags beside the data); NCCL large:
  `nccl_large_latency` times the latency, at the bandwidth of the largest sizes, or `nccl_large_gain` of the fit's.

These seven numbers are fitted to the calls of all GPUs and libraries at once, through the links of a served step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from statistics import median
from typing import Any

import numpy as np

from calibrate.fitting import Array, Parameter, fit
from calibrate.points import call_of, single_calls, spec_of, tables
from pimserve.cluster.scenario.interconnect import Interconnect
from pimserve.cluster.validation import gpu_rows
from pimserve.cluster.validation.gpu_rows import OperatorRow, catalogue_gpu
from pimserve.device_models.kernels import FS_PER_US, CollectiveKernel, Collectives
from pimserve.device_models.operators import AllReduce, Parallelism

Common = Mapping[str, float]
_PARAMETERS = (
    Parameter("one_shot_link", 0.7, np.inf, 0.1, 1, 0.1),
    Parameter("two_shot_us", 4, np.inf, 0, 20, 1),
    Parameter("two_shot_gain", 1, np.inf, 0.5, 1.5, 0.1),
    Parameter("large_us", 80, np.inf, 0, 300, 20),
    Parameter("nccl_small", 0.7, np.inf, 0.2, 1, 0.1),
    Parameter("nccl_large_latency", 2.5, np.inf, 1, 10, 0.5),
    Parameter("nccl_large_gain", 1.1, np.inf, 0.8, 1.5, 0.1),
)
_STARTS = ((0.65, 3, 1, 80, 0.7, 2.5, 1.1), (0.75, 4.5, 1.05, 100, 0.65, 2.2, 1.1), (0.85, 6, 1, 60, 0.8, 3, 1.05))
_LARGE_BYTES = 2**29
_NCCL = "nccl"
_LINKS = Interconnect(1, 1, 1, 1, 0)  # ideal links, which measured collectives have no use for


def fit_common() -> Common:
    """The numbers that algorithms have in common."""
    rows = all_reduce_rows()
    rows += [
        call_of("h100", "vllm", "all_reduce", "bfloat16", gpu_rows.AllReduce(gpus=8, bytes=size), time)
        for size, time in tables()["all_reduce"]["calls"]
    ]
    measured = np.array([row.time_us for row in rows])

    def errors(values: Array) -> Array:
        common = dict(zip((parameter.name for parameter in _PARAMETERS), values, strict=True))
        return np.array(np.log([time_us(row, _algorithms(row, common)) for row in rows] / measured))

    values = fit(errors, _PARAMETERS, _STARTS)
    return dict(zip((parameter.name for parameter in _PARAMETERS), map(float, values), strict=True))


def collectives(gpu: str, backend: str, common: Common) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Collectives of a GPU with a backend, as the catalogue has them."""
    groups: dict[int, tuple[float, float]] = tables()["all_reduce"]["fits"][gpu][_NCCL]
    algorithms: dict[str, dict[int, list[dict[str, Any]]]] = {
        "all_reduce": {
            group: [
                _written(algorithm) for algorithm in (*_custom(gpu, backend, group, common), *_nccl(gpu, group, common))
            ]
            for group in groups
        }
    }
    reference = tables()["all_reduce"]["fits"]["h100"][_NCCL]
    latency = groups[8][0] / reference[8][0]
    rate = median(groups[group][1] / reference[group][1] for group in groups)
    for name, (latency_us, bus) in tables()["other_collectives"].items():
        algorithms[name] = {8: [_written(_algorithm("NCCL", latency_us * latency, bus * rate))]}
    return algorithms


def time_us(row: OperatorRow, algorithms: Iterable[CollectiveKernel]) -> float:
    """What a timed all-reduce takes where a library has these algorithms, compiled as in a served step."""
    assert isinstance(row.shape, gpu_rows.AllReduce)
    group = row.shape.gpus
    operator = AllReduce(1, float(row.shape.bytes), group)
    split = Parallelism(devices_per_node=group, tensor=group)
    terms = _LINKS.compile([operator], split, Collectives(all_reduce={group: tuple(algorithms)}))
    return sum(term.time_fs(1) for term in terms) / FS_PER_US


def of_library(row: OperatorRow, measured: Collectives) -> list[CollectiveKernel]:
    """Of the algorithms for a row's GPUs, those of the library that was timed."""
    assert isinstance(row.shape, gpu_rows.AllReduce)
    nccl = row.backend.lower() == _NCCL
    return [algorithm for algorithm in measured.all_reduce[row.shape.gpus] if algorithm.name.startswith("NCCL") == nccl]


def all_reduce_rows() -> list[OperatorRow]:
    """Single calls, inside a CUDA graph or of NCCL."""
    return [row for row in single_calls() if row.op == "all_reduce" and "eager" not in row.kernel]


def _algorithms(row: OperatorRow, common: Common) -> Iterator[CollectiveKernel]:
    assert isinstance(row.shape, gpu_rows.AllReduce)
    gpu, library, group = catalogue_gpu(row.gpu), row.backend.lower(), row.shape.gpus
    return _nccl(gpu, group, common) if library == _NCCL else _custom(gpu, library, group, common)


def _custom(gpu: str, backend: str, group: int, common: Common) -> Iterator[CollectiveKernel]:
    fits = tables()["all_reduce"]["fits"][gpu]
    latency, bus = fits.get(backend, fits["vllm"])[group]  # TensorRT-LLM's table of A100 was not fitted
    if group == 2:
        yield _algorithm("one-shot", latency, bus)
        return
    yield _algorithm("one-shot", latency, common["one_shot_link"] * spec_of(gpu).link_gb_per_s * 2 / group)
    yield _algorithm("two-shot", latency + common["two_shot_us"], common["two_shot_gain"] * bus)
    if (peak := _peak(gpu, backend, group)) is not None:
        yield _algorithm("two-shot large", latency + common["large_us"], peak)


def _nccl(gpu: str, group: int, common: Common) -> Iterator[CollectiveKernel]:
    latency, bus = tables()["all_reduce"]["fits"][gpu][_NCCL][group]
    large = _peak(gpu, _NCCL, group) or common["nccl_large_gain"] * bus
    yield _algorithm("NCCL", latency, common["nccl_small"] * bus)
    yield _algorithm("NCCL large", common["nccl_large_latency"] * latency, large)


def _algorithm(name: str, latency_us: float, bus: float) -> CollectiveKernel:
    return CollectiveKernel(name=name, latency_us=latency_us, bus_gb_per_s=bus)


def _written(kernel: CollectiveKernel) -> dict[str, Any]:
    return {"name": kernel.name, "latency_us": round(kernel.latency_us, 1), "bus_gb_per_s": round(kernel.bus_gb_per_s)}


def _peak(gpu: str, library: str, group: int) -> float | None:
    """Bus bandwidth of the largest sizes over 8 GPUs, by table or single calls."""
    if group != 8:
        return None
    known = tables()["all_reduce"]["peaks"][gpu].get(library)
    calls = [row for row in single_calls() if catalogue_gpu(row.gpu) == gpu and row.backend.lower() == library]
    latencies = [
        shape.bytes * 2 * (group - 1) / group / row.time_us / 1e3
        for row in calls
        if isinstance(shape := row.shape, gpu_rows.AllReduce) and shape.gpus == group and shape.bytes >= _LARGE_BYTES
    ]
    return max([*latencies, *([] if known is None else [known])], default=None)
