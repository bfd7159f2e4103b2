"""Draw where drafts move the work of Duplex, in docs/speculative.md: `python docs/speculative_gallery.py`.

With --check nothing is written, and the exit code is 1 if the page would change.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.evaluate import evaluate, shape_of, way_of
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.operators import DecodeAttention, operators_of
from pimserve.device_models.plan import FS_PER_S
from pimserve.device_models.routing import POOL_SIZE, ExpertPools

DOCS = Path(__file__).parent
PAGE, IMAGE = DOCS / "speculative.md", "images/speculative.svg"
BEGIN, END = "<!-- python docs/speculative_gallery.py -->", "<!-- end -->"
DRAFTS = (0, 1, 3, 7, 15)
REQUESTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
CONTEXT = 2048
MS_TICKS = (2, 3, 5, 10, 20, 40)
_COLOURS = ("#999999", "#56b4e9", "#0072b2", "#d55e00", "#009e73")
_OVERRIDES = [
    "cluster.device={preset: duplex, processor_selection: per_layer}",
    "scheduler.max_num_batched_tokens=4096",
]


class Step(NamedTuple):
    """A decode step, and what its units do.

    `attention`: unit of decode attention; `intensity`: its FLOPs per byte; `experts_on_xpu`: the processor's share of
    the experts' time.
    """

    seconds: float
    attention: str
    intensity: float
    experts_on_xpu: float


def steps(drafts: int) -> list[Step]:
    """Of Mixtral-8x7B on 4 Duplex devices, by how many requests decode, each with a context of CONTEXT tokens."""
    overrides = list(_OVERRIDES)
    if drafts:
        text = f"method: ngram, num_speculative_tokens: {drafts}, acceptance: 1"
        overrides.append(f"scheduler.speculative={{{text}}}")
    prepared = prepare(load_scenario(None, overrides))
    (pool,) = prepared.pools
    plan, scenario = pool.plan, prepared.scenario
    assert plan.experts is not None
    pools = ExpertPools(plan.experts, prepared.routing, scenario.run.seed)
    operators = operators_of(prepared.model, scenario.cluster.split)
    attention = next(op for op in operators if isinstance(op, DecodeAttention))
    found = []
    for requests in REQUESTS:
        shape = shape_of(plan, requests, requests * (CONTEXT + drafts))
        tokens = np.full(POOL_SIZE, plan.tokens_of(shape))
        features = pools.features(tokens, np.arange(POOL_SIZE)).mean(axis=0)
        of = dict(zip(FEATURES, features.tolist(), strict=True))
        found.append(
            Step(
                (evaluate(plan, shape).duration_fs + of["time_fs"]) / FS_PER_S,
                way_of(plan, shape).terms[0].unit,
                plan.verify_tokens * attention.flops / attention.kv_bytes,
                of["first_busy_fs"] / (of["first_busy_fs"] + of["second_busy_fs"]),
            )
        )
    return found


def table(found: dict[int, list[Step]]) -> str:
    """Markdown: a row for each number of drafts."""
    names = {"xpu": "xPU", "logic_pim": "Logic-PIM"}
    lines = [
        "| drafts | Op/B of decode attention | it runs on | experts are on the xPU from | step, 16 requests | 256 |",
        "| ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for drafts, row in found.items():
        units = ", ".join(dict.fromkeys(names[step.attention] for step in row))
        move = next(requests for requests, step in zip(REQUESTS, row, strict=True) if step.experts_on_xpu > 0.5)
        times = " | ".join(f"{1000 * row[REQUESTS.index(requests)].seconds:.2f} ms" for requests in (16, 256))
        lines.append(f"| {drafts} | {row[0].intensity:.0f} | {units} | {move} requests | {times} |")
    return "\n".join(lines)


def picture(found: dict[int, list[Step]]) -> str:
    """SVG: who runs the experts, and time per token, by how many requests decode."""
    import matplotlib as mpl  # noqa: PLC0415 slow
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.rcParams.update({"svg.hashsalt": "pimserve", "font.size": 8, "svg.fonttype": "none"})
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (drafts, row) in zip(_COLOURS, found.items(), strict=True):
        label = "no drafts" if not drafts else f"{drafts} draft{'s' if drafts > 1 else ''}"
        left.plot(REQUESTS, [100 * step.experts_on_xpu for step in row], color=colour, label=label, marker="o", ms=3)
        right.plot(REQUESTS, [1000 * step.seconds for step in row], color=colour, label=label, marker="o", ms=3)
    left.set_ylabel("experts' time on the xPU, %")
    right.set_ylabel("decode step, ms")
    right.set_yscale("log")
    right.set_yticks(MS_TICKS, [str(ms) for ms in MS_TICKS])
    right.set_yticks([], minor=True)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        powers = [requests for requests in REQUESTS if not requests & (requests - 1)]
        axes.set_xticks(powers, [str(requests) for requests in powers])
        axes.set_xlabel("decoding requests")
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def main() -> int:
    """Write or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw the figure of docs/speculative.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page would change")
    check = parser.parse_args().check
    found = {drafts: steps(drafts) for drafts in DRAFTS}
    old = PAGE.read_text(encoding="utf-8")
    before, _, rest = old.partition(BEGIN)
    after = rest.partition(END)[2]
    text = f"{before}{BEGIN}\n\n{table(found)}\n\n![Who runs what]({IMAGE})\n\n{END}{after}"
    if check:
        return int(text != old)
    PAGE.write_text(text, encoding="utf-8")
    (DOCS / IMAGE).write_text(picture(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
