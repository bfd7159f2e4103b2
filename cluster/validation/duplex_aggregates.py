"""Figures that the Duplex paper's text gives over several settings: the most, the least, the mean.

They are read from their words: a statistic (up-to, max, min, mean), what is compared (throughput, energy reduction,
reduction of or speed-up in a latency), two systems, and where it is not all of them the model, batch or length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

from pimserve.cluster.scenario.steady_state import ClosedLoop, SteadyState
from pimserve.cluster.validation.duplex_case import CLUSTERS
from pimserve.cluster.validation.duplex_quantities import Answer
from pimserve.cluster.validation.duplex_results import latency, steady
from pimserve.cluster.validation.duplex_systems import MODELS, SystemName, system_name
from pimserve.cluster.validation.targets import Target
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
_FORMS = (
    "<up-to, max, min or mean> <throughput, energy reduction, reduction of [median, p90, p99] TBT, T2FT or E2E, "
    + ("or TBT, T2FT or E2E speed-up> <system>/<system>")
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
    named = re.search(r"(?:(median|p50|p90|p99) )?(TBT|T2FT|E2E)\b", text)
    gain: Callable[[_Setting], float]
    if named is not None and ("reduction" in text or "speed-up" in text):
        gain = _faster(named[2], named[1] or "median", ours, base, as_reduction="reduction" in text)
    elif named is None and "energy reduction" in text:
        gain = lambda at: 1 - _energy(at, ours) / _energy(at, base)  # noqa: E731
    elif named is None and "throughput" in text:
        gain = lambda at: _throughput(at, ours) / _throughput(at, base)  # noqa: E731
    else:
        raise _unknown(target)
    settings = _settings(text, of_latency=named is not None)
    value = _STATISTICS[statistic[0]](gain(at) for at in settings)
    note = f"{statistic[0]} of {len(settings)} settings, {ours} against {base}"
    return Answer(value, "closed form" if named is None else "engine", note)


def _faster(
    metric: str, percentile: str, ours: SystemName, base: SystemName, *, as_reduction: bool
) -> Callable[[_Setting], float]:
    """How much less a latency is: as a share of the base, or how many times."""
    statistic = "p50" if percentile == "median" else percentile

    def gain(at: _Setting) -> float:
        first, second = (
            latency(at.model, CLUSTERS[at.model], name, at.loop, metric, statistic) for name in (ours, base)
        )
        return 1 - first / second if as_reduction else second / first

    return gain


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


def _settings(text: str, *, of_latency: bool) -> list[_Setting]:
    models = [name for name in MODELS if name in text] or (["GLaM"] if of_latency else list(_MIXTURES_OF_EXPERTS))
    batch = re.search(r"\bb(\d+)\b", text)
    length = re.search(r"\b(?:at|L) ?(\d+)\b", text)
    batches = (int(batch[1]),) if batch else ((64,) if of_latency else _BATCHES)
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
