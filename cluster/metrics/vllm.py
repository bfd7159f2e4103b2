"""The same runs under the names that vLLM exposes, for dashboards and endpoint pickers that know those.

Names, meanings and buckets are vLLM 0.33's. Of what it exposes, that is here which the simulator has. The labels
`run_id` and `role` are ours: without them, series of several runs, or of both pools put together, would have the same
labels.
"""

from __future__ import annotations

import numpy as np

from pimserve.cluster.metrics.buckets import LENGTHS, VLLM_BOUNDS
from pimserve.cluster.metrics.families import BY_NAME
from pimserve.cluster.metrics.family import Family, Kind
from pimserve.cluster.metrics.layout import Keys, Layout
from pimserve.cluster.metrics.run_metrics import Array, RunMetrics

_LABELS = ("model_name", "engine", "run_id", "role")
_REASON = "finished_reason"
_BLOCKS = "vllm:cache_config_info"
_SUCCESS = "vllm:request_success_total"
_PREEMPTIONS = "vllm:num_preemptions_total"
_HITS = "vllm:prefix_cache_hits_total"  # on devices alone, where there are tiers
_EXTERNAL_QUERIES = "vllm:external_prefix_cache_queries_total"  # of all tiers, which are one KV connector to vLLM
_EXTERNAL_HITS = "vllm:external_prefix_cache_hits_total"
SOURCES = {
    "vllm:num_requests_running": "pimserve_requests_running",
    "vllm:num_requests_waiting": "pimserve_requests_waiting",
    "vllm:kv_cache_usage_perc": "pimserve_kv_cache_usage_ratio",  # 0 to 1 in spite of its name
    "vllm:prompt_tokens_total": "pimserve_prompt_tokens_total",
    "vllm:generation_tokens_total": "pimserve_generation_tokens_total",
    _PREEMPTIONS: "pimserve_preemptions_total",
    "vllm:prefix_cache_queries_total": "pimserve_prefix_cache_queried_tokens_total",
    _HITS: "pimserve_prefix_cache_hit_tokens_total",
    _EXTERNAL_QUERIES: "pimserve_kv_tier_queried_tokens_total",
    _EXTERNAL_HITS: "pimserve_kv_tier_hit_tokens_total",
    "vllm:spec_decode_num_drafts_total": "pimserve_spec_decode_drafts_total",
    "vllm:spec_decode_num_draft_tokens_total": "pimserve_spec_decode_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total": "pimserve_spec_decode_accepted_tokens_total",
    _SUCCESS: "pimserve_engine_requests_total",
    "vllm:time_to_first_token_seconds": "pimserve_time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds": "pimserve_inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds": "pimserve_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds": "pimserve_e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds": "pimserve_request_queue_time_seconds",
    "vllm:request_prefill_time_seconds": "pimserve_request_prefill_time_seconds",
    "vllm:request_decode_time_seconds": "pimserve_request_decode_time_seconds",
    "vllm:request_prompt_tokens": "pimserve_request_prompt_tokens",
    "vllm:request_generation_tokens": "pimserve_request_generation_tokens",
    "vllm:iteration_tokens_total": "pimserve_step_tokens",  # a histogram in spite of its name
    _BLOCKS: "pimserve_kv_cache_blocks",
}


def _family(name: str, source: str) -> Family:
    kind: Kind = BY_NAME[source].kind
    more = {_SUCCESS: (_REASON,), _BLOCKS: ("block_size", "num_gpu_blocks")}.get(name, ())
    return Family(name, kind, BY_NAME[source].help, (*_LABELS, *more), VLLM_BOUNDS.get(name, ()))


VLLM_FAMILIES = tuple(_family(name, source) for name, source in SOURCES.items())


def as_vllm(run: RunMetrics) -> RunMetrics:
    """The run's metrics under the names of `VLLM_FAMILIES`."""
    layout, model = run.layout, run.layout.keys["pimserve_run_info"][0][2]
    keys: dict[str, Keys] = {
        name: tuple((model, *key) for key in dict.fromkeys((key[1], key[0], key[2]) for key in layout.keys[source]))
        for name, source in SOURCES.items()
    }
    keys[_SUCCESS] = tuple((*key, "stop") for key in keys[_SUCCESS])
    sizes = run.values["pimserve_kv_cache_block_tokens"].tolist(), run.values["pimserve_kv_cache_blocks"].tolist()
    keys[_BLOCKS] = tuple(
        (*key, f"{tokens:.0f}", f"{blocks:.0f}") for key, tokens, blocks in zip(keys[_BLOCKS], *sizes, strict=True)
    )
    histograms = {name: source for name, source in SOURCES.items() if source in layout.bounds}
    values = {name: run.values[source] for name, source in SOURCES.items() if name not in histograms}
    values[_BLOCKS] = np.ones(len(keys[_BLOCKS]))
    values[_PREEMPTIONS] = values[_PREEMPTIONS].reshape(len(keys[_PREEMPTIONS]), -1).sum(axis=1)
    if external := keys[_EXTERNAL_HITS]:
        queries, hits = (values[name].reshape(len(external), -1) for name in (_EXTERNAL_QUERIES, _EXTERNAL_HITS))
        values[_EXTERNAL_QUERIES] = queries[:, 0]  # whatever others are asked for, the first one was
        values[_EXTERNAL_HITS] = hits.sum(axis=1)
        values[_HITS] = values[_HITS].copy()
        values[_HITS][[int(engine) for _, engine, *_ in external]] -= values[_EXTERNAL_HITS]
    bounds = {name: _bounds(name, layout.max_model_len) for name in histograms}
    return RunMetrics(
        Layout(keys, bounds, layout.engines, layout.histogram_rows, layout.max_model_len),
        values,
        {name: _coarser(run.counts[of], layout.bounds[of], bounds[name]) for name, of in histograms.items()},
        {name: run.sums[source] for name, source in histograms.items()},
    )


def _bounds(name: str, max_model_len: int) -> tuple[float, ...]:
    """Upper bounds of a histogram in a server of that `max_model_len`."""
    bounds = VLLM_BOUNDS[name]
    return tuple(float(bound) for bound in bounds if bounds is not LENGTHS or bound <= max_model_len)


def _coarser(counts: Array, bounds: tuple[float, ...], wanted: tuple[float, ...]) -> Array:
    """Counts (n, len(bounds) + 1) in the buckets of some of the bounds, (n, len(wanted) + 1)."""
    begins = np.searchsorted(bounds, wanted) + 1
    return np.asarray(np.add.reduceat(counts, [0, *begins], axis=1))
