"""Speed of shards: 64 replicas in this process, and in one and two processes that are told window by window what to do.

    python benchmarks/shards.py [--requests N] [--replicas N] [--runs N] [--json FILE]

A router hears of the replicas at the end of each window. Figures are the best of the runs, which take turns; steps per
second of the whole loop, from the first window to the last report.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pimserve.cluster.distributed.deployment import distributed
from pimserve.cluster.distributed.run_spread import Spread
from pimserve.cluster.run.run import run
from pimserve.cluster.run.summary_schema import Summary
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare

_WINDOWS_S = (10.0, 1.0, 0.1)
_SHARDS = (None, 1, 2)  # None: this process
_RATE_PER_REPLICA = 10.0


def scenario(replicas: int, requests: int, window_s: float) -> Scenario:
    """Mixtral-8x7B on replicas of 4 Duplex devices, with lengths of the Azure conversation trace."""
    arrival = {"process": "poisson", "rate_per_s": _RATE_PER_REPLICA * replicas}
    return Scenario.model_validate(
        {
            "name": "shards",
            "cluster": {"replicas": replicas},
            "scheduler": {"router": "least_outstanding", "report_interval_s": window_s},
            "workload": {"preset": "azure-conv-2023", "arrival": arrival, "num_requests": requests},
            "output": {"steps": False},
        }
    )


def measure(replicas: int, requests: int, runs: int) -> list[dict[str, Any]]:
    """Figures of every window and number of shards."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="pimserve-benchmarks-") as scratch:
        for window_s in _WINDOWS_S:
            asked = scenario(replicas, requests, window_s)
            digests = set()
            best: dict[int | None, float] = {}
            for attempt in range(runs):
                for shards in _SHARDS:
                    out = Path(scratch) / f"{window_s}-{shards}-{attempt}"
                    summary = _run(asked, shards, out)
                    digests.add(summary.digest)
                    best[shards] = max(best.get(shards, 0.0), summary.simulator.steps_per_s)
            assert len(digests) == 1, "shards gave other bits"
            figures += [{"window_s": window_s, "shards": n, "steps_per_s": rate} for n, rate in best.items()]
    return figures


def _run(asked: Scenario, shards: int | None, out: Path) -> Summary:
    if shards is None:
        return run(prepare(asked), out)
    with distributed(prepare(asked), None, Spread(shards)) as runtime:
        return run(prepare(asked), out, runtime=runtime)


def table(figures: list[dict[str, Any]]) -> str:
    """The figures in Markdown."""
    lines = ["| window | this process | 1 shard | 2 shards |", "| --- | --- | --- | --- |"]
    for window_s in _WINDOWS_S:
        cells = [f"{figure['steps_per_s']:,.0f}" for figure in figures if figure["window_s"] == window_s]
        lines.append(f"| {window_s:g} s | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    asked = parser.parse_args()
    figures = measure(asked.replicas, asked.requests, asked.runs)
    print(f"steps/s, {asked.replicas} replicas, load average {os.getloadavg()[0]:.1f}\n\n{table(figures)}")
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
