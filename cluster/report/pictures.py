"""The pictures of one or several runs, each with the sentence that says what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pimserve.arrays import FloatArray
from pimserve.cluster.base.figures import figure, known, named, scale, scaled, share
from pimserve.cluster.report import charts
from pimserve.cluster.report.inputs import ReportRun
from pimserve.cluster.report.svg import Picture, picture
from pimserve.cluster.run.class_tables import limits_of_all
from pimserve.device_models.operators import CATEGORIES, EXPERT_REBALANCING
from pimserve.scheduler.distributions import percentile
from pimserve.scheduler.latencies import LATENCIES

_DEFINITIONS = {
    "ttft": "Time to first token: first token less arrival.",
    "tpot": "Time per output token after the first: (last token less first) / (output tokens less 1).",
    "e2e": "End to end: last token less arrival.",
    "queue": "Queue: first scheduled less arrival.",
}


_WITH_ENERGY = (*CATEGORIES, EXPERT_REBALANCING)
_PASSIVE = "passive power"


@dataclass(frozen=True)
class Named:
    """A run under the name that pictures and tables give it; empty for the only one."""

    name: str
    run: ReportRun

    def labelled(self, text: str) -> str:
        """A text about it, with its name before it."""
        return f"{self.name}: {text}" if self.name else text


def latency_pictures(runs: Sequence[Named]) -> list[Picture]:
    """Distributions of TTFT, TPOT, E2E and queue over requests, with SLO limits."""
    samples = [(run, run.run.latencies()) for run in runs]
    pictures = []
    for key in LATENCIES:
        curves = [(run, latencies[key]) for run, latencies in samples if key in latencies and len(latencies[key])]
        if not curves:
            continue
        limits = {limits_of_all(run.run.summary).get(f"{key}_s") for run, _ in curves}
        limit = limits.pop() if len(limits) == 1 else None
        title = named(key) if key != "queue" else "Queue"
        alt = f"Cumulative distribution of {named(key)} over requests. "
        alt += ". ".join(run.labelled(_distribution(ordered, limit)) for run, ordered in curves) + "."
        caption = _DEFINITIONS[key]
        none = [run.labelled(share(float((x <= 0).mean()))) for run, x in curves if (x <= 0).any()]
        if none:
            caption += f" Share of requests that did not wait at all, where the curve begins: {', '.join(none)}."
        if limits:
            caption += " The runs have different SLOs, which are not drawn."
        draw = charts.distributions([(run.name or named(key), x) for run, x in curves], named(key), limit)
        pictures.append(picture(f"latency-{key}", title, alt, caption, draw))
    return pictures


def _distribution(ordered: FloatArray, limit: float | None) -> str:
    n = len(ordered)
    text = f"{n:,} requests, " + ", ".join(f"p{p} {scaled(percentile(ordered, p), 's')}" for p in (50, 90, 99))
    text += f", largest {scaled(float(ordered[-1]), 's')}"
    if limit is not None:
        text += f", {share(float((ordered <= limit).mean()))} within the SLO of {scaled(limit, 's')}"
    return text


def breakdown_pictures(runs: Sequence[Named]) -> list[Picture]:
    """Where time and energy went, and how busy units were."""
    pictures = []
    times = [(run, known(run.run.summary.time_share)) for run in runs]
    pictures += _shares(
        "time",
        "Time by operator",
        "share of busy time",
        "Of the time in which replicas were at work. Where operators run side by side, the longer one counts.",
        times,
    )
    pictures += _energy(runs)
    pictures += _units(runs)
    return pictures


def _units(runs: Sequence[Named]) -> list[Picture]:
    """How busy each unit is, in the mean over the devices and on the one where it has most to do."""
    units = [
        (run, known(run.run.summary.unit_busy_share), known(run.run.summary.unit_busy_share_of_busiest_device))
        for run in runs
    ]
    names = list(dict.fromkeys(unit for _, mean, _ in units for unit in mean))
    rows = [
        (" ".join(filter(None, (run.name, named(unit)))), [mean[unit], max(0.0, most.get(unit, 0.0) - mean[unit])])
        for unit in names
        for run, mean, most in units
        if unit in mean
    ]
    if rows:
        texts = [share(mean + more) for _, (mean, more) in rows]
        alt = "Busy share of time of each unit, on the busiest device: " + ", ".join(
            f"{name} {text}" for (name, _), text in zip(rows, texts, strict=True)
        )
        caption = (
            "Of the whole run: the mean over replicas and devices, and what more there is on the device where the unit"
            " has most to do. Units side by side may be busy at the same time."
        )
        parts = ("mean", "more on the busiest device")
        draw = charts.bars(rows, parts, "share of time", texts, share=True)
        height_in = charts.bars_height(len(rows), len(parts))
        return [picture("units", "Busy units", f"{alt}.", caption, draw, height_in=height_in)]
    return []


def _shares(
    key: str, title: str, label: str, caption: str, of: Sequence[tuple[Named, dict[str, float]]]
) -> list[Picture]:
    """Bars of what adds up to 1: one per category of a single run, else one per run."""
    categories = [name for name in CATEGORIES if any(shares.get(name) for _, shares in of)]
    if not categories:
        return []
    alt = f"{title}. " + " ".join(
        run.labelled(", ".join(f"{named(name)} {share(shares.get(name))}" for name in categories) + ".")
        for run, shares in of
    )
    if len(of) == 1:
        ((_, shares),) = of
        rows = [(named(name), [shares.get(name, 0.0)]) for name in categories]
        draw = charts.bars(rows, ("",), label, [share(values[0]) for _, values in rows], share=True)
        height = charts.bars_height(len(rows))
    else:
        rows = [(run.name, [shares.get(name, 0.0) for name in categories]) for run, shares in of]
        draw = charts.bars(rows, [named(name) for name in categories], label, [""] * len(rows), share=True)
        height = charts.bars_height(len(rows), len(categories))
    return [picture(key, title, alt, caption, draw, height_in=height)]


def _energy(runs: Sequence[Named]) -> list[Picture]:
    """Energy per output token: by operator and kind of a single run, by operator of several."""
    of = [(run, _joules_per_token(run.run)) for run in runs]
    of = [(run, parts) for run, parts in of if parts]
    if not of:
        return []
    size, unit = scale([sum(map(sum, parts.values())) for _, parts in of], "J")
    names = [name for name in (*map(named, _WITH_ENERGY), _PASSIVE) if any(name in parts for _, parts in of)]
    title, label = "Energy per output token", f"{unit} per output token"
    if len(of) == 1:
        ((_, parts),) = of
        rows = [(name, [value / size for value in parts[name]]) for name in names]
        kinds: Sequence[str] = ("memory", "compute", "passive")
        kinds = [kind for index, kind in enumerate(kinds) if any(values[index] for _, values in rows)]
        rows = [
            (name, [v for k, v in zip(("memory", "compute", "passive"), values, strict=True) if k in kinds])
            for name, values in rows
        ]
        texts = [figure(sum(values)) for _, values in rows]
    else:
        kinds = names
        rows = [(run.name, [sum(parts.get(name, ())) / size for name in names]) for run, parts in of]
        texts = [figure(sum(values)) for _, values in rows]
    alt = f"{title}. " + " ".join(
        run.labelled(", ".join(f"{name} {scaled(sum(parts[name]), 'J')}" for name in names if name in parts) + ".")
        for run, parts in of
    )
    caption = "Of the whole run. "
    if len(of) == 1:
        caption += "Memory: moving bytes from and to DRAM; compute: arithmetic, or programming crossbars; passive: "
    else:
        caption += "Passive power is "
    caption += (
        "what devices draw whether they work or not, where it is known and not left out. Links are not counted but "
        "between AIMC chips."
    )
    draw = charts.bars(rows, kinds, label, texts)
    return [picture("energy", title, alt, caption, draw, height_in=charts.bars_height(len(rows), len(kinds)))]


def _joules_per_token(run: ReportRun) -> dict[str, tuple[float, float, float]]:
    """(memory, compute, passive) J per output token by category, without those that are 0."""
    tokens, energy = run.summary.tokens.output, run.summary.energy
    if not tokens:
        return {}
    joules_by_category = {}
    for name in _WITH_ENERGY:
        parts = energy.joules_by_category.get(name)
        if parts is not None and (parts.dram or parts.compute):
            joules_by_category[named(name)] = ((parts.dram or 0.0) / tokens, (parts.compute or 0.0) / tokens, 0.0)
    if energy.passive_joules:
        joules_by_category[_PASSIVE] = (0.0, 0.0, energy.passive_joules / tokens)
    return joules_by_category
