"""Figures that the Duplex paper's text gives over several settings: the most, the least, the mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean

from pimserve.cluster.scenario.steady_state import ClosedLoop
from pimserve.cluster.validation.duplex_answers import Answer
from pimserve.cluster.validation.duplex_case import CLUSTERS
from pimserve.cluster.validation.duplex_metric import Metric, Settings
from pimserve.cluster.validation.duplex_results import energy_per_token_j, latency, steady

# Figs. 11, 14 and 15: Lin = Lout. Latencies (fig. 12) are of GLaM with a batch of 64.
_LENGTHS = {
    "Mixtral": (256, 1024, 4096),
    "GLaM": (512, 1024, 2048),
    "Grok1": (256, 1024, 4096),
    "OPT": (256, 512, 1024),
    "Llama3": (256, 1024, 4096),
}
_STATISTICS: dict[str, Callable[[Iterable[float]], float]] = {"up-to": max, "max": max, "min": min, "mean": fmean}


def aggregate(metric: Metric, over: Settings) -> Answer:
    """Compute a metric over several settings.

    Raises:
        InputError: it is not worked out for one of its systems, or not one request fits.
    """
    loops = [
        (model, ClosedLoop(requests, tokens, tokens))
        for model in over.models
        for requests in over.batches
        for tokens in over.lengths or _LENGTHS[model]
    ]
    value = _STATISTICS[over.statistic](_gain(metric, model, loop) for model, loop in loops)
    note = f"{over.statistic} of {len(loops)} settings, {metric.system} against {metric.baseline}"
    return Answer(value, "closed form" if metric.latency is None else "engine", note)


def _gain(metric: Metric, model: str, loop: ClosedLoop) -> float:
    """How much better the system is in one setting: a ratio, or what is saved as a share of the baseline."""
    cluster = CLUSTERS[model]
    if metric.latency is not None and metric.statistic is not None:
        ours, base = (latency(model, cluster, name, loop, metric.latency, metric.statistic) for name in metric.systems)
        return 1 - ours / base if metric.kind == "latency_reduction" else base / ours
    if metric.kind == "throughput_ratio":
        ours, base = (steady(model, cluster, name, loop).throughput_tokens_per_s for name in metric.systems)
        return ours / base
    ours, base = (sum(energy_per_token_j(model, cluster, name, loop).values()) for name in metric.systems)
    return 1 - ours / base
