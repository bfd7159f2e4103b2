"""Show where each policy and router wins, in docs/wins.md: `python docs/wins_gallery.py`.

With --check nothing is written, and the exit code is 1 if the page would change.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pimserve.cluster.run.run import serve
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare

DOCS = Path(__file__).parent
PAGE = DOCS / "wins.md"
EXAMPLES = DOCS.parent / "examples"
IMAGE = "images/wins.svg"
_BEGIN, _END = "<!-- python docs/wins_gallery.py -->\n", "<!-- end of it -->\n"
_INK = "#0072b2"


@dataclass(frozen=True)
class Win:
    """One way to schedule, where it does better than another.

    Args:
        key: of `scheduler`.
        way: its value.
        over: the value that it is held against.
        example: file in examples/, without .yaml.
        figure: by which it wins: one of `FIGURES`.
        settings: more of both runs.
        unset: keys of `scheduler` that the other way does not take.
    """

    key: str
    way: str
    over: str
    example: str
    figure: str
    settings: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()

    def values(self) -> tuple[float, float]:
        """The figure as it is by this way, and by the other."""
        unset = (f"scheduler.{key}=null" for key in self.unset)
        mine = summary_of(self.example, (*self.settings, f"scheduler.{self.key}={self.way}"))
        other = summary_of(self.example, (*self.settings, *unset, f"scheduler.{self.key}={self.over}"))
        return FIGURES[self.figure](mine), FIGURES[self.figure](other)


@cache
def summary_of(example: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """What a run of the example with these settings comes to."""
    summary, _ = serve(prepare(load_scenario(EXAMPLES / f"{example}.yaml", list(settings))))
    return summary.document()


def _latency(of: str, what: str) -> Callable[[dict[str, Any]], float]:
    def figure(summary: dict[str, Any]) -> float:
        found: float = summary["latency_s"][of][what]
        return found

    return figure


def _of_class(name: str, of: str, what: str) -> Callable[[dict[str, Any]], float]:
    def figure(summary: dict[str, Any]) -> float:
        (mine,) = (each for each in summary["classes"] if each["name"] == name)
        return _latency(of, what)(mine)

    return figure


def _over_limit(summary: dict[str, Any]) -> float:
    return 100 * (1 - float(summary["slo"]["attainment"]))


FIGURES: Mapping[str, Callable[[dict[str, Any]], float]] = {  # the less, the better
    "mean latency, s": _latency("e2e", "mean"),
    "p99 latency, s": _latency("e2e", "p99"),
    "mean TTFT, s": _latency("ttft", "mean"),
    "p99 TTFT, s": _latency("ttft", "p99"),
    "p99 TPOT, s": _latency("tpot", "p99"),
    "p99 time between tokens, s": _latency("itl", "p99"),
    "mean TTFT of chat, s": _of_class("chat", "ttft", "mean"),
    "p99 TTFT of chat, s": _of_class("chat", "ttft", "p99"),
    "p99 queue time of reports, s": _of_class("reports", "queue", "p99"),
    "requests over their limits, %": _over_limit,
}
_CACHED = ("scheduler.enable_prefix_caching=true",)
WINS = (
    Win("policy", "fcfs", "sjf", "three_tenants", "p99 latency, s"),
    Win("policy", "sjf", "fcfs", "three_tenants", "mean latency, s"),
    Win("policy", "priority", "fcfs", "three_tenants", "p99 TTFT of chat, s"),
    Win("policy", "edf", "fcfs", "three_tenants", "requests over their limits, %"),
    Win("policy", "vtc", "fcfs", "three_tenants", "p99 queue time of reports, s"),
    Win("batching", "chunked", "stage", "unlike_prompts", "p99 TPOT, s"),
    Win("batching", "stage", "chunked", "unlike_prompts", "p99 time between tokens, s"),
    Win("batching", "prefill_first", "chunked", "batching", "p99 TTFT, s"),
    Win("batching", "decode_first", "chunked", "batching", "p99 time between tokens, s"),
    Win("long_prefill_token_threshold", "512", "0", "unlike_prompts", "mean TTFT of chat, s"),
    Win("kv_admission", "prompt", "no_evict", "tight_kv_cache", "mean TTFT, s"),
    Win("kv_admission", "no_evict", "prompt", "tight_kv_cache", "p99 TPOT, s"),
    Win("kv_admission", "oracle", "no_evict", "tight_kv_cache", "mean TTFT, s"),
    Win("preemption", "swap", "recompute", "swap", "mean TTFT, s", unset=("swap_gb_per_s", "swap_space_gb")),
    Win("early_rejection", "true", "false", "overload", "p99 TTFT, s"),
    Win("router", "round_robin", "random", "replicas_least_outstanding", "mean TTFT, s"),
    Win("router", "random", "round_robin", "repeated_suite", "mean TTFT, s"),
    Win("router", "least_outstanding", "round_robin", "slow_replica", "p99 latency, s"),
    Win("router", "power_of_two", "round_robin", "slow_replica", "p99 latency, s"),
    Win("router", "least_kv", "round_robin", "slow_replica", "p99 latency, s"),
    Win("router", "least_tokens", "round_robin", "unlike_prompts", "mean TTFT of chat, s"),
    Win("router", "session_affinity", "round_robin", "sessions", "p99 TTFT, s", _CACHED),
    Win("router", "prefix_affinity", "round_robin", "prefix_affinity", "mean TTFT, s"),
    Win("router", "llm_d", "round_robin", "prefix_affinity", "mean TTFT, s"),
    Win("router", "dynamo", "round_robin", "prefix_affinity", "mean TTFT, s"),
    Win("router", "cache_aware", "round_robin", "prefix_affinity", "mean TTFT, s"),
    Win("router", "weighted", "round_robin", "prefix_affinity", "mean TTFT, s"),
    Win("router", "slo_aware", "round_robin", "prefix_affinity", "requests over their limits, %"),
)


def main() -> int:
    """Run, draw and write, or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(description="Show where each policy and router wins.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page would change")
    check = parser.parse_args().check
    found = {win: win.values() for win in WINS}
    before = PAGE.read_text(encoding="utf-8")
    head, rest = before.split(_BEGIN)
    picture = f"![the figure of each, as a share of the other's]({IMAGE})"
    after = f"{head}{_BEGIN}\n{_table(found)}\n{picture}\n\n{_END}{rest.split(_END)[1]}"
    if not check:
        (DOCS / IMAGE).write_text(_picture(found), encoding="utf-8")
        PAGE.write_text(after, encoding="utf-8")
    return int(check and after != before)


def _table(found: Mapping[Win, tuple[float, float]]) -> str:
    """A row for each win."""
    lines = [
        "| `scheduler` | over | in `examples/` | by | its | the other's |",
        "| --- | --- | --- | --- | ---: | ---: |",
    ]
    for win, (mine, other) in found.items():
        with_more = "".join(f", `{setting}`" for setting in win.settings)
        ways = f"`{win.key}: {win.way}` | `{win.over}`"
        lines.append(f"| {ways} | `{win.example}.yaml`{with_more} | {win.figure} | {mine:.4g} | {other:.4g} |")
    return "".join(f"{line}\n" for line in lines)


def _picture(found: Mapping[Win, tuple[float, float]]) -> str:
    """A bar for each win: its figure as a share of the other's."""
    import matplotlib as mpl  # noqa: PLC0415 the page's text needs none

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    fonts: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8}
    with mpl.rc_context({"svg.hashsalt": "wins"} | fonts):
        drawing, axes = plt.subplots(figsize=(9, 0.24 * len(found) + 0.8), layout="constrained")
        names = [f"{win.key}: {win.way} over {win.over}, {win.figure.partition(',')[0]}" for win in found]
        shares: Sequence[float] = [100 * mine / other for mine, other in found.values()]
        bars = axes.barh(range(len(found)), shares, color=_INK)
        axes.bar_label(bars, fmt="%.3g", padding=2)
        axes.set_yticks(range(len(found)), names)
        axes.axvline(100, color="#999999", linewidth=1)
        axes.set(xlim=(0, 108), xlabel="% of the other's, the less the better")
        axes.invert_yaxis()
        out = io.StringIO()
        drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(drawing)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


if __name__ == "__main__":
    sys.exit(main())
