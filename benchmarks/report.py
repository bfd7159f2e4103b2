"""Tables of the figures, in Markdown, and their place in a document."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from cases import Figure

from pimserve.device_models.compiled import COMPILED

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
_COLUMNS = (
    "case", "what", "requests", "replicas", "offered req/s", "steps", "mean batch", "loop s", "process s", "CPU s",
    "peak MB", "steps/s", "requests/s", "output tokens/s", "note",
)  # fmt: skip


def markdown(figures: Sequence[Figure]) -> str:
    """All figures, then the targets."""
    rows = [_row(figure) for figure in figures]
    text = f"{_machine()}\n\n{_table(_COLUMNS, rows)}\n"
    held = [
        (f"{figure.case}: {figure.what}", target.name, f"{'>=' if target.at_least else '<='} {target.limit:,g}",
         _number(target.measured), "yes" if target.met else "NO")
        for figure in figures for target in figure.targets
    ]  # fmt: skip
    if held:
        text += f"\n{_table(('case', 'target', 'limit', 'measured', 'met'), held)}\n"
    return text


def write_into(path: Path, text: str) -> None:
    """Put the text between the markers of a document.

    Raises:
        ValueError: the document has no markers.
    """
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines '{BEGIN}' and '{END}'")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def _row(figure: Figure) -> tuple[str, ...]:
    def rate(count: int | None) -> str:
        return _number(count / figure.loop_s) if count is not None and figure.loop_s else ""

    offered = "" if figure.rate_per_s is None else f"{figure.rate_per_s:.1f}"
    if figure.of_capacity is not None:
        offered += f" ({figure.of_capacity:.0%})"
    loop = "" if figure.loop_s is None else _seconds(figure.loop_s, figure.loop_median_s, figure.runs)
    simulated = figure.case != "yardstick"
    notes = [figure.note] if figure.note else []
    if figure.saturated and figure.case != "load":
        notes.append("saturated")
    return (
        figure.case,
        figure.what,
        _number(figure.requests),
        _number(figure.replicas),
        offered,
        _number(figure.steps),
        "" if figure.mean_batch is None else f"{figure.mean_batch:.1f}",
        loop,
        _seconds(figure.process_s, figure.process_median_s, figure.runs) if simulated else "",
        f"{figure.cpu_s:.2f}" if simulated else "",
        f"{figure.peak_mb:.0f}" if simulated else "",
        rate(figure.steps),
        rate(figure.requests),
        rate(figure.output_tokens),
        "; ".join(notes),
    )


def _seconds(best: float, median: float | None, runs: int) -> str:
    return f"{best:.3f}" if runs == 1 or median is None else f"{best:.3f} ({median:.3f})"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _machine() -> str:
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    part = "with" if COMPILED else "without"
    return (
        f"Python {platform.python_version()}, {part} what is in C, {os.cpu_count()} CPUs ({model}), "
        f"load average at the end {load}. "
        "Times: the best of the runs, the median in brackets. Rates: per second of the loop; `--json` also has them "
        "per second of CPU time."
    )
