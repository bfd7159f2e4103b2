"""Pictures of the study of mixed replicas, as SVG: fleets of equal size, energy per token, and sensitivities."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mixed_results import DEVICES, EQUALS, POWER, SILICON, Study
from mixed_systems import CONVERSATION, LENGTHS, MODELS, RELAXED, SYSTEMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {
    "gpu": "#999999",
    "gpu-measured": "#555555",
    "duplex": "#0072b2",
    "aimc": "#e69f00",
    "gpu+aimc": "#009e73",
    "duplex+aimc": "#d55e00",
    "gpu+duplex": "#cc79a7",
}
_EQUAL_NAMES = {DEVICES: "equal devices", SILICON: "equal silicon", POWER: "equal mean power"}
_LOW, _HIGH, _FAINT = "#0072b2", "#d55e00", "#bbbbbb"
_LEAST_RATIO = 0.01


def pictures(study: Study) -> dict[str, str]:
    """By their paths in docs/."""
    import matplotlib as mpl  # noqa: PLC0415 the page's text needs none

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "pimserve"  # the same results give the same file
    mpl.rcParams["font.size"] = 8
    made = {"mixed_fleets": _fleets(study), "mixed_energy": _energy(study)}
    for model in dict.fromkeys(entry["model"] for entry in study.sensitivity):
        made[f"mixed_tornado_{model}"] = _tornado(study, model)
    return {f"images/{name}.svg": _svg(figure) for name, figure in made.items()}


def _svg(figure: Figure) -> str:
    import matplotlib.pyplot as plt  # noqa: PLC0415

    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    return "".join(f"{line.rstrip()}\n" for line in drawn.getvalue().splitlines())


def _fleets(study: Study) -> Figure:
    """Goodput over that of GPUs, for each model, traffic and measure of size."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, grid = plt.subplots(len(LENGTHS), len(EQUALS), figsize=(10.5, 5.6), sharey=True, layout="constrained")
    for row, traffic in zip(grid, LENGTHS, strict=True):
        for axes, equal in zip(row, EQUALS, strict=True):
            width = 0.8 / len(SYSTEMS)
            for place, system in enumerate(SYSTEMS):
                ratios = [study.ratio(model, system, traffic, RELAXED, equal) for model in study.models]
                at = [index + (place - (len(SYSTEMS) - 1) / 2) * width for index in range(len(ratios))]
                heights = [_LEAST_RATIO if ratio is None else max(ratio, _LEAST_RATIO) for ratio in ratios]
                axes.bar(at, heights, width, color=_COLOURS[system], label=SYSTEMS[system])
            axes.axhline(1, color="#222222", lw=0.8)
            axes.set_yscale("log")
            axes.set_xticks(range(len(study.models)), [MODELS[model].partition("-")[0] for model in study.models])
            axes.set_title(f"{traffic}, {_EQUAL_NAMES[equal]}", loc="left")
        row[0].set_ylabel("goodput over that of GPU only")
    grid[0][0].set_ylim(_LEAST_RATIO, None)  # of all
    figure.legend(*grid[0][0].get_legend_handles_labels(), ncols=len(SYSTEMS), loc="outside upper left", frameon=False)
    return figure


def _energy(study: Study) -> Figure:
    """Energy per token at the goodput, and at a tenth of it: active below passive."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, row = plt.subplots(1, len(study.models), figsize=(10.5, 3.4), layout="constrained")
    for axes, model in zip(row, study.models, strict=True):
        for place, system in enumerate(SYSTEMS):
            cell = study.best(model, system)
            if cell is None:
                continue
            for shift, figures in ((-0.2, cell[RELAXED]["goodput"]), (0.2, cell["loads"]["0.1"])):
                active, passive = figures["active_joules_per_token"], figures["passive_joules_per_token"]
                axes.bar(place + shift, active, 0.38, color=_COLOURS[system])
                axes.bar(place + shift, passive, 0.38, bottom=active, color=_COLOURS[system], alpha=0.4)
        axes.set_xticks(range(len(SYSTEMS)), list(SYSTEMS.values()), rotation=90)
        axes.set_title(MODELS[model], loc="left")
    row[0].set_ylabel("J per output token")
    return figure


def _tornado(study: Study, model: str) -> Figure:
    """Goodput, and energy per token at half the base's goodput, at both ends of each assumption."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    base = study.base(model)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.8), sharey=True, layout="constrained")
    panels = ((left, "goodput, requests/s", _goodput), (right, "J per token at half the goodput of the base", _joules))
    names = study.by_weight(model)
    for axes, title, read in panels:
        centre = read(base)
        for place, name in enumerate(reversed(names)):
            for end, colour, shift in (("low", _LOW, 0.2), ("high", _HIGH, -0.2)):
                entry = study.end(model, name, end)
                if entry is None:
                    continue
                value = read(entry)
                axes.barh(place + shift, value - centre, 0.36, left=centre, color=colour)
                label = study.knobs[model][name].low_label if end == "low" else study.knobs[model][name].high_label
                side = "left" if value >= centre else "right"
                at = (value, place + shift)
                axes.annotate(f" {label} ", at, ha=side, va="center", size=6, color=colour, annotation_clip=False)
        axes.axvline(centre, color="#222222", lw=0.8)
        axes.margins(x=0.18, y=0.02)
        axes.set_title(title, loc="left")
        axes.grid(axis="x", color=_FAINT, lw=0.4, which="both")
    left.set_yticks(range(len(names)), list(reversed(names)))
    figure.suptitle(f"{MODELS[model]} on Duplex + AIMC, {CONVERSATION}", x=0.02, ha="left")
    return figure


def _goodput(entry: Mapping[str, Any]) -> float:
    return float(entry["goodput"]["rate_per_s"]) if entry["goodput"] else 0.01


def _joules(entry: Mapping[str, Any]) -> float:
    return float(entry["half_load"]["joules_per_token"])
