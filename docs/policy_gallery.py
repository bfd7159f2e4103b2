"""Draw what settings of the scheduler make of scenarios, in docs/policies.md: `python docs/policy_gallery.py`.

With --check nothing is written, and the exit code is 1 if the page would change.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pimserve.cluster.run.run import serve
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare

DOCS = Path(__file__).parent
PAGE = DOCS / "policies.md"
EXAMPLES = DOCS.parent / "examples"
_INK, _FAINT = "#0072b2", "#bbbbbb"
_RECOMPUTE = ("preemption=recompute", "swap_gb_per_s=null", "swap_space_gb=null")
_LIGHT = ("chat", "reports")  # classes of the tenants who ask for less than a third


@dataclass(frozen=True)
class Figure:
    """What is compared: its name and unit, which way it is the aim of, if of any, and how a summary tells it."""

    name: str
    unit: str
    aim_of: str
    of: Callable[[dict[str, Any]], float]


@dataclass(frozen=True)
class Comparison:
    """A scenario in several ways.

    Args:
        name: of the file in examples/, and of the place on the page.
        what: is compared.
        ways: settings of each, by name; the first is what the others are held against.
        figures: of all of them.
        image: file of a picture; "": there is none.
    """

    name: str
    what: str
    ways: dict[str, tuple[str, ...]]
    figures: tuple[Figure, ...]
    image: str = ""

    def found(self) -> dict[str, list[float]]:
        """The figures of each way."""
        return {way: self.figures_of(way) for way in self.ways}

    def figures_of(self, way: str) -> list[float]:
        """Those of one, in the order of `figures`."""
        summary, _ = serve(prepare(load_scenario(EXAMPLES / f"{self.name}.yaml", list(self.ways[way]))))
        document = summary.document()
        return [figure.of(document) for figure in self.figures]

    def text(self, found: dict[str, list[float]]) -> str:
        """What the page has of it."""
        picture = f"\n![{self.name}]({self.image})\n" if self.image else ""
        return f"\n{_table(self, found)}{picture}\n"

    @property
    def marks(self) -> tuple[str, str]:
        """Lines of the page between which it is."""
        return f"<!-- python docs/policy_gallery.py: {self.name} -->\n", f"<!-- end of {self.name} -->\n"


def _mean(latency: str) -> Callable[[dict[str, Any]], float]:
    return lambda summary: summary["latency_s"][latency]["mean"]


def _rejected(summary: dict[str, Any]) -> float:
    requests = summary["requests"]
    share: float = 100 * requests["rejected"] / requests["total"]
    return share


COMPARISONS = (
    Comparison(
        "batching",
        "batching",
        {way: (f"scheduler.batching={way}",) for way in ("chunked", "stage", "prefill_first", "decode_first")},
        (
            Figure("p50 TTFT", "s", "prefill_first", lambda summary: summary["latency_s"]["ttft"]["p50"]),
            Figure("p99 TTFT", "s", "prefill_first", lambda summary: summary["latency_s"]["ttft"]["p99"]),
            Figure("p99 ITL", "ms", "decode_first", lambda summary: 1000 * summary["latency_s"]["itl"]["p99"]),
            Figure("p50 TPOT", "ms", "", lambda summary: 1000 * summary["latency_s"]["tpot"]["p50"]),
            Figure("output tokens/s", "", "", lambda summary: summary["throughput"]["output_tokens_per_s"]),
        ),
    ),
    Comparison(
        "three_tenants",
        "policy",
        {policy: (f"scheduler.policy={policy}",) for policy in ("fcfs", "sjf", "priority", "edf", "vtc")},
        (
            Figure("mean latency of all", "s", "sjf", _mean("e2e")),
            Figure("p99 TTFT of chat", "s", "priority", lambda summary: _of_class(summary, "chat", "ttft")),
            Figure("requests within their limit", "%", "edf", lambda summary: 100 * summary["slo"]["attainment"]),
            Figure(
                "longest p99 wait of chat, reports",
                "s",
                "vtc",
                lambda summary: max(_of_class(summary, name, "queue") for name in _LIGHT),
            ),
        ),
        "images/policies.svg",
    ),
    Comparison(
        "tight_kv_cache",
        "kv_admission",
        {way: (f"scheduler.kv_admission={way}",) for way in ("prompt", "no_evict", "oracle")},
        (
            Figure("preemptions", "", "no_evict", lambda summary: summary["requests"]["preemptions"]),
            Figure(
                "tokens late in requests", "%", "no_evict", lambda summary: 100 - 100 * summary["slo"]["attainment"]
            ),
            Figure("p99 TPOT", "ms", "no_evict", lambda summary: 1000 * summary["latency_s"]["tpot"]["p99"]),
            Figure("mean queue time", "s", "", _mean("queue")),
        ),
    ),
    Comparison(
        "swap",
        "preemption",
        {
            "recompute": tuple(f"scheduler.{key}" for key in _RECOMPUTE),
            "swap at 50 GB/s": (),
            "swap at 5 GB/s": ("scheduler.swap_gb_per_s=5",),
        },
        (
            Figure("preemptions", "", "", lambda summary: summary["requests"]["preemptions"]),
            Figure(
                "steps waited for copies", "s", "", lambda summary: summary.get("swap", {"waited_s": 0})["waited_s"]
            ),
            Figure("mean queue time", "s", "swap at 50 GB/s", _mean("queue")),
            Figure("mean latency", "s", "", _mean("e2e")),
        ),
    ),
    Comparison(
        "overload",
        "rejected",
        {
            "nobody": ("scheduler.early_rejection=false",),
            "max_queued_requests: 20": ("scheduler.early_rejection=false", "scheduler.max_queued_requests=20"),
            "early_rejection": (),
            "early_rejection, 25,000 tokens/s": ("scheduler.prefill_tokens_per_s=25000",),
        },
        (
            Figure("rejected", "%", "", _rejected),
            Figure("p99 TTFT", "s", "early_rejection", lambda summary: summary["latency_s"]["ttft"]["p99"]),
            Figure(
                "requests within their limit",
                "%",
                "early_rejection, 25,000 tokens/s",
                lambda summary: 100 * summary["slo"]["attainment"],
            ),
        ),
    ),
)


def main() -> int:
    """Run, draw and write, or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw what settings of the scheduler make of scenarios.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page would change")
    check = parser.parse_args().check
    before = after = PAGE.read_text(encoding="utf-8")
    for comparison in COMPARISONS:
        found, (begin, end) = comparison.found(), comparison.marks
        head, rest = after.split(begin)
        after = f"{head}{begin}{comparison.text(found)}{end}{rest.split(end)[1]}"
        if comparison.image and not check:
            (DOCS / comparison.image).write_text(_picture(comparison, found), encoding="utf-8")
    if not check:
        PAGE.write_text(after, encoding="utf-8")
    return int(check and after != before)


def _of_class(summary: dict[str, Any], name: str, latency: str) -> float:
    """A 99th percentile of a class, s."""
    (found,) = (each for each in summary["classes"] if each["name"] == name)
    p99: float = found["latency_s"][latency]["p99"]
    return p99


def _table(comparison: Comparison, found: dict[str, list[float]]) -> str:
    """A row for each way; what it aims at is bold."""
    figures = comparison.figures
    head = " | ".join(f"{figure.name}, {figure.unit}" if figure.unit else figure.name for figure in figures)
    lines = [f"| {comparison.what} | {head} |", "| --- |" + " ---: |" * len(figures)]
    for way, values in found.items():
        cells = (
            f"**{value:.4g}**" if figure.aim_of == way else f"{value:.4g}"
            for figure, value in zip(figures, values, strict=True)
        )
        lines.append(f"| `{way}` | {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def _picture(comparison: Comparison, found: dict[str, list[float]]) -> str:
    """A panel for each figure, a bar for each way; that of the way whose aim it is stands out."""
    import matplotlib as mpl  # noqa: PLC0415 the page's text needs none

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figures = comparison.figures
    fonts: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8}
    with mpl.rc_context({"svg.hashsalt": "policies"} | fonts):
        drawing, panels = plt.subplots(1, len(figures), figsize=(11, 2.1), layout="constrained")
        for number, (figure, axes) in enumerate(zip(figures, panels, strict=True)):
            colors = [_INK if way == figure.aim_of else _FAINT for way in found]
            bars = axes.bar(list(found), [values[number] for values in found.values()], color=colors)
            axes.bar_label(bars, fmt="%.3g")
            axes.set(title=figure.name, ylabel=figure.unit)
            axes.margins(y=0.15)
        out = io.StringIO()
        drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(drawing)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


if __name__ == "__main__":
    sys.exit(main())
