"""The wording of figures of the Duplex paper, turned into the keys of a `duplex_metric.Metric`.

Files of targets may say what they ask for as the paper does: a `quantity` in words, systems as figures label them, a
cluster as "2 nodes x 8 devices", a figure in the id or the provenance. This is the one place that knows those words.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, get_args

from pimserve.cluster.validation.duplex_loops import LATENCIES, LatencyStatistic
from pimserve.cluster.validation.duplex_systems import MODELS, SYSTEMS, SystemName
from pimserve.cluster.validation.targets import Target
from pimserve.errors import InputError

Keys = dict[str, Any]

_STATISTICS = get_args(LatencyStatistic)

_QUANTITIES = {
    "energy per token ratio": "energy_ratio",
    "share of decoding-only stages": "decoding_only_share",
    "EDAP normalised to the worst of the three": "edap",
}
_QUANTITIES_WITH_A_PART = {"share of energy": "energy_share", "share of stage time": "time_share"}  # ": <part>"
_QUANTITIES_WITH_A_REMARK = {  # any words may follow
    "throughput ratio": "throughput_ratio",
    "highest sustained req/s": "sustained_rate",
    "batch that fits": "fitting_batch",
}
_KNOWN = (
    "throughput ratio; energy per token ratio; share of energy: <part>; share of stage time: <part>; share of "
    "decoding-only stages; <TBT, T2FT or E2E>_<mean, p50, p90 or p99> ratio; <TBT, T2FT or E2E>_<mean, p50, p90 or "
    "p99> over Duplex at QPS <n>; highest sustained req/s lies in; batch that fits; EDAP normalised to the worst of "
    "the three; Op/B: <operator>; or case.scope: aggregate"
)
_KNOWN_AGGREGATES = (
    "<up-to, max, min or mean> <throughput, energy reduction, reduction of [median, p90, p99] TBT, T2FT or E2E, or "
    "TBT, T2FT or E2E speed-up> <system>/<system>"
)
_OPERATORS = {  # beginnings of words
    "attn": "Attn_decode",
    "attention": "Attn_decode",
    "moe": "MoE",
    "expert": "MoE",
    "fc": "FC",
    "qkv": "FC",
    "projection": "FC",
}
_OVER = {"up-to": "up-to", "max": "max", "maximum": "max", "min": "min", "minimum": "min", "mean": "mean"}
_PERCENTILES = {"median": "p50", "p50": "p50", "p90": "p90", "p99": "p99"}
_MIXTURES_OF_EXPERTS = ("Mixtral", "GLaM", "Grok1")
_BATCHES = (32, 64, 128)
_FULL_DUPLEX_FIGURES = (13, 14, 15, 16)  # there, "Duplex" means Duplex+PE+ET


def read_wording(target: Target) -> Keys:
    """Keys of what a target's words ask for.

    Raises:
        InputError: they are not understood.
    """
    if target.case.get("scope") == "aggregate":
        return _aggregate(target)
    figure = _figure(target)
    keys: Keys = {"figure": figure, **_cluster(target), **_quantity(target)}
    for key in ("system", "baseline"):
        text = target.case.get(key)
        if text is None or key in keys:
            continue
        try:
            keys[key] = system_name(str(text), figure)
        except ValueError as error:
            raise InputError(target.where, f"case.{key}: {error}") from None
    if _without_limit(target):
        keys["capacity_limit"] = False
    return keys


def system_name(text: str, figure: int | None) -> SystemName:
    """The system that a figure's label means.

    Raises:
        ValueError: no such system.
    """
    known = {_plain(name): name for name in SYSTEMS}
    plain = _plain(text).replace("(nope)", "")
    uncounted = plain.lstrip("0123456789")  # "4 GPU": the cluster says it too
    if plain.startswith("hetero"):
        return "hetero, weights duplicated" if "duplicate" in plain else "hetero"
    if uncounted.startswith("prefill+") and "decodeduplex" in uncounted:
        return "Duplex-Split"
    if uncounted.startswith("duplex(pe+et)"):
        return "Duplex+PE+ET"
    name = known.get(plain, "GPU" if uncounted == "gpu" else None)
    if name is None:
        raise ValueError(f"unknown system {text!r} (known: {', '.join(SYSTEMS)})")
    return "Duplex+PE+ET" if name == "Duplex" and figure in _FULL_DUPLEX_FIGURES else name


def _plain(text: str) -> str:
    """Without case, spaces and hyphens."""
    return text.translate(dict.fromkeys(map(ord, " _-"))).lower()


def _words(text: str) -> list[str]:
    """Words without the punctuation around them; "/" stands between two systems as "vs" does."""
    text = text.replace("req/s", "").replace(" (no PE)", "").replace("up to", "up-to").replace("/", " vs ")
    return [word for word in (part.strip(",.;:()") for part in text.split()) if word]


def _quantity(target: Target) -> Keys:
    text = target.quantity.strip()
    if text in _QUANTITIES:
        return {"kind": _QUANTITIES[text]}
    name, _, part = text.partition(": ")
    if name in _QUANTITIES_WITH_A_PART:
        return {"kind": _QUANTITIES_WITH_A_PART[name], "part": part}
    for beginning, kind in _QUANTITIES_WITH_A_REMARK.items():
        if text.startswith(beginning):
            return {"kind": kind}
    if text.startswith("Op/B"):
        return {"kind": "op_per_byte", **_operator(target, text.removeprefix("Op/B"))}
    latency, _, rest = text.partition("_")
    match [latency in LATENCIES, *rest.split()]:
        case [True, statistic, "ratio"] if statistic in _STATISTICS:
            return {"kind": "latency_ratio", "latency": latency, "statistic": statistic}
        case [True, statistic, "over", base, "at", "QPS", rate] if statistic in _STATISTICS:
            if base != "Duplex":
                raise InputError(target.where, f"latencies under load are taken over 'Duplex at QPS n' (got {base!r})")
            under_load = {"kind": "loaded_latency_ratio", "baseline": "Duplex+PE+ET", "baseline_qps": rate}
            return {**under_load, "latency": latency, "statistic": statistic}
    raise InputError(target.where, f"unknown quantity {target.quantity!r} (known: {_KNOWN})")


def _operator(target: Target, rest: str) -> Keys:
    """The operators that an Op/B is of, by its text and the case."""
    said = [rest, *(str(target.case.get(key, "")) for key in ("operator", "op", "layer", "component", "stage"))]
    words = _words(" ".join(said).lower().replace("_", " "))
    part = next((part for beginning, part in _OPERATORS.items() if any(w.startswith(beginning) for w in words)), None)
    if part is None:
        known = "FC, MoE, Attn_decode, Attn_prefill"
        raise InputError(
            target.where, f"an Op/B needs its operator in the quantity or in case.operator (known: {known})"
        )
    if part == "Attn_decode" and "prefill" in words:
        part = "Attn_prefill"
    return {"part": part, "mixed": "mixed" in words}


def _aggregate(target: Target) -> Keys:
    """A figure that the paper's text gives over several settings, by its words."""
    words = _words(target.quantity)
    over = next((_OVER[word] for word in words if word in _OVER), None)
    at = next((number for number, word in enumerate(words) if word in LATENCIES), None)
    latency = {} if at is None else {"latency": words[at], "statistic": _PERCENTILES.get(("", *words)[at], "p50")}
    reduction, speed_up = "reduction" in words, "speed-up" in words
    if latency and (reduction or speed_up):
        kind = "latency_reduction" if reduction else "latency_speed_up"
    elif not latency and reduction and "energy" in words:
        kind = "energy_reduction"
    elif not latency and "throughput" in words:
        kind = "throughput_ratio"
    else:
        kind = None
    if over is None or kind is None:
        raise _unknown_aggregate(target)
    return {
        "kind": kind,
        "figure": _figure(target),
        **latency,
        **_compared(target, words),
        "over": {"statistic": over, **_settings(words, of_latency=bool(latency))},
    }


def _compared(target: Target, words: list[str]) -> Mapping[str, SystemName]:
    """The two systems on both sides of the first "vs" that has any."""
    for number, word in enumerate(words):
        if word == "vs":
            pair = words[max(0, number - 1) : number + 2]
            # Bank-PIM appears in fig. 14 only, where Duplex has co-processing and sliced experts.
            figure = 14 if any(_plain(name) == "bankpim" for name in pair) else None
            try:
                first, second = (system_name(name, figure) for name in (pair[0], pair[-1]))
            except ValueError:
                continue
            return {"system": first, "baseline": second}
    if "vs" in words:
        raise _unknown_aggregate(target)
    return {"system": "Duplex+PE+ET", "baseline": "GPU"}


def _settings(words: list[str], *, of_latency: bool) -> Keys:
    """Models, batches and lengths that are named, else all of the paper's; latencies are those of fig. 12."""
    models = [name for name in MODELS if name in words] or (["GLaM"] if of_latency else list(_MIXTURES_OF_EXPERTS))
    batches = [int(word[1:]) for word in words if word[0] == "b" and word[1:].isdecimal()]
    keys: Keys = {"models": models, "batches": batches[:1] or ([64] if of_latency else list(_BATCHES))}
    for before, word in pairwise(("", *words)):
        length = word if before in ("at", "L") else word.removeprefix("L")
        if length.isdecimal() and (before in ("at", "L") or word != length):
            return {**keys, "lengths": [int(length)]}
    return keys


def _unknown_aggregate(target: Target) -> InputError:
    return InputError(target.where, f"aggregate {target.quantity!r} is not understood (known: {_KNOWN_AGGREGATES})")


def _figure(target: Target) -> int | None:
    """Number of the paper's figure that a target belongs to, by its id (F14-...) or its provenance (fig.14)."""
    after_fig = [text.lstrip(". ") for text in target.provenance.split("fig")[1:]]
    for text in [target.id[1:], *after_fig] if target.id.startswith("F") else after_fig:
        digits = text[: len(text) - len(text.lstrip("0123456789"))]
        if digits:
            return int(digits)
    return None


def _cluster(target: Target) -> Keys:
    text = target.case.get("cluster")
    if text is None:
        return {}
    match str(text).split():
        case [nodes, "node" | "nodes", "x", devices, "device" | "devices"] if (
            nodes.isdecimal() and devices.isdecimal() and 0 < int(nodes) <= 64 and 0 < int(devices) <= 64
        ):
            return {"nodes": int(nodes), "devices_per_node": int(devices)}
    raise InputError(target.where, f"case.cluster must read like '2 nodes x 8 devices' (got {text!r})")


def _without_limit(target: Target) -> bool:
    """Whether the words say "without (a capacity) limit" or "unlimited"."""
    words = _words(" ".join(str(target.case.get(key, "")) for key in ("system", "baseline")) + " " + target.quantity)
    limits = [number for number, word in enumerate(words) if word.startswith("limit")]
    return "unlimited" in words or any({"without", "no"} & set(words[max(0, at - 3) : at]) for at in limits)
