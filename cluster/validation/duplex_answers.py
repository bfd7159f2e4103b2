"""How each metric that targets of the Duplex paper ask for is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from pimserve.cluster.scenario.steady_state import ClosedLoop
from pimserve.cluster.validation import edap, op_per_byte
from pimserve.cluster.validation.duplex_loops import ServedLoop, SplitState, figures, latency_s, served_loop
from pimserve.cluster.validation.duplex_metric import CLUSTERS, Case, Metric, MetricKind, Settings, read_case
from pimserve.cluster.validation.duplex_systems import MODELS
from pimserve.cluster.validation.targets import Method, Target
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.operators import Category, Parallelism, operators_of
from pimserve.errors import InputError

T = TypeVar("T")

_TIME_PARTS: dict[str, Category] = {
    "FC": "fc",
    "Attn_prefill": "attention_prefill",
    "Attn_decode": "attention_decode",
    "MoE": "moe",
    "Comm": "communication",
}
_ENERGY_PARTS = {
    "FC_dram": "fc_dram",
    "FC_comp": "fc_compute",
    "Attn_dram": "attention_dram",
    "Attn_comp": "attention_compute",
    "MoE_dram": "moe_dram",
    "MoE_comp": "moe_compute",
}
# Figs. 11, 14 and 15: Lin = Lout. Latencies (fig. 12) are of GLaM with a batch of 64.
_LENGTHS = {
    "Mixtral": (256, 1024, 4096),
    "GLaM": (512, 1024, 2048),
    "Grok1": (256, 1024, 4096),
    "OPT": (256, 512, 1024),
    "Llama3": (256, 1024, 4096),
}
_STATISTICS: dict[str, Callable[[Iterable[float]], float]] = {"up-to": max, "max": max, "min": min, "mean": fmean}


@dataclass(frozen=True, slots=True)
class Answer:
    """A value, and how it was found."""

    value: float
    method: Method
    note: str = ""


def answer(target: Target, metric: Metric) -> Answer:
    """Compute what a target asks for.

    Raises:
        InputError: its case is not one that has it.
    """
    if metric.over is not None:
        return _aggregate(metric, metric.over)
    if metric.kind == "edap":
        return _edap(target)
    return _COMPUTE[metric.kind](target, metric, read_case(target, metric))


def _aggregate(metric: Metric, over: Settings) -> Answer:
    """What the paper's text gives over several settings: the most, the least, the mean."""
    loops = [
        (model, ClosedLoop(requests, tokens, tokens))
        for model in over.models
        for requests in over.batches
        for tokens in over.lengths or _LENGTHS[model]
    ]
    value = _STATISTICS[over.statistic](
        _compared(metric, [served_loop(model, CLUSTERS[model], name, loop) for name in metric.systems])
        for model, loop in loops
    )
    note = f"{over.statistic} of {len(loops)} settings, {metric.system} against {metric.baseline}"
    return Answer(value, "engine" if metric.of_latency else "closed form", note)


def _compared(metric: Metric, systems: Iterable[ServedLoop]) -> float:
    """The system's figure over its baseline's, or what it saves as a share of that, or its speed-up."""
    ours, base = (_figure(metric, served) for served in systems)
    if metric.kind.endswith("_reduction"):
        return 1 - ours / base
    return base / ours if metric.kind == "latency_speed_up" else ours / base


def _figure(metric: Metric, served: ServedLoop) -> float:
    if metric.of_latency:
        return served.latency_s(*metric.of_latency)
    if metric.kind == "throughput_ratio":
        return served.state.throughput_tokens_per_s
    return sum(served.energy_per_token_j().values())


def _ratio(target: Target, metric: Metric, case: Case) -> Answer:
    if metric.of_latency and case.unlimited:
        raise InputError(target.where, "latencies are worked out for requests that fit only")
    systems = [case.served(name) for name in metric.systems]
    value = _compared(metric, systems)
    if metric.of_latency:
        return Answer(value, "engine", "Duplex-Split in closed form" if "Duplex-Split" in metric.systems else "")
    shortfalls = [
        f"{served.system.name} holds {served.loop.requests} of {case.loop.requests} requests"
        for served in systems
        if served.loop.requests < case.loop.requests and metric.kind == "throughput_ratio"
    ]
    return Answer(value, "closed form", "; ".join(shortfalls))


def _energy_share(target: Target, metric: Metric, case: Case) -> Answer:
    part = _one_of(target, metric.part, _ENERGY_PARTS)
    parts = case.served(metric.system).energy_per_token_j()
    return Answer(parts[part] / sum(parts.values()), "closed form")


def _time_share(target: Target, metric: Metric, case: Case) -> Answer:
    part = _one_of(target, metric.part, _TIME_PARTS)
    state = case.served(metric.system).state
    if case.stage is None or isinstance(state, SplitState):
        raise InputError(
            target.where, "a share of stage time needs case.stage (decoding-only, mixed) of a whole system"
        )
    parts = state.stage(0).category_s if case.stage == "decoding-only" else state.mixed_category_s()
    return Answer(parts[part] / sum(parts.values()), "closed form")


def _decoding_only(target: Target, metric: Metric, case: Case) -> Answer:
    state = case.served(metric.system).state
    if isinstance(state, SplitState):
        raise InputError(target.where, "stages of Duplex-Split are never mixed")
    return Answer(state.decoding_only_share, "closed form")


def _loaded_latency(target: Target, metric: Metric, case: Case) -> Answer:
    if case.qps is None:
        raise InputError(target.where, "needs case.qps, requests per second")
    if "Duplex-Split" in metric.systems:
        raise InputError(target.where, "Duplex-Split is worked out for closed loops only")
    assert metric.of_latency is not None
    assert metric.baseline_qps is not None
    at = ((metric.system, case.qps), (metric.baseline, metric.baseline_qps))
    runs = (figures(case.fitting(name), float(qps)) for name, qps in at)
    ours, base = (latency_s(run, *metric.of_latency) for run in runs)
    return Answer(ours / base, "engine", "arrivals evenly spaced")


def _saturation(target: Target, metric: Metric, case: Case) -> Answer:
    if metric.system == "Duplex-Split":
        raise InputError(target.where, "Duplex-Split is worked out for ratios only")
    tokens = figures(case.fitting(metric.system)).throughput.output_tokens_per_s
    assert tokens is not None
    return Answer(tokens / case.loop.output_tokens, "engine", "rate of a loop that keeps the largest batch full")


def _fits(_: Target, metric: Metric, case: Case) -> Answer:
    fits = case.system(metric.system).requests_that_fit(case.loop.input_tokens, case.loop.output_tokens)
    return Answer(min(fits, case.loop.requests), "capacity")


def _edap(target: Target) -> Answer:
    unit, rows = target.case.get("unit"), target.case.get("opb")
    if unit not in edap.UNITS:
        raise InputError(target.where, f"unknown case.unit {unit!r} (known: {', '.join(edap.UNITS)})")
    if not isinstance(rows, int | float) or isinstance(rows, bool) or not 0 < rows < 1e9:
        raise InputError(target.where, f"case.opb must be a number above 0 (got {rows!r})")
    return Answer(edap.normalised_edap(unit, float(rows)), "area model")


def _intensity(target: Target, metric: Metric, case: Case) -> Answer:
    part = _one_of(target, metric.part, {part: part for part in op_per_byte.PARTS})
    nodes, devices = case.cluster
    split = Parallelism(nodes, devices, devices)
    operators = operators_of(load_model(MODELS[case.model]), split, lm_head=False)
    value = op_per_byte.intensity(operators, part, case.loop, split.data, mixed=metric.mixed)
    if not value:
        raise InputError(target.where, f"{case.model} has no {part}")
    return Answer(value, "closed form")


def _one_of(target: Target, name: str | None, known: Mapping[str, T]) -> T:
    if name is None or name not in known:
        raise InputError(target.where, f"unknown part {name!r} (known: {', '.join(known)})")
    return known[name]


_COMPUTE: dict[MetricKind, Callable[[Target, Metric, Case], Answer]] = {
    "throughput_ratio": _ratio,
    "energy_ratio": _ratio,
    "latency_ratio": _ratio,
    "energy_share": _energy_share,
    "time_share": _time_share,
    "decoding_only_share": _decoding_only,
    "loaded_latency_ratio": _loaded_latency,
    "sustained_rate": _saturation,
    "fitting_batch": _fits,
    "op_per_byte": _intensity,
}
