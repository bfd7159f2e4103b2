"""Draw who sends what to whom in one step of a lockstep run, with the figures of that run, for docs/distributed.md.

pimserve run examples/mixtral_lockstep.yaml --on processes --devices lockstep --out RESULTS
python docs/step_picture.py RESULTS
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "pimserve"  # the same run gives the same file
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from pimserve.cluster.run.read_summary import read_summary  # noqa: E402
from pimserve.cluster.run.results import DEVICES, load_table  # noqa: E402

_TARGET = Path(__file__).parent / "images" / "step.svg"
_INK, _FAINT, _DISPATCH, _COMBINE = "#222222", "#bbbbbb", "#1f77b4", "#d62728"
_BOX = {"boxstyle": "round", "fc": "#eef3f8", "ec": _INK}


def main() -> None:
    """Read the results folder and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=_TARGET)
    asked = parser.parse_args()
    _draw(asked.results, asked.out)


def _draw(results: Path, out: Path) -> None:
    devices, summary = load_table(results, DEVICES), read_summary(results)
    steps = int(devices["steps"][0])
    figure, axes = plt.subplots(figsize=(9.5, 6.2))
    places = np.arange(len(devices) + 1)
    names = ["scheduler", *(f"device {row['device']}\n{row['actor']}" for row in devices)]
    for place, name in zip(places, names, strict=True):
        axes.plot([place, place], [0.3, 9.4], color=_FAINT, lw=1, zorder=0)
        axes.text(place, 9.6, name, ha="center", va="bottom", weight="bold", size=9)
    tokens = summary.batch.mean_requests
    for place in places[1:]:
        _arrow(axes, (0, 8.8), (place, 8.4), _INK)
    _note(axes, 8.95, f"ExecuteSteps: the step's batch, {tokens:.2f} requests in the mean; no time")
    _exchange(axes, devices, "dispatch", 7.4, _DISPATCH)
    for place, row in zip(places[1:], devices, strict=True):
        milliseconds = float(row["experts_busy_s"]) / steps * 1e3
        text = f"its experts:\n{milliseconds:.2f} ms"
        axes.text(place, 5.35, text, ha="center", va="center", size=8.5, bbox=_BOX)
    _exchange(axes, devices, "combine", 3.9, _COMBINE)
    for place, row in zip(places[1:], devices, strict=True):
        _arrow(axes, (place, 1.6), (0, 1.2), _INK)
        axes.text(place, 1.75, f"{float(row['busy_s']) / steps * 1e3:.2f} ms", ha="center", va="bottom", size=8.5)
    _note(axes, 0.75, "each answers with the step's time, which must be the engine's to the femtosecond")
    axes.set_title(f"One step of {summary.name}, in the mean of {steps:,}", loc="left", size=11, pad=34)
    axes.set_xlim(-0.6, len(devices) + 0.6)
    axes.set_ylim(0.2, 10.2)
    axes.axis("off")
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None}, bbox_inches="tight")
    out.write_text("".join(f"{line.rstrip()}\n" for line in drawn.getvalue().splitlines()), encoding="utf-8")


def _exchange(axes: Any, devices: Any, kind: str, top: float, colour: str) -> None:  # noqa: ANN401 of matplotlib, numpy
    """What each device sends all others; that of device 0 in colour, with its figures."""
    steps = int(devices["steps"][0])
    for row in range(len(devices)):
        for other in range(len(devices)):
            if row != other:
                _arrow(axes, (row + 1, top), (other + 1, top - 1.2), _FAINT if row else colour)
    first = devices[0]
    count, size = int(first[f"{kind}_sent"]) / steps, int(first[f"{kind}_sent_bytes"]) / steps
    what = "copies by MoE layer and expert" if kind == "dispatch" else "time, energy and load by MoE layer"
    picks = f"{count:,.0f} picks of device 0, {size / 1e3:,.0f} kB of them between devices"
    _note(axes, top + 0.25, f"{kind}: {what}; {picks}")


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:  # noqa: ANN401
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.1, "shrinkA": 1, "shrinkB": 1}
    axes.annotate("", end, start, arrowprops=style, zorder=1 if colour == _FAINT else 2)


def _note(axes: Any, height: float, text: str) -> None:  # noqa: ANN401
    axes.text(0.06, height, text, size=8.5, va="bottom", color=_INK, bbox={"fc": "white", "ec": "none", "pad": 1.5})


if __name__ == "__main__":
    main()
