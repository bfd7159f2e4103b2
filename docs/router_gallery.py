"""Draw what routers make of prompts that begin alike, in docs/routers.md: `python docs/router_gallery.py`.

With --check nothing is written, and the exit code is 1 if the page would change.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pimserve.cluster.run.run import serve
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare

DOCS = Path(__file__).parent
PAGE = DOCS / "routers.md"
SCENARIO = DOCS.parent / "examples" / "prefix_affinity.yaml"
IMAGE = "images/routers.svg"
LOOK_AWAY = ("round_robin", "random", "least_outstanding", "least_tokens", "least_kv")  # from what prompts begin with
BY_PREFIX = ("prefix_affinity", "llm_d", "dynamo", "cache_aware", "weighted", "slo_aware")
FIGURES: Mapping[str, Callable[[dict[str, Any]], float]] = {
    "mean TTFT, s": lambda summary: summary["latency_s"]["ttft"]["mean"],
    "p99 TTFT, s": lambda summary: summary["latency_s"]["ttft"]["p99"],
    "output tokens/s": lambda summary: summary["throughput"]["output_tokens_per_s"],
    "prefix hits, %": lambda summary: 100 * summary["prefix_cache"]["hit_ratio"],
    "within limits, %": lambda summary: 100 * summary["slo"]["attainment"],
}
_BEGIN, _END = "<!-- python docs/router_gallery.py -->\n", "<!-- end of it -->\n"
_INK, _FAINT = "#0072b2", "#bbbbbb"


def main() -> int:
    """Run, draw and write, or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw what routers make of prompts that begin alike.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page would change")
    check = parser.parse_args().check
    found = {router: figures_of(router) for router in (*LOOK_AWAY, *BY_PREFIX)}
    before = PAGE.read_text(encoding="utf-8")
    head, rest = before.split(_BEGIN)
    after = f"{head}{_BEGIN}\n{_table(found)}\n![what routers make of it]({IMAGE})\n\n{_END}{rest.split(_END)[1]}"
    if not check:
        (DOCS / IMAGE).write_text(_picture(found), encoding="utf-8")
        PAGE.write_text(after, encoding="utf-8")
    return int(check and after != before)


def figures_of(router: str) -> list[float]:
    """The figures of the scenario with a router, in the order of `FIGURES`."""
    summary, _ = serve(prepare(load_scenario(SCENARIO, [f"scheduler.router={router}"])))
    document = summary.document()
    return [figure(document) for figure in FIGURES.values()]


def _table(found: Mapping[str, Sequence[float]]) -> str:
    """A row for each router."""
    lines = [f"| router | {' | '.join(FIGURES)} |", "| --- |" + " ---: |" * len(FIGURES)]
    lines += [f"| `{router}` | {' | '.join(map(_written, values))} |" for router, values in found.items()]
    return "".join(f"{line}\n" for line in lines)


def _written(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _picture(found: Mapping[str, Sequence[float]]) -> str:
    """A panel for each figure, a bar for each router; those that go by prefixes stand out."""
    import matplotlib as mpl  # noqa: PLC0415 the page's text needs none

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    fonts: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8}
    with mpl.rc_context({"svg.hashsalt": "routers"} | fonts):
        drawing, panels = plt.subplots(1, len(FIGURES), figsize=(12, 2.6), sharey=True, layout="constrained")
        for number, (name, axes) in enumerate(zip(FIGURES, panels, strict=True)):
            colors = [_INK if router in BY_PREFIX else _FAINT for router in found]
            widths = [values[number] for values in found.values()]
            bars = axes.barh(list(found), widths, color=colors)
            axes.bar_label(bars, [_short(width) for width in widths], padding=2)
            axes.set(title=name)
            axes.margins(x=0.45)
            axes.locator_params(axis="x", nbins=4)
        panels[0].invert_yaxis()
        out = io.StringIO()
        drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(drawing)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


if __name__ == "__main__":
    sys.exit(main())
