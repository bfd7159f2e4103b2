"""The page gpu_validation.md and its pictures: the measured setting beside timed operators and served systems."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tables import number, table

from pimserve.cluster.base.figures import named
from pimserve.cluster.validation.gpu_errors import (
    Errors,
    ErrorTable,
    anchor_table,
    grouped,
    operator_tables,
    place,
    served_table,
)
from pimserve.cluster.validation.gpu_gates import Gate
from pimserve.cluster.validation.gpu_rows import SHAPES, catalogue_gpu
from pimserve.cluster.validation.validate_gpu import Report, validate_gpu
from pimserve.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = "gpu_validation.md"
_GPUS = {"A100": "#999999", "H100": "#0072b2", "H200": "#009e73", "B200": "#d55e00", "GB200": "#cc79a7"}
_BAND = 0.2  # the grey band in the pictures
_MOST_PLACES = 5

_HEAD = """# The measured GPUs, validated

Written by `python docs/pages.py gpu_validation.md`, which needs the reference data and `pip install '.[docs]'`. What is
modelled, and where the coefficients are from: [gpu.md](gpu.md). The same errors: `pimserve validate gpu`.

Timed operators and served configurations are rows of NVIDIA aiconfigurator (Apache-2.0, copyright NVIDIA CORPORATION &
AFFILIATES), which are not part of this repository. Errors are relative, predicted over measured less 1: *median* and
*p90* of their sizes, *bias* the median with sign, *worst* the largest with its row. In the pictures the line is
equality, the band 20 %.

## Limits

{held} of {all} held.

"""

_OPERATORS = """
## Operators

Each row is compiled alone, as one layer on one GPU, and costed as a served step is. Where a MoE row says `power_law`,
the mean over 64 draws of the same law counts. {n} rows.

"""

_SERVED = """
## Served configurations

The engine in closed loop at the stated concurrency, 10 requests per client. Rows that InferenceMAX measured have
lengths between 0.8 and 1 of the stated ones, as its scripts say; others have the stated ones, and start staggered. What
rows leave open (KV cache, tokens per step, splits) is filled in as `cluster/validation/gpu_served.py` says. Throughput
is derived from TTFT and TPOT, alike on both sides. {n} rows.

![measured and predicted TPOT](images/gpu_served_tpot.svg)

"""

_ANCHORS = """
## Published throughput

Output tokens per second of the whole system, and what was assumed to run it (`cluster/validation/gpu_anchors.py`).
Figures that were not read in their source are shown, and do not count.

"""

_UNCOVERED = """
## Not covered

"""


def page() -> dict[str, str]:
    """The page and its pictures, by their path in docs/; nothing where the reference data or matplotlib is absent."""
    try:
        import matplotlib  # noqa: F401, PLC0415 not needed by the other pages
    except ImportError:
        return _skipped("it needs matplotlib: pip install '.[docs]'")
    try:
        report = validate_gpu()
    except InputError as error:
        return _skipped(str(error))
    return {PAGE: "".join(_text(report)), **_pictures(report)}


def _skipped(reason: str) -> dict[str, str]:
    print(f"docs/{PAGE} skipped: {reason}", file=sys.stderr)
    return {}


def _text(report: Report) -> Iterator[str]:
    gates = report.gates
    yield _HEAD.format(held=sum(gate.passed for gate in gates), all=len(gates))
    yield table(("limit", "", "rows", "error", "at most", ""), [_gate(gate) for gate in gates])
    yield _OPERATORS.format(n=len(report.operators))
    for errors in operator_tables(report.operators):
        yield f"### {errors.title[0].upper()}{errors.title[1:]}\n\n{_errors(errors)}\n"
    for op in SHAPES:
        yield f"![measured and predicted: {op.replace('_', ' ')}](images/gpu_{op}.svg)\n"
    yield _SERVED.format(n=len(report.served))
    yield _errors(served_table(report.served))
    yield _ANCHORS + _errors(anchor_table(report.anchors)) + "\n" + _anchors(report)
    yield _UNCOVERED + _uncovered(report)


def _gate(gate: Gate) -> tuple[str, ...]:
    write = str if gate.statistic == "count" else _percent
    statistic = "" if gate.statistic in {"count", "error"} else gate.statistic
    judgement = "ok" if gate.passed else f"MISSED: {gate.note}" if gate.note else "MISSED"
    return gate.name, statistic, str(gate.n), write(gate.value), write(gate.limit), judgement


def _errors(errors: ErrorTable) -> str:
    """One row for each group and quantity."""
    several = any(len(quantities) > 1 for _, quantities in errors.rows)
    rows = []
    for labels, quantities in errors.rows:
        for quantity, statistics in quantities.items():
            rows.append((*labels, *([named(quantity)] if several else []), *_statistics(statistics)))
    columns = (*errors.columns, *([""] if several else []), "rows", "median", "p90", "bias", "worst", "at")
    return table(columns, rows)


def _statistics(errors: Errors) -> tuple[str, ...]:
    sizes = (_percent(errors.median), _percent(errors.p90))
    return str(errors.n), *sizes, _percent(errors.bias, "+"), _percent(errors.worst, "+"), f"`{errors.worst_at}`"


def _percent(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f} %"


def _anchors(report: Report) -> str:
    rows = []
    for comparison in report.anchors:
        anchor, ours = comparison.row, comparison.ours
        rows.append(
            (
                anchor.system.partition(" (")[0],
                anchor.model,
                anchor.scenario,
                anchor.precision,
                number(anchor.tokens_per_s),
                number(ours.tokens_per_s),
                _percent(comparison.error, "+"),
                _beside(anchor.ttft_ms, ours.ttft_ms),
                _beside(anchor.tpot_ms, ours.tpot_ms),
                ours.assumed,
                "" if comparison.counted else anchor.confidence,
            )
        )
    columns = ("system", "model", "scenario", "", "tokens/s", "ours", "error", "TTFT, ms", "TPOT, ms", "assumed", "")
    return table(columns, rows)


def _beside(theirs: float | None, ours: float | None) -> str:
    """Theirs and ours, where both are known."""
    return "" if theirs is None or ours is None else f"{number(theirs)}, ours {number(ours)}"


def _uncovered(report: Report) -> str:
    groups = grouped(report.uncovered, lambda row: (row.reason,))
    rows = []
    for (reason,), mine in sorted(groups.items(), key=lambda group: -len(group[1])):
        places = ", ".join(f"`{place(row.where)}`" for row in mine[:_MOST_PLACES])
        rows.append((str(len(mine)), reason, places + (" and more" if len(mine) > _MOST_PLACES else "")))
    return table(("rows", "reason", ""), rows)


def _pictures(report: Report) -> dict[str, str]:
    pictures = {}
    for op in SHAPES:
        mine = [prediction for prediction in report.operators if prediction.row.op == op]
        points = [(_gpu(prediction.row.gpu), prediction.row.time_us, prediction.predicted_us) for prediction in mine]
        pictures[f"images/gpu_{op}.svg"] = _picture(op.replace("_", " "), "us", points)
    points = [(_gpu(served.row.gpu), served.row.tpot_ms, served.ours.tpot_ms) for served in report.served]
    pictures["images/gpu_served_tpot.svg"] = _picture("TPOT of served configurations", "ms", points)
    return pictures


def _gpu(text: str) -> str:
    return catalogue_gpu(text).upper()


def _picture(title: str, unit: str, points: Sequence[tuple[str, float, float]]) -> str:
    """Measured against predicted as SVG: the same bytes for the same points."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    with mpl.rc_context({"svg.hashsalt": PAGE, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure, axes = plt.subplots(figsize=(5.5, 5.0), layout="constrained")
        _draw(axes, points)
        axes.set_title(title)
        axes.set_xlabel(f"measured, {unit}")
        axes.set_ylabel(f"predicted, {unit}")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def _draw(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    every = [value for _, *both in points for value in both]
    ends = (min(every) / 1.3, max(every) * 1.3)
    lower, upper = ([end * (1 + sign * _BAND) for end in ends] for sign in (-1, 1))
    axes.fill_between(ends, lower, upper, color="#e8e8e8", linewidth=0)
    axes.plot(ends, ends, color="black", linewidth=0.8)
    for gpu, color in _GPUS.items():
        mine = [(x, y) for name, x, y in points if name == gpu]
        if mine:
            axes.scatter(*zip(*mine, strict=True), s=12, color=color, alpha=0.7, linewidths=0, label=gpu)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axes.legend(loc="upper left", frameon=False)
