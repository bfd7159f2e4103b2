"""How each metric that targets of the Duplex paper ask for is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pimserve.cluster.scenario.steady_state import SteadyState
from pimserve.cluster.validation import edap, op_per_byte
from pimserve.cluster.validation.duplex_case import Case, read_case
from pimserve.cluster.validation.duplex_metric import Metric, MetricKind
from pimserve.cluster.validation.duplex_results import energy_per_token_j, latency, served, statistic_of, steady
from pimserve.cluster.validation.duplex_split import SplitState
from pimserve.cluster.validation.duplex_systems import MODELS, SystemName, build
from pimserve.cluster.validation.targets import Method, Target
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.operators import Category, Parallelism, operators_of
from pimserve.errors import InputError
from pimserve.scheduler.summary_sections import Figures

T = TypeVar("T")

TIME_PARTS: dict[str, Category] = {
    "FC": "fc",
    "Attn_prefill": "attention_prefill",
    "Attn_decode": "attention_decode",
    "MoE": "moe",
    "Comm": "communication",
}
ENERGY_PARTS = {
    "FC_dram": "fc_dram",
    "FC_comp": "fc_compute",
    "Attn_dram": "attention_dram",
    "Attn_comp": "attention_compute",
    "MoE_dram": "moe_dram",
    "MoE_comp": "moe_compute",
}


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
    if metric.kind not in _COMPUTE:
        raise InputError(target.where, f"metric.kind {metric.kind} needs metric.over, the settings that it is over")
    return _COMPUTE[metric.kind](target, metric)


def _throughput_ratio(target: Target, metric: Metric) -> Answer:
    case = read_case(target, metric)
    ours, base = (_steady(case, name) for name in metric.systems)
    return Answer(
        ours.throughput_tokens_per_s / base.throughput_tokens_per_s, "closed form", _batches(case, ours, base)
    )


def _steady(case: Case, name: SystemName) -> SteadyState | SplitState:
    return steady(case.model, case.cluster, name, case.loop, case.unlimited)


def _batches(case: Case, ours: SteadyState | SplitState, base: SteadyState | SplitState) -> str:
    shortfalls = [
        f"{name} holds {state.loop.requests} of {case.loop.requests} requests"
        for name, state in ((case.system, ours), (case.baseline, base))
        if state.loop.requests < case.loop.requests
    ]
    return "; ".join(shortfalls)


def _energy_ratio(target: Target, metric: Metric) -> Answer:
    case = read_case(target, metric)
    ours, base = (sum(_energy(case, name).values()) for name in metric.systems)
    return Answer(ours / base, "closed form")


def _energy_share(target: Target, metric: Metric) -> Answer:
    part = _one_of(target, metric.part, ENERGY_PARTS)
    case = read_case(target, metric)
    parts = _energy(case, case.system)
    return Answer(parts[part] / sum(parts.values()), "closed form")


def _energy(case: Case, name: SystemName) -> dict[str, float]:
    return energy_per_token_j(case.model, case.cluster, name, case.loop, case.unlimited)


def _time_share(target: Target, metric: Metric) -> Answer:
    part = _one_of(target, metric.part, TIME_PARTS)
    case = read_case(target, metric)
    state = _steady(case, case.system)
    if case.stage is None or isinstance(state, SplitState):
        raise InputError(
            target.where, "a share of stage time needs case.stage (decoding-only, mixed) of a whole system"
        )
    parts = state.stage(0).category_s if case.stage == "decoding-only" else state.mixed_category_s()
    return Answer(parts[part] / sum(parts.values()), "closed form")


def _decoding_only(target: Target, metric: Metric) -> Answer:
    case = read_case(target, metric)
    state = _steady(case, case.system)
    if isinstance(state, SplitState):
        raise InputError(target.where, "stages of Duplex-Split are never mixed")
    return Answer(state.decoding_only_share, "closed form")


def _latency_ratio(target: Target, metric: Metric) -> Answer:
    case = read_case(target, metric)
    if case.unlimited:
        raise InputError(target.where, "latencies are worked out for requests that fit only")
    assert metric.latency is not None
    assert metric.statistic is not None
    ours, base = (
        latency(case.model, case.cluster, name, case.loop, metric.latency, metric.statistic) for name in metric.systems
    )
    split = "Duplex-Split" in metric.systems
    return Answer(ours / base, "engine", "Duplex-Split in closed form" if split else "")


def _loaded_latency(target: Target, metric: Metric) -> Answer:
    case = read_case(target, metric)
    if case.qps is None:
        raise InputError(target.where, "needs case.qps, requests per second")
    assert metric.latency is not None
    assert metric.baseline_qps is not None
    assert metric.statistic is not None
    at = ((metric.system, case.qps), (metric.baseline, metric.baseline_qps))
    ours, base = (statistic_of(_open(target, case, name, qps), metric.latency, metric.statistic) for name, qps in at)
    return Answer(ours / base, "engine", "arrivals evenly spaced")


def _open(target: Target, case: Case, name: SystemName, qps: float) -> Figures:
    if name == "Duplex-Split":
        raise InputError(target.where, "Duplex-Split is worked out for closed loops only")
    return served(case.model, case.cluster, name, case.loop, float(qps))


def _saturation(target: Target, metric: Metric) -> Answer:
    case = read_case(target, metric)
    if case.system == "Duplex-Split":
        raise InputError(target.where, "Duplex-Split is worked out for ratios only")
    tokens = served(case.model, case.cluster, case.system, case.loop, None).throughput.output_tokens_per_s
    assert tokens is not None
    return Answer(tokens / case.loop.output_tokens, "engine", "rate of a loop that keeps the largest batch full")


def _fits(target: Target, metric: Metric) -> Answer:
    case = read_case(target, metric)
    system = build(case.model, case.cluster, case.system)
    fits = system.requests_that_fit(case.loop.input_tokens, case.loop.output_tokens)
    return Answer(min(fits, case.loop.requests), "capacity")


def _edap(target: Target, metric: Metric) -> Answer:
    unit, rows = target.case.get("unit"), target.case.get("opb")
    if unit not in edap.UNITS:
        raise InputError(target.where, f"unknown case.unit {unit!r} (known: {', '.join(edap.UNITS)})")
    if not isinstance(rows, int | float) or isinstance(rows, bool) or not 0 < rows < 1e9:
        raise InputError(target.where, f"case.opb must be a number above 0 (got {rows!r})")
    return Answer(edap.normalised_edap(unit, float(rows)), "area model")


def _intensity(target: Target, metric: Metric) -> Answer:
    case = read_case(target, metric)
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


_COMPUTE: dict[MetricKind, Callable[[Target, Metric], Answer]] = {
    "throughput_ratio": _throughput_ratio,
    "energy_ratio": _energy_ratio,
    "energy_share": _energy_share,
    "time_share": _time_share,
    "decoding_only_share": _decoding_only,
    "latency_ratio": _latency_ratio,
    "loaded_latency_ratio": _loaded_latency,
    "sustained_rate": _saturation,
    "fitting_batch": _fits,
    "edap": _edap,
    "op_per_byte": _intensity,
}
