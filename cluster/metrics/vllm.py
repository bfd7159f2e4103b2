"""The same runs under the names that vLLM exposes, for dashboards and endpoint pickers that know those.

Names and meanings are vLLM 0.33's. Of what it exposes, that is here which the simulator has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from pimserve.cluster.metrics.state import RunMetrics

_LABELS = ("model_name", "engine")
_GAUGES = {
    "vllm:num_requests_running": "pimserve_requests_running",
    "vllm:num_requests_waiting": "pimserve_requests_waiting",
    "vllm:kv_cache_usage_perc": "pimserve_kv_cache_usage_ratio",  # 0 to 1 in spite of its name
}
_COUNTERS = {
    "vllm:prompt_tokens": "pimserve_prompt_tokens_total",
    "vllm:generation_tokens": "pimserve_generation_tokens_total",
    "vllm:num_preemptions": "pimserve_preemptions_total",
}
_HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "pimserve_time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds": "pimserve_inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds": "pimserve_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds": "pimserve_e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds": "pimserve_request_queue_time_seconds",
    "vllm:request_prompt_tokens": "pimserve_request_prompt_tokens",
    "vllm:request_generation_tokens": "pimserve_request_generation_tokens",
    "vllm:iteration_tokens_total": "pimserve_step_tokens",  # a histogram in spite of its name
}


class VllmCollector(Collector):
    """Replicas of all runs as engines of vLLM.

    Args:
        runs: gives their metrics.
    """

    def __init__(self, runs: Callable[[], Sequence[RunMetrics]]) -> None:
        self._runs = runs

    def describe(self) -> Iterable[Metric]:
        """Nothing: runs come and go."""
        return []

    def collect(self) -> Iterable[Metric]:
        """All families."""
        runs = self._runs()
        if not runs:
            return
        for name, ours in _GAUGES.items():
            yield _plain(GaugeMetricFamily(name, f"{ours} of a simulated engine.", labels=_LABELS), name, ours, runs)
        for name, ours in _COUNTERS.items():
            metric = CounterMetricFamily(name, f"{ours} of a simulated engine.", labels=_LABELS)
            yield _plain(metric, f"{name}_total", ours, runs)
        success = CounterMetricFamily(
            "vllm:request_success", "Requests that a simulated engine finished.", labels=(*_LABELS, "finished_reason")
        )
        yield _plain(
            success, "vllm:request_success_total", "pimserve_engine_requests_total", runs, finished_reason="stop"
        )
        for name, ours in _HISTOGRAMS.items():
            yield _histogram(name, ours, runs)
        blocks = GaugeMetricFamily("vllm:cache_config_info", "Size of a simulated engine's KV cache.", labels=_LABELS)
        for run in runs:
            there = run.values["pimserve_kv_cache_blocks"].tolist()
            for (_, engine, _), number in zip(run.layout.keys["pimserve_kv_cache_blocks"], there, strict=True):
                labels = {**_of(run, engine), "num_gpu_blocks": f"{number:.0f}"}
                blocks.samples.append(Sample("vllm:cache_config_info", labels, 1))
        yield blocks


def _plain(metric: Metric, sample: str, ours: str, runs: Sequence[RunMetrics], **more: str) -> Metric:
    for run in runs:
        for key, value in zip(run.layout.keys[ours], run.values[ours].tolist(), strict=True):
            metric.samples.append(Sample(sample, {**_of(run, key[1]), **more}, value))
    return metric


def _histogram(name: str, ours: str, runs: Sequence[RunMetrics]) -> Metric:
    metric = HistogramMetricFamily(name, f"{ours} of a simulated engine.", labels=_LABELS)
    for run in runs:
        edges = run.layout.edges[ours]
        counts, sums = run.counts[ours].tolist(), run.sums[ours].tolist()
        for key, buckets, total in zip(run.layout.keys[ours], counts, sums, strict=True):
            labels = _of(run, key[1])
            for edge, count in zip(edges, accumulate(buckets), strict=True):
                metric.samples.append(Sample(f"{name}_bucket", {**labels, "le": edge}, count))
            metric.samples.append(Sample(f"{name}_count", labels, sum(buckets)))
            metric.samples.append(Sample(f"{name}_sum", labels, total))
    return metric


def _of(run: RunMetrics, engine: str) -> dict[str, str]:
    """Labels of an engine; where several runs are exposed, the run tells theirs apart."""
    return {"model_name": run.layout.keys["pimserve_run_info"][0][2], "engine": engine, "run_id": run.layout.run_id}
