"""What sessions cost the engine: python benchmarks/dependent_requests.py [--sessions N] [--repeat N].

Each case is run with sessions, and with an open loop of the same requests at the times at which these were sent, one
after the other, so that other users of the machine slow both. Prints CPU times and their ratio, of the least of each.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.loadgen.workload import Workload, generate
from pimserve.scheduler.simulation import Served, simulate

CASES = {
    "one replica": ["workload.arrival.rate_per_s=0.8"],
    "one replica, no think time": ["workload.arrival.rate_per_s=0.8", "workload.sessions.think_time_s=0"],
    "4 replicas, round robin": ["cluster.replicas=4", "workload.arrival.rate_per_s=3.2"],
    "4 replicas, least outstanding": [
        "cluster.replicas=4",
        "workload.arrival.rate_per_s=3.2",
        "scheduler.router=least_outstanding",
    ],
    "4 replicas, round robin, no think time": [
        "cluster.replicas=4",
        "workload.arrival.rate_per_s=3.2",
        "workload.sessions.think_time_s=0",
    ],
    "4 replicas, least outstanding, no think time": [
        "cluster.replicas=4",
        "workload.arrival.rate_per_s=3.2",
        "scheduler.router=least_outstanding",
        "workload.sessions.think_time_s=0",
    ],
    "one replica, 16 sessions active": ["workload.arrival=null", "workload.sessions.max_active=16"],
    "4 replicas, round robin, 64 sessions active": [
        "cluster.replicas=4",
        "workload.arrival=null",
        "workload.sessions.max_active=64",
    ],
}
BASE = [
    "model=llama-3.1-8b",
    "cluster={device: h100, devices_per_node: 1}",
    "workload.arrival.process=poisson",
    "workload.lengths={input: {kind: lognormal, median: 200, sigma: 0.8}, "
    "output: {kind: lognormal, median: 150, sigma: 0.5}}",
    "workload.sessions={turns: {kind: geometric, mean: 10}, think_time_s: {kind: exponential, mean_s: 10}}",
]


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of sessions against that of an open loop.")
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    print("| case | requests | open loop, CPU s | sessions, CPU s | ratio |\n| --- | --- | --- | --- | --- |")
    for name, changes in CASES.items():
        count = f"workload.sessions.num_sessions={arguments.sessions}"
        prepared = prepare(load_scenario(None, [*BASE, *changes, count]))
        sessions = generate(prepared.scenario.workload, 0)
        served, _ = _timed(prepared, sessions)
        plain = _open_loop(sessions, served)
        times = [(_timed(prepared, plain)[1], _timed(prepared, sessions)[1]) for _ in range(arguments.repeat)]
        before, after = min(one for one, _ in times), min(other for _, other in times)
        print(f"| {name} | {len(sessions.arrival_ps):,} | {before:.2f} | {after:.2f} | {after / before:.2f} |")


def _open_loop(sessions: Workload, served: Served) -> Workload:
    """The same requests, at the times at which they were sent."""
    sent = served.table["arrival_ps"]
    order = np.argsort(sent, kind="stable")
    inputs, outputs = sessions.input_tokens[order], sessions.output_tokens[order]
    alone = {"turns": None, "max_active_sessions": None, "starts_planned": True}
    return replace(sessions, arrival_ps=sent[order], input_tokens=inputs, output_tokens=outputs, **alone)


def _timed(prepared: Prepared, workload: Workload) -> tuple[Served, float]:
    began = time.process_time()
    served = simulate(
        prepared.pools,
        workload,
        prepared.scenario.scheduler,
        max_model_len=prepared.max_model_len,
        routing=prepared.routing,
    )
    return served, time.process_time() - began


if __name__ == "__main__":
    main()
