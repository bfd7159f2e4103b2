"""Figures that the Duplex paper's text gives over several settings: the most, the least, the mean.

They are read from their words: a statistic (up-to, max, min, mean), what is compared (throughput, energy reduction,
reduction of or speed-up in a latency), two systems, and where it is not all of them the model, batch or length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

from pimserve.cluster.steady_state import ClosedLoop, SteadyState
from pimserve.cluster.validation.duplex_case import CLUSTERS
from pimserve.cluster.validation.duplex_quantities import Answer
from pimserve.cluster.validation.duplex_results import latency, steady
from pimserve.cluster.validation.duplex_systems import MODELS, SystemName, system_name
from pimserve.cluster.validation.targets import Method, Target
from pimserve.errors import InputError

# Figs. 11, 14 and 15: Lin = Lout. Latencies (fig. 12) are of GLaM with a batch of 64.
_LENGTHS = {
    "Mixtral": (256, 1024, 4096),
    "GLaM": (512, 1024, 2048),
    "Grok1": (256, 1024, 4096),
    "OPT": (256, 512, 1024),
    "Llama3": (256, 1024, 4096),
}
_BATCHES = (32, 64, 128)
_MIXTURES_OF_EXPERTS = ("Mixtral", "GLaM", "Grok1")

_STATISTICS: dict[str, Callable[[Iterable[float]], float]] = {
    "up-to": max,
    "up to": max,
    "max": max,
    "min": min,
    "mean": fmean,
}
_SYSTEM = r"2xGPU|GPU|Duplex\+PE\+ET|Duplex\+PE|Duplex(?: \(no PE\))?|Bank-?PIM"
_FORMS = "<up-to, max, min or mean> <throughput, energy reduction, reduction of [median, p90, p99] TBT, T2FT or E2E, " + (
    "or TBT, T2FT or E2E speed-up> <system>/<system>"
)


@dataclass(frozen=True, slots=True)
class _Setting:
    model: str
    loop: ClosedLoop


def aggregate(target: Target) -> Answer:
    """Compute an aggregate.

    Raises:
        InputError: its words are not understood.
    """
    text = target.quantity
    statistic = re.search("|".join(_STATISTICS), text)
    if statistic is None:
        raise _unknown(target)
    ours, base = _systems(target, text)
    latency_named = re.search(r"(?:(median|p50|p90|p99) )?(TBT|T2FT|E2E)", text)
    settings = _settings(text, latency=latency_named is not None)
    of: Callable[[_Setting], float]
    method: Method = "closed form"
    if latency_named is not None:
        percentile = latency_named[1] if latency_named[1] not in (None, "median") else "p50"
        reduction = "reduction" in text
        if not reduction and "speed-up" not in text:
            raise _unknown(target)
        method = "engine"

        def of(at: _Setting) -> float:
            first, second = (_latency(at, name, latency_named[2], percentile) for name in (ours, base))
            return 1 - first / second if reduction else second / first

    elif "energy reduction" in text:

        def of(at: _Setting) -> float:
            return 1 - _energy(at, ours) / _energy(at, base)

    elif "throughput" in text:

        def of(at: _Setting) -> float:
            return _throughput(at, ours) / _throughput(at, base)

    else:
        raise _unknown(target)
    value = _STATISTICS[statistic[0]](of(at) for at in settings)
    return Answer(value, method, f"{statistic[0]} of {len(settings)} settings, {ours} against {base}")


def _unknown(target: Target) -> InputError:
    return InputError(target.where, f"aggregate {target.quantity!r} is not understood (known: {_FORMS})")


def _systems(target: Target, text: str) -> tuple[SystemName, SystemName]:
    pair = re.search(rf"({_SYSTEM})\s*(?:/|vs\.?)\s*({_SYSTEM})", text)
    if pair is None:
        if re.search(r"\bvs\b|[^/\s]/[^/\s]", re.sub(r"req/s", "", text)):
            raise _unknown(target)
        return "Duplex+PE+ET", "GPU"
    # Bank-PIM appears in fig. 14 only, where Duplex has co-processing and sliced experts.
    figure = 14 if "Bank" in pair[0] else None
    return system_name(pair[1], figure), system_name(pair[2], figure)


def _settings(text: str, *, latency: bool) -> list[_Setting]:
    models = [name for name in MODELS if name in text] or (["GLaM"] if latency else list(_MIXTURES_OF_EXPERTS))
    batch = re.search(r"\bb(\d+)\b", text)
    length = re.search(r"\b(?:at|L) ?(\d+)\b", text)
    batches = (int(batch[1]),) if batch else ((64,) if latency else _BATCHES)
    return [
        _Setting(model, ClosedLoop(requests, tokens, tokens))
        for model in models
        for requests in batches
        for tokens in ((int(length[1]),) if length else _LENGTHS[model])
    ]


def _throughput(at: _Setting, name: SystemName) -> float:
    return steady(at.model, CLUSTERS[at.model], name, at.loop).throughput_tokens_per_s


def _energy(at: _Setting, name: SystemName) -> float:
    state = steady(at.model, CLUSTERS[at.model], name, at.loop)
    assert isinstance(state, SteadyState)  # no aggregate names Duplex-Split
    return sum(state.energy_per_token_j().values())


def _latency(at: _Setting, name: SystemName, metric: str, percentile: str) -> float:
    return latency(at.model, CLUSTERS[at.model], name, at.loop, metric, percentile)
