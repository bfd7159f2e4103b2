"""Figures as people read them: three significant digits, a fitting unit, a dash for what does not apply; and names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

ABSENT = "-"
SCALED = frozenset({"s", "J"})  # units of which m, u, n and p are shown where they fit
_PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"), (1e-12, "p"))

_NAMES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "itl_max": "ITL max",
    "e2e": "E2E",
    "fc": "FC",
    "attention_prefill": "attention, prefill",
    "attention_decode": "attention, decode",
    "moe": "MoE",
    "step": "norms, host",
    "xpu": "xPU",
    "logic_pim": "Logic-PIM",
    "bank_pim": "Bank-PIM",
    "bankgroup_pim": "BankGroup-PIM",
    "digital": "digital units",
    "attention": "attention units",
    "dram": "DRAM",
    "kv_cache": "KV cache",
}

_WHOSE = {"experts", "hot"}  # before the names of units of experts' devices

# Why requests are rejected, by the names of scheduler/requests.py.
WHY_REJECTED = {
    "max_model_len": "longer than max_model_len",
    "kv_cache": "longer than the KV cache holds",
    "queue_full": "as max_queued_requests waited",
    "predicted_ttft": "as their first token would have come too late",
}


def count(value: int | None) -> str:
    """A whole number, all its digits."""
    return ABSENT if value is None else f"{value:,}"


def whole(value: float) -> str:
    """A number of things, of which there may be a mean."""
    return count(int(value)) if value == int(value) else figure(value)


def figure(value: float | None) -> str:
    """Three significant digits, and all digits before the point."""
    if value is None:
        return ABSENT
    rounded = abs(float(f"{value:.2e}"))
    if rounded == 0:
        return "0"
    if rounded < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(rounded)))}f}"


def share(value: float | None) -> str:
    """A share as a percentage; only what is nothing or everything reads 0 % or 100 %."""
    if value is None:
        return ABSENT
    if value in {0, 1}:
        return f"{value:.0%}".replace("%", " %")
    if 0 < value < 0.001:
        return "<0.1 %"
    if 0.999 < value < 1:
        return ">99.9 %"
    return f"{100 * value:.1f} %"


def half_width(write: Callable[[float], str], mean: float, width: float) -> str:
    """Half the width of a confidence interval: 0 where it is below half a unit of the last digit shown of the mean.

    Beside nothing or everything, whose digits are not written out, it is shown as it is.
    """
    if mean in {0, 1}:
        return write(width)
    number, _, unit = write(mean).replace(",", "").lstrip("<>").partition(" ")
    last = 10.0 ** int(Decimal(number).as_tuple().exponent) / (100 if unit == "%" else 1)
    return write(width if width >= last / 2 else 0.0)


def ratio(value: float | None) -> str:
    """A multiple, such as 1.25x."""
    if value is None:
        return ABSENT
    return f"{value:.2f}x" if 0.1 <= value < 9.995 else f"{figure(value)}x"


def scale(values: Iterable[float | None], unit: str) -> tuple[float, str]:
    """The size in `unit` of one scaled unit, and its name, so that the largest value reads 1 or more: (1e-3, "ms")."""
    largest = max((abs(value) for value in values if value), default=1.0)
    for size, prefix in _PREFIXES:
        if largest >= size:
            return size, prefix + unit
    return _PREFIXES[-1][0], _PREFIXES[-1][1] + unit


def scaled(value: float | None, unit: str) -> str:
    """One value with the unit that fits it: "18.3 ms"."""
    if value is None:
        return ABSENT
    size, name = scale([value], unit)
    return f"{figure(value / size)} {name}"


def writer(unit: str) -> Callable[[float], str]:
    """What writes figures of a unit: of shares, "count", or any other, whose name stands elsewhere."""
    return share if unit == "share" else whole if unit == "count" else figure


def written(value: float | None, unit: str) -> str:
    """A figure with its unit: "s" and "J" as fits it, "share", "count", or none for rates that their label names."""
    if value is None:
        return ABSENT
    return scaled(value, unit) if unit in SCALED else writer(unit)(value)


def known(figures: Mapping[str, float | None]) -> dict[str, float]:
    """Those that there are."""
    return {key: value for key, value in figures.items() if value is not None}


def text_of(value: object) -> str:
    """Whatever it is, as text."""
    return ABSENT if value is None else str(value)


def named(key: str) -> str:
    """What people call a latency, a unit or a category of operators."""
    whose, _, unit = key.partition("_")
    if whose in _WHOSE and unit:
        return f"{whose} {named(unit)}"
    return _NAMES.get(key, key.replace("_", " "))
