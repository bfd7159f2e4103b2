"""What metrics cost: the same run without and with them, taking turns; and how long a scrape takes.

python benchmarks/metrics.py [--requests N] [--rounds N] [--replicas N ...] [--json FILE]

alone: the run as `pimserve run` has it. watched: with windows, as every paced run and every run of the service is.
metered: watched, with metrics that another process scrapes once a second. What counts is CPU time of the whole process,
least of all rounds, over what the engine's loop needs alone: others on the machine can only add to it. What another
process does for it, the exporter that writes what is scraped, is none of the engine's. As that time differs
by some per cent between rounds all the same, the metrics' own work is counted too: CPU time of taking in the windows,
and of answering as many scrapes as there were. Digesting the steps that were executed is none of it: the run does
that in any case, if later.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pimserve.cluster.metrics.endpoint import EndpointOptions
from pimserve.cluster.metrics.exporter import exporting
from pimserve.cluster.metrics.feed import MetricsFeed
from pimserve.cluster.metrics.run_metrics import RunMetrics, metrics_of
from pimserve.cluster.run.live_control import LiveControl
from pimserve.cluster.run.run import serve
from pimserve.cluster.run.running_latencies import RunningLatencies
from pimserve.cluster.scenario.document import Scenario, load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.loadgen.objectives import Objectives
from pimserve.scheduler.control import Ledger, RunView
from pimserve.scheduler.simulation import Deployment

LOCAL = EndpointOptions("127.0.0.1:0")
AS_PROMETHEUS = {
    "Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
    "Accept-Encoding": "gzip",
}
SCRAPER = """
import sys, time, urllib.request
while True:
    with urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=dict(zip(*[iter(sys.argv[2:])] * 2)))) as f:
        f.read()
    time.sleep(1)
"""


def once(scenario: Scenario, control: LiveControl | None = None) -> tuple[float, float]:
    """CPU seconds of one run, and seconds of its engine's loop."""
    began = time.process_time()
    _, served = serve(prepare(scenario), deployment=Deployment(control=control))
    return time.process_time() - began, served.loop_s


def watched(scenario: Scenario) -> tuple[float, float]:
    """The same with windows."""
    return once(scenario, LiveControl(RunningLatencies(Objectives(scenario.slo))))


def metered(scenario: Scenario, own: list[tuple[float, int]]) -> tuple[float, float]:
    """The same with everything that a run with `--metrics` has; adds CPU seconds of the feed, and scrapes, to `own`."""
    feed = CountedFeed(metrics_of(prepare(scenario), "benchmark"), Objectives(scenario.slo))
    with exporting(LOCAL, feed.latest) as address, scraped(address):
        times = once(scenario, LiveControl(RunningLatencies(Objectives(scenario.slo)), observer=feed))
    own.append((feed.took_s, feed.scrapes))
    return times


class CountedFeed(MetricsFeed):
    """Counts what it costs: CPU seconds of taking in windows, and scrapes."""

    took_s = 0.0
    scrapes = 0

    def take(self, view: RunView, ledgers: Sequence[Ledger] = ()) -> None:
        """Take in a window."""
        began = time.thread_time()
        super().take(view, ledgers)
        self.took_s += time.thread_time() - began

    def latest(self) -> RunMetrics:
        """What a scrape shows."""
        self.scrapes += 1
        return super().latest()


@contextmanager
def scraped(address: str) -> Iterator[None]:
    """Another process scrapes while the block runs."""
    headers = [text for pair in AS_PROMETHEUS.items() for text in pair]
    command = [sys.executable, "-c", SCRAPER, f"http://{address}/metrics", *headers]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def scrapes_s(scenario: Scenario, times: int) -> list[float]:
    """Seconds of each scrape over HTTP, as Prometheus asks for it."""
    metrics = metrics_of(prepare(scenario), "benchmark")
    with exporting(LOCAL, metrics.copy) as address:
        took = []
        for _ in range(times):
            began = time.perf_counter()
            request = urllib.request.Request(f"http://{address}/metrics", headers=AS_PROMETHEUS)
            with urllib.request.urlopen(request) as answer:
                answer.read()
            took.append(time.perf_counter() - began)
        with urllib.request.urlopen(f"http://{address}/metrics") as answer:
            text = answer.read()
        print(f"{sum(not line.startswith(b'#') for line in text.splitlines()):,} series, {len(text) / 1e6:.1f} MB")
        return took


def scrape_cpu_s(scenario: Scenario, times: int = 20) -> float:
    """CPU seconds that the run's process needs to answer one: its exporter does the rest."""
    metrics = metrics_of(prepare(scenario), "benchmark")
    headers = [text for pair in AS_PROMETHEUS.items() for text in pair]
    code = SCRAPER.replace("while True", f"for _ in range({times})").replace("time.sleep(1)", "pass")
    with exporting(LOCAL, metrics.copy) as address:
        began = time.process_time()
        subprocess.run([sys.executable, "-c", code, f"http://{address}/metrics", *headers], check=True)
        return (time.process_time() - began) / times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 8, 64], help="of runs; the last one of scrapes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    for replicas in arguments.replicas:
        settings = [f"cluster.replicas={replicas}", f"workload.arrival.rate_per_s={12 * replicas}", "slo.ttft_s=0.05"]
        scenario = load_scenario(None, [*settings, f"workload.num_requests={arguments.requests}"])
        own: list[tuple[float, int]] = []
        ways = {"alone": once, "watched": watched, "metered": partial(metered, own=own)}
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                took[name].append(way(scenario))
        least = {name: min(cpu for cpu, _ in times) for name, times in took.items()}
        loop_s = min(loop for _, loop in took["alone"])
        for name, cpu_s in least.items():
            figures[f"{replicas} replicas, {name}, CPU s"] = cpu_s
            more = (cpu_s - least["alone"]) / loop_s
            print(
                f"{replicas:3} replicas, {name:8} {cpu_s:.3f} s CPU, {more:+.1%} of a loop of {loop_s:.2f} s",
                flush=True,
            )
        each_s = scrape_cpu_s(scenario)
        own_s = statistics.median(took_s + scrapes * each_s for took_s, scrapes in own)
        figures[f"{replicas} replicas, metrics' own, CPU s"] = own_s
        print(
            f"{replicas:3} replicas, metrics' own work {own_s:.3f} s CPU, {own_s / loop_s:.1%} of the loop", flush=True
        )
    most = arguments.replicas[-1]
    scrapes = scrapes_s(load_scenario(None, [f"cluster.replicas={most}"]), 20)
    figures["scrape, ms"] = statistics.median(scrapes) * 1e3
    print(f"scrape of {most} replicas: median {figures['scrape, ms']:.0f} ms, most {max(scrapes) * 1e3:.0f} ms")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
