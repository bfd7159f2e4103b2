"""What metrics cost: the same run without and with them, taking turns; and how long a scrape takes.

python benchmarks/metrics.py [--requests N] [--rounds N] [--replicas N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import urllib.request
from pathlib import Path

from pimserve.cluster.metrics.endpoint import EndpointOptions, exposing
from pimserve.cluster.metrics.feed import MetricsFeed
from pimserve.cluster.metrics.state import metrics_of
from pimserve.cluster.run import serve
from pimserve.cluster.scenario import Scenario, load_scenario
from pimserve.cluster.service.control import LiveControl
from pimserve.cluster.service.latencies import RunningLatencies
from pimserve.scheduler.simulation import Deployment


def steps_per_s(scenario: Scenario, *, controlled: bool, metered: bool) -> float:
    """Of one run, with everything that a run of the service or of `--metrics` has, or without."""
    control = None
    if controlled:
        feed = MetricsFeed(metrics_of(scenario, "benchmark"), scenario.slo) if metered else None
        control = LiveControl(RunningLatencies(scenario.slo), metrics=feed)
    summary, served = serve(scenario, deployment=Deployment(control=control))
    return float(summary["batch"]["steps"]) / served.loop_s


def scrapes_s(scenario: Scenario, times: int) -> list[float]:
    """Seconds of each scrape over HTTP, and before it the size that it has."""
    metrics = metrics_of(scenario, "benchmark")
    with exposing(EndpointOptions("127.0.0.1:0"), lambda: [metrics.copy()]) as address:
        took = []
        for _ in range(times):
            began = time.perf_counter()
            with urllib.request.urlopen(f"http://{address}/metrics") as answer:
                text = answer.read()
            took.append(time.perf_counter() - began)
        series = sum(not line.startswith(b"#") for line in text.splitlines())
        print(f"{series:,} series, {len(text) / 1e6:.1f} MB")
        return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    for replicas in (1, 8):
        settings = [f"cluster.replicas={replicas}", f"workload.arrival.rate_per_s={12 * replicas}", "slo.ttft_s=0.05"]
        scenario = load_scenario(None, [*settings, f"workload.num_requests={arguments.requests}"])
        rates: dict[str, list[float]] = {"alone": [], "watched": [], "metered": []}
        for _ in range(arguments.rounds):
            rates["alone"].append(steps_per_s(scenario, controlled=False, metered=False))
            rates["watched"].append(steps_per_s(scenario, controlled=True, metered=False))
            rates["metered"].append(steps_per_s(scenario, controlled=True, metered=True))
        alone = statistics.median(rates["alone"])
        for name, each in rates.items():
            found[f"{replicas} replicas, {name}, steps/s"] = median = statistics.median(each)
            print(f"{replicas} replicas, {name:8} {median:10,.0f} steps/s   {median / alone:.3f} of alone")
    took = scrapes_s(load_scenario(None, [f"cluster.replicas={arguments.replicas}"]), 20)
    found["scrape, ms"] = statistics.median(took) * 1e3
    print(
        f"scrape of {arguments.replicas} replicas: median {found['scrape, ms']:.0f} ms, most {max(took) * 1e3:.0f} ms"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
