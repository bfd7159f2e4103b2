"""What targets of the Duplex paper ask for, by the words of their `quantity`, and how each is computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pimserve.cluster.scenario.steady_state import SteadyState
from pimserve.cluster.validation import edap, intensity
from pimserve.cluster.validation.duplex_case import Case, read_case
from pimserve.cluster.validation.duplex_results import LATENCIES, STATISTICS, latency, served, steady
from pimserve.cluster.validation.duplex_split import SplitState
from pimserve.cluster.validation.duplex_systems import MODELS, SystemName, build
from pimserve.cluster.validation.targets import Method, Target
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.operators import Category, Parallelism, operators_of
from pimserve.errors import InputError

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
_LATENCY = rf"({'|'.join(LATENCIES)})_({'|'.join(STATISTICS)})"


@dataclass(frozen=True, slots=True)
class Answer:
    """A value, and how it was found."""

    value: float
    method: Method
    note: str = ""


Compute = Callable[[Target, re.Match[str]], Answer]


def answer(target: Target) -> Answer:
    """Compute what a target asks for.

    Raises:
        InputError: the quantity is unknown, or its case is not one that has it.
    """
    for pattern, _, compute in _QUANTITIES:
        found = re.fullmatch(pattern, target.quantity.strip())
        if found is None:
            continue
        try:
            return compute(target, found)
        except InputError as error:
            if error.where == target.where:
                raise
            raise InputError(target.where, str(error)) from None
    known = "; ".join(text for _, text, _ in _QUANTITIES)
    raise InputError(target.where, f"unknown quantity {target.quantity!r} (known: {known}; or case.scope: aggregate)")


def _throughput_ratio(target: Target, _: re.Match[str]) -> Answer:
    case = read_case(target)
    ours, base = (_steady(case, name) for name in (case.system, case.baseline))
    return Answer(
        ours.throughput_tokens_per_s / base.throughput_tokens_per_s, "closed form", _batches(case, ours, base)
    )


def _steady(case: Case, name: SystemName) -> SteadyState | SplitState:
    return steady(case.model, case.cluster, name, case.loop, case.unlimited)


def _batches(case: Case, ours: SteadyState | SplitState, base: SteadyState | SplitState) -> str:
    found = [
        f"{name} holds {state.loop.requests} of {case.loop.requests} requests"
        for name, state in ((case.system, ours), (case.baseline, base))
        if state.loop.requests < case.loop.requests
    ]
    return "; ".join(found)


def _energy_ratio(target: Target, _: re.Match[str]) -> Answer:
    case = read_case(target)
    ours, base = (sum(_energy(target, case, name).values()) for name in (case.system, case.baseline))
    return Answer(ours / base, "closed form")


def _energy_share(target: Target, match: re.Match[str]) -> Answer:
    part = _one_of(target, match[1], ENERGY_PARTS)
    case = read_case(target)
    parts = _energy(target, case, case.system)
    return Answer(parts[part] / sum(parts.values()), "closed form")


def _energy(target: Target, case: Case, name: SystemName) -> dict[str, float]:
    state = _steady(case, name)
    if isinstance(state, SplitState):
        raise InputError(target.where, f"energy is not worked out for {name}")
    return state.energy_per_token_j()


def _time_share(target: Target, match: re.Match[str]) -> Answer:
    part = _one_of(target, match[1], TIME_PARTS)
    case = read_case(target)
    state = _steady(case, case.system)
    if case.stage is None or isinstance(state, SplitState):
        raise InputError(
            target.where, "a share of stage time needs case.stage (decoding-only, mixed) of a whole system"
        )
    parts = state.stage(0).category_s if case.stage == "decoding-only" else state.mixed_category_s()
    return Answer(parts[part] / sum(parts.values()), "closed form")


def _decoding_only(target: Target, _: re.Match[str]) -> Answer:
    case = read_case(target)
    state = _steady(case, case.system)
    if isinstance(state, SplitState):
        raise InputError(target.where, "stages of Duplex-Split are never mixed")
    return Answer(state.decoding_only_share, "closed form")


def _latency_ratio(target: Target, match: re.Match[str]) -> Answer:
    case = read_case(target)
    if case.unlimited:
        raise InputError(target.where, "latencies are worked out for requests that fit only")
    ours, base = (
        latency(case.model, case.cluster, name, case.loop, match[1], match[2]) for name in (case.system, case.baseline)
    )
    split = "Duplex-Split" in (case.system, case.baseline)
    return Answer(ours / base, "engine", "Duplex-Split in closed form" if split else "")


def _loaded_latency(target: Target, match: re.Match[str]) -> Answer:
    case = read_case(target)
    if case.qps is None:
        raise InputError(target.where, "needs case.qps, requests per second")
    if match[3] != "Duplex":
        raise InputError(target.where, f"latencies under load are taken over 'Duplex at QPS n' (got {match[3]!r})")
    metric, statistic = LATENCIES[match[1]], match[2]
    names: tuple[tuple[SystemName, float], ...] = ((case.system, case.qps), ("Duplex+PE+ET", float(match[4])))
    ours, base = (_open(target, case, name, qps)["latency_s"][metric][statistic] for name, qps in names)
    return Answer(ours / base, "engine", "arrivals evenly spaced")


def _open(target: Target, case: Case, name: SystemName, qps: float) -> dict[str, Any]:
    if name == "Duplex-Split":
        raise InputError(target.where, "Duplex-Split is worked out for closed loops only")
    return served(case.model, case.cluster, name, case.loop, float(qps))


def _saturation(target: Target, _: re.Match[str]) -> Answer:
    case = read_case(target)
    if case.system == "Duplex-Split":
        raise InputError(target.where, "Duplex-Split is worked out for ratios only")
    summary = served(case.model, case.cluster, case.system, case.loop, None)
    tokens = summary["throughput"]["output_tokens_per_s"]
    return Answer(tokens / case.loop.output_tokens, "engine", "rate of a loop that keeps the largest batch full")


def _fits(target: Target, _: re.Match[str]) -> Answer:
    case = read_case(target)
    system = build(case.model, case.cluster, case.system)
    fits = system.requests_that_fit(case.loop.input_tokens, case.loop.output_tokens)
    return Answer(min(fits, case.loop.requests), "capacity")


def _edap(target: Target, _: re.Match[str]) -> Answer:
    unit, rows = target.case.get("unit"), target.case.get("opb")
    if unit not in edap.UNITS:
        raise InputError(target.where, f"unknown case.unit {unit!r} (known: {', '.join(edap.UNITS)})")
    if not isinstance(rows, int | float) or isinstance(rows, bool) or not 0 < rows < 1e9:
        raise InputError(target.where, f"case.opb must be a number above 0 (got {rows!r})")
    return Answer(edap.normalised_edap(unit, float(rows)), "area model")


def _intensity(target: Target, match: re.Match[str]) -> Answer:
    case = read_case(target)
    keys = ("operator", "op", "layer", "component", "stage")
    text = " ".join([match[1] or "", *(str(target.case.get(key, "")) for key in keys)]).lower().replace("_", " ")
    prefill = "prefill" in text
    if "attn" in text or "attention" in text:
        part: intensity.Part = "Attn_prefill" if prefill else "Attn_decode"
    elif re.search(r"\bmoe\b|expert", text):
        part = "MoE"
    elif re.search(r"\bfc\b|qkv|projection", text):
        part = "FC"
    else:
        known = ", ".join(intensity.PARTS)
        raise InputError(
            target.where, f"an Op/B needs its operator in the quantity or in case.operator (known: {known})"
        )
    nodes, devices = case.cluster
    split = Parallelism(nodes, devices, devices)
    operators = operators_of(load_model(MODELS[case.model]), split, lm_head=False)
    value = intensity.intensity(operators, part, case.loop, split.data, mixed="mixed" in text)
    if not value:
        raise InputError(target.where, f"{case.model} has no {part}")
    return Answer(value, "closed form")


def _one_of(target: Target, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise InputError(target.where, f"unknown part {name!r} (known: {', '.join(known)})")
    return known[name]


_QUANTITIES: tuple[tuple[str, str, Compute], ...] = (
    (r"throughput ratio\b.*", "throughput ratio", _throughput_ratio),
    (r"energy per token ratio", "energy per token ratio", _energy_ratio),
    (r"share of energy: (\w+)", "share of energy: <part>", _energy_share),
    (r"share of stage time: (\w+)", "share of stage time: <part>", _time_share),
    (r"share of decoding-only stages", "share of decoding-only stages", _decoding_only),
    (rf"{_LATENCY} ratio", "<TBT, T2FT or E2E>_<mean, p50, p90 or p99> ratio", _latency_ratio),
    (
        rf"{_LATENCY} over (\S+) at QPS (\d+(?:\.\d+)?)",
        "<TBT, T2FT or E2E>_<mean, p50, p90 or p99> over Duplex at QPS <n>",
        _loaded_latency,
    ),
    (r"highest sustained req/s.*", "highest sustained req/s lies in", _saturation),
    (r"batch that fits.*", "batch that fits", _fits),
    (r"EDAP normalised to the worst of the three", "EDAP normalised to the worst of the three", _edap),
    (r"Op/B\b(.*)", "Op/B: <operator>", _intensity),
)
