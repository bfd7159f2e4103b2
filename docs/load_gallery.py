"""Draw the gallery of docs/load.md: `python docs/load_gallery.py [--check]`.

Each arrival process from a workload section, which the page shows beside the picture; and each trace in
$PIMSERVE_TRACES. Pictures of traces that are not there stay as they are. With --check nothing is written, and the exit
code is 1 if the page would change.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from pimserve.errors import InputError
from pimserve.loadgen.arrivals import ArrivalSpec, arrival_times, clock_of
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.streams import Streams
from pimserve.loadgen.traces import TraceSpec, load_trace

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))  # for when this is not run as a script

from load_pictures import Arrivals, picture  # noqa: E402

PAGE = DOCS / "load.md"
_REQUESTS, _SEED = 40_000, 0
_FEWEST = 100  # arrivals of a trace that is drawn
_BEGIN, _END = "<!-- {} of python docs/load_gallery.py -->\n", "<!-- end of {} -->\n"


@dataclass(frozen=True)
class Exhibit:
    """An arrival process that is drawn: its section, what to see in it, and how much of it the rate's panel shows."""

    name: str
    arrival: str
    text: str
    until_s: float = 1200.0


EXHIBITS = (
    Exhibit("constant", "{process: constant, rate_per_s: 8}", "Equal gaps: counts do not vary."),
    Exhibit("poisson", "{process: poisson, rate_per_s: 8}", "Exponential gaps: on every scale the dispersion is 1."),
    Exhibit(
        "gamma",
        "{process: gamma, rate_per_s: 8, burstiness: 0.25}",
        "Bursty Gamma gaps, of CV 2: counts of long stretches vary by CV^2 = 4 times as much as Poisson ones.",
    ),
    Exhibit(
        "gamma, regular",
        "{process: gamma, rate_per_s: 8, cv: 0.3}",
        "Gaps that vary less than exponential ones, such as of a load balancer in front.",
    ),
    Exhibit(
        "weibull",
        "{process: weibull, rate_per_s: 8, shape: 0.6}",
        "Weibull gaps of shape below 1: bursts, and a long tail of gaps.",
    ),
    Exhibit(
        "mmpp",
        "{process: mmpp, mmpp: {rates_per_s: [30, 2], mean_dwell_s: [20, 60]}}",
        "A rate that jumps between two states (the line is the path that was drawn): within a state Poisson, and ever "
        "more dispersed up to the length of a cycle.",
    ),
    Exhibit(
        "mmpp, on and off",
        "{process: mmpp, mmpp: {rates_per_s: [40, 0], mean_dwell_s: [2, 8]}}",
        "Bursts with nothing between them: gaps are hyperexponential.",
        120.0,
    ),
    Exhibit(
        "rate series",
        "{process: nhpp, rate_series: [[0, 2], [300, 14], [300, 5], [600, 5], [900, 2]]}",
        "Poisson with a rate that is piecewise linear, has a step, and repeats.",
        1800.0,
    ),
    Exhibit(
        "gamma on a moving rate",
        "{process: gamma, burstiness: 0.25, rate_series: [[0, 2], [300, 14], [600, 2]]}",
        "Bursts at a moving rate: gaps are Gamma in the time in which the rate is 1.",
    ),
    Exhibit(
        "stages",
        "{process: poisson, stages: [{rate_per_s: 5, duration_s: 600}, {rate_per_s: 10, duration_s: 600}]}",
        "Stages as in load tools; summary, report and metrics have figures of each. Arrivals end with the last one: "
        "3,000 and 6,000 of them in the mean over seeds, with standard deviations of 55 and 77.",
    ),
    Exhibit(
        "linear ramp",
        "{process: poisson, ramp: {strategy: linear, start_rate_per_s: 1, end_rate_per_s: 20, duration_s: 900}}",
        "A rate that climbs by the same difference every second, and stays where it ends.",
    ),
    Exhibit(
        "exponential ramp",
        "{process: poisson, ramp: {strategy: exponential, start_rate_per_s: 0.5, end_rate_per_s: 30, duration_s: 900}}",
        "The same by a factor: each minute as much more as the one before.",
    ),
    Exhibit(
        "diurnal",
        "{process: poisson, rate_per_s: 8, diurnal: {period_s: 600, amplitude: 0.8, phase_s: 100}}",
        "A rate that goes up and down; a cycle of ten minutes here, of a day by default.",
    ),
)


def main() -> int:
    """Draw and write, or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw the gallery of docs/load.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page would change")
    check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    after = replaced(before, "processes", "".join(process_section(exhibit) for exhibit in EXHIBITS))
    if not check:
        for exhibit in EXHIBITS:
            _write(_image(exhibit.name), picture(process_arrivals(exhibit), exhibit.until_s))
        drawn = "".join(_trace_sections())
        after = replaced(after, "traces", drawn) if drawn else after
        PAGE.write_text(after, encoding="utf-8")
    return int(check and after != before)


def replaced(page: str, part: str, text: str) -> str:
    """The page with another text in a part that is made here."""
    begin, end = _BEGIN.format(part), _END.format(part)
    head, rest = page.split(begin)
    return f"{head}{begin}\n{text}{end}{rest.split(end)[1]}"


def process_section(exhibit: Exhibit) -> str:
    """What the page says of a process."""
    return (
        f"### {exhibit.name[0].upper()}{exhibit.name[1:]}\n\n{exhibit.text}\n\n"
        f"```yaml\nworkload:\n  arrival: {exhibit.arrival}\n```\n\n"
        f"![{exhibit.name}]({_image(exhibit.name)})\n\n"
    )


def process_arrivals(exhibit: Exhibit) -> Arrivals:
    """What is drawn of a process."""
    spec, streams = ArrivalSpec.model_validate(yaml.safe_load(exhibit.arrival)), Streams(_SEED)
    times = arrival_times(spec, streams, _REQUESTS, None) / PS_PER_S
    operational = np.linspace(0, float(len(times)), 20 * _REQUESTS)
    grid = np.linspace(0, exhibit.until_s, 801)
    expected = np.interp(grid, clock_of(spec, streams)(operational), operational)
    return Arrivals(times, ((grid[1:] + grid[:-1]) / 2, np.diff(expected) / np.diff(grid)))


def _trace_sections() -> Iterator[str]:
    folder = Path(os.environ.get("PIMSERVE_TRACES", ""))
    for path in sorted(folder.iterdir()) if "PIMSERVE_TRACES" in os.environ else ():
        if not path.name.endswith((".csv", ".gz", ".jsonl", ".zst")):
            continue
        try:
            trace = load_trace(TraceSpec(path=str(path)))
        except InputError as error:
            print(f"not drawn: {error}")
            continue
        times = trace.arrival_ps / PS_PER_S
        if len(times) < _FEWEST or times[-1] == 0:
            print(f"not drawn: {path.name} has {len(times)} arrivals")
            continue
        name = path.name.partition(".")[0]
        _write(_image(name), picture(Arrivals(times)))
        yield (
            f"### {name}\n\n`{path.name}`, format `{trace.format}`: {len(times):,} requests in {times[-1]:,.1f} s, "
            f"{(len(times) - 1) / times[-1]:.2f} requests/s; median input {np.median(trace.input_tokens):,.0f} tokens, "
            f"output {np.median(trace.output_tokens):,.0f}.\n\n![{name}]({_image(name)})\n\n"
        )


def _image(name: str) -> str:
    """Its path in docs/."""
    return f"images/load_{name.replace(',', '').replace(' ', '_')}.svg"


def _write(path: str, content: str) -> None:
    (DOCS / path).write_text(content, encoding="utf-8")
    print(f"drew docs/{path}")


if __name__ == "__main__":
    sys.exit(main())
